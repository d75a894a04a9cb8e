"""The preview page: what its pieces say of rows, rules and cards, and the page itself in headless Chromium.

The browser's part is skipped where no Chromium is installed, the one thing that pip can't bring; screenshots
lie in pytest's folder.
"""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from transformers import ResNetConfig

from attn2mask.builders.build import BuildConfig, identity, make_dataset
from attn2mask.builders.classes import ClassTable, LabelClass
from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_png, overlay
from attn2mask.builders.label import label
from attn2mask.builders.provenance import provenance
from attn2mask.builders.rules import load_rules
from attn2mask.builders.sample import Sample, features
from attn2mask.builders.shards import BuildDirectory, plan
from attn2mask.builders.table_reader import load_table
from attn2mask.hub import preview
from attn2mask.hub.cli import main
from attn2mask.training.checkpoint import load_checkpoint, make_processor, save_checkpoint
from attn2mask.training.inference import segment
from attn2mask.training.models import build_network

TABLE, RULES = load_table("voc"), load_rules("default")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")  # or playwright's own
PROMPT = "a <b>{}</b> & ${{1 + 1}}, {{{{2 * 3}}}}"  # what HTML or a template would read otherwise


def drawn_sample(index: int) -> Sample:
    """A drawn scene of 64 x 64 whose class scores are its exact mask made coarse, labeled by RULES."""
    scene = draw_scene("objects", np.random.default_rng([5, index]), 64)
    classes = [int(k) for k in np.unique(scene.mask) if k not in (0, 255)]
    names = [TABLE.names[k] for k in classes]
    masks = [Image.fromarray(np.uint8(255 * (scene.mask == k))) for k in classes]
    scores = np.stack([np.asarray(mask.resize((8, 8), Image.Resampling.BOX)) for mask in masks])
    made = label(scene.image, scores, [0.25] * len(classes), classes, names, RULES, TABLE)
    kept = list(made.kept)
    return Sample(
        f"voc-0-{index:08d}", made.image, made.mask, made.reliability, PROMPT.format(names[0]), "a thing",
        tuple(classes[k] for k in kept), tuple(names[k] for k in kept), index, (0.25,) * len(kept),
        scores[kept], made.dropped, (), made.foreground, made.reliable,
    )  # fmt: skip


def build(path: Path, count: int = 5, scores: bool = True) -> BuildDirectory:
    """A build of drawn scenes in shards of two, as `attn2mask build` leaves it."""
    config = BuildConfig(
        "voc", num_images=count, shard_size=2, steps=20, guidance_scale=3.0, height=64, width=64,
        store_scores=scores,
    )  # fmt: skip
    painter = {
        "model": "embedded",
        "model_version": "sha256:abc",
        "pipeline": "StableDiffusionPipeline",
        "scheduler": {"class": "DDIMScheduler"},
    }
    record = {
        "command": "build",
        "num_images": count,
        "identity": identity(config, TABLE, RULES, None) | painter,
        "captions": {"source": "built-in grammar", "naming_a_class": 0},
        "batch_size": 8,
        "device": "cpu",
        "dtype": "float32",
        **provenance(),
        "table": asdict(TABLE),
    }
    directory = BuildDirectory(path)
    path.mkdir()
    make_dataset(directory, record, TABLE, scores, lambda shard, _: map(drawn_sample, shard.rows))
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> BuildDirectory:
    return build(tmp_path_factory.mktemp("build") / "voc")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A checkpoint of two tiny networks."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny = ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1] * 4)
    tiny.save_pretrained(folder / "backbone")
    first, second = (build_network("deeplabv3plus", str(folder / "backbone"), TABLE, seed) for seed in (1, 2))
    save_checkpoint(folder / "run", first, second, make_processor(), {})
    return folder / "run"


@pytest.fixture
def no_cards(monkeypatch):
    """Cards of a line and a figure, in place of the real ones; the list of what was asked for."""
    asked = []

    def write(*what) -> SimpleNamespace:
        asked.append(what)
        text = "---\nlicense: apache-2.0\n---\n\n# The card\n\n![a figure](assets/one.png)\n"
        return SimpleNamespace(text=text, files={"assets/one.png": PIXEL, ".eval_results/x.yaml": b"a: 1"})

    for name in ("dataset_card", "model_card", "adapter_card"):
        stub = SimpleNamespace(**{name: lambda *what, name=name: write(name, *what)})
        monkeypatch.setitem(sys.modules, f"attn2mask.hub.{name}", stub)
    return asked


PIXEL = encode_png(np.full((4, 4, 3), 200, np.uint8))


def pictures(html: str) -> dict[str, np.ndarray]:
    """Caption to pixels of every picture in the page."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', html)
    return {name: np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))) for content, name in found}


# Rows and rules


def test_rows_are_read_one_by_one_from_their_shards(data):
    for index in range(5):
        row = preview.read_row(data, index)
        assert row["sample_id"] == f"voc-0-{index:08d}"
        assert row["scores"] == drawn_sample(index).scores.tolist()
    with pytest.raises(UserError, match="has no row 5"):
        preview.read_row(data, 5)


def test_rows_come_out_of_later_row_groups(tmp_path):
    directory = BuildDirectory(tmp_path)
    record = {"num_images": 40, "identity": {"shard_size": 40}, "table": asdict(TABLE), "versions": {}}
    (tmp_path / "build.json").write_text(json.dumps(record))
    (shard,) = plan(40, 40)
    rows = [drawn_sample(0).to_row(False) | {"seed": k} for k in range(40)]
    directory.write_shard(shard, features(TABLE, False), rows, {})
    assert [preview.read_row(directory, k)["seed"] for k in (0, 15, 16, 31, 32, 39)] == [
        0,
        15,
        16,
        31,
        32,
        39,
    ]


@pytest.mark.parametrize("state", ["missing", "damaged"])
def test_a_shard_that_is_not_there_or_not_whole_is_named(tmp_path, state):
    directory = build(tmp_path / "voc", 3)
    file = tmp_path / "voc" / "data" / "train-00001.parquet"
    if state == "missing":
        (tmp_path / "voc" / "manifest" / "00001.json").unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert preview.read_row(directory, 1)["seed"] == 1
    with pytest.raises(UserError, match=f"row 2: .*train-00001.parquet is {state}"):
        preview.read_row(directory, 2)


def test_a_row_shows_its_own_pictures_and_text_as_it_stands(data):
    row = preview.read_row(data, 0)
    html = preview.row_page(row, data, RULES)
    shown = pictures(html)
    picture = Image.open(io.BytesIO(row["image"]["bytes"]))
    reliability = np.asarray(Image.open(io.BytesIO(row["reliability"]["bytes"])))
    assert np.array_equal(shown["picture"], np.asarray(picture))
    assert np.array_equal(shown["mask"], np.asarray(overlay(picture, row["mask"], TABLE)))
    assert np.array_equal(shown[f"reliability: {reliability.mean() / 255:.0%}"], reliability)
    assert len(shown) == 3 + len(row["classes"])
    assert "<b>" not in html
    assert "&lt;b&gt;<mark" in html  # the class word is marked, and what stands around it is text
    ids = np.asarray(Image.open(io.BytesIO(row["mask"]["bytes"])))
    for k, word in zip(row["classes"], row["words"], strict=True):
        assert (
            f"{TABLE.names[k]} <span>{np.mean(ids == k):.1%} as \u201c{word}\u201d, peak 0.250</span>" in html
        )
    assert "changed" not in html
    assert "caption: a thing" in html


@pytest.mark.parametrize(
    "values",
    [
        ("fixed", 0.4, "agreement", False),
        ("agreement", 0.9, "two-threshold", False),
        ("otsu", 0.2, "margin", True),
    ],
)
def test_other_rules_show_what_remask_would_make(data, values):
    row = preview.read_row(data, 1)
    rules = preview.try_rules(RULES, *values)
    threshold, beta, reliability, graded = values
    beta = beta if threshold == "fixed" else RULES.beta
    assert rules == replace(RULES, threshold=threshold, beta=beta, reliability=reliability, graded=graded)
    html = preview.row_page(row, data, rules)
    scores = np.asarray(row["scores"], np.uint8)
    made = label(row["image"]["bytes"], scores, row["peaks"], row["classes"], row["words"], rules, TABLE)
    picture = Image.open(io.BytesIO(row["image"]["bytes"]))
    shown = pictures(html)
    assert np.array_equal(shown["mask"], np.asarray(overlay(picture, {"bytes": made.mask}, TABLE)))
    trust = np.asarray(Image.open(io.BytesIO(made.reliability)))
    assert np.array_equal(shown[f"reliability: {trust.mean() / 255:.0%}"], trust)
    assert 'class="changed"' in html


def test_the_builds_own_rules_change_nothing(data):
    """Not even by way of the widgets, whose numbers are floats."""
    assert preview.try_rules(RULES, "otsu", 0.7, "agreement", False) == data.rules == RULES
    assert preview.try_rules(RULES) == RULES


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": "fixed"}, "--threshold fixed"),
        ({"threshold": "fixed", "beta": 0.35}, "--threshold fixed --beta 0.35"),
        ({"reliability": "margin", "graded": True}, "--reliability margin --graded true"),
    ],
)
def test_the_command_for_rules_is_one_that_remask_takes(data, changes, said):
    from attn2mask.builders.build import with_options
    from attn2mask.builders.options import parse
    from attn2mask.builders.remask import RemaskConfig

    rules = replace(RULES, **changes)
    command = preview.remask_command(data, rules)
    assert command == f"attn2mask remask {data.path} {said}"
    assert with_options(RULES, parse(RemaskConfig, command.split()[2:], "", "")) == rules


def test_a_class_that_the_rules_drop_is_named(data):
    row = preview.read_row(data, 0)
    row["peaks"] = [0.0] * len(row["peaks"])
    html = preview.row_page(row, data, replace(RULES, reliability="margin"))
    assert f"dropped: {row['words'][0]}: its map is empty" in html
    assert "ignored <span>100.0%" in html


def test_a_row_without_classes_is_shown(data):
    row = preview.read_row(data, 0) | {"classes": [], "words": [], "peaks": [], "scores": []}
    assert preview.row_page(row, data, RULES).count("<figure") == 3
    assert preview.row_page(row, data, replace(RULES, threshold="fixed")).count("<figure") == 3


def test_large_tables_have_masks_of_16_bits():
    classes = tuple(LabelClass(f"thing {k}", (f"thing{k}",), (), (k % 256, k // 256, 7)) for k in range(300))
    table = ClassTable("many", classes, "background")
    ids = np.array([[0, 299], [299, 65535]], np.uint16)
    legend = preview._legend(ids, table, {})
    assert "thing 298 <span>50.0%" in legend
    assert "ignored <span>25.0%" in legend


# The card


def test_the_card_is_the_one_that_publishing_would_write(data, run, tmp_path, no_cards):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    for folder in (data.path, run, tmp_path):
        preview.write_card(folder, "me/it")
    assert no_cards == [
        ("dataset_card", {"voc": data.path}, "me/it"),
        ("model_card", run, "me/it"),
        ("adapter_card", tmp_path, "me/it"),
    ]


def test_a_cards_figures_stand_inside_it(no_cards):
    metadata, text = preview.card_parts(preview.write_card(Path("adapter"), "me/it"))
    assert metadata == "license: apache-2.0"
    address = f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
    assert text == f"# The card\n\n![a figure]({address})"
    tag = SimpleNamespace(
        text='---\na: 1\n---\n<img src="assets/one.png">\nassets/one.png\n---\n',
        files={"assets/one.png": PIXEL},
    )
    assert preview.card_parts(tag) == ("a: 1", f'<img src="{address}">\nassets/one.png\n---')


@pytest.fixture
def adapter(tiny_lora, tmp_path) -> Path:
    """A LoRA with the record that its training leaves."""
    folder = shutil.copytree(tiny_lora, tmp_path / "adapter")
    record = {"base_model": "owner/painter", "instance_prompt": "a photo of a sks street", "seed": 4711}
    (folder / "training_config.json").write_text(json.dumps(record))
    return folder


def test_the_real_card_of_an_adapter(adapter):
    metadata, text = preview.card_parts(preview.write_card(adapter, "me/streets"))
    assert yaml.safe_load(metadata)["base_model"] == "owner/painter"
    assert 'load_lora_weights("me/streets")' in text
    assert "| seed | 4711 |" in text
    assert "| rank of the weights | 2 |" in text


def test_the_real_card_needs_no_file_beside_it(data):
    card = preview.write_card(data.path, "me/things")
    metadata, text = preview.card_parts(card)
    assert yaml.safe_load(metadata)["configs"][0]["config_name"] == "voc"
    assert text.count("data:image/png;base64,") == len(card.files) > 0
    assert "assets/" not in text


# A picture for a checkpoint


def test_a_picture_is_segmented_by_both_networks_and_each(run):
    checkpoint = load_checkpoint(run)
    picture = Image.fromarray(draw_scene("objects", np.random.default_rng(3), 96).image)
    html = preview.segment_page(checkpoint, picture)
    shown, pair = pictures(html), [checkpoint.network, checkpoint.peer]
    assert list(shown) == ["picture", "both networks", "network A", "network B"]
    for name, networks in (("both networks", pair), ("network A", pair[:1]), ("network B", pair[1:])):
        ids = segment(networks, checkpoint.processor, np.asarray(picture))
        tinted = overlay(picture, {"bytes": encode_png(ids.astype(np.uint8))}, TABLE)
        assert np.array_equal(shown[name], np.asarray(tinted))
    checkpoint.peer = None
    assert list(pictures(preview.segment_page(checkpoint, picture))) == ["picture", "found"]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_any_picture_will_do_and_large_ones_are_made_smaller(run, monkeypatch, mode):
    monkeypatch.setattr(preview, "LONGEST", 64)
    shown = pictures(preview.segment_page(load_checkpoint(run), Image.new(mode, (160, 80))))
    assert {array.shape for array in shown.values()} == {(32, 64, 3)}


# The command


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "DIR is missing"),
        (["nowhere"], "nowhere holds nothing to preview: no build (build.json), checkpoint (config.json) or"),
        (["nowhere", "--port", "0"], "--port 0: it must lie between 1 and 65535"),
        (["nowhere", "--port", "70000"], "--port 70000: it must lie between 1 and 65535"),
    ],
)
def test_mistakes_are_one_line(capsys, argv, message):
    assert main(["preview", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_the_extra_it_says_how_to_install_it(data, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # an import of it raises ImportError
    assert main(["preview", str(data.path)]) == 2
    error = capsys.readouterr().err
    assert "preview needs gradio, an optional extra: pip install 'attn2mask[preview]'" in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_named(data):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} is taken"):
            preview.serve(preview.make_app(data.path), port)


WATCHED = """
import sys

def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1"):
        print("OUTSIDE", args[1], file=sys.stderr)
    if event == "socket.getaddrinfo" and args[0] not in (None, "127.0.0.1", b"127.0.0.1", "localhost"):
        print("OUTSIDE", args[0], file=sys.stderr)

sys.addaudithook(watch)
from attn2mask.hub.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_serves_this_machine_alone_until_it_is_interrupted(data, tmp_path):
    """Also behind a proxy; nothing is looked up or reached outside, and no file is left."""
    places = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", WATCHED, "preview", str(data.path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | places | proxy
    ) as process:
        line = process.stdout.readline()
        assert re.fullmatch(rf"{data.path}: http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n", line), (
            line or process.stderr.read()
        )
        listening = [
            place.laddr.ip
            for place in psutil.Process(process.pid).net_connections("inet")
            if place.status == psutil.CONN_LISTEN
        ]
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert set(listening) == {"127.0.0.1"}
    assert process.returncode == 0
    assert "OUTSIDE" not in error
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("attn2mask")] == []


# The page, in a browser


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # machines that run tests are busy
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, CHROMIUM)), playwright.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip("no Chromium is installed (apt-get install chromium, or playwright install chromium)")
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser, folder: Path) -> Iterator:
    """The page of a folder. On leaving, it must have asked nobody else for anything, and met no error."""
    app = preview.make_app(folder)
    address = preview.serve(app, None)
    page = browser.new_page(viewport={"width": 1400, "height": 950})
    page.set_default_timeout(60_000)
    strangers, errors = [], []
    page.on(
        "request",
        lambda asked: asked.url.startswith((address, "data:", "blob:")) or strangers.append(asked.url),
    )
    page.on("response", lambda given: given.status < 400 or errors.append(f"{given.status} {given.url}"))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: said.type != "error" or errors.append(said.text))
    try:
        page.goto(address)
        yield page
        assert strangers == []
        assert errors == []
    finally:
        page.close()
        app.close(verbose=False)


def screenshot(page, path: Path) -> None:
    """Keep the page as a picture; it must not be blank."""
    page.screenshot(path=path)
    assert np.asarray(Image.open(path).convert("L")).std() > 3


def html_of(page, id: str) -> dict[str, np.ndarray]:
    """Caption to pixels of the pictures in the part `id`."""
    script = 'found => found.map(i => `src="${i.src}" alt="${i.alt}"`).join(\' \')'
    return pictures(page.eval_on_selector_all(f"#{id} img", script))


def test_rows_can_be_leafed_through_and_relabeled(browser, data, no_cards, tmp_path):
    from playwright.sync_api import expect

    rows = [preview.read_row(data, index) for index in range(5)]
    with opened(browser, data.path) as page:
        shown, number = page.locator("#row"), page.get_by_role("spinbutton").first
        expect(shown).to_contain_text(rows[0]["sample_id"])
        assert rows[0]["prompt"] in shown.inner_text()  # as text, whatever is in it
        page.get_by_role("button", name="Next").click()
        expect(shown).to_contain_text(rows[1]["sample_id"])
        expect(number).to_have_value("1")
        for index in (0, 4):  # before the first stands the last
            page.get_by_role("button", name="Previous").click()
            expect(shown).to_contain_text(rows[index]["sample_id"])
        number.fill("3")
        number.press("Enter")
        expect(shown).to_contain_text(rows[3]["sample_id"])
        assert set(html_of(page, "row")) == set(pictures(preview.row_page(rows[3], data, RULES)))
        screenshot(page, tmp_path / "rows.png")

        beta = page.get_by_role("spinbutton").nth(1)
        expect(beta).to_be_disabled()
        page.get_by_label("fixed", exact=True).check()
        expect(beta).to_be_enabled()
        page.get_by_label("margin", exact=True).check()
        beta.fill("0.6")
        beta.press("Enter")
        expect(shown).to_contain_text("--threshold fixed --beta 0.6 --reliability margin")
        page.get_by_label("graded").check()
        expect(shown).to_contain_text("--graded true")
        wanted = pictures(
            preview.row_page(rows[3], data, preview.try_rules(RULES, "fixed", 0.6, "margin", True))
        )
        found = html_of(page, "row")
        assert list(found) == list(wanted)
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
        screenshot(page, tmp_path / "rules.png")
        page.get_by_role("button", name="As it was built").click()
        expect(shown.locator(".changed")).to_have_count(0)

        page.get_by_role("tab", name="Card").click()
        expect(page.get_by_role("heading", name="The card")).to_be_visible()
        page.wait_for_function("document.querySelector('#card img').naturalWidth == 4")
        page.get_by_text("Metadata").click()
        expect(page.get_by_text("apache-2.0")).to_be_visible()
        screenshot(page, tmp_path / "card.png")
    assert len(no_cards) == 1


def test_without_scores_there_are_no_rules_to_try_and_problems_are_said(browser, tmp_path, monkeypatch):
    from playwright.sync_api import expect

    directory = build(tmp_path / "voc", 3, scores=False)
    (directory.path / "data" / "train-00000.parquet").unlink()

    def refuse(*what):
        raise UserError("the build <is> not complete")

    monkeypatch.setattr(preview, "write_card", refuse)
    with opened(browser, directory.path) as page:
        expect(page.locator("#row .problem")).to_contain_text("train-00000.parquet is damaged")
        page.get_by_role("button", name="Previous").click()
        expect(page.locator("#row")).to_contain_text("voc-0-00000002")
        expect(page.get_by_role("radio")).to_have_count(0)
        page.get_by_role("tab", name="Card").click()
        expect(page.locator("#card")).to_contain_text("the build <is> not complete")


def test_one_row_is_a_build_too(browser, tmp_path):
    from playwright.sync_api import expect

    with opened(browser, build(tmp_path / "voc", 1).path) as page:
        page.get_by_role("button", name="Next").click()
        expect(page.locator("#row")).to_contain_text("voc-0-00000000")


def test_a_picture_can_be_tried(browser, run, no_cards, tmp_path):
    from playwright.sync_api import expect

    picture = Image.fromarray(draw_scene("objects", np.random.default_rng(3), 96).image)
    picture.save(tmp_path / "picture.png")
    with opened(browser, run) as page:
        page.locator("#picture input[type=file]").set_input_files(tmp_path / "picture.png")
        expect(page.locator("#found figure")).to_have_count(4)
        found = html_of(page, "found")
        assert np.array_equal(found["picture"], np.asarray(picture))
        wanted = pictures(preview.segment_page(load_checkpoint(run), picture))
        assert np.array_equal(found["both networks"], wanted["both networks"])
        screenshot(page, tmp_path / "model.png")
        page.get_by_role("tab", name="Card").click()
        expect(page.get_by_role("heading", name="The card")).to_be_visible()


def test_an_adapter_has_its_card_alone(browser, adapter):
    from playwright.sync_api import expect

    with opened(browser, adapter) as page:
        expect(page.get_by_text("LoRA adapter of a painter", exact=True)).to_be_visible()
        expect(page.get_by_role("tab")).to_have_count(1)
        expect(page.get_by_role("heading", name="attn2mask-adapter")).to_be_visible()
