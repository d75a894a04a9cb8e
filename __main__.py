"""The entry point of the command line: `attn2mask`, `python -m attn2mask`, and the scripts of commands."""

import sys
from collections.abc import Sequence

from attn2mask.builders.interrupts import (
    STATUS,
    catch_interrupts,
    end_after_interrupt,
    end_now,
    happened,
    ignore_interrupts,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `attn2mask ARGV` as this process. Returns and raises as `attn2mask.hub.cli.main`.

    Ctrl-C is handled before anything else is imported, and ends the process with one line and status 130.
    """
    catch_interrupts()
    try:
        from attn2mask.hub.cli import main as run

        status = run(argv)
    except BaseException:
        if happened():
            end_now()
        raise
    finally:
        if not happened():
            ignore_interrupts()
    if happened() and status == STATUS:
        end_after_interrupt()
    return status


if __name__ == "__main__":
    sys.exit(main())
