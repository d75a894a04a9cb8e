"""The direction of imports: `builders` <- `training` <- `hub`, and no circle of modules.

Every import counts, also those inside functions and under `TYPE_CHECKING`. There is one exception: the block
`if __name__ == "__main__":` of a script may import `attn2mask.__main__` to start the command line.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import pytest
from places import ROOT, syntax_tree

# A package may import itself and the packages before it. The root package re-exports names of the others.
# Of the root package, every module may import `__version__`.
ORDER = ("attn2mask.builders", "attn2mask.training", "attn2mask.hub", "attn2mask")
# These folders are for maintainers. The wheel does not hold them, so nothing else may import them.
MAINTAINERS = ("attn2mask.training.pretraining", "attn2mask.training.experiments")
COMMAND_LINE = "attn2mask.__main__"


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer(module: str) -> int:
    """The place of the module's package in ORDER."""
    return next(i for i, package in enumerate(ORDER) if inside(module, package))


def imported(node: ast.AST, modules: set[str]) -> Iterator[str]:
    """The modules of attn2mask that the import statements in `node` and its `import_module("...")` name."""
    for part in ast.walk(node):
        names = []
        if isinstance(part, ast.Import):
            names = [alias.name for alias in part.names]
        elif isinstance(part, ast.ImportFrom):
            assert part.level == 0, f"line {part.lineno} is a relative import; import absolutely"
            full = [f"{part.module}.{alias.name}" for alias in part.names]
            full = [name for name in full if name != "attn2mask.__version__"]
            names = [name if name in modules else str(part.module) for name in full]
        elif isinstance(part, ast.Call) and ast.unparse(part.func).endswith("import_module") and part.args:
            names = [str(ast.literal_eval(part.args[0]))] if isinstance(part.args[0], ast.Constant) else []
        yield from (name for name in names if inside(name, "attn2mask"))


def is_script_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def problems(sources: Mapping[str, str]) -> list[str]:
    """One line for each upward import, and one for a circle. `sources`: code by the module's name."""
    found = []
    graph: dict[str, set[str]] = {name: set() for name in sources}
    for module, code in sources.items():
        for statement in syntax_tree(code).body:
            for target in imported(statement, set(sources)):
                if is_script_block(statement) and target == COMMAND_LINE:
                    continue
                graph[module].add(target)
                if layer(target) > layer(module):
                    found.append(f"{module} imports {target}, which is above it")
                for package in MAINTAINERS:
                    if inside(target, package) and not any(inside(module, other) for other in MAINTAINERS):
                        found.append(f"{module} imports {target}, which is not in the wheel")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("circle: " + " <- ".join(error.args[1]))
    return found


def test_imports_point_one_way_and_form_no_circle():
    files = [ROOT / "__init__.py", ROOT / "__main__.py"]
    files += [file for package in ("builders", "training", "hub") for file in (ROOT / package).rglob("*.py")]
    sources = {}
    for file in files:
        name = ".".join(["attn2mask", *file.relative_to(ROOT).with_suffix("").parts])
        sources[name.removesuffix(".__init__")] = file.read_text()
    assert {"attn2mask", "attn2mask.builders.build", "attn2mask.hub.cli"} <= set(sources)
    assert problems(sources) == []


A, B, T, H = "attn2mask.builders.a", "attn2mask.builders.b", "attn2mask.training.t", COMMAND_LINE
MAIN = 'if __name__ == "__main__":\n    from attn2mask.__main__ import main\n'


@pytest.mark.parametrize(
    "sources",
    [
        {
            A: "import torch\nfrom attn2mask.builders.b import x",
            B: "",
            T: f"import {A}",
            H: f"import {T}, {B}",
        },
        {A: MAIN, H: f"import {A}"},
        {A: "from attn2mask import __version__", "attn2mask": f"import {A}"},
        {A: "from attn2mask.builders import b", B: "", "attn2mask.builders": ""},
        {"attn2mask": f"import {H}", H: "", "attn2mask.builders": ""},
        {"attn2mask.training.experiments.e": "import attn2mask.training.pretraining.p"},
    ],
)
def test_what_is_allowed(sources):
    assert problems(sources) == []


UPWARD = f"{A} imports {H}, which is above it"


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({A: f"import {H}", H: ""}, UPWARD),
        ({A: "from attn2mask.__main__ import main", H: ""}, UPWARD),
        ({A: "from attn2mask import __main__", H: ""}, UPWARD),
        ({A: "def f():\n    if 1:\n        from attn2mask import __main__", H: ""}, UPWARD),
        ({A: "if TYPE_CHECKING:\n    from attn2mask.__main__ import main", H: ""}, UPWARD),
        ({A: f"import_module('{H}')", H: ""}, UPWARD),
        ({A: MAIN.replace("__name__", "name"), H: ""}, UPWARD),
        (
            {A: MAIN.replace("__main__ import", "hub.publish import")},
            f"{A} imports attn2mask.hub.publish, which is above it",
        ),
        ({A: f"import {T}", T: ""}, f"{A} imports {T}, which is above it"),
        ({T: "from attn2mask.hub import publish"}, f"{T} imports attn2mask.hub, which is above it"),
        ({A: "from attn2mask import Rules"}, f"{A} imports attn2mask, which is above it"),
        (
            {H: "import attn2mask.training.experiments.trials"},
            f"{H} imports attn2mask.training.experiments.trials, which is not in the wheel",
        ),
        ({A: f"import {B}", B: f"def f():\n    import {A}"}, f"circle: {A} <- {B} <- {A}"),
        ({A: f"import {A}"}, f"circle: {A} <- {A}"),
    ],
)
def test_what_is_forbidden(sources, expected):
    assert problems(sources) == [expected]


def test_relative_imports_are_forbidden():
    with pytest.raises(AssertionError, match="line 1 is a relative import"):
        problems({A: "from .b import x"})
