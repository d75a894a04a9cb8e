"""Evaluation against plain loops: confusion matrices, boundaries, batches, and the report."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segmenters import Segmenter, examples, processor

from attn2mask.builders.table_reader import load_table
from attn2mask.training import evaluation, inference
from attn2mask.training.benchmarks import Example
from attn2mask.training.boundary import boundary_counts, mean_boundary_iou
from attn2mask.training.evaluation import (
    WithoutBackground,
    count_images,
    evaluate,
    metric_names,
    report,
    summarize,
)
from attn2mask.training.inference import Augmentation, logits_of, pixels_of, segment
from attn2mask.training.miou import confusion_matrix, mean_iou

TABLE = load_table("voc")


def predict(networks, image: np.ndarray) -> list[torch.Tensor]:
    """The logits (C, H, W) of each network and of the mean of two, at the size of the image."""
    for network in networks:
        network.eval()
    with torch.no_grad():
        found = logits_of(networks, pixels_of(processor(), image), Augmentation())
    return [F.interpolate(logits, image.shape[:2], mode="bilinear")[0] for logits in found]


def test_scores_after_the_crf_have_their_own_names():
    images = examples(2)
    plain, refined = (
        report(evaluate([Segmenter(0)], processor(), images, TABLE, Augmentation(crf=crf), progress=False))
        for crf in (False, True)
    )
    added = {"crf_mean_iou", "crf_per_class_iou", "crf_pixel_accuracy", "crf_mean_iou_given_labels"}
    assert refined.keys() - plain.keys() == added
    assert {name: refined[name] for name in plain} == plain
    expected = np.zeros((21, 22), np.int64)
    for example in images:
        ids = segment([Segmenter(0)], processor(), example.image, Augmentation(crf=True))
        expected += confusion_matrix(ids, example.target, 21)
    assert refined["crf_mean_iou"] == pytest.approx(mean_iou(expected), abs=1e-9)


@pytest.mark.parametrize("ids", [{0, 255}, {0}, {0, 1, 255}, {255}])
def test_masks_of_0_and_255_cause_a_warning(caplog, ids):
    """They are often meant as background and class, but 255 is ignored."""
    target = np.resize(np.array(sorted(ids)), (40, 40)).astype(np.int32)
    images = [Example("a", np.zeros((40, 40, 3), np.uint8), target)]
    evaluate([Segmenter(0)], processor(), images, TABLE, progress=False)
    said = "the masks hold only the ids 0 (background) and 255, which is ignored"
    assert (said in caplog.text) == (ids == {0, 255})


def test_scores_of_two_networks_are_those_of_plain_loops():
    networks = [Segmenter(0).train(), Segmenter(1).eval()]
    networks[0].frozen.eval()
    images = examples(5)
    evaluation = evaluate(networks, processor(), images, TABLE, progress=False)
    assert networks[0].training
    assert not networks[0].frozen.training
    assert not networks[1].training
    expected = {name: np.zeros((21, 22), np.int64) for name in ("a", "b", "both")}
    given_labels = np.zeros((21, 22), np.int64)
    for index, example in enumerate(images):
        a, b, _ = predict(networks, example.image)
        for name, logits in {"a": a, "b": b, "both": (a + b) / 2}.items():
            matrix = confusion_matrix(logits.argmax(0).numpy(), example.target, 21)
            expected[name] += matrix
        assert (segment(networks, processor(), example.image) == logits.argmax(0).numpy()).all()
        assert evaluation.image_iou[index] == pytest.approx(mean_iou(matrix), abs=1e-9)
        logits[[k for k in range(1, 21) if k not in example.target]] = -torch.inf
        given_labels += confusion_matrix(logits.argmax(0).numpy(), example.target, 21)
    expected["given_labels"] = given_labels
    assert list(evaluation.metrics) == list(expected)
    parts = [
        evaluate(networks, processor(), images, TABLE, progress=False, indices=range(rank, 5, 2))
        for rank in (0, 1)
    ]
    assert parts[0].image_iou | parts[1].image_iou == evaluation.image_iou
    for name, matrix in expected.items():
        assert (evaluation.metrics[name].matrix == matrix).all()
        assert (parts[0].metrics[name].matrix + parts[1].metrics[name].matrix == matrix).all()
        assert parts[0].metrics[name].num_images + parts[1].metrics[name].num_images == 5
    assert report(evaluation)["mean_iou_given_labels"] == pytest.approx(mean_iou(given_labels), abs=1e-9)


def test_one_network_is_its_own_mean():
    network = Segmenter(0)
    metrics = evaluate([network], processor(), examples(2), TABLE, progress=False, device="cpu").metrics
    assert list(metrics) == ["a", "both", "given_labels"]
    assert (metrics["a"].matrix == metrics["both"].matrix).all()
    assert len(network.calls) == 2


def test_the_report_is_json_with_nothing_where_nothing_was_measured():
    ignored = Example("ignored", np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 255, np.int32))
    networks = [Segmenter(0), Segmenter(1)]
    evaluation = evaluate(networks, processor(), examples(2, classes=3), TABLE, progress=False)
    matrix = evaluation.metrics["b"].matrix
    found = json.loads(json.dumps(report(evaluation), allow_nan=False))
    keys = ["mean_iou", "per_class_iou", "pixel_accuracy", "num_images", "mean_iou_given_labels", "networks"]
    assert list(found) == keys
    assert list(found["per_class_iou"]) == list(TABLE.names)
    assert set(found["networks"]) == {"a", "b"}
    assert found["networks"]["b"]["pixel_accuracy"] == pytest.approx(
        np.trace(matrix) / matrix.sum(), abs=1e-9
    )
    assert found["num_images"] == found["networks"]["a"]["num_images"] == 2
    measured = [iou for iou in found["per_class_iou"].values() if iou is not None]
    assert found["mean_iou"] == pytest.approx(sum(measured) / len(measured), abs=1e-9)
    empty = report(evaluate([Segmenter(0)], processor(), [ignored], TABLE, progress=False))
    assert json.loads(json.dumps(empty, allow_nan=False))["mean_iou"] is None


def test_batches_give_the_counts_of_single_images():
    """Images of equal sizes share a batch; others do not, and none is lost."""
    images = examples(3) * 2 + examples(5)[3:]
    single, batched = (
        dict(count_images([Segmenter(0)], processor(), images, TABLE, range(8), batch_size=size))
        for size in (1, 3)
    )
    assert sorted(batched) == list(range(8))
    assert batched == single
    network = Segmenter(0)
    sizes = [example.image.shape[:2] for example in images]
    list(count_images([network], processor(), images, TABLE, range(8), batch_size=3))
    assert sorted(network.calls) == sorted(set(sizes))


def test_boundaries_are_those_of_the_predictions():
    images = examples(4)
    counted = dict(
        count_images(
            [Segmenter(0)], processor(), images, TABLE, range(4), Augmentation(crf=True), boundaries=True
        )
    )
    evaluation = summarize(counted, TABLE, metric_names(1, Augmentation(crf=True)))
    expected = np.zeros((21, 2), np.int64)
    refined = np.zeros((21, 2), np.int64)
    for example in images:
        ids = segment([Segmenter(0)], processor(), example.image)
        expected += boundary_counts(ids, example.target, 21, 255)
        ids = segment([Segmenter(0)], processor(), example.image, Augmentation(crf=True))
        refined += boundary_counts(ids, example.target, 21, 255)
    assert (evaluation.boundary["both"] == expected).all()
    assert (evaluation.boundary["crf"] == refined).all()
    found = report(evaluation)
    assert found["boundary_iou"] == mean_boundary_iou(expected)
    assert found["crf_boundary_iou"] == mean_boundary_iou(refined)
    assert 0 < found["boundary_iou_given_labels"] < 1


def test_the_crf_given_labels_chooses_among_the_classes_of_the_image():
    """The dense CRF gets the probabilities of these classes alone; with one class, nothing competes."""
    mixed = examples(3, classes=4)
    single = Example("one", mixed[0].image, np.full_like(mixed[0].target, 7))
    crf = Augmentation(crf=True)
    table = load_table("cityscapes")  # without a background
    expected = np.zeros((19, 20), np.int64)
    network = Segmenter(0, 19)
    for example in (*mixed, single):
        present = [k for k in np.unique(example.target) if k != 255]
        logits = predict([network], example.image)[0].softmax(0)[present]
        ids = (
            inference.refined_ids(logits, example.image).numpy()
            if len(present) > 1
            else np.zeros_like(example.target)
        )
        expected += confusion_matrix(np.array(present)[ids], example.target, 19)
    evaluation = evaluate([network], processor(), [*mixed, single], table, crf, progress=False)
    assert (evaluation.metrics["crf_given_labels"].matrix == expected).all()
    assert report(evaluation)["crf_mean_iou_given_labels"] == pytest.approx(mean_iou(expected))


def test_a_background_that_is_not_scored_counts_nowhere():
    images = WithoutBackground(examples(4, classes=4), TABLE)
    assert len(images) == 4
    assert not any((example.target == 0).any() for example in images)
    evaluation = evaluate([Segmenter(0)], processor(), images, TABLE, progress=False)
    assert not evaluation.metrics["both"].matrix[0].any()
    no_background = load_table("cityscapes")
    kept = examples(1, classes=4)
    assert (WithoutBackground(kept, no_background)[0].target == kept[0].target).all()


def test_pixels_of_large_images_are_counted_in_parts(monkeypatch):
    (example,) = examples(1)
    predicted = torch.from_numpy(np.roll(example.target, 5)).int()
    whole = evaluation.counts_of({"both": predicted, "a": predicted.flip(0)}, example, TABLE, True)
    monkeypatch.setattr(evaluation, "LARGE", 100)
    assert evaluation.counts_of({"both": predicted, "a": predicted.flip(0)}, example, TABLE, True) == whole


def test_few_large_images_wait_for_others(monkeypatch):
    """Images of 100 pixels for batches of 4: at most 250 pixels may wait, so that two or three are read."""
    monkeypatch.setattr(evaluation, "MOST_HELD", 250)
    image, target = np.zeros((10, 10, 3), np.uint8), np.zeros((10, 10), np.int32)
    images = [Example(str(k), image, target) for k in range(5)]
    batches = list(evaluation._batches(images, processor(), range(5), 4))
    assert [[index for index, *_ in batch] for batch in batches] == [[0, 1, 2], [3, 4]]
