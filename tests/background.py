"""Tests in the background: a shell ignores Ctrl-C in such jobs, and what they start would ignore it too."""

import signal


def let_children_get_signals() -> None:
    """Let processes that are started from here on get SIGINT and SIGHUP, also if this process ignores them.

    It goes on to do nothing about them. A handler, unlike what is ignored, is not inherited.
    """
    for which in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(which) is signal.SIG_IGN:
            signal.signal(which, lambda number, frame: None)
