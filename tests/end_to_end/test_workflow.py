"""The workflow of GitHub runs the same checks as .ci/run, with the versions of Python that are supported."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text("utf-8"))


def commands(job: str) -> list[str]:
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_the_checks_are_those_of_ci_run_on_every_supported_python():
    job = WORKFLOW["jobs"]["checks"]
    assert job["runs-on"].startswith("ubuntu")
    assert commands("checks") == [".ci/run"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    minor = "Programming Language :: Python :: 3."
    supported = [line.split(" :: ")[-1] for line in project["classifiers"] if line.startswith(minor)]
    assert job["strategy"]["matrix"]["python"] == supported
    assert "PYTHON" in job["steps"][-1]["env"]  # which the Makefile reads
    assert "PYTHON ?=" in (ROOT / "Makefile").read_text("utf-8")


def test_the_package_is_imported_on_the_other_systems():
    job = WORKFLOW["jobs"]["imports"]
    assert {system.split("-")[0] for system in job["strategy"]["matrix"]["system"]} == {"windows", "macos"}
    assert any("import attn2mask" in command for command in commands("imports"))


def test_the_workflow_may_only_read():
    assert WORKFLOW["permissions"] == {"contents": "read"}
