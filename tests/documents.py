"""The documents of the repository, and the commands in them."""

import re
from dataclasses import dataclass

from places import ROOT

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
MARK = "<!-- tested -->"  # right before a block of commands or Python that a test runs as it is typed


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is the line of its opening fence in the document, from 1."""

    line: int
    language: str
    text: str
    tested: bool

    def commands(self) -> list[str]:
        """The commands after `$ ` in a console block; lines that a backslash continues are joined."""
        commands: list[str] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                commands.append(line[2:])
            elif commands and commands[-1].endswith("\\"):
                commands[-1] = commands[-1][:-1].rstrip() + " " + line.strip()
            else:
                raise ValueError(f"block of line {self.line}: {line!r} is no command and continues none")
        return commands


def read(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(text: str) -> list[Block]:
    """All fenced blocks. Raises ValueError for one that does not end, and for a mark without a block."""
    found: list[Block] = []
    start, language, marked, before = 0, None, False, ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*```\s*(\w*)", line)
        if fence and language is None:
            start, language, marked, content = number, fence[1], before == MARK, []
            if marked and language not in ("console", "python"):
                raise ValueError(f"line {number}: a block of {language or 'text'} can't be tested")
        elif fence:
            found.append(Block(start, language, "\n".join(content) + "\n", marked))
            language = None
        elif language is not None:
            content.append(line)
        elif before == MARK:
            raise ValueError(f"line {number - 1}: {MARK} does not stand right before a block")
        before = line.strip()
    if language is not None:
        raise ValueError(f"line {start}: the block does not end")
    if before == MARK:
        raise ValueError(f"the last line: {MARK} does not stand right before a block")
    return found
