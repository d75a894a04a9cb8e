"""The command, and the page itself in headless Chromium.

The tests in the browser are skipped without Chromium, which pip cannot install. Screenshots lie in pytest's
folder.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from attn2mask.builders.drawn.scenes import draw_scene
from attn2mask.builders.errors import UserError
from attn2mask.builders.rules import load_rules
from attn2mask.hub.cli import main
from attn2mask.hub.preview.page import make_app, serve
from attn2mask.hub.preview.predictions import prediction_page
from attn2mask.hub.preview.rows import chosen_rules, read_row, row_page
from attn2mask.training.checkpoint import load_checkpoint

RULES = load_rules("embedded")
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")  # or playwright's own

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
    *started, error = capsys.readouterr().err.splitlines()
    assert message in error
    assert started in ([], ["Opening nowhere"])


def test_without_the_extra_it_says_how_to_install_it(data, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # an import of it raises ImportError
    assert main(["preview", str(data.path)]) == 2
    needed = "attn2mask: error: preview needs gradio, an optional extra: pip install 'attn2mask[preview]'"
    assert capsys.readouterr().err.splitlines() == [f"Opening {data.path}", needed]


def test_a_port_that_is_taken_is_named(data):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} is taken"):
            serve(make_app(data.path), port)


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
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, env=os.environ | places | proxy, **pipes) as process,
        ExitStack() as stop,
    ):
        stop.callback(process.kill)  # if a check fails, leaving the block would wait for the process
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
def opened(browser, folder: Path, model: str = "embedded", width: int = 1400) -> Iterator:
    """The page of a folder. On leaving, it must have asked nobody else for anything, and met no error."""
    app = make_app(folder, model=model)
    address = serve(app, None)
    page = browser.new_page(viewport={"width": width, "height": 950})
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
    """Keep the page as an image, which must not be blank."""
    page.screenshot(path=path)
    assert np.asarray(Image.open(path).convert("L")).std() > 3


@pytest.fixture
def images_on(images_in) -> Callable:
    """`images_on(page, id)`: the pixels of the images in the part `id`, by their captions."""
    script = 'found => found.map(i => `src="${i.src}" alt="${i.alt}"`).join(\' \')'
    return lambda page, id: images_in(page.eval_on_selector_all(f"#{id} img", script))


def test_rows_can_be_leafed_through_and_relabeled(browser, data, no_cards, images_in, images_on, tmp_path):
    from playwright.sync_api import expect

    rows = [read_row(data, index) for index in range(5)]
    with opened(browser, data.path) as page:
        page.get_by_role("tab", name="One row").click()
        shown, number = page.locator("#row"), page.get_by_role("spinbutton").first
        expect(shown).to_contain_text(rows[0]["sample_id"])
        assert rows[0]["prompt"] in shown.inner_text()  # as text, also where it looks like HTML
        page.get_by_role("button", name="Next").click()
        expect(shown).to_contain_text(rows[1]["sample_id"])
        expect(number).to_have_value("1")
        for index in (0, 4):  # before the first stands the last
            page.get_by_role("button", name="Previous").click()
            expect(shown).to_contain_text(rows[index]["sample_id"])
        number.fill("3")
        number.press("Enter")
        expect(shown).to_contain_text(rows[3]["sample_id"])
        assert set(images_on(page, "row")) == set(images_in(row_page(rows[3], data, RULES)))
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
        wanted = images_in(row_page(rows[3], data, chosen_rules(RULES, "fixed", 0.6, "margin", True)))
        found = images_on(page, "row")
        assert list(found) == list(wanted)
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
        screenshot(page, tmp_path / "rules.png")
        page.get_by_role("button", name="The rules of the build").click()
        expect(shown.locator(".changed")).to_have_count(0)

        page.get_by_role("tab", name="Card").click()
        expect(page.get_by_role("heading", name="The card")).to_be_visible()
        page.wait_for_function("document.querySelector('#card img').naturalWidth == 4")
        page.get_by_text("Metadata").click()
        expect(page.get_by_text("apache-2.0")).to_be_visible()
        screenshot(page, tmp_path / "card.png")
    assert len(no_cards) == 1


def test_the_grid_is_filtered_and_opens_a_row(browser, data, tmp_path, monkeypatch):
    """Two rows are on a page."""
    from playwright.sync_api import expect

    monkeypatch.setattr("attn2mask.hub.preview.page.ROWS", 2)
    first = read_row(data, 0)
    name = data.table.names[first["classes"][0]]
    wanted = [k for k in range(5) if first["classes"][0] in read_row(data, k)["classes"]]
    with opened(browser, data.path) as page:
        tiles, count = page.locator("#grid figure"), page.locator("#count")
        expect(count).to_have_text("1 to 2 of 5 rows")
        for shown in ([2, 3], [4], [0, 1]):
            page.get_by_role("button", name="Next").click()
            expect(tiles.first).to_have_attribute("data-row", str(shown[0]))
            expect(tiles).to_have_count(len(shown))
        page.get_by_role("combobox", name="Rejection").click()
        page.get_by_role("option", name="painted again after a rejection").click()
        expect(count).to_have_text("1 to 1 of 1 rows that pass, of 5")
        expect(tiles).to_have_attribute("data-row", "1")
        page.get_by_role("combobox", name="Rejection").click()
        page.get_by_role("option", name="all rows").click()
        page.get_by_role("combobox", name="Class").click()
        page.get_by_role("option", name=name, exact=True).click()
        expect(count).to_contain_text(f"of {len(wanted)} rows")
        expect(tiles.first).to_have_attribute("data-row", str(wanted[0]))
        screenshot(page, tmp_path / "grid.png")
        at_least = page.get_by_role("spinbutton").first
        at_least.fill("100")
        at_least.press("Enter")
        expect(count).to_have_text("0 of 5 rows")
        at_least.fill("0")
        at_least.press("Enter")
        expect(tiles.first).to_have_attribute("data-row", str(wanted[0]))
        tiles.last.press("Enter")
        expect(page.locator("#row")).to_contain_text(f"voc-0-0000000{wanted[:2][-1]}")
        expect(page.get_by_role("tab", name="One row")).to_have_attribute("aria-selected", "true")


@pytest.mark.parametrize("width", [420, pytest.param(1280, marks=pytest.mark.slow)])
def test_a_prompt_is_painted_with_its_steps(browser, data, tmp_path, tiny_model, width):
    from playwright.sync_api import expect

    with opened(browser, data.path, str(tiny_model("sd15")), width) as page:
        page.get_by_role("tab", name="Paint").click()
        page.get_by_label("Prompt").fill("a dog on a street")
        page.get_by_label("Seed").fill("7")
        page.get_by_role("button", name="Paint", exact=True).click()
        expect(page.get_by_text(re.compile(r"\d+/50 steps"))).to_be_visible()
        expect(page.locator("#painted figure")).to_have_count(3 + 4)
        expect(page.locator("#painted mark")).to_have_text(["dog"])
        screenshot(page, tmp_path / "paint.png")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.get_by_label("Prompt").fill(" ")
        page.get_by_label("Prompt").press("Enter")
        expect(page.locator("#painted .problem")).to_contain_text("the prompt is empty")


def test_without_scores_there_are_no_rules_to_try_and_errors_are_shown(
    browser, make_build, tmp_path, monkeypatch
):
    from playwright.sync_api import expect

    path = make_build(tmp_path / "voc", rows=3, scores=False)
    (path / "data" / "train-00000.parquet").unlink()

    def refuse(*what):
        raise UserError("the build <is> not complete")

    monkeypatch.setattr("attn2mask.hub.preview.page.card_of", refuse)
    with opened(browser, path) as page:
        expect(page.locator("#grid figure")).to_have_count(1)  # of the shard that is there
        page.get_by_role("tab", name="One row").click()
        expect(page.locator("#row .problem")).to_contain_text("train-00000.parquet is missing")
        page.get_by_role("button", name="Previous").click()
        expect(page.locator("#row")).to_contain_text("voc-0-00000002")
        expect(page.get_by_role("radio")).to_have_count(0)
        page.get_by_role("tab", name="Card").click()
        expect(page.locator("#card")).to_contain_text("the build <is> not complete")


def test_one_row_is_a_build_too(browser, make_build, tmp_path):
    from playwright.sync_api import expect

    with opened(browser, make_build(tmp_path / "voc", rows=1)) as page:
        page.get_by_role("tab", name="One row").click()
        page.get_by_role("button", name="Next").click()
        expect(page.locator("#row")).to_contain_text("voc-0-00000000")


def test_an_image_can_be_tried(browser, run, no_cards, images_in, images_on, tmp_path):
    from playwright.sync_api import expect

    image = Image.fromarray(draw_scene("objects", np.random.default_rng(3), 96).image)
    image.save(tmp_path / "image.png")
    with opened(browser, run) as page:
        page.locator("#image input[type=file]").set_input_files(tmp_path / "image.png")
        expect(page.locator("#predictions figure")).to_have_count(4)
        found = images_on(page, "predictions")
        assert np.array_equal(found["image"], np.asarray(image))
        wanted = images_in(prediction_page(load_checkpoint(run), tmp_path / "image.png"))
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
