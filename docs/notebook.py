"""Executes docs/quickstart.ipynb, and stores it with its outputs. `make notebook` runs it."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")
TIMEOUT = 1800  # seconds that a cell may take


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in `folder`, without the Hub. Raises CellExecutionError if one of them fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    client = NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(folder)}})
    client.execute(env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"})


def tidy(notebook: NotebookNode) -> None:
    """Drop times and what was written to standard error, and join the parts of standard output."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        kept: list[NotebookNode] = []
        for output in cell.get("outputs", ()):
            if output.get("name") == "stdout" and kept and kept[-1].get("name") == "stdout":
                kept[-1].text += output.text
            elif output.get("name") != "stderr":
                kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept


if __name__ == "__main__":
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    tidy(notebook)
    nbformat.write(notebook, NOTEBOOK)
