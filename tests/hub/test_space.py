"""`attn2mask publish space`: what the Space holds, what is refused, and the page that it starts."""

import http.client
import importlib.metadata
import json
import re
import sys
from pathlib import Path

import gradio
import pytest
import yaml
from PIL import Image

from attn2mask.hub import space
from attn2mask.hub.cards.markdown import split
from attn2mask.hub.cards.space import space_card
from attn2mask.hub.preview import page as preview_page
from attn2mask.hub.preview import space as preview_space

PAGE, DATA, MODEL = "org/page", "org/data", "org/model"
WHEEL = f"attn2mask-{importlib.metadata.version('attn2mask')}-py3-none-any.whl"
# The metadata of a Space, and their kinds, by the Hub's "Spaces Configuration Reference".
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
KEYS = {
    "title": str,
    "emoji": str,
    "colorFrom": str,
    "colorTo": str,
    "sdk": str,
    "sdk_version": str,
    "python_version": str,
    "app_file": str,
    "pinned": bool,
    "license": str,
    "datasets": list,
    "models": list,
    "tags": list,
}


@pytest.fixture(autouse=True)
def small_wheel(monkeypatch) -> None:
    """In place of the real one, which takes seconds, and which tests/end_to_end/test_packaging.py checks."""
    monkeypatch.setattr(space, "wheel_of", lambda package: b"a wheel")


@pytest.fixture
def shown(hub):
    """A dataset with one config and a model, as far as `publish space` looks at them."""
    hub.put("dataset", DATA, {"voc/build.json": b"{}", "voc/train-00000.parquet": b"rows"})
    hub.put("model", MODEL, {"config.json": b"{}"})
    return hub


def metadata(card: bytes) -> dict:
    """The metadata of a Space's card, whose keys and values must be those that the Hub knows."""
    data = split(card.decode())[0]
    assert set(data) <= set(KEYS)
    assert all(isinstance(value, KEYS[key]) for key, value in data.items())
    assert {data["colorFrom"], data["colorTo"]} <= COLORS
    return data


def test_a_space_of_a_dataset_is_one_commit_with_four_files(shown, publish):
    status, printed, _ = publish("space", PAGE, "--dataset", DATA)
    assert status == 0
    assert printed.startswith("published org/page: 4 files")
    assert f"{shown.url}/spaces/{PAGE}/commit/" in printed
    files = shown.files("space", PAGE)
    assert set(files) == {".gitattributes", "README.md", "app.py", "requirements.txt", WHEEL}
    assert files[WHEEL] == b"a wheel"
    created = [json.loads(request.body) for request in shown.requests("POST /api/repos/create")]
    assert [(asked["type"], asked["sdk"]) for asked in created] == [("space", "gradio")]
    assert len(shown.requests(f"POST /api/spaces/{PAGE}/commit/main")) == 1
    data = metadata(files["README.md"])
    assert data["sdk"] == "gradio"
    assert data["sdk_version"] == gradio.__version__
    assert data["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert data["app_file"] == "app.py"
    assert data["datasets"] == [DATA]
    assert "models" not in data
    assert data["license"] == "apache-2.0"
    text = files["README.md"].decode()
    assert f"[{DATA}](https://huggingface.co/datasets/{DATA})" in text
    assert "configuration reference" not in text
    assert files["app.py"].decode().endswith(f"start(kind='dataset', repo='{DATA}', model='embedded')\n")
    compile(files["app.py"], "app.py", "exec")


def test_publishing_again_sends_nothing_and_keeps_what_the_owner_chose(shown, publish):
    assert publish("space", PAGE, "--dataset", DATA)[0] == 0
    assert "nothing is new" in publish("space", PAGE, "--dataset", DATA)[1]
    card = shown.files("space", PAGE)["README.md"].decode()
    mine = re.sub("(?m)^title: .*$", "title: My rows", card) + "\nMy own words.\n"
    old = {"README.md": mine.encode(), "attn2mask-0.0.1-py3-none-any.whl": b"old", "notes.txt": b"mine"}
    shown.put("space", PAGE, old)
    assert publish("space", PAGE, "--checkpoint", MODEL, "--model", "owner/painter")[0] == 0
    files = shown.files("space", PAGE)
    data = metadata(files["README.md"])
    assert (data["title"], data["models"]) == ("My rows", [MODEL, "owner/painter"])
    assert files["README.md"].decode().rstrip().endswith("My own words.")
    assert "attn2mask-0.0.1-py3-none-any.whl" not in files
    assert files["notes.txt"] == b"mine"
    call = f"start(kind='model', repo='{MODEL}', model='owner/painter')\n"
    assert files["app.py"].decode().endswith(call)


def test_a_card_without_a_repository_has_all_metadata():
    card = space_card(PAGE, "model", MODEL, "embedded", "6.31.0", "3.11")
    data = metadata(card.text.encode())
    assert list(data) == list(yaml.safe_load(card.text.split("---")[1]))
    assert (data["title"], data["models"], data["tags"]) == ("page", [MODEL], ["attn2mask"])
    assert data["python_version"] == "3.11"  # a string: 3.10 would be read as the number 3.1


def test_requirements_are_the_installed_versions_for_a_cpu():
    class Package:
        requires = ("numpy>=2.0", "torch>=2.8", 'gradio>=6; extra == "preview"')

    index, *pins, end = space.requirements(Package()).split("\n")
    assert index == "--extra-index-url https://download.pytorch.org/whl/cpu"
    version = importlib.metadata.version
    assert pins == [f"numpy=={version('numpy')}", f"torch=={version('torch').split('+')[0]}"]
    assert end == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the Space shows one dataset or one checkpoint: give --dataset or --checkpoint"),
        (["--dataset", DATA, "--checkpoint", MODEL], "the Space shows one dataset or one checkpoint"),
        (["--dataset", "org/none"], "the Hub has no dataset org/none that you may read: publish it first"),
        (["--checkpoint", DATA], f"the Hub has no model {DATA} that you may read: publish it first"),
        (["--checkpoint", "org/lora"], "org/lora holds no checkpoint (it has no config.json)"),
        (
            ["--dataset", "org/foreign"],
            "org/foreign holds no build that `attn2mask publish dataset` published",
        ),
        (
            ["--dataset", "org/two"],
            "org/two has several configs: choose one with --config-name: kitchen, voc",
        ),
        (["--dataset", DATA, "--config-name", "kitchen"], f"--config-name kitchen: {DATA} has only voc"),
        (["--checkpoint", MODEL, "--config-name", "voc"], "--config-name is for --dataset"),
        (["--dataset", "data"], "--dataset data: a Space needs a repository of the Hub: NAMESPACE/NAME"),
        (["--dataset", DATA, "--model", "a'b/c"], "--model a'b/c: a Space needs a repository of the Hub"),
        (["--dataset", DATA, "--model", "runs/painter"], "--model runs/painter: a Space needs a repository"),
    ],
)
def test_mistakes_are_one_line(shown, publish, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    Path("runs/painter").mkdir(parents=True)
    shown.put("model", "org/lora", {"pytorch_lora_weights.safetensors": b""})
    shown.put("dataset", "org/foreign", {"data.csv": b"1"})
    shown.put("dataset", "org/two", {"voc/build.json": b"{}", "kitchen/build.json": b"{}"})
    status, _, error = publish("space", PAGE, *argv)
    assert status == 2
    assert error.startswith(f"attn2mask: error: {message}")
    assert ("space", PAGE) not in shown.repos


def test_without_gradio_it_says_how_to_install_it(shown, publish, monkeypatch):
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(space, "version", version)
    needed = "publish space needs gradio, an optional extra: pip install 'attn2mask[preview]'"
    assert publish("space", PAGE, "--dataset", DATA) == (2, "", f"attn2mask: error: {needed}")


def test_a_dry_run_works_without_a_token(shown, publish, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    status, printed, _ = publish("space", PAGE, "--dataset", DATA, "--dry-run")
    assert status == 0
    assert [line.split()[-1] for line in printed.splitlines()[:4]] == sorted(
        ["README.md", "app.py", WHEEL, "requirements.txt"]
    )
    assert "sdk: gradio" in printed
    assert "nothing was published: 4 files" in printed
    assert ("space", PAGE) not in shown.repos


def test_a_private_space(shown, publish):
    assert publish("space", PAGE, "--dataset", DATA, "--private")[0] == 0
    assert shown.repos["space", PAGE].private


def test_a_space_of_others_is_not_overwritten(shown, publish):
    shown.put("space", PAGE, {"app.py": b"their own"})
    status, _, error = publish("space", PAGE, "--dataset", DATA)
    assert status == 2
    assert "org/page holds files that attn2mask did not publish, such as app.py" in error
    assert shown.files("space", PAGE)["app.py"] == b"their own"


# The page of the Space


@pytest.fixture
def started(hub, publish, make_build, tmp_path, monkeypatch):
    """What `start` gives to gradio for a published dataset of three shards, of which it downloads two."""
    for name in ("hub.cards.dataset.class_chart", "builders.show.sheet"):  # which take seconds
        monkeypatch.setattr(f"attn2mask.{name}", lambda *_: Image.new("RGB", (4, 4)))
    build = make_build(tmp_path / "voc", rows=6)
    assert publish("dataset", build, DATA)[0] == 0
    shards = sorted((build / "data").iterdir())
    monkeypatch.setattr(preview_space, "MOST_BYTES", sum(shard.stat().st_size for shard in shards[:2]))
    made = {}

    def serve_page(name, make, in_space):
        made.update(name=name, make=make, in_space=in_space)

    monkeypatch.setattr(preview_space, "serve_page", serve_page)

    def start(**variables: str) -> dict:
        monkeypatch.delenv("SPACE_ID", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        preview_space.start("dataset", DATA)
        return made

    return start


def test_the_page_shows_the_rows_and_the_card_of_the_repository(hub, started):
    made = started()
    assert (made["name"], made["in_space"]) == (DATA, False)
    assert started(SPACE_ID=PAGE)["in_space"] is True
    app = made["make"]()
    shown = json.dumps(app.config, default=str)
    assert f"<h1>{DATA}</h1>" in shown
    assert "1 to 4 of 4 rows" in shown  # the rows of the shards that were downloaded
    root, folder = preview_space.download("dataset", DATA, None)
    assert sorted(file.name for file in folder.iterdir()) == [
        "build.json",
        "report.json",
        "train-00000.parquet",
        "train-00001.parquet",
    ]
    card = preview_space.card_in(root)
    assert card.text.encode() == hub.files("dataset", DATA)["README.md"]
    assert "assets/voc-classes.png" in card.files


def test_a_space_without_its_dataset_ends_with_one_line(hub, publish):
    hub.put("dataset", DATA, {"data.csv": b"1"})
    with pytest.raises(SystemExit, match=rf"^attn2mask: error: {DATA} holds no build"):
        preview_space.start("dataset", DATA)


def test_the_page_serves_every_host_in_a_space_only(make_build, tmp_path):
    build = make_build(tmp_path / "voc", rows=2)
    for in_space in (False, True):
        app = preview_page.make_app(build)
        port = int(preview_page.serve(app, None, in_space).rstrip("/").rpartition(":")[2])
        try:
            statuses = [
                answer(port, method, {"Host": "org-page.hf.space", **headers})
                for method, headers in [("GET", {}), ("POST", {"Content-Length": str(2**30)})]
            ]
        finally:
            app.close(verbose=False)
        assert statuses == ([200, 413] if in_space else [403, 403])


def answer(port: int, method: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, "/", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()
