"""Rows as crops: image, labels and trust stay together; the seed decides every place of every batch."""

import io
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from attn2mask.builders.errors import UserError
from attn2mask.builders.sample import features
from attn2mask.builders.table_reader import load_table
from attn2mask.training.config import TrainConfig
from attn2mask.training.data import (
    Crops,
    Positions,
    Share,
    Source,
    crop_box,
    loader,
    loading,
    number_of_rows,
    open_rows,
)

TABLE = load_table("voc")


def png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def row(index: int, height: int = 40, width: int = 56, **changed) -> dict:
    """An image whose red is the class id times 10 and whose green is the reliability."""
    rng = np.random.default_rng(index)
    mask = np.zeros((height, width), np.uint8)
    mask[8:30, 10:40] = 1 + index % 20
    reliability = np.where(rng.random((5, 7)) < 0.5, 255, 0).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    reliability = reliability[:height, :width]
    image = np.stack([mask * 10, reliability, np.full_like(mask, 7)], -1)
    return {
        "image": png(image),
        "mask": png(mask),
        "label": png(np.full_like(mask, 19)),  # training must not read it
        "reliability": png(reliability),
        "prompt": "",
        "caption": "",
        "classes": [1 + index % 20],
        "words": ["x"],
        "seed": index,
        "sample_id": f"s{index}",
        "peaks": [0.5],
        **changed,
    }


@pytest.fixture
def dataset(tmp_path):
    def make(rows: list[dict], drop: tuple[str, ...] = ()) -> str:
        from datasets import Dataset

        data = Dataset.from_list(rows, features=features(TABLE)).remove_columns(list(drop))
        data.to_parquet(tmp_path / "data" / "train-00000.parquet")
        return str(tmp_path / "data")

    (tmp_path / "data").mkdir()
    return make


def crops(table=TABLE, **changed) -> Crops:
    return Crops(
        TrainConfig(**{"preset": "voc-resnet50", "crop_size": 32, "seed": 3, **changed}).resolve(), table
    )


def test_image_labels_and_trust_are_cut_alike():
    for position in range(40):
        crop = crops()(row(2), position)
        assert crop["pixels"].shape == (3, 32, 32)
        assert crop["pixels"].dtype == torch.uint8
        red = crop["pixels"][0].float() / 10
        same = (red - crop["label"]).abs() < 0.05
        assert same.float().mean() > 0.8  # all but the edges, which are blurred
        green = crop["pixels"][1] > 127
        assert (green == crop["trusted"]).float().mean() > 0.75
        assert crop["sample_id"] == "s2"


def test_a_crop_is_a_function_of_seed_and_position():
    one, again, other = crops()(row(1), 5), crops()(row(1), 5), crops()(row(1), 6)
    assert all(torch.equal(one[k], again[k]) for k in ("pixels", "label", "trusted"))
    assert not torch.equal(one["pixels"], other["pixels"])


def test_a_mask_that_says_ignore_is_not_trusted():
    mask = np.full((40, 56), 255, np.uint8)
    reliability = np.full((40, 56), 255, np.uint8)
    unlabeled = row(0, mask=png(mask), reliability=png(reliability))
    assert not crops()(unlabeled, 0)["trusted"].any()


def test_without_reliability_every_label_is_trusted():
    unreliable = row(0, reliability=png(np.zeros((40, 56), np.uint8)))
    assert not crops()(unreliable, 0)["trusted"].any()
    assert crops(no_reliability=True)(unreliable, 0)["trusted"].all()


def test_sixteen_bit_masks():
    mask = np.full((40, 56), 700, np.uint16)
    crop = crops(load_table("imagenet_s_919"))(row(0, mask=png(mask)), 1)
    assert set(crop["label"].unique().tolist()) <= {700, 65535}


def test_palette_masks_have_the_ids_of_their_colors():
    """A program sorted the palette of a mask in VOC's colors in its own order; `evaluate` reads it alike."""
    indices = np.zeros((40, 56), np.uint8)
    indices[8:30, 10:40] = 1
    page = Image.fromarray(indices).convert("P")
    page.putpalette([*TABLE.palette[0], *TABLE.palette[10]])
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    crop = crops()(row(0, mask={"bytes": buffer.getvalue(), "path": None}), 1)
    assert set(crop["label"].unique().tolist()) <= {0, 10, 255}
    assert (crop["label"] == 10).any()


def test_bad_rows_say_which():
    with pytest.raises(UserError, match="row s0: the image has"):
        crops()(row(0, mask=png(np.zeros((9, 9), np.uint8))), 0)
    with pytest.raises(UserError, match="row s0: its mask: id 77 is neither one of"):
        crops()(row(0, mask=png(np.full((40, 56), 77, np.uint8))), 0)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_same_batches(processes):
    whole = list(Positions([10], 0, Share(8, 0, 5)))
    assert [p for p, _ in whole] == list(range(40))
    assert sorted(i for _, i in whole[:10]) == list(range(10))  # an epoch shows each row once
    shares = [list(Positions([10], 0, Share(8, 2, 5, rank, processes))) for rank in range(processes)]
    assert sorted(place for share in shares for place in share) == whole[16:]
    assert all(len(s) == len(Positions([10], 0, Share(8, 2, 5, 0, processes))) for s in shares)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_feed_that_starts_later_gives_the_same_batches(dataset, streaming):
    opened = open_rows(dataset([row(k) for k in range(11)]), streaming, True)
    assert opened.table.names == TABLE.names
    sources = [Source(opened.rows, crops())]

    def batches(start: int, workers: int) -> list[dict]:
        return list(loader(sources, Share(4, start, 6), per_process=4, workers=workers))

    whole, rest = batches(0, 0), batches(4, 1)
    assert (len(whole), len(rest)) == (6, 2)
    for one, two in zip(whole[4:], rest, strict=True):
        assert one["sample_id"] == two["sample_id"]
        assert all(torch.equal(one[k], two[k]) for k in ("pixels", "label", "trusted"))


@pytest.mark.parametrize("reliability", [False, True])
def test_rows_without_reliability_are_reliable_everywhere(dataset, reliability):
    opened = open_rows(dataset([row(0)], drop=("reliability",)), False, reliability)
    assert crops(no_reliability=not reliability)(opened.rows[0], 0)["trusted"].all()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_without_rows_is_refused(tmp_path, streaming):
    from datasets import Dataset

    columns = features(TABLE)
    Dataset.from_dict({name: [] for name in columns}, columns).to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(UserError, match="has no rows"):
        open_rows(str(tmp_path / "data"), streaming, True)


def test_a_mask_that_does_not_fit_is_named_before_training(dataset):
    path = dataset([row(0), row(1, mask=png(np.full((40, 56), 77, np.uint8)))])
    with pytest.raises(UserError, match=r"^row s1 of .*data: its mask: id 77 is neither"):
        open_rows(path, False, True)


@pytest.mark.parametrize("streaming", [False, True])
def test_masks_of_0_and_255_cause_a_warning(dataset, streaming, caplog):
    """They are often meant as background and class, but 255 is ignored."""
    mask = np.zeros((40, 56), np.uint8)
    mask[8:30] = 255
    open_rows(dataset([row(k, mask=png(mask)) for k in range(2)]), streaming, True)
    assert "in the first 2 rows, the masks hold only the ids 0 (background) and 255, which is" in caplog.text


def test_a_path_that_would_be_read_as_a_pattern_is_refused(tmp_path):
    """`load_dataset` would read the rows of run1 in the place of those of run[1]."""
    (tmp_path / "run[1]").mkdir()
    with pytest.raises(UserError, match=r"--dataset .*run\[1\]: the library datasets reads"):
        open_rows(str(tmp_path / "run[1]"), False, True)


@pytest.mark.parametrize("missing", [("mask", "label"), ("classes",)])
def test_rows_that_cannot_be_trained_on(dataset, missing):
    with pytest.raises(UserError, match=f"no {missing[0]}|no column `{missing[0]}`"):
        open_rows(dataset([row(0)], drop=missing), False, True)


def test_a_dataset_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="--dataset is missing"):
        open_rows("", False, True)
    with pytest.raises(UserError, match="rows that can be read"):
        open_rows(str(tmp_path), False, True)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (400, 512), (100, 100)])
def test_crops_have_the_areas_and_aspects_of_the_preset(width, height):
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(width, height, (0.5, 0.75), rng) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert left.min() == 0
    assert top.min() == 0
    assert right.max() == width
    assert bottom.max() == height
    share = (right - left) * (bottom - top) / (width * height)
    aspect = (right - left) / (bottom - top)
    assert 0.49 < share.min() < 0.52
    assert 0.72 < share.max() < 0.76
    assert aspect.min() > 0.74
    assert aspect.max() < 1.36


def test_a_crop_that_fits_nowhere_is_the_largest_of_an_allowed_aspect():
    rng = np.random.default_rng(0)
    assert crop_box(100, 1000, (0.9, 1.0), rng) == (0, 433, 100, 566)
    assert crop_box(1000, 100, (0.9, 1.0), rng) == (433, 0, 566, 100)
    assert crop_box(1, 1, (0.5, 0.75), rng) == (0, 0, 1, 1)


def test_the_whole_image_is_a_crop_of_area_one():
    whole = row(3, 40, 40)
    crop = crops(crop_area_min=1.0, crop_area_max=1.0, crop_size=40)
    label = torch.from_numpy(np.asarray(Image.open(io.BytesIO(whole["mask"]["bytes"]))).astype(np.int64))
    made = [crop(whole, position)["label"] for position in range(30)]
    assert any(torch.equal(found, label) for found in made)  # a crop of another aspect fits nowhere
    assert all(torch.equal(found, label) or torch.equal(found, label.flip(-1)) for found in made)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_rows_alone(dataset, streaming):
    path = dataset([row(k) for k in range(9)])
    rows = open_rows(path, streaming, True, num_rows=4).rows
    assert [one["sample_id"] for one in rows] == ["s0", "s1", "s2", "s3"]
    assert number_of_rows(rows) == 4
    assert number_of_rows(open_rows(path, streaming, True).rows) == 9


def test_more_rows_than_there_are(dataset):
    with pytest.raises(UserError, match=r"--num-rows 3: --dataset .* has only 2 rows"):
        open_rows(dataset([row(0), row(1)]), False, True, num_rows=3)


SCALED = {"crop_scale_min": 0.5, "crop_scale_max": 2.0}


def test_crops_with_a_scale_may_exceed_the_image():
    seen = []
    for position in range(60):
        crop = crops(**SCALED)(row(2), position)
        rim = (crop["pixels"] == torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]).all(0)
        outside = crop["label"] == 255
        assert (rim == outside).all()
        assert crop["trusted"][outside].all()  # nothing is learned there
        red = crop["pixels"][0].float() / 10
        assert ((red - crop["label"]).abs() < 0.05)[~outside].float().mean() > 0.75
        seen.append(float(outside.float().mean()))
    assert min(seen) == 0
    assert max(seen) > 0.3


def test_images_are_brought_to_a_size_before_they_are_scaled():
    whole = [crops(crop_size=64, **SCALED)(row(2), p)["label"] for p in range(20)]
    small = [crops(crop_size=64, resize=20, **SCALED)(row(2), p)["label"] for p in range(20)]
    areas = [sum(int((label != 255).sum()) for label in labels) for labels in (whole, small)]
    assert areas[1] < 0.5 * areas[0]


class Deadly(Dataset):
    """Its process dies at item 9: by a signal, or while it sends a batch ("torn")."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 9:
            if self.how == "torn":
                frame = sys._getframe()
                while "data_queue" not in frame.f_locals:
                    frame = frame.f_back
                pipe = frame.f_locals["data_queue"]._writer.fileno()
                os.write(pipe, (1000).to_bytes(4, "big") + b"half of it")
            os.kill(os.getpid(), signal.SIGBUS if self.how == "bus error" else signal.SIGKILL)
        return torch.zeros(3)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bus error", r"give --workers 0, or start the container with more \(docker run --shm-size"),
        ("killed", r"a process that loads rows died \(by signal 9\), .* with --resume and fewer --workers"),
        ("torn", r"a process that loads rows died \(by signal 9\)"),
    ],
)
def test_a_loading_process_that_dies_ends_in_one_line(how, message, workers):
    began = time.monotonic()
    with (
        pytest.raises(UserError, match=message),
        loading(DataLoader(Deadly(how), 2, num_workers=workers)) as it,
    ):
        for _ in it:
            pass
    assert time.monotonic() - began < 30


def test_too_little_shared_memory_is_named():
    """As torch says it where the file system of shared memory can be asked for room."""
    message = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    with pytest.raises(UserError, match="--workers 0"), loading(DataLoader([0])):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="other"), loading(DataLoader([0])):
        raise RuntimeError("other")


def test_loading_processes_leave_signals_to_the_run(dataset):
    """A terminal sends Ctrl-C to them, too."""
    opened = open_rows(dataset([row(index) for index in range(8)]), False, True)
    batches = loader([Source(opened.rows, crops(opened.table))], Share(4, 0, 20), 4, 1)
    with loading(batches) as loaded:
        next(loaded)
        (worker,) = loaded._workers
        for which in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, which)
        assert len(list(loaded)) == 19
    assert not worker.is_alive()
