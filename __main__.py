"""`python -m attn2mask` is the command `attn2mask`."""

import sys

from attn2mask.hub.cli import main

if __name__ == "__main__":
    sys.exit(main())
