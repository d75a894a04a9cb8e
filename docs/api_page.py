"""Writes docs/api.md from the signatures and docstrings of the public names. `make docs` runs it.

It parses the source files, and imports none of them. A test compares the page with the code.
"""

import ast
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent, indent

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
RETURNED = {"LabeledRow": "builders.pipeline"}  # classes that no user imports, but that users get
INTRODUCTION = """# Python interface

`make docs` writes this page from the docstrings. `from attn2mask import NAME` works for all names but
`LabeledRow`, which `Attn2MaskPipeline` returns. `attn2mask build --help` explains the options of
`BuildConfig`, `build_dataset` and the dataset builders.
"""
Documented = ast.ClassDef | ast.FunctionDef


def public_modules() -> dict[str, str]:
    """The module of each public name but `__version__`, as the root package lists it."""
    tree = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    (modules,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES"
    )
    return modules


def page() -> str:
    """The text of docs/api.md."""
    modules = public_modules() | RETURNED
    sections = [text for name in sorted(modules) for text in entries(name, modules[name])]
    return "\n".join([INTRODUCTION, *sections]).rstrip() + "\n"


def entries(name: str, module: str) -> Iterator[str]:
    """The section of a public name, and those of the public methods that its class itself defines."""
    file = f"{module.replace('.', '/')}.py"
    source = (ROOT / file).read_text("utf-8")
    (node,) = (node for node in ast.parse(source).body if getattr(node, "name", None) == name)
    yield f"## {name}\n\n[{file}](../{file})\n\n{entry(node, source)}"
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(method, ast.FunctionDef) and is_documented(method):
            yield f"### {name}.{method.name}\n\n{entry(method, source)}"


def is_documented(method: ast.FunctionDef) -> bool:
    return ast.get_docstring(method) is not None and (
        not method.name.startswith("_") or method.name in ("__init__", "__call__")
    )


def entry(node: Documented, source: str) -> str:
    """The signature, and the docstring."""
    text = as_markdown(ast.get_docstring(node, clean=False))
    return f"```python\n{signature(node, source)} ...\n```\n\n{text}\n"


def signature(node: Documented, source: str) -> str:
    """The signature as the source has it; of a class, with its `__init__` if this has no docstring."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = source.splitlines()[first - 1 : node.body[0].lineno - 1]
    own = dedent("\n".join(lines)).rstrip()
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        if getattr(method, "name", None) == "__init__" and not is_documented(method):
            return f"{own}\n{indent(signature(method, source), '    ')}"
    return own


def as_markdown(docstring: str) -> str:
    """A docstring with lists in the place of its sections, such as "Args:"."""
    lines, in_section = [], False
    for line in cleandoc(docstring).splitlines():
        if line and not line.startswith(" "):
            in_section = line in ("Args:", "Attributes:", "Raises:")
            lines += [line, ""] if in_section else [line]
        elif in_section and (item := re.match(r"    (\w[\w, *]*): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            lines.append(line[6:] if in_section else line)
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
