"""The folders of the repository and of the real data that some tests need."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Captions, photographs, and street frames are not in the repository. Without them, tests that need them are
# skipped.
DATA = Path(os.environ.get("ATTN2MASK_TEST_DATA", ROOT.parent / "shared" / "data"))
