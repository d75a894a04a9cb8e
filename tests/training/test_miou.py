"""Confusion matrices by hand and against torchmetrics; the metric of `evaluate`: streaming and offline."""

from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassConfusionMatrix

from attn2mask.training import miou as module
from attn2mask.training.miou import MeanIoU, class_iou, confusion_matrix, count_pixels, mean_iou


def test_by_hand():
    target = np.array([[0, 0, 1, 1], [2, 2, 255, 255]])
    prediction = np.array([[0, 1, 1, 1], [0, 2, 2, 0]])
    matrix = confusion_matrix(prediction, target, 4)
    assert matrix.sum() == 6
    iou = class_iou(matrix)
    assert iou[:3] == pytest.approx([1 / 3, 2 / 3, 1 / 2])
    assert np.isnan(iou[3])
    assert mean_iou(matrix) == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)


@pytest.mark.parametrize("nothing", [255, 2, -1])
def test_predictions_that_are_no_class_are_misses(nothing):
    matrix = confusion_matrix(np.array([nothing, 1]), np.array([1, 1]), 2)
    assert class_iou(matrix)[1] == pytest.approx(0.5)
    assert matrix.tolist() == [[0, 0, 0], [0, 1, 1]]


def test_nothing_to_score():
    assert np.isnan(mean_iou(confusion_matrix(np.zeros(4, int), np.full(4, 255), 3)))


@pytest.mark.parametrize("bad", [3, 254, -1, 300])
def test_targets_that_are_no_class_are_refused(bad):
    with pytest.raises(ValueError, match="neither one of 3 classes nor 255"):
        confusion_matrix(np.array([0, 1]), np.array([0, bad]), 3)
    with pytest.raises(ValueError, match="a prediction of"):
        confusion_matrix(np.zeros((2, 3)), np.zeros((3, 2)), 3)


@given(st.data())
def test_against_torchmetrics_and_against_sets_of_pixels(data):
    classes, ignore = data.draw(st.sampled_from([(2, 255), (21, 255), (19, -1), (5, 5), (300, 65535)]))
    shape = data.draw(st.tuples(st.integers(1, 37), st.integers(1, 37)))
    present = data.draw(st.integers(1, classes))  # the classes above are absent
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    prediction, target = rng.integers(0, present, (2, *shape))
    prediction = np.where(rng.random(shape) < 0.5, prediction, target)
    target[rng.random(shape) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))] = ignore
    matrix = confusion_matrix(prediction.astype(np.uint16), target, classes, ignore)

    oracle = MulticlassConfusionMatrix(classes, ignore_index=ignore, validate_args=False)
    oracle.update(torch.from_numpy(prediction), torch.from_numpy(target))
    assert (matrix[:, :classes] == oracle.compute().numpy()).all()
    assert not matrix[:, classes].any()

    kept, places = target != ignore, np.arange(target.size).reshape(shape)
    ious = []
    for c in range(classes):
        ours, theirs = (set(places[kept & (ids == c)].tolist()) for ids in (prediction, target))
        ious.append(len(ours & theirs) / len(ours | theirs) if ours | theirs else np.nan)
    np.testing.assert_allclose(class_iou(matrix), ious, rtol=0, atol=1e-9)
    if kept.any():
        assert mean_iou(matrix) == pytest.approx(np.nanmean(ious), rel=0, abs=1e-9)


def test_many_predictions_are_counted_at_once():
    rng = np.random.default_rng(0)
    found, target = rng.integers(0, 5, (3, 13, 7)), rng.integers(0, 4, (13, 7))
    counts = count_pixels(torch.from_numpy(found).int(), torch.from_numpy(target).int(), 4, 255)
    for count, prediction in zip(counts, found, strict=True):
        assert (count.numpy() == confusion_matrix(prediction, target, 4)).all()


def batches(seed: int, count: int = 3):
    """Lists of predictions and of references in odd sizes; class 4 of 6 is absent."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        references = [rng.integers(0, 4, rng.integers(5, 40, 2)) for _ in range(2)]
        predictions = [np.where(rng.random(r.shape) < 0.6, r, (r + 5) % 6 % 5) for r in references]
        for reference in references:
            reference[rng.random(reference.shape) < 0.2] = 255
        yield [p % 4 for p in predictions], references


@pytest.mark.parametrize("seed", range(5))
def test_batches_add_up_to_torchmetrics(seed):
    metric = MeanIoU(6, names=["zero", "one", "two", "three", "four", "five"])
    oracle = MulticlassConfusionMatrix(6, ignore_index=255, validate_args=False)
    for predictions, references in batches(seed):
        metric.add_batch(predictions=predictions, references=references)
        for prediction, reference in zip(predictions, references, strict=True):
            oracle.update(torch.from_numpy(prediction).flatten(), torch.from_numpy(reference).flatten())
    counts = oracle.compute().double()
    hit = counts.diagonal()
    iou = hit / (counts.sum(0) + counts.sum(1) - hit)
    found = metric.compute()
    assert list(found) == ["mean_iou", "per_class_iou", "pixel_accuracy", "num_images"]
    assert found["per_class_iou"]["four"] is found["per_class_iou"]["five"] is None
    assert list(found["per_class_iou"].values())[:4] == pytest.approx(iou[:4].tolist(), rel=0, abs=1e-9)
    assert found["mean_iou"] == pytest.approx(iou.nanmean().item(), rel=0, abs=1e-9)
    assert found["pixel_accuracy"] == pytest.approx((hit.sum() / counts.sum()).item(), rel=0, abs=1e-9)
    assert found["num_images"] == 6
    assert metric.compute()["mean_iou"] is None  # it began anew


def test_batches_images_and_one_call_are_the_same():
    predictions, references = next(batches(7))
    whole = MeanIoU(6).compute(predictions=predictions, references=references)
    one_by_one = MeanIoU(6)
    for prediction, reference in zip(predictions, references, strict=True):
        one_by_one.add(prediction=prediction, reference=reference)
    assert one_by_one.compute() == whole
    stacked = MeanIoU(2)
    ids = np.random.default_rng(0).integers(0, 2, (4, 9, 7))
    stacked.add_batch(predictions=torch.from_numpy(ids), references=ids)
    assert stacked.compute()["mean_iou"] == 1.0


def test_nothing_is_written_and_the_hub_is_not_asked(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    metric = evaluate.load(
        str(Path(module.__file__)), num_labels=6, cache_dir=str(tmp_path), experiment_id="offline"
    )
    predictions, references = next(batches(1))
    metric.add_batch(predictions=predictions, references=references)
    found = metric.compute()
    assert found == MeanIoU(6).compute(predictions=predictions, references=references)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_several_metrics_can_be_combined():
    predictions, references = next(batches(2))
    both = evaluate.combine([MeanIoU(6)])
    both.add_batch(predictions=predictions, references=references)
    assert both.compute()["num_images"] == 2


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([np.zeros((2, 2))], [np.full((2, 2), 9)], "neither one of 6 classes nor 255"),
        ([np.zeros((2, 2))], [np.zeros((2, 3))], "a prediction of"),
        ([np.zeros((2, 2))], [], "zip"),
    ],
)
def test_what_does_not_fit_is_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        MeanIoU(6).add_batch(predictions=predictions, references=references)


def test_settings_that_can_not_hold_are_refused():
    with pytest.raises(ValueError, match="one process"):
        MeanIoU(6, num_process=2, process_id=0, experiment_id="x")
    with pytest.raises(ValueError, match="2 names for 6 labels"):
        MeanIoU(6, names=["a", "b"])
