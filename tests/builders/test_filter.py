"""`attn2mask filter`: the rows that fit, what is recorded of the others, and untrusted classes."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image
from zeroshot_models import save_scorer

from attn2mask.builders.build import BuildConfig, Inputs, make_dataset
from attn2mask.builders.filter import dropped_rows
from attn2mask.builders.image_hash import image_hash
from attn2mask.builders.images import decode_png, encode_mask, encode_png
from attn2mask.builders.provenance import FORMAT_VERSION, provenance
from attn2mask.builders.quality import Quality
from attn2mask.builders.rules import complete, load_rules
from attn2mask.builders.sample import Sample, image_columns
from attn2mask.builders.seals import unsealed
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.artifacts import checked_build
from attn2mask.hub.cards.dataset import dataset_card
from attn2mask.hub.cli import main
from attn2mask.training.data import open_rows

TABLE = load_table("voc")
CAT, DOG = TABLE.id_of("cat"), TABLE.id_of("dog")
SIDE = 32
# Of each row: the seed of its image, its classes, their presence, the share of reliable pixels, its score.
# Rows 1 and 5 have the image of row 0.
ROWS = [
    (0, [CAT, DOG], [0.9, 0.1], 0.75, 0.30),
    (0, [DOG], [0.8], 0.5, 0.35),
    (2, [DOG], [0.05], 1.0, 0.40),
    (3, [CAT], [0.7], 1.0, 0.10),
    (4, [], [], 0.0, 0.20),
    (0, [CAT], [0.25], 1.0, 0.31),
    (6, [CAT, DOG], [0.1, 0.15], 1.0, 0.33),
]
slow = partial(pytest.param, marks=pytest.mark.slow)
IDS = [f"voc-0-{index:08d}" for index in range(len(ROWS))]


def image_of(seed: int) -> bytes:
    """An image of soft patches as a PNG file."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return encode_png(np.array(Image.fromarray(patches).resize((SIDE, SIDE), Image.Resampling.BICUBIC)))


def sample(index: int, with_scores: bool) -> Sample:
    """Class k of a row has the k-th quarter of the image, from the left. The lower rows are unreliable."""
    seed, classes, presence, reliable, score = ROWS[index]
    mask, reliability = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    for k, own in enumerate(classes):
        mask[:, SIDE // 4 * k : SIDE // 4 * (k + 1)] = own
    reliability[: round(SIDE * reliable)] = 255
    row = {
        "prompt": f"a prompt {index}",
        "caption": "a caption",
        "classes": classes,
        "words": [TABLE.names[k] for k in classes],
        "seed": index,
        "sample_id": IDS[index],
        "peaks": [0.5] * len(classes),
        **image_columns(
            image_of(seed),
            encode_mask(mask, TABLE),
            encode_mask(np.where(reliability == 255, mask, 255), TABLE),
            encode_png(reliability),
        ),
    }
    if with_scores:
        row |= {"clip_score": score, "presence": presence}
    dropped = ["bus: its map is empty"] if index == 3 else []
    rejected = ["attempt 0: cat: its map is empty"] if index in (2, 3) else []
    return Sample(row, dropped, rejected, float((mask > 0).mean()), float(reliability.mean()) / 255)


def make(path: Path, rows: int = len(ROWS), with_scores: bool = True) -> Path:
    """A build of rows of `ROWS`, in shards of two. Its second shard was painted with another batch size."""
    inputs = Inputs(complete(BuildConfig("voc", shard_size=2), load_rules("embedded")), TABLE, None)
    scored = {"score_model": "clip", "score_model_version": "sha256:abc"} if with_scores else {}
    record = {
        "format_version": FORMAT_VERSION,
        "command": "build",
        "num_images": rows,
        "identity": inputs.identity() | {"model": "embedded", **scored},
        "captions": {"source": "built-in grammar", "read": 0, "selected": 0},
        "latent_side": 8,
        **provenance(),
        "table": TABLE.facts(),
    }
    path.mkdir(exist_ok=True)
    make_dataset(
        BuildDirectory(path),
        record,
        {"build.yaml": "table: voc\nnum_images: 7\n"},
        TABLE,
        lambda shard, _: [sample(index, with_scores) for index in shard.rows],
        lambda shard: {"device": "cpu", "batch_size": 4 if shard.number == 1 else 8},
    )
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("builds") / "voc")


@pytest.fixture(scope="module")
def unscored(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("builds") / "plain", with_scores=False)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("models") / "tiny-clip")


def rows_of(path: Path) -> list[dict]:
    directory = BuildDirectory(path)
    directory.check_complete()
    return [row for shard in directory.shards for row in directory.rows(shard)]


def ids_of(path: Path) -> list[str]:
    return [row["sample_id"] for row in rows_of(path)]


def run(source: Path, out: Path, *options: str) -> int:
    return main(["filter", str(source), "--out", str(out), *options])


def report_of(path: Path) -> dict:
    return json.loads((path / "report.json").read_text())


@pytest.mark.parametrize(
    ("options", "kept", "reasons"),
    [
        ([], [0, 1, 2, 3, 4, 5, 6], {}),
        slow(["--min-reliable", "0.75"], [0, 2, 3, 5, 6], {"reliable below 0.75": [1, 4]}),
        slow(["--min-clip-score", "0.3"], [0, 1, 2, 5, 6], {"clip_score below 0.3": [3, 4]}),
        (
            ["--min-presence", "0.2"],
            [0, 1, 3, 4, 5],
            {"presence of every class below 0.2": [2, 6]},
        ),
        slow(["--drop-duplicates"], [0, 2, 3, 4, 6], {"near-duplicate of an earlier row": [1, 5]}),
        (
            # Row 0 does not fit, so that row 5, which has its image, is no duplicate. Row 4 has two reasons.
            ["--min-reliable", "0.8", "--min-clip-score", "0.25", "--drop-duplicates"],
            [2, 5, 6],
            {"reliable below 0.8": [0, 1, 4], "clip_score below 0.25": [3, 4]},
        ),
    ],
)
def test_the_rows_that_fit_are_kept_and_the_others_recorded_by_reason(
    built, tmp_path, capsys, options, kept, reasons
):
    assert run(built, tmp_path / "out", *options) == 0
    rows, before = rows_of(tmp_path / "out"), rows_of(built)
    assert [row["sample_id"] for row in rows] == [IDS[k] for k in kept]
    (record,) = report_of(tmp_path / "out")["filters"]
    assert record["dropped"] == {reason: [IDS[k] for k in own] for reason, own in reasons.items()}
    assert (record["rows"], record["kept"]) == (7, len(kept))
    for row, k in zip(rows, kept, strict=True):
        for name, value in before[k].items():
            assert name in ("reliability", "label") or row[name] == value
        assert row["image_hash"] == image_hash(decode_png(row["image"]["bytes"]))
        reliability = decode_png(row["reliability"]["bytes"])
        assert row["reliable"] == (reliability > 0).mean()
        ids = decode_png(row["mask"]["bytes"])
        assert np.array_equal(decode_png(row["label"]["bytes"]), np.where(reliability > 0, ids, 255))
    out = capsys.readouterr().out
    assert f"{len(kept)} of 7 rows are kept" in out
    for reason, own in reasons.items():
        assert f"{reason}: {len(own)}" in out


def test_a_class_of_low_presence_has_no_reliable_pixel_and_keeps_its_mask(built, tmp_path, capsys):
    assert run(built, tmp_path / "out", "--min-presence", "0.2", "--min-reliable", "0.6") == 0
    rows, before = rows_of(tmp_path / "out"), rows_of(built)
    # Of row 0 the dog, a quarter of the image, was 3/4 reliable: 0.75 - 0.75 / 4 is left, which is below 0.6.
    assert [row["sample_id"] for row in rows] == [IDS[3], IDS[5]]
    assert run(built, tmp_path / "more", "--min-presence", "0.2") == 0
    row = rows_of(tmp_path / "more")[0]
    mask, reliability = (decode_png(row[name]["bytes"]) for name in ("mask", "reliability"))
    expected = decode_png(before[0]["reliability"]["bytes"]).copy()
    expected[:, SIDE // 4 : SIDE // 2] = 0
    assert np.array_equal(reliability, expected)
    label = decode_png(row["label"]["bytes"])
    assert np.array_equal(label, np.where(expected > 0, mask, 255))
    assert row["reliable"] == 0.75 * 0.75
    assert (mask[:, SIDE // 4 : SIDE // 2] == DOG).all()
    assert row["classes"] == [CAT, DOG]
    report = report_of(tmp_path / "more")
    assert report["untrusted"] == {IDS[0]: ["dog: its presence 0.100 is below 0.2"]}
    shares = [0.75 * 0.75, 0.5, 1, 0, 1]
    assert report["reliable"] == pytest.approx(np.mean(shares))
    assert "1 classes in 1 rows are untrusted" in capsys.readouterr().out


def test_the_new_dataset_is_a_build_for_every_command(built, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    assert run(built, out, "--min-presence", "0.2", "--drop-duplicates") == 0
    data = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(data["sample_id"]) == [IDS[0], IDS[3], IDS[4]]
    assert data.features["presence"].feature.dtype == "float32"
    assert main(["show", str(out), "--out", str(tmp_path / "sheet.png")]) == 0
    assert Image.open(tmp_path / "sheet.png").height > 3 * 32
    opened = open_rows(str(out), streaming=False, reliability=True)
    assert (list(opened.rows["sample_id"]), opened.table.names) == (list(data["sample_id"]), TABLE.names)
    files = checked_build(out)
    assert [file.name for file in files[:2]] == ["train-00000.parquet", "train-00001.parquet"]
    report, record = report_of(out), BuildDirectory(out).record()
    assert report["dropped"] == {IDS[3]: ["bus: its map is empty"]}
    assert list(report["rejected"]) == [IDS[3]]
    # Rows 0 and 3 are in one shard now.
    assert [entry["batch_size"] for entry in report["made_under"]] == ["4 or 8", 8]
    assert record["commands"] == ["build", "filter"]
    assert record["identity"]["filter"] == {"min_presence": 0.2, "duplicate_distance": 4}
    assert (out / "build.yaml").read_text() == (built / "build.yaml").read_text()
    assert "min_presence: 0.2" in (out / "filter.yaml").read_text()


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Nothing is drawn: only the text of the card counts."""
    for name in ("hub.cards.dataset.sampled_rows", "hub.cards.dataset.class_chart"):
        monkeypatch.setattr(f"attn2mask.{name}", lambda *_: [])
    for name in ("hub.cards.dataset.png_bytes", "builders.show.sheet"):
        monkeypatch.setattr(f"attn2mask.{name}", lambda *_: b"")


def test_the_card_says_how_many_rows_were_dropped_and_why(built, no_figures, tmp_path):
    out = tmp_path / "out"
    assert run(built, out, "--min-presence", "0.2", "--drop-duplicates") == 0
    text = dataset_card({"voc": out}, "me/it").text
    assert "`attn2mask filter` kept 3 of 7 rows." in text
    assert "presence of every class below 0.2: 2; near-duplicate of an earlier row: 2." in text
    assert "In 1 row, the model of scores does not find what the prompt names: 1 times in all" in text
    assert "| model of scores | `clip`, `sha256:abc` |" in text
    assert "| least presence of a trusted class | 0.2 |" in text
    assert "$ attn2mask filter data/voc-painted --config filter.yaml --out data/voc" in text
    assert "| `presence` | for each of `classes`" in text
    plain = dataset_card({"voc": built}, "me/it").text
    assert "attn2mask filter" not in plain
    assert "least presence" not in plain


def test_a_filtered_dataset_is_filtered_again(built, no_figures, tmp_path):
    assert run(built, tmp_path / "one", "--min-reliable", "0.75") == 0
    assert run(tmp_path / "one", tmp_path / "two", "--min-clip-score", "0.3", "--drop-duplicates") == 0
    assert ids_of(tmp_path / "two") == [IDS[0], IDS[2], IDS[6]]
    steps = report_of(tmp_path / "two")["filters"]
    assert [(step["rows"], step["kept"]) for step in steps] == [(7, 5), (5, 3)]
    identity = BuildDirectory(tmp_path / "two").record()["identity"]
    assert identity["filter"]["before"] == {"min_reliable": 0.75}
    text = dataset_card({"voc": tmp_path / "two"}, "me/it").text
    assert "kept 5 of 7 rows" in text
    assert "kept 3 of 5 rows" in text
    assert "--config filter.yaml" not in text  # only the last options are there


def test_listed_rows_are_dropped_and_other_options_are_refused_there(built, tmp_path, capsys):
    file = tmp_path / "bad.txt"
    file.write_text(f"{IDS[6]}\n\n  {IDS[0]}  \n{IDS[6]}\n")
    assert run(built, tmp_path / "out", "--drop", str(file)) == 0
    assert ids_of(tmp_path / "out") == IDS[1:6]
    assert report_of(tmp_path / "out")["filters"][0]["dropped"] == {"listed": [IDS[0], IDS[6]]}
    capsys.readouterr()
    assert run(built, tmp_path / "out", "--drop", str(file), "--min-reliable", "0.5") == 2
    assert "filter.min_reliable (there None, now 0.5)" in error(capsys)
    file.write_text(IDS[1])
    assert run(built, tmp_path / "out", "--drop", str(file)) == 2
    assert "filter.drop (there 'sha256:" in error(capsys)
    assert ids_of(tmp_path / "out") == IDS[1:6]


def test_dropped_rows_of_measures():
    rows = [{"sample_id": name, "reliable": 0.5, "image_hash": f"{k:016x}"} for k, name in enumerate("abc")]
    assert dropped_rows(rows) == {}
    assert dropped_rows(rows, listed={"b"}, min_reliable=0.5) == {"listed": ["b"]}
    assert dropped_rows(rows, duplicate_distance=0) == {}
    # "a" and "b" differ in one bit, and "a" and "c" in one, too.
    assert dropped_rows(rows, duplicate_distance=1) == {"near-duplicate of an earlier row": ["b", "c"]}
    assert dropped_rows(rows, listed={"a"}, duplicate_distance=1) == {"listed": ["a"]}


@pytest.mark.slow
def test_duplicates_do_not_depend_on_the_shards(built, tmp_path):
    expected = [IDS[k] for k in (0, 2, 3, 4, 6)]
    assert run(built, tmp_path / "one", "--drop-duplicates") == 0
    record = unsealed((built / "build.json").read_bytes())
    large = tmp_path / "large"
    large.mkdir()
    record["identity"]["shard_size"] = 64
    make_dataset(
        BuildDirectory(large),
        record,
        {},
        TABLE,
        lambda shard, _: [sample(index, True) for index in shard.rows],
        lambda shard: {},
    )
    assert run(large, tmp_path / "two", "--drop-duplicates") == 0
    assert ids_of(tmp_path / "one") == ids_of(tmp_path / "two") == expected


def error(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    return line


def test_a_filter_that_leaves_no_row_is_one_line_and_leaves_nothing_behind(built, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(built, out, "--min-clip-score", "0.9") == 2
    assert f"no row of the 7 in {built} is left (clip_score below 0.9: 7): ask for less" in error(capsys)
    assert not out.exists()
    out.mkdir()
    (out / ".mine").touch()
    assert run(built, out, "--min-clip-score", "0.9") == 2
    assert [file.name for file in out.iterdir()] == [".mine"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--drop", "nowhere.txt"], "--drop nowhere.txt cannot be read: "),
        (["--drop", "bad.txt"], "has no row 'voc-0-99', nor 1 more of its ids: correct the file"),
        (["--min-presence", "0.2"], "--min-clip-score and --min-presence need scores, which"),
        (["--min-clip-score", "0.2"], "give --score-model"),
        (["--min-reliable", "1.5"], "--min-reliable 1.5: it must lie between 0 and 1"),
        (["--score-model", "nowhere/at/all"], "--score-model nowhere/at/all: there is no such folder"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(
    unscored, tmp_path, capsys, monkeypatch, options, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "bad.txt").write_text(f"{IDS[0]}\nvoc-0-99\nother\n")
    assert run(unscored, tmp_path / "out", *options) == 2
    assert said in error(capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["bad.txt"]


def test_the_directory_must_be_another_one(built, tmp_path, capsys):
    assert run(built, built) == 2
    assert "is the dataset itself: choose another directory" in error(capsys)
    (tmp_path / "file").touch()
    assert run(built, tmp_path) == 2
    assert "is not empty, and holds no build.json" in error(capsys)
    assert run(tmp_path, tmp_path / "out") == 2
    assert "holds no build" in error(capsys)


def test_scores_of_a_model_are_columns_and_decide(unscored, scorer, tmp_path):
    """A model gives every row scores; a second run with one of them as the bound keeps those from it on."""
    assert run(unscored, tmp_path / "all", "--score-model", str(scorer)) == 0
    rows = rows_of(tmp_path / "all")
    scores = sorted(row["clip_score"] for row in rows)
    assert all(len(row["presence"]) == len(row["classes"]) for row in rows)
    bound = str(scores[3])
    options = ("--score-model", str(scorer), "--min-clip-score", bound)
    assert run(unscored, tmp_path / "some", *options) == 0
    kept = [row for row in rows if row["clip_score"] >= scores[3]]
    assert len(kept) == 4
    assert rows_of(tmp_path / "some") == kept
    assert run(tmp_path / "all", tmp_path / "stored", "--min-clip-score", bound) == 0
    assert rows_of(tmp_path / "stored") == kept
    identity = BuildDirectory(tmp_path / "stored").record()["identity"]
    assert identity["score_model"] == "tiny-clip"
    assert identity["score_model_version"].startswith("sha256:")


@pytest.mark.slow
def test_untrusted_classes_are_not_judged_by_another_model(built, scorer, tmp_path, capsys):
    assert run(built, tmp_path / "one", "--min-presence", "0.2") == 0
    assert run(tmp_path / "one", tmp_path / "two", "--score-model", str(scorer)) == 2
    assert "has classes that are untrusted by the scores of clip" in error(capsys)
    assert run(tmp_path / "one", tmp_path / "two", "--min-reliable", "0.1") == 0
    row = rows_of(tmp_path / "two")[0]
    assert row == rows_of(tmp_path / "one")[0]
    assert report_of(tmp_path / "two")["untrusted"] == report_of(tmp_path / "one")["untrusted"]


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.fixture(scope="module")
def straight(unscored, scorer, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "out"
    assert run(unscored, out, "--score-model", str(scorer), "--min-reliable", "0.4") == 0
    return out


@pytest.mark.parametrize("writes", [9, *map(slow, (1, 3, 5, 7, 11))])
def test_a_killed_filter_goes_on(unscored, scorer, straight, tmp_path, monkeypatch, writes):
    """It dies after some files. Then it measures nothing again that was measured, and makes equal rows."""
    options = ("--score-model", str(scorer), "--min-reliable", "0.4")
    done, replace_file = [], os.replace

    def dying(*paths: object) -> None:
        if len(done) == writes:
            raise Killed
        replace_file(*paths)
        done.append(paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(Killed):
            run(unscored, tmp_path / "out", *options)
    folder = tmp_path / "out" / ".measured"
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")}
    measured, measure = [], Quality.measure
    monkeypatch.setattr(
        Quality, "measure", lambda self, rows: measured.append(self.scorer is not None) or measure(self, rows)
    )
    assert run(unscored, tmp_path / "out", *options) == 0
    assert measured.count(True) == 4 - len(before)
    assert {file.name: file.stat().st_mtime_ns for file in folder.glob("*.json")}.items() >= before.items()
    assert rows_of(tmp_path / "out") == rows_of(straight)
    assert report_of(tmp_path / "out") == report_of(straight)


@pytest.mark.slow
def test_a_filter_follows_a_build_that_grows(tmp_path):
    source = make(tmp_path / "voc", rows=3)
    assert run(source, tmp_path / "out", "--drop-duplicates") == 0
    assert ids_of(tmp_path / "out") == [IDS[0], IDS[2]]
    make(source)
    assert run(source, tmp_path / "out", "--drop-duplicates") == 0
    assert ids_of(tmp_path / "out") == [IDS[k] for k in (0, 2, 3, 4, 6)]


@pytest.mark.slow
def test_measures_that_were_changed_are_measured_again(built, tmp_path):
    assert run(built, tmp_path / "out", "--min-reliable", "0.75") == 0
    file = tmp_path / "out" / ".measured" / "00000.json"
    before = file.read_bytes()
    file.write_bytes(before.replace(b'"reliable": 0.5', b'"reliable": 0.9'))
    assert run(built, tmp_path / "out", "--min-reliable", "0.75") == 0
    assert file.read_bytes() == before
