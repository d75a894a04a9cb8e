"""The public names of the package: which they are, that each exists, and that type checkers see the same."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import attn2mask

NAMES = """
    AttentionRecorder Attn2MaskCityscapes Attn2MaskImageNetS Attn2MaskPipeline Attn2MaskVOC BuildConfig
    ClassTable MeanIoU Painter PromptSource Rules Sample UserError __version__ build_dataset label_image
    load_checkpoint load_painter load_table read_captions
""".split()


def test_these_are_the_public_names():
    assert sorted(attn2mask.__all__) == NAMES
    assert dir(attn2mask) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_exists(name):
    assert getattr(attn2mask, name) is not None


@pytest.mark.parametrize(
    ("code", "given", "policy"),
    [
        ("import attn2mask", None, "PASSIVE"),
        ("import attn2mask", "ACTIVE", "ACTIVE"),
        ("import sys; sys.modules['torch'] = sys; import attn2mask", None, "None"),
    ],
)
def test_threads_wait_passively_if_torch_is_imported_later(code, given, policy):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    command = [sys.executable, "-c", f"{code}; import os; print(os.environ.get('OMP_WAIT_POLICY'))"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == policy


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = attn2mask.nothing


def test_type_checkers_see_the_same_names():
    """The imports under `TYPE_CHECKING` are those that are made when a name is first used."""
    tree = ast.parse(Path(attn2mask.__file__).read_text())
    conditions = (node for node in tree.body if isinstance(node, ast.If))
    (block,) = (node for node in conditions if ast.unparse(node.test) == "TYPE_CHECKING")
    imports = {name.name: node.module for node in block.body for name in node.names}
    assert imports == {name: f"attn2mask.{module}" for name, module in attn2mask._MODULES.items()}


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import sys, attn2mask, attn2mask.builders, attn2mask.training, attn2mask.hub\n"
        "print({'torch', 'diffusers', 'transformers', 'datasets', 'matplotlib', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
