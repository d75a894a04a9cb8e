"""docs/reproduce.md: its commands run at toy size with the embedded painter, and its inputs are right."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from documents import blocks, read
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from attn2mask.builders.drawn.rows import draw_rows
from attn2mask.builders.families import UNET
from attn2mask.builders.images import decode_png
from attn2mask.builders.mask_ids import CITYSCAPES_IDS
from attn2mask.builders.options import parse
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import COMMANDS, find_command, load, main
from attn2mask.training.models import build_network

DOCUMENT = "docs/reproduce.md"
TEXT = read(DOCUMENT)
LINES = [line for block in blocks(TEXT) if block.language == "console" for line in block.commands()]
MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"

# Toy values of the options that the commands give, and options that the toy runs add. None removes an option.
TOY = {"--model": "embedded", "--num-images": "4", "--num-rows": "3", "--num-processes": None}
TOY |= {"--mixed-precision": None}
ADDED = {
    "build": "--steps 2 --height 64 --workers 1",
    "adapt": "--max-steps 1 --crop-size 64 --sample-every 0 --rank 1",
    "evaluate": "--num-images 2",
    "evaluate-rules": "--workers 1",
    "remask": "--workers 1",
    "train": "--backbone scratch:small --multi-grid false --crop-size 64 --batch-size 2 --max-steps 1",
}


def toy(line: str) -> list[str]:
    """The words of a command of the document, after `attn2mask`, with toy values."""
    program, name, *words = shlex.split(line)
    assert program == "attn2mask", line
    kept = [name]
    while words:
        word = words.pop(0)
        if word in TOY:
            value = words.pop(0)
            word, value = (word, TOY[word]) if word != "--model" or value == MODEL else (word, value)
            kept += [] if value is None else [word, value]
        else:
            kept.append(word)
    return kept + shlex.split(ADDED.get(name, ""))


@pytest.mark.parametrize("line", LINES)
def test_the_toy_commands_parse(line):
    name, rest = find_command(toy(line))
    parse(load(COMMANDS[name].options), rest, name, "")


def test_the_commands_go_from_captions_to_cards():
    """Both networks of the paper and its Table 4 for VOC, and Cityscapes with a LoRA."""
    commands = [shlex.split(line)[1:] for line in LINES]
    trained = {words[words.index("--output-dir") + 1] for words in commands if words[0] == "train"}
    evaluated = {words[words.index("--checkpoint") + 1] for words in commands if words[0] == "evaluate"}
    assert trained - evaluated == {"runs/r50-5000"}
    assert len(trained) == 7
    built = {words[words.index("--out") + 1] for words in commands if words[0] in ("build", "remask")}
    read_rows = {words[words.index("--dataset") + 1] for words in commands if words[0] == "train"}
    assert read_rows <= built
    assert {words[words.index("--preset") + 1] for words in commands if words[0] == "train"} == {
        "voc-resnet50",
        "voc-swin-base",
    }


def scenes(world: str, size: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
    rows = draw_rows(world, 4, 0, size)
    return [tuple(decode_png(row[name]["bytes"]) for name in ("image", "mask")) for row in rows]


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def voc(root: Path) -> None:
    """A VOCdevkit of four drawn scenes."""
    names = [f"2012_{number:06d}" for number in range(4)]
    for name, (image, mask) in zip(names, scenes("objects", (96, 96)), strict=True):
        save(root / "JPEGImages" / f"{name}.jpg", image)
        save(root / "SegmentationClass" / f"{name}.png", mask)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("\n".join(names))


def cityscapes(root: Path) -> None:
    """Cityscapes' layout with four drawn streets in each split."""
    raw = np.zeros(256, np.uint8)  # the label of the files for each id of the table; others are 0, unlabeled
    raw[: len(CITYSCAPES_IDS)] = CITYSCAPES_IDS
    for split in ("train", "val"):
        for number, (image, mask) in enumerate(scenes("streets", (64, 128))):
            name = f"toy_{number:06d}_000019"
            save(root / "leftImg8bit" / split / "toy" / f"{name}_leftImg8bit.png", image)
            save(root / "gtFine" / split / "toy" / f"{name}_gtFine_labelIds.png", raw[mask])


def coco(file: Path) -> None:
    """COCO's captions file with a caption of each kind of thing of VOC."""
    names = [label.base[0] for label in load_table("voc").classes]
    captions = [f"a photo of a {name} beside a {names[k - 1]}" for k, name in enumerate(names)]
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"annotations": [{"caption": caption} for caption in captions]}))


@pytest.mark.slow
def test_every_command_runs_at_toy_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    voc(tmp_path / "VOCdevkit" / "VOC2012")
    cityscapes(tmp_path / "cityscapes")
    coco(tmp_path / "annotations" / "captions_train2017.json")
    for line in LINES:
        assert main(toy(line)) == 0, line
    metrics = json.loads((tmp_path / "runs" / "r50.json").read_text())
    assert metrics["num_images"] == 2


def table_of_inputs() -> dict[str, str]:
    """The column "value" of the table of inputs, by symbol."""
    rows = re.findall(r"^\| (\w(?:, \w)*) \| [^|]+ \| ([^|]+) \|", TEXT, re.MULTILINE)
    return dict(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "backbone"), [(0, "scratch:resnet50d"), (1, "scratch:swin-base")])
def test_the_inputs_of_the_estimates_are_counted(place, backbone):
    """Parameters, operations, and what is kept for the backward pass, of the networks of both presets."""
    network = build_network("deeplabv3plus", backbone, load_table("voc"), seed=0).train()
    images = torch.zeros(2, 3, 512, 512)
    kept: dict[int, torch.Tensor] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        logits = network(pixel_values=images).logits
        torch.nn.functional.cross_entropy(logits.float(), torch.zeros(2, 512, 512, dtype=torch.long))
    size = sum(tensor.untyped_storage().nbytes() for start, tensor in kept.items() if start not in own)
    counted = {
        "P": sum(parameter.numel() for parameter in network.parameters()) / 1e6,
        "F": counter.get_total_flops() / 2 / 1e9,
        "A": size / 2 / 1e9,
    }
    stated = {
        name: float(re.findall(r"[\d.]+ (?:M|G)", table_of_inputs()[name])[place].split()[0])
        for name in "PFA"
    }
    assert stated == pytest.approx(counted, rel=0.03)


def test_the_hours_follow_from_their_formulas():
    """The rounded hours and sizes in the document, from its inputs."""
    n, s, t, u, d = 20_000, 50, 0.008, 30e12, 0.38e6
    f, p, a = {"r": 75e9, "s": 176e9}, {"r": 26.7e6, "s": 88.6e6}, {"r": 0.41e9, "s": 0.98e9}
    expected = [
        f"{n * s * t / 8 / 3600:.1f} to {4 * n * s * t / 8 / 3600:.1f} = N S t a / 8",
        f"{n * d / 1e9:.1f} GB = N D",
        f"{25_000 * 90 * f['r'] / (4 * u) / 3600:.1f} = 25,000 x 90 F / (4 U)",
        f"{(36 * p['r'] + 6 * a['r']) / 1e9:.1f} GB = 36 P + 6 A",
        f"{32 * p['r'] / 1e9:.1f} GB = 32 P",
        f"training, Swin-B, 4 GPUs | {25_000 * 90 * f['s'] / (4 * u) / 3600:.1f},",
        f"{(36 * p['s'] + 6 * a['s']) / 1e9:.1f} GB | {32 * p['s'] / 1e9:.1f} GB",
        f"{40_000 * 3 * 0.048 / 3600:.1f} = 40,000 x 3 b",
        f"{2.1 + 8 * 0.54:.1f} GB = W + 8 L",
        f"{2.1 + 16 * 0.54:.1f} GB = W + 16 L",
        f"{2 * n * d / 1e9:.1f} GB = 2 N D",
        f"N C / 16 = {n * 0.05 / 16 / 3600:.2f} hours",
    ]
    assert [text for text in expected if text not in TEXT] == []
    assert UNET.batch_size == 8  # the images of 8 L
