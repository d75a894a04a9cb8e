"""The folders of the repository and of the real data that some tests need."""

import ast
import os
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Captions, photographs, and street frames are not in the repository. Without them, tests that need them are
# skipped.
DATA = Path(os.environ.get("ATTN2MASK_TEST_DATA", ROOT.parent / "shared" / "data"))


def syntax_tree(code: str, name: str = "code") -> ast.Module:
    """The syntax tree of Python 3.11 code.

    CPython before 3.11.8 sometimes raises SystemError for valid code if other code is parsed at the same time
    (its issue 106905). Parsing again then succeeds.
    """
    for _ in range(4):
        with suppress(SystemError):
            return ast.parse(code, name, feature_version=(3, 11))
    return ast.parse(code, name, feature_version=(3, 11))
