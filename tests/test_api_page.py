"""docs/api.md: it is what the script makes of the docstrings of today."""

import inspect
import re
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from documents import read
from places import ROOT

import attn2mask

SPEC = spec_from_file_location("api_page", ROOT / "docs" / "api_page.py")
api_page = module_from_spec(SPEC)
SPEC.loader.exec_module(api_page)


def test_the_page_is_made_of_the_docstrings_of_today():
    assert api_page.page() == read("docs/api.md"), "docs/api.md is not up to date: run `make docs`"


def test_every_public_name_has_a_section():
    sections = re.findall(r"^## (\w+)$", read("docs/api.md"), re.MULTILINE)
    assert sorted({*attn2mask.__all__, "LabeledRow"} - {"__version__"}) == sorted(sections)


@pytest.mark.parametrize("name", ["UserError", "load_painter", "load_table", "read_captions"])
def test_a_section_holds_the_docstring_and_all_parameters(name):
    public = getattr(attn2mask, name)
    section = read("docs/api.md").split(f"\n## {name}\n")[1].split("\n## ")[0]
    first, *_ = inspect.getdoc(public).split("\n\n")
    assert first in section
    for parameter in inspect.signature(public).parameters:
        assert re.search(rf"\b{parameter}\b", section.split("```")[1])


SOURCE = '''
class Thing:
    """A thing.

    Args:
        size: how large it is,
            in pixels.

    It ends.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def _hidden(self) -> None:
        """No user needs it."""

    @property
    def area(self) -> int:
        """Its area."""
        return self.size**2
'''

EXPECTED = """## Thing

[things.py](../things.py)

```python
class Thing:
    def __init__(self, size: int) -> None: ...
```

A thing.

Args:

- `size`: how large it is,
  in pixels.

It ends.

### Thing.area

```python
@property
def area(self) -> int: ...
```

Its area.
"""


def test_a_class_becomes_a_section(tmp_path, monkeypatch):
    (tmp_path / "things.py").write_text(SOURCE)
    monkeypatch.setattr(api_page, "ROOT", tmp_path)
    assert "\n".join(api_page.entries("Thing", "things")) == EXPECTED
