"""Where the tests find the repository, and the real data that some of them need."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Captions, photographs and street frames are not part of the repository. Tests that need them are skipped elsewhere.
DATA = Path(os.environ.get("ATTN2MASK_TEST_DATA", ROOT.parent / "shared" / "data"))
