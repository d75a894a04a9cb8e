"""The notebook: what is stored of it, and that it runs."""

import json
import re
from importlib.util import module_from_spec, spec_from_file_location

import nbformat
import pytest
from datasets import load_dataset
from places import ROOT

SPEC = spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
module = module_from_spec(SPEC)
SPEC.loader.exec_module(module)
MOST_BYTES = 300_000
SIZES = "NUM_IMAGES, MAX_STEPS, HELD_OUT = "


@pytest.fixture
def notebook():
    return nbformat.read(module.NOTEBOOK, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook) -> str:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_the_stored_notebook_was_executed_and_is_small(notebook):
    nbformat.validate(notebook)
    assert module.NOTEBOOK.stat().st_size < MOST_BYTES
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert "error:" not in printed(notebook)
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 3


def test_the_notebook_shows_every_step(notebook):
    headings = re.findall(r"^## (\w+)", "\n".join(cell.source for cell in notebook.cells), re.MULTILINE)
    assert headings == ["Paint", "Look", "Train", "Score", "Card"]


def test_links_of_the_notebook_lead_to_files(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links
    assert [link for link in links if not (module.NOTEBOOK.parent / link).is_file()] == []


def test_what_is_stored_leaves_out_progress_and_times():
    stream = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell(
        outputs=[
            stream("stream", name="stdout", text="a"),
            stream("stream", name="stderr", text="progress"),
            stream("stream", name="stdout", text="b"),
            stream("execute_result", data={"text/plain": "c"}, execution_count=1),
        ],
        metadata={"execution": {"iopub.status.busy": "2020-01-01"}, "tags": ["kept"]},
    )
    text = nbformat.v4.new_markdown_cell("text")
    module.tidy(nbformat.v4.new_notebook(cells=[cell, text]))
    assert [output.get("text") for output in cell.outputs] == ["ab", None]
    assert cell.metadata == {"tags": ["kept"]}
    assert "outputs" not in text


@pytest.mark.slow
def test_the_notebook_runs_at_toy_size(notebook, tmp_path):
    (sizes,) = (cell for cell in notebook.cells if SIZES in cell.source)
    sizes.source = re.sub(rf"{SIZES}.*", f"{SIZES}2, 2, 3", sizes.source)
    module.execute(notebook, tmp_path)
    assert load_dataset(str(tmp_path / "data" / "voc"), split="train").num_rows == 2
    assert json.loads((tmp_path / "runs" / "small" / "training_config.json").read_text())["step"] == 2
    assert json.loads((tmp_path / "metrics.json").read_text())["num_images"] == 3
    assert re.search("^# ", printed(notebook), re.MULTILINE)
    assert "error:" not in printed(notebook)
