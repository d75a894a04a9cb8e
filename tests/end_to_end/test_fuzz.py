"""Input from outside is read correctly or refused in one line: no traceback, and no other file is touched.

Every run tries the same examples. With `--hypothesis-profile long`, pytest tries twenty times as many, and
others each time.
"""

import io
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import MISSING, asdict, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from card_text import block
from huggingface_hub.utils import httpx
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from attn2mask.builders import painter, workers
from attn2mask.builders.build import BuildConfig
from attn2mask.builders.classes import ClassTable, LabelClass, spelling
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import flag_of, parse
from attn2mask.builders.prompts import PromptSource, find_occurrences
from attn2mask.builders.seals import sealed
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import load_table, parse_table
from attn2mask.builders.words.captions import read_captions
from attn2mask.builders.words.english import plural
from attn2mask.hub.cards.adapter import adapter_card
from attn2mask.hub.cards.dataset import dataset_card
from attn2mask.hub.cards.markdown import compose, merge, split
from attn2mask.hub.cards.segmenter import model_card
from attn2mask.hub.cli import COMMANDS, load, main
from attn2mask.training.benchmarks import open_images
from attn2mask.training.config import TrainConfig
from attn2mask.training.data import Crops

Value = TypeVar("Value")
VOC = load_table("voc")
PATIENCE = 20  # seconds after which a single example hangs


def examples(count: int, long: int | None = None) -> settings:
    """The same `count` examples in every run. The profile `long` has others: `long` of them, or twenty times
    as many.
    """
    is_long = settings.get_current_profile_name() == "long"
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=(long or count * 20) if is_long else count,
        derandomize=not is_long,
        deadline=None,
        suppress_health_check=quiet,
        phases=set(Phase) - {Phase.explain},
    )


@pytest.fixture
def accepted() -> Iterator[Callable[[object], bool]]:
    """`accepted(value)` counts the examples, and says whether this one was not refused (None).

    At the end a sixth of all examples must have been accepted. Otherwise the test checks too little.
    """
    counts = Counter()

    def count(value: object) -> bool:
        counts[value is not None] += 1
        return value is not None

    yield count
    assert counts[True] >= counts.total() / 6, f"{counts[True]} of {counts.total()} examples were accepted"


def unless_refused(call: Callable[[], Value]) -> Value | None:
    """The result of `call`; None if it refuses, which it must do in one line."""
    with in_time():
        try:
            return call()
        except UserError as error:
            said = str(error)
        except OSError as error:  # a command makes a line of the system's errors
            said = error.strerror
    assert said
    assert len(said) < 3_000
    assert len(said.splitlines()) == 1
    return None


@contextmanager
def in_time() -> Iterator[None]:
    """Raise AssertionError if the block takes longer than `PATIENCE`."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(*argv: str) -> int:
    """The exit status of a command, run in this process: 0, or 2 after a last line that says why."""
    out, err = io.StringIO(), io.StringIO()
    with in_time(), redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(argv)
        except SystemExit as leave:  # of --help
            status = leave.code
    lines = err.getvalue().splitlines()
    errors = [line for line in lines if line.startswith("attn2mask: error: ")]
    assert (status, len(errors)) in ((0, 0), (2, 1)), err.getvalue()
    assert status == 0 or lines[-1] == errors[0]
    return status


# Strategies.

TEXT = st.text(st.characters(), max_size=20)  # with NUL and lone surrogates
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just(10**40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
JUNK = JSON | st.dates() | st.binary(max_size=5) | st.sampled_from(["../../outside", "/outside", "a\nb", ""])
# What parsers of text stumble over, by name: nesting, and numbers longer than Python reads.
BROKEN = {"open": "{", "word": "nul", "nested": "[" * 100_000, "digits": "9" * 5_000, "NUL": "\x00"}


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """`sound` with bytes changed, put in, taken out, doubled or cut off, or something else altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=40))
    content = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place, length = draw(st.integers(0, len(content))), draw(st.integers(1, 8))
        match draw(st.sampled_from(["change", "change", "put", "take", "cut", "double"])):
            case "change":
                content[place : place + length] = draw(st.binary(min_size=length, max_size=length))
            case "put":
                content[place:place] = draw(st.binary(max_size=length))
            case "take":
                del content[place : place + length]
            case "cut":
                del content[place:]
            case "double":
                content[place:place] = content[place : place + 8 * length]
    return bytes(content)


# Captions.


def is_sound(text: Any) -> bool:
    """Whether a value can be a caption: text that is not blank and has bytes."""
    return isinstance(text, str) and bool(text.strip()) and not any("\ud800" <= c <= "\udfff" for c in text)


def held(row: Any) -> str | None:
    """The caption that a JSON value should give."""
    if not isinstance(row, dict):
        return None
    text = row["caption"] if "caption" in row else row.get("text")
    return text if is_sound(text) else None


ROWS = JSON | st.fixed_dictionaries({"caption": TEXT | JSON}, optional={"id": JSON, "text": TEXT})
ROWS |= st.fixed_dictionaries({"text": TEXT}, optional={"id": JSON})


@examples(150)
@given(st.lists(ROWS | st.sampled_from(sorted(BROKEN)), max_size=6), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_jsonl_gives_the_captions_that_it_holds(tmp_path, rows, end):
    lines = [BROKEN[row] if isinstance(row, str) and row in BROKEN else json.dumps(row) for row in rows]
    (tmp_path / "a.jsonl").write_text(end.join(lines))
    wanted = [held(row) for row in rows if held(row) is not None]
    found = unless_refused(lambda: read_captions(str(tmp_path / "a.jsonl")))
    assert (wanted == []) if found is None else [caption.text for caption in found[0]] == wanted
    broken = sum(held(row) is None and bool(line.strip()) for row, line in zip(rows, lines, strict=True))
    assert found is None or (len(found[1]) == 1) == (broken > 0)


@examples(100)
@given(st.lists(ROWS, max_size=6) | JSON)
def test_cocos_json_gives_the_captions_that_it_holds(tmp_path, rows):
    (tmp_path / "a.json").write_text(json.dumps({"annotations": rows}))
    wanted = [text for row in rows if (text := held(row)) is not None] if isinstance(rows, list) else []
    found = unless_refused(lambda: read_captions(str(tmp_path / "a.json")))
    assert (wanted == []) if found is None else [caption.text for caption in found[0]] == wanted


SOUND = {
    "a.jsonl": b'{"id": 7, "caption": "A dog."}\n{"text": "Two \\u00e4 cats"}\n',
    "a.txt": "A dog\n\nZwei Hündchen\r\n".encode(),
    "a.json": b'{"annotations": [{"id": 1, "caption": "A dog"}, {"id": 2, "caption": "A cat"}]}',
}


@examples(150)
@given(st.data(), st.sampled_from(sorted(SOUND)))
@example(None, "a.json")
def test_damaged_captions_are_read_or_refused(tmp_path, data, name):
    content = b"[" * 200_000 if data is None else data.draw(damaged(SOUND[name]))
    (tmp_path / name).write_bytes(content)
    found = unless_refused(lambda: read_captions(str(tmp_path / name)))
    assert found is None or all(is_sound(caption.text) for caption in found[0])


# Class tables.

WORD = st.text("abcdeéß", min_size=1, max_size=4)
NAMES = (
    st.builds(lambda first, between, last: first + between + last, WORD, st.sampled_from(" -'  "), WORD)
    | WORD
)
NAMES |= st.sampled_from(["dog", "dogs", "hot dog", "DOG", " dog ", "7"])


def odd(strategy: st.SearchStrategy, chance: int = 30) -> st.SearchStrategy:
    """One value in `chance` is another thing."""
    return st.integers(1, chance).flatmap(lambda k: JUNK if k == chance else strategy)


CLASSES = st.fixed_dictionaries(
    {"name": odd(NAMES)},
    optional={
        "base": odd(st.lists(NAMES, min_size=1, max_size=3)),
        "aliases": odd(st.lists(NAMES, max_size=3)),
        "synonyms": odd(st.lists(NAMES, max_size=2)),
        "ambiguous": odd(st.lists(NAMES, max_size=2)),
        "color": odd(st.lists(st.integers(0, 255), min_size=3, max_size=3)),
        "thing": odd(st.booleans()),
    },
)
SCENES = st.fixed_dictionaries(
    {},
    optional={
        "aspect": odd(st.floats(0.1, 10)),
        "balance": odd(st.booleans()),
        "light": odd(st.lists(NAMES)),
        "things": odd(st.sampled_from([[0, 0], [1, 3], [0, 10**9]])),
        "phrases": odd(st.just({})),
    },
)
TABLES = st.fixed_dictionaries(
    {"name": odd(NAMES), "classes": odd(st.lists(CLASSES, min_size=1, max_size=3), 20)},
    optional={
        "background": odd(st.booleans()),
        "compounds": odd(st.lists(NAMES, max_size=2)),
        "ignore": odd(st.sampled_from([4, 255])),
        "caption_style": odd(SCENES),
        "parts": odd(st.dictionaries(NAMES, NAMES, max_size=2)),
        "kinds": odd(st.lists(NAMES, max_size=2)),
        "contrary": odd(st.dictionaries(NAMES, odd(st.lists(NAMES, max_size=2)), max_size=2)),
        "paper_only": odd(st.lists(NAMES, max_size=2)),
    },
)


def as_yaml(table: ClassTable) -> dict[str, Any]:
    """A table as a user would write it."""
    facts = {key: value for key, value in table.facts().items() if value is not None}
    facts["background"] = table.background or False
    if table.parts:
        facts["parts"] = {table.classes[part].name: table.classes[whole].name for part, whole in table.parts}
    if table.contrary:
        facts["contrary"] = dict(table.contrary)
    if table.caption_style:
        names = [label.name for label in table.classes]
        style = {key: value for key, value in facts["caption_style"].items() if value is not None}
        facts["caption_style"] = style | {"phrases": dict(zip(names, style["phrases"], strict=False))}
    return json.loads(json.dumps(facts))


def check_table(table: ClassTable, folder: Path) -> None:
    """What holds of every table that is taken."""
    assert len(table.names) == len(set(map(spelling, table.names))) <= table.ignore_index
    assert table.palette.shape == (len(table.names), 3)
    for k, label in enumerate(table.classes):
        assert table.id_of(label.name) == k + table.first_id
        for word in label.base if not table.compounds else ():
            (found,) = find_occurrences(table, word)
            assert (found.class_index, found.kind) == (k, "name")
    path = Path("data") / table.name
    assert path.parent == Path("data")
    assert path.resolve().parent == Path("data").resolve()
    assert parse_table(as_yaml(table), "again") == table
    record = {"identity": {"shard_size": 2}, "num_images": 1, "versions": {}, "table": table.facts()}
    (folder / "build.json").write_bytes(sealed(record))
    assert BuildDirectory(folder).table == table


@examples(400)
@given(TABLES)
def test_a_table_is_taken_as_it_stands_or_refused(accepted, tmp_path, content):
    table = unless_refused(lambda: parse_table(content, "a.yaml"))
    if accepted(table):
        check_table(table, tmp_path)
        names = [entry["name"].strip() for entry in content["classes"]]
        assert [label.name for label in table.classes] == names


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12))
KITCHEN = b"""name: kitchen
background: true
classes:
  - {name: mug, base: [mug, mugs], aliases: [beaker], color: [192, 0, 0], thing: true}
  - {name: kettle}
compounds: [mug holder]
ignore: 255
caption_style: {aspect: 2, places: [in a kitchen], phrases: {mug: [a blue mug]}}
"""


@examples(250)
@given(damaged(KITCHEN))
@example(b"[\n" * 2_000)
@example(b"name: 2023-99-99")
@example(b"name: k\nclasses: " + b"9" * 5_000)
@example(b'name: "\\ud800"\nclasses: [{name: mug}]')
@example(b"name: ../../outside\nclasses: [{name: mug}]")
@example(f"{BOMB}name: *a11\nclasses: [*a11]".encode())
@example(f"{BOMB}".encode())
@example(f"name: k\nclasses: [{{name: {'x' * 100_000}}}, {{name: [{'y' * 100_000}]}}]".encode())
def test_a_damaged_table_is_taken_or_refused(tmp_path, content):
    (tmp_path / "kitchen.yaml").write_bytes(content)
    table = unless_refused(lambda: load_table(str(tmp_path / "kitchen.yaml")))
    if table is not None:
        check_table(table, tmp_path)


# Words in captions.

FORMS = {
    "ox": LabelClass("ox", ("ox", "oxen"), ("young bull", "water ox"), (0, 0, 0)),
    "mug": LabelClass("mug", ("mug", "mugs", "tea mug"), ("beaker",), (0, 0, 1)),
    "tea": LabelClass("tea", ("tea",), ("green tea", "brew"), (0, 0, 2)),
}
COMPOUNDS = ("mug shot", "tea mug stand", "ox bow")
WORDS = [
    "ox",
    "OX",
    "oxen",
    "young",
    "bull",
    "bulls",
    "water",
    "mug",
    "Mugs",
    "tea",
    "beaker",
    "beakers",
    "green",
]
WORDS += ["brew", "shot", "stand", "bow", "a", "boxer", "smug", "tea-like", "un-ox", "tea_", "mug7", "steam"]


def oracle(words: list[str], classes: list[LabelClass], compounds: tuple[str, ...]) -> list[tuple[str, str]]:
    """(class, words) found in a list of words: compounds first, then the longest name from the left."""
    names = {(): None}
    for label in classes:
        for form in (*label.base, *label.aliases, *(plural(alias) for alias in label.aliases)):
            names[tuple(form.split())] = label.name
    lists = ({tuple(form.split()): None for form in compounds}, names)
    free, found = list(words), []
    for forms in lists:
        for start in range(len(words)):
            for stop in range(len(words), start, -1):
                key = tuple(free[start:stop])
                if key in forms:
                    found += [(start, forms[key], " ".join(key))] if forms is names else []
                    free[start:stop] = ["\0"] * (stop - start)
                    break
    return [(name, form) for _, name, form in sorted(found)]


@examples(300)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=5), min_size=1, max_size=3),
    st.lists(st.sampled_from(sorted(FORMS)), min_size=1, unique=True),
    st.lists(st.sampled_from(COMPOUNDS), unique=True).map(tuple),
    st.sampled_from([", ", ". ", " - ", "\n\n", '"']),
)
def test_class_words_are_those_of_an_oracle(parts, names, compounds, stop):
    """Commas, full stops and the like part words; blanks, underscores and one hyphen do not."""
    assume(stop != "\n\n" or len(parts) == 1)
    classes = [FORMS[name] for name in names]
    table = ClassTable("test", tuple(classes), "background", compounds)
    found = find_occurrences(table, stop.join(" ".join(part) for part in parts))
    shown = [(classes[o.class_index].name, o.text.lower()) for o in found]
    split = [" ".join(part).lower().replace("_", " ").split() for part in parts]
    assert shown == [hit for part in split for hit in oracle(part, classes, compounds)]


@examples(60)
@given(
    st.lists(
        st.lists(st.sampled_from(WORDS) | NAMES, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=4
    ),
    st.integers(0, 10**30),
    st.integers(0, 20),
    st.integers(0, 3),
    st.floats(0, 1),
    st.booleans(),
)
def test_prompts_invent_no_class(
    tiny_pipeline, accepted, tmp_path, texts, seed, index, attempt, probability, balance
):
    table = ClassTable("test", tuple(FORMS.values()), None, COMPOUNDS)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"caption": text}) for text in texts))
    captions = unless_refused(lambda: read_captions(str(tmp_path / "a.jsonl")))
    assume(captions is not None)
    options = {"seed": seed, "alias_probability": probability, "balance": balance}
    tokenizer = tiny_pipeline("sd15").tokenizer
    source = unless_refused(lambda: PromptSource(table, captions[0], [tokenizer], **options))
    prompt = unless_refused(lambda: source.prompt(index, attempt)) if source else None
    if not accepted(prompt):
        return
    named = {o.class_index for o in find_occurrences(table, prompt.caption) if o.kind == "name"}
    assert prompt.caption in texts
    assert 0 < len(prompt.classes) == len(set(prompt.classes)) == len(prompt.words) == len(prompt.spans)
    assert {k - table.first_id for k in prompt.classes} <= named
    assert prompt == PromptSource(table, captions[0], [tokenizer], **options).prompt(index, attempt)
    for k, word, span in zip(prompt.classes, prompt.words, prompt.spans, strict=True):
        label = table.classes[k - table.first_id]
        own = {spelling(form) for form in (*label.base, *label.aliases, *map(plural, label.aliases))}
        assert spelling(word) in own
        assert word in prompt.text
        assert all(0 < position < tokenizer.model_max_length - 1 for position in span)


# Options in YAML.

OPTIONS = {option.name: option for option in fields(BuildConfig) if option.name != "push_to_hub"}
KNOWN = st.fixed_dictionaries(
    {"table": odd(NAMES)},
    optional={
        "num_images": odd(st.integers(1, 10**6)),
        "seed": odd(st.integers(0, 10**30)),
        "out": odd(NAMES),
        "guidance_scale": odd(st.floats(0, 100)),
        "alias_probability": odd(st.floats(0, 1)),
        "store-scores": odd(st.booleans()),
        "no-balance": odd(st.booleans()),
        "captions": odd(NAMES),
        "preset": odd(st.sampled_from(["paper", "replication"])),
        "steps": odd(st.none()),
    },
)
UNKNOWN = st.dictionaries(st.sampled_from(["config", "help", "nothing"]), JUNK, max_size=1)
GIVEN = st.builds(lambda known, unknown: known | unknown, KNOWN, UNKNOWN)


@examples(250)
@given(GIVEN)
@example({"out": "a\x00b"})
@example({"num_images": 10**12, "shard_size": 1})
def test_options_in_yaml_are_taken_as_they_stand_or_refused(accepted, tmp_path, values):
    try:
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    except UnicodeEncodeError:
        assume(False)
    config = unless_refused(lambda: parse(BuildConfig, ["--config", str(tmp_path / "a.yaml")], "test", ""))
    if not accepted(config):
        return
    for name, value in values.items():
        taken = getattr(config, name.replace("-", "_"))
        default = OPTIONS[name.replace("-", "_")].default
        assert (
            taken == (None if default is MISSING else default)
            if value is None
            else taken == value or (str(taken) == str(value))
        )
    assert all("\0" not in value for value in asdict(config).values() if isinstance(value, str))


@examples(150)
@given(damaged(b"table: voc\nnum-images: 24\nseed: 2\nout: data/voc\nstore_scores: true\nbeta: 0.5\n"))
@example(b"seed: 2023-99-99")
@example(b"[\n" * 2_000)
@example(b"seed: " + b"9" * 5_000)
@example(BOMB.encode())
def test_damaged_options_are_taken_or_refused(tmp_path, content):
    (tmp_path / "a.yaml").write_bytes(content)
    unless_refused(lambda: parse(BuildConfig, ["voc", "--config", str(tmp_path / "a.yaml")], "test", ""))


# Masks.


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def encoded(ids: np.ndarray, how: str, table: ClassTable, rng: np.random.Generator) -> Image.Image:
    """A mask of ids in one of the ways that masks are kept."""
    colors = np.full((256, 3), 77, np.uint8)
    colors[: len(table.palette)] = table.palette
    colors[255] = (224, 224, 192)
    if how == "grey":
        return Image.fromarray(ids.astype(np.uint8))
    if how == "16 bits":
        return Image.fromarray(ids.astype(np.uint16))
    if how in ("colors", "alpha"):
        image = Image.fromarray(colors[ids])
        if how == "alpha":
            image.putalpha(Image.fromarray(rng.integers(0, 256, ids.shape, np.uint8)))
        return image
    order = rng.permutation(256) if how == "shuffled palette" else np.arange(256)
    image = Image.fromarray(np.argsort(order)[ids].astype(np.uint8))
    image.putpalette(colors[order].tobytes())
    return image


@examples(150)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.sampled_from(["voc", "cityscapes"]),
    st.sampled_from(["grey", "16 bits", "colors", "alpha", "palette", "shuffled palette"]),
)
def test_a_mask_reads_as_its_ids_however_it_is_kept(tmp_path, height, width, seed, name, how):
    table, rng = load_table(name), np.random.default_rng(seed)
    ids = rng.choice([*range(len(table.names)), 255], (height, width))
    for kind, image in (
        ("images", Image.new("RGB", (width, height))),
        ("masks", encoded(ids, how, table, rng)),
    ):
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / "a.png").write_bytes(png(image))
    read = unless_refused(lambda: open_images(str(tmp_path), None, table)[0].target)
    # A few shuffled indices may also be what a convention makes of them: refused, never misread.
    assert read is not None or how == "shuffled palette"
    assert read is None or (read == ids).all()


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "I;16", "I;16B", "F", "YCbCr", "HSV", "La"]


@st.composite
def image_files(draw: st.DrawFn, size: tuple[int, int] | None = None) -> bytes:
    """The bytes of an image of some mode, format and size, sound or damaged."""
    size = size or draw(st.sampled_from([(1, 1), (7, 5), (1, 300)]))
    mode = draw(st.sampled_from(MODES))
    image = Image.new("L", size, draw(st.sampled_from([0, 1, 3, 20, 77, 255]))).convert("RGB")
    try:
        image = (image.convert("L") if mode[0] in "1LIFP" else image).convert(mode)
        kind = draw(st.sampled_from(["PNG", "PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"]))
        options = (
            draw(st.sampled_from([{}, {"transparency": 0}])) if kind == "PNG" and mode in "LPRGB" else {}
        )
        content = png(image, kind, **options)
    except (ValueError, OSError):
        content = png(image.convert("L"))
    return draw(damaged(content)) if draw(st.booleans()) else content


def put(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


LAYOUTS = {
    "voc": ("voc", "JPEGImages/a.jpg", "SegmentationClass/a.png"),
    "cityscapes": ("cityscapes", "leftImg8bit/val/b/a_leftImg8bit.png", "gtFine/val/b/a_gtFine_labelIds.png"),
    "train ids": (
        "cityscapes",
        "leftImg8bit/val/b/a_leftImg8bit.png",
        "gtFine/val/b/a_gtFine_labelTrainIds.png",
    ),
    "imagenet": ("imagenet_s_50", "validation/n1/a.JPEG", "validation-segmentation/n1/a.png"),
    "folder": ("voc", "images/a.webp", "masks/a.png"),
}


@examples(300)
@given(st.data(), st.sampled_from(sorted(LAYOUTS)))
def test_targets_hold_ids_of_the_table_or_the_image_is_refused(accepted, tmp_path_factory, data, name):
    root = tmp_path_factory.mktemp("layout")
    table, image, mask = load_table(LAYOUTS[name][0]), *LAYOUTS[name][1:]
    size = data.draw(st.sampled_from([None, (7, 5)]))
    put(root / image, data.draw(image_files(size)))
    put(root / mask, data.draw(image_files(size)))
    put(root / "ImageSets/Segmentation/val.txt", b"a\n")
    images = unless_refused(lambda: list(open_images(str(root), None, table)))
    for shown in images if accepted(images) else ():
        assert shown.image.dtype == np.uint8
        assert shown.image.shape == (*shown.target.shape, 3)
        assert set(np.unique(shown.target)) <= {*range(len(table.names)), table.ignore_index}
    shutil.rmtree(root)


@examples(120)
@given(TEXT | st.sampled_from(["../../a", "/etc/passwd", "x" * 300, "a/", "."]), TEXT | st.none())
@example("\ud800", None)
def test_lists_and_splits_name_images_or_are_refused(tmp_path, name, split_name):
    put(tmp_path / "JPEGImages/a.jpg", png(Image.new("RGB", (3, 3))))
    put(tmp_path / "SegmentationClass/a.png", png(Image.new("L", (3, 3))))
    put(tmp_path / "ImageSets/Segmentation/val.txt", name.encode("utf-8", "surrogatepass"))
    unless_refused(lambda: list(open_images(str(tmp_path), split_name, VOC)))
    for kind in ("images", "masks"):
        put(tmp_path / "plain" / kind / "a.png", png(Image.new("L", (3, 3))))
    unless_refused(lambda: list(open_images(str(tmp_path / "plain"), split_name, VOC)))


@examples(200)
@given(st.data(), st.booleans(), st.integers(0, 1000))
def test_crops_hold_ids_of_the_table_or_the_row_is_refused(accepted, data, reliability, position):
    size = data.draw(st.sampled_from([None, (7, 5)]))
    row = {name: {"bytes": data.draw(image_files(size))} for name in ("image", "mask", "reliability")}
    config = TrainConfig(crop_size=32, resize=0, seed=1, no_reliability=not reliability).resolve()
    crop = unless_refused(lambda: Crops(config, VOC)(row, position))
    if accepted(crop):
        assert crop["pixels"].shape == (3, 32, 32)
        assert crop["label"].shape == crop["trusted"].shape == (32, 32)
        assert set(crop["label"].unique().tolist()) <= {*range(len(VOC.names)), 255}


# Builds that somebody or something has touched.


class Inline:
    """A labeling pool without processes."""

    def submit(self, call: Callable[..., Value], *arguments: Any) -> "Future[Value]":
        future: Future[Value] = Future()
        future.set_result(call(*arguments))
        return future


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory) -> Iterator[tuple[Path, Callable[[Path], list[str]]]]:
    """A finished build of three rows in two shards, and the command that makes such a build elsewhere."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "captions.txt").write_text("a photo of a dog\na red bus on the street\n")
    model, options = str(tiny_model("sd15")), "--height 64 --width 64 --steps 2 --num-images 3 --shard-size 2"

    def build(out: Path) -> list[str]:
        source = ["--model", model, "--captions", str(folder / "captions.txt")]
        return ["build", "voc", *source, "--out", str(out), *options.split(), "--store-scores"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_DIR", os.devnull)  # a commit in between would be seen in the records
        patch.setattr(painter, "load_painter", cache(painter.load_painter))
        patch.setattr(workers, "labeling_pool", lambda count: nullcontext(Inline()))
        assert command(*build(folder / "build")) == 0
        yield folder / "build", build


def contents(folder: Path) -> dict[str, bytes]:
    """All files but locks, by their place in the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[:5] not in (".lock", ".fini"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def meaning(folder: Path) -> dict[str, Any]:
    """The contents, where blanks between the words of JSON mean nothing."""
    read = {"json": json.loads}
    return {name: read.get(name.split(".")[-1], bytes)(content) for name, content in contents(folder).items()}


@examples(15)
@given(st.data())
def test_a_damaged_build_is_made_whole_or_refused(whole, tmp_path_factory, data):
    """By the command that made it; others read it or refuse it."""
    folder, build = whole
    out = shutil.copytree(folder, tmp_path_factory.mktemp("damaged") / "build")
    was = contents(out)
    name = data.draw(st.sampled_from(sorted(was)))
    how = data.draw(st.sampled_from(["damaged", "damaged", "damaged", "gone", "other"]))
    if how == "gone":
        (out / name).unlink()
    else:
        other = was[data.draw(st.sampled_from(sorted(was)))]
        (out / name).write_bytes(other if how == "other" else data.draw(damaged(was[name])))
    touched = contents(out)
    command("show", str(out), "--out", str(out.parent / "sheet.png"))
    command("remask", str(out), "--out", str(out.parent / "remasked"))
    assert contents(out) == touched
    status = command(*build(out))
    if status == 0:
        assert meaning(out) == meaning(folder)
    else:
        assert name == "build.json"
        assert contents(out) == touched
    shutil.rmtree(out.parent)


def test_a_shard_of_another_build_is_named(whole, tmp_path, capsys):
    folder, build = whole
    out = shutil.copytree(folder, tmp_path / "build")
    shutil.copy(out / "data/train-00000.parquet", out / "data/train-00007.parquet")
    assert main(build(out)) == 2
    assert "train-00007.parquet is not a shard of this build: move it away" in capsys.readouterr().err
    (out / "data/train-00007.parquet").unlink()
    assert main(build(out)) == 0
    assert contents(out) == contents(folder)


@pytest.mark.parametrize("name", [".lock-0", ".finish", "data", "manifest"])
def test_a_link_leads_nowhere(whole, tmp_path, name):
    """What stands outside keeps its content, and nothing is put beside it."""
    folder, build = whole
    out, outside = tmp_path / "build", tmp_path / "outside"
    out.mkdir()
    shutil.copy(folder / "build.json", out)
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    (out / name).symlink_to(outside / "mine.txt" if name[0] == "." else outside)
    assert command(*build(out)) == 2
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"mine.txt": "mine"}


@pytest.mark.parametrize(
    "name", ["data/.train-00001.parquet.tmp", ".build.json.tmp", "data/train-00001.parquet"]
)
def test_links_in_the_place_of_files_are_replaced(whole, tmp_path, name):
    folder, build = whole
    out = shutil.copytree(folder, tmp_path / "build")
    (tmp_path / "mine.txt").write_text("mine")
    (out / "manifest/00001.json").unlink()
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(tmp_path / "mine.txt")
    assert command(*build(out)) == 0
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert contents(out) == contents(folder)


# Cards that were edited by hand.

LINES = st.lists(
    st.sampled_from(
        ["# A title", "Text.", "", "<!-- /generated: about -->", "<!-- generated: use -->", "---"]
    )
    | st.text(max_size=12),
    max_size=12,
).map("\n".join)
METADATA = st.dictionaries(
    st.sampled_from(["tags", "configs", "dataset_info", "license", "model-index", "metrics", "mine"])
    | st.text(max_size=5),
    JUNK | st.lists(st.dictionaries(st.just("config_name"), JUNK, max_size=1), max_size=2),
    max_size=4,
)
NEW = compose(
    {"license": "unknown", "tags": ["attn2mask"], "configs": [{"config_name": "voc", "default": True}]},
    f"{block('about', 'New.')}\n{block('config:voc', 'Of voc.')}\n{block('use', 'Use it.')}",
)


@st.composite
def cards(draw: st.DrawFn) -> str:
    """A card that a person wrote, or wrote into: above, between and below our parts, or into the metadata."""
    data, body = split(NEW)
    try:
        data = draw(st.just(data) | METADATA)
        compose(data, "")
    except UnicodeEncodeError:
        data = {}
    first, rest = body.split("<!-- generated: use", 1)
    parts = draw(st.just([]) | st.just([first, f"<!-- generated: use{rest}"]))
    written = [draw(LINES) for _ in range(len(parts) + 1)]
    text = "\n".join(
        [written[0], *(f"{part}\n{more}" for part, more in zip(parts, written[1:], strict=True))]
    )
    return compose(data, text) if draw(st.booleans()) else text


@examples(300)
@given(cards())
def test_a_card_keeps_what_a_person_wrote(accepted, old):
    merged = unless_refused(lambda: merge(NEW, old))
    if not accepted(merged):
        return
    assert merge(NEW, merged) == merged
    new_body, (data, body) = split(NEW)[1], split(merged)
    assert "attn2mask" in data["tags"]
    for part in ("about", "config:voc", "use"):
        start = new_body.index(f"<!-- generated: {part} -->")
        assert new_body[start : new_body.index(f"<!-- /generated: {part} -->")] in body

    def free(text: str) -> list[str]:
        lines = (line.strip() for line in split(text)[1].splitlines() if "generated: " not in line)
        return [line for line in lines if line and line not in new_body.splitlines()]

    assert free(merged) == free(old)


@examples(150)
@given(damaged(NEW.encode()))
def test_a_damaged_card_is_mended_or_refused(old):
    merged = unless_refused(lambda: merge(NEW, old.decode(errors="replace")))
    assert merged is None or merge(NEW, merged) == merged


# Records, states of trainings, and responses of the Hub.

NETWORK = {
    "model_type": "upernet",
    "id2label": {"0": "background", "1": "dog"},
    "class_table": "voc",
    "backbone_config": {"model_type": "resnet"},
    "backbone_weights": {"recipe": "ImageNet", "sha256": "0a"},
    "auto_map": {"AutoConfig": "deeplabv3plus.DeepLabV3PlusConfig"},
}
TRAINING = {
    "options": {"dataset": "data/voc", "backbone": "scratch:small", "preset": "demo", "learning_rate": 0.1},
    "on_hub": {"dataset": "me/voc"},
    "rows": {"num_images": 4, "identity": {"table": "voc", "model": "embedded", "captions": "grammar"}},
    "chosen_on": {"dataset": "data/val", "split": None},
    "step": 4,
    "seconds": 1.5,
    "versions": {"torch": "2"},
}
SCORES = {
    "mean_iou": 0.5,
    "per_class_iou": {"background": 0.75, "dog": 0.25, "cat": None},
    "pixel_accuracy": 0.5,
    "num_images": 2,
}
OPTIONS_USED = {"dataset": "data/val", "split": "val", "scales": "1", "window": 512}
METRICS = SCORES | {
    "networks": {"a": SCORES, "b": SCORES},
    "evaluated": {"options": OPTIONS_USED, "hub": "me/val"},
}
LORA = {
    "base_model": "owner/painter",
    "options": {"instance_prompt": "a photo", "rank": 2},
    "data": {"name": "frames", "images": 4, "with_caption": 0},
    "seconds": 1.5,
}
LOG = b'{"step": 1, "loss_a": 2.5, "images_per_second": 3.5}\n{"step": 2, "eval_mean_iou": 0.5}\n'
RECORDS = {
    "config.json": json.dumps(NETWORK).encode(),
    "training_config.json": json.dumps(TRAINING).encode(),
    "metrics.json": json.dumps(METRICS).encode(),
    "log.jsonl": LOG,
}


@st.composite
def mutated(draw: st.DrawFn, sound: Any) -> Any:
    """A JSON value with another value in one place, or without it."""
    if not isinstance(sound, dict | list) or not sound or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    copy = sound.copy()
    key = draw(st.sampled_from(sorted(copy))) if isinstance(copy, dict) else 0
    if draw(st.integers(0, 5)) == 0:
        del copy[key]
    else:
        copy[key] = draw(mutated(copy[key]))
    return copy


def changed(content: bytes) -> st.SearchStrategy[bytes]:
    """A record that somebody or something changed."""
    if b"\n" in content:
        return damaged(content)
    return damaged(content) | mutated(json.loads(content)).map(lambda value: json.dumps(value).encode())


@examples(100, 1000)
@given(st.data(), st.sampled_from(sorted(RECORDS)))
def test_changed_records_of_a_network_make_a_card_or_are_refused(tmp_path, data, name):
    for file, content in RECORDS.items():
        (tmp_path / file).write_bytes(data.draw(changed(content)) if file == name else content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attn2mask.hub.cards.segmenter.png_bytes", lambda image: b"")
        patch.setattr("attn2mask.hub.cards.segmenter.iou_chart", lambda *_: None)
        card = unless_refused(lambda: model_card(tmp_path, "me/it"))
    if card is not None:
        assert card.text.encode()
        assert merge(card.text, card.text) == card.text


@examples(100, 1000)
@given(changed(json.dumps(LORA).encode()))
def test_changed_records_of_a_lora_make_a_card_or_are_refused(tmp_path, content):
    (tmp_path / "training_config.json").write_bytes(content)
    save_file({"unet.lora_A.weight": torch.zeros(2, 4)}, tmp_path / "pytorch_lora_weights.safetensors")
    card = unless_refused(lambda: adapter_card(tmp_path, "me/it"))
    assert card is None or card.text.encode()


@examples(25, 500)
@given(st.data(), st.sampled_from(["build.json", "report.json"]))
def test_changed_records_of_a_build_make_a_card_or_are_refused(whole, tmp_path_factory, data, name):
    out = tmp_path_factory.mktemp("changed")
    for part in ("data", "manifest"):
        (out / part).symlink_to(whole[0] / part)
    for file in ("build.json", "report.json"):
        content = (whole[0] / file).read_bytes()
        (out / file).write_bytes(
            data.draw(changed(json.dumps(json.loads(content)).encode())) if file == name else content
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attn2mask.hub.cards.dataset.png_bytes", lambda image: b"")
        patch.setattr("attn2mask.builders.show.sheet", lambda *_: None)
        patch.setattr("attn2mask.hub.cards.dataset.class_chart", lambda *_: None)
        card = unless_refused(lambda: dataset_card({"voc": out}, "me/it"))
    assert card is None or card.text.encode()


@pytest.fixture(scope="module")
def trained(whole, tmp_path_factory) -> tuple[Path, Callable[[Path], list[str]]]:
    """A training of two steps whose networks are not exported yet, and the command that resumes it."""
    folder = tmp_path_factory.mktemp("trained")
    sizes = "--max-steps 2 --checkpoint-every 1 --batch-size 2 --crop-size 32 --workers 0 --no-co-training"

    def resume(out: Path) -> list[str]:
        options = ["--backbone", "scratch:small", "--no-mixing", "--output-dir", str(out), "--resume"]
        return ["train", "--dataset", str(whole[0]), *options, *sizes.split()]

    assert command(*resume(folder / "run")) == 0
    (folder / "run" / "config.json").unlink()
    return folder / "run", resume


@examples(6, 500)
@given(st.data(), st.sampled_from(["run.json", "state.safetensors", "log.jsonl"]))
def test_a_changed_state_of_a_training_is_resumed_or_refused(trained, tmp_path_factory, data, name):
    folder, resume = trained
    out = shutil.copytree(folder, tmp_path_factory.mktemp("changed") / "run")
    content = (out / name).read_bytes()
    # Of weights, the head with its JSON is changed; the checksums of other parts have tests of their own.
    head, rest = (content[:2000], content[2000:]) if name == "state.safetensors" else (content, b"")
    (out / name).write_bytes(data.draw(damaged(head)) + rest)
    command(*resume(out))
    shutil.rmtree(out.parent)


SHA = "0" * 40
SOUND_RESPONSES = {
    "whoami": {"name": "me", "orgs": [{"name": "org"}], "type": "user", "auth": {"type": "access_token"}},
    "tree": [{"type": "file", "path": "README.md", "oid": SHA, "size": 3}],
    "preupload": {"files": [{"path": "README.md", "uploadMode": "regular", "shouldIgnore": False}]},
    "commit": {"commitOid": SHA, "commitUrl": "https://hub/commit", "pullRequestUrl": None},
    "batch": {"transfer": "basic", "objects": []},
    "info": {"id": "me/it", "sha": SHA, "private": False, "siblings": [{"rfilename": "README.md"}]},
    "resolve": "---\ntags: [attn2mask]\n---\n",
}
RESPONSE_KINDS = {"whoami": "whoami", "/tree/": "tree", "preupload": "preupload", "/commit/": "commit"}
RESPONSE_KINDS |= {"objects/batch": "batch", "/resolve/": "resolve"}


@st.composite
def responses(draw: st.DrawFn) -> dict[str, tuple[int, dict[str, str], bytes]]:
    """Status, headers and content of the response to each kind of request; most of them are sound."""
    found = {}
    for kind, sound in SOUND_RESPONSES.items():
        content = sound.encode() if isinstance(sound, str) else json.dumps(sound).encode()
        status, headers = 200, {"ETag": f'"{SHA}"', "X-Repo-Commit": SHA, "Content-Type": "application/json"}
        match draw(st.sampled_from(["sound", "sound", "sound", "changed", "status", "header"])):
            case "changed":
                content = draw(damaged(content) if isinstance(sound, str) else changed(content))
            case "status":
                status = draw(st.sampled_from([201, 204, 400, 401, 403, 404, 409, 412, 418, 429, 500, 503]))
            case "header":
                name = draw(
                    st.sampled_from(["Retry-After", "X-Error-Message", "X-Error-Code", "ETag", "Link"])
                )
                headers[name] = draw(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12))
        found[kind] = (status, headers, content)
    return found


@examples(40, 500)
@given(responses(), st.booleans())
def test_any_responses_of_a_hub_end_with_0_or_one_line(whole, tmp_path, responses, dry_run):
    def respond(request: httpx.Request) -> httpx.Response:
        kind = next((kind for part, kind in RESPONSE_KINDS.items() if part in request.url.path), "info")
        status, headers, content = responses[kind]
        if kind == "preupload" and json.dumps(SOUND_RESPONSES[kind]).encode() == content:
            sent = [file["path"] for file in json.loads(request.content)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in sent]
            content = json.dumps({"files": files}).encode()
        return httpx.Response(status, headers=headers, content=content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_token")
        patch.setattr("attn2mask.hub.hub_client.time.sleep", lambda seconds: None)
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET"):
            patch.setattr(huggingface_hub.constants, name, name == "HF_HUB_DISABLE_XET")
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        patch.setattr("attn2mask.hub.cards.dataset.png_bytes", lambda image: b"")
        factory = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY
        huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(respond)))
        try:
            command("publish", "dataset", str(whole[0]), "me/it", *(["--dry-run"] if dry_run else []))
        finally:
            huggingface_hub.set_client_factory(factory)


# The command line.

FLAGS = {
    name: [flag_of(option.name) for option in fields(load(command.options))] + ["--config", "--help"]
    for name, command in COMMANDS.items()
}
# Commands that run for long once their options are read.
LONG = [COMMANDS[name].run.split(":") for name in ("draw", "train", "adapt", "demo")]
VALUES = st.sampled_from(
    [
        *("voc", "kitchen.yaml", "captions.txt", "build", "options.yaml", "org/name", "dataset", "model"),
        *("missing", "a.png", "a.json", "..", "../a", ".", "-1", "0", "1", "2", "10" * 20, "nan", "inf"),
        *("0.5", "1e400", "true", "no", "paper", "fixed", "otsu", "margin", "", " ", "=", "-", "--"),
        *("--seed", "--nothing", "x" * 300, "a\nb", "\x00"),
    ]
)
VALUES |= st.text(st.characters(exclude_characters="/"), max_size=8)


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    """A command with flags and values of any kind, most of them its own."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    argv = [draw(st.just(name) | VALUES)] if draw(st.integers(0, 20)) == 0 else name.split()
    for _ in range(draw(st.integers(0, 5))):
        flag, value = draw(st.sampled_from(FLAGS[name])), draw(VALUES)
        argv += draw(st.sampled_from([[flag, value], [flag, value], [f"{flag}={value}"], [value], [flag]]))
    return argv


@pytest.fixture(scope="module")
def desk(whole, tmp_path_factory) -> Iterator[Path]:
    """A folder to work in, with a build, a table and so on, without a painter, other processes, or a Hub."""

    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("not here")

    folder = tmp_path_factory.mktemp("work") / "desk"
    shutil.copytree(whole[0], folder / "build")
    (folder / "kitchen.yaml").write_bytes(KITCHEN)
    (folder / "captions.txt").write_text("a mug and a dog\n")
    (folder / "options.yaml").write_text("seed: 2\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(painter, "load_painter", refuse)
        patch.setattr("attn2mask.hub.preview.page.make_app", refuse)
        patch.setattr("attn2mask.hub.launch.launch", refuse)
        for module, name in LONG:
            patch.setattr(f"attn2mask.{module}.{name}", lambda config: None)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield folder


@examples(300)
@given(arguments())
def test_any_command_ends_with_0_or_one_line(desk, argv):
    command(*argv)
    assert {path.name for path in desk.parent.iterdir()} <= {"desk", "a"}
