"""Train a small CLIP model from random weights on drawn scenes and their captions, without masks.

    torchrun --nproc-per-node 2 training/pretraining/clip_training.py --output-dir runs/clip

MaskCLIP on this model stands beside the embedded painter's attention: both are trained on the same scenes,
captions and tokenizer. It is a CLIPModel of transformers with the class token that CLIP has.

Captions collide in a batch, because there are few classes. Captions that name the same set of classes are
therefore positives of each other. A caption names every class of its scene and no other one, so the set is
known from the text alone. Half of the captions have no place and no color, so that only the class words
distinguish them. And as in GroupViT (Xu et al. 2022), each image is compared with the class words alone, too:
a prompt for each class of the batch, with several positives for an image of several classes.
"""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from attn2mask.builders.command import run_command
from attn2mask.builders.drawn.kinds import KINDS
from attn2mask.builders.drawn.scenes import DrawnScene
from attn2mask.builders.files import write_file
from attn2mask.builders.options import option, stored_options
from attn2mask.builders.provenance import provenance
from attn2mask.builders.table_reader import load_table
from attn2mask.training.experiments.grounding import area_under_curve
from attn2mask.training.held_out import held_out_scenes
from attn2mask.training.miou import MeanIoU
from attn2mask.training.pretraining.scene_store import IMAGE_SIZE, STUDIES, SceneStore, draw_scenes
from attn2mask.training.pretraining.trainer import PretrainingConfig, Trainer, start_processes
from attn2mask.training.pretraining.vocabulary import MAX_TOKENS, Captions, make_tokenizer
from attn2mask.training.zeroshot.clip import DenseCLIP
from attn2mask.training.zeroshot.decision import Decision
from attn2mask.training.zeroshot.maskclip import last_block
from attn2mask.training.zeroshot.protocol import NORMALIZATIONS, common
from attn2mask.training.zeroshot.segmenter import Preprocessor, as_map, text_directions, text_encoder

logger = logging.getLogger(__name__)

RECORD = "training.json"  # beside the weights: how they were made
CHECKED = 300  # held-out scenes that the progress is measured on
LEAST_SIDE = 96  # pixels of the crops of the training images
HIGHEST_SCALE = 100.0  # of the cosines, as in CLIP
TEXT_TOWER = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
IMAGE_TOWER = {
    "hidden_size": 160,
    "intermediate_size": 640,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": 16,
}
SHARED_WIDTH = 128  # of the space of images and texts


@dataclass(frozen=True)
class CLIPTrainingConfig(PretrainingConfig):
    """The options of `training/pretraining/clip_training.py`."""

    output_dir: str = option("directory of scenes and checkpoints", "runs/clip", stored=False)
    scenes: int = option("number of drawn scenes to train on", 40_000, at_least=1)
    steps: int = option("number of training steps", 4_500, at_least=1)
    batch_size: int = option("images of a step in each process", 32, at_least=1)
    learning_rate: float = option("highest learning rate", 1e-3, above=0)


def make_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """CLIP with random weights, for the words of `tokenizer`.

    Attention is the plain implementation, which is faster than the fused one on CPUs in bfloat16.
    """
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
    config = CLIPConfig(
        text_config={**TEXT_TOWER, **words, **special},
        vision_config=IMAGE_TOWER,
        projection_dim=SHARED_WIDTH,
    )
    return CLIPModel._from_config(config, attn_implementation="eager")


# Captions


def shown_classes(scene: dict[str, Any]) -> frozenset[str]:
    """The names of the classes that a caption of `scene` names; of a plain ground, the ground's name."""
    return frozenset(KINDS[k].thing for k, _ in scene["things"]) or frozenset([scene["place"]])


def without_place_and_color(scene: dict[str, Any]) -> dict[str, Any]:
    """`scene` as its caption has neither. A plain ground keeps its name, which is its class."""
    if not scene["things"]:
        return scene
    return {"things": [[k, ""] for k, _ in scene["things"]], "place": ""}


def class_scenes(scenes: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each class that `scenes` show, by its name, the first of them as if it showed this class alone."""
    found: dict[str, dict[str, Any]] = {}
    for scene in scenes:
        for k, _ in scene["things"]:
            found.setdefault(KINDS[k].thing, {"things": [[k, ""]], "place": ""})
        if not scene["things"]:
            found.setdefault(scene["place"], scene)
    return found


# Training


def multi_positive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """The symmetric cross entropy of logits (N, M), whose targets are spread evenly over the positives (N, M)
    bool: the mean of that over the columns of each row, and that over the rows of each column.

    With one positive in each row and column, it is InfoNCE as in CLIP (Radford et al. 2021). Every row and
    every column needs a positive.
    """
    targets = positive.float()
    by_row = F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    by_column = F.cross_entropy(logits.T, targets.T / targets.T.sum(1, keepdim=True))
    return (by_row + by_column) / 2


def random_crops(images: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Normalized crops (N, 3, 128, 128) of images (N, 128, 128, 3) uint8, half of them mirrored. They have
    one random side of at least `LEAST_SIDE` pixels, so that they cut off a part of a thing at most.
    """
    side = int(rng.integers(LEAST_SIDE, IMAGE_SIZE + 1))
    crops = np.empty((len(images), side, side, 3), np.uint8)
    for i, (y, x) in enumerate(rng.integers(IMAGE_SIZE - side + 1, size=(len(images), 2))):
        crop = images[i, y : y + side, x : x + side]
        crops[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in NORMALIZATIONS["clip"])
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    return F.interpolate((pixels - mean) / std, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")


class Batches:
    """Random training batches: crops of scenes, new captions of them, and prompts of their classes."""

    def __init__(self, scenes: SceneStore, tokenizer: PreTrainedTokenizerFast, device: torch.device) -> None:
        self.scenes, self.tokenizer, self.device, self.captions = scenes, tokenizer, device, Captions()
        self.classes = [shown_classes(scene) for scene in scenes.scenes]

    def draw(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normalized images (B, 3, 128, 128), token ids (B + C, tokens) of their captions and of the prompts
        of the C classes that they show, and which texts are positives of which images (B, B + C) bool.
        """
        rows = np.sort(rng.integers(len(self.classes), size=size))
        scenes, classes = ([part[row] for row in rows] for part in (self.scenes.scenes, self.classes))
        described = [without_place_and_color(scene) if rng.random() < 0.5 else scene for scene in scenes]
        single = class_scenes(scenes)
        texts = [self.captions(scene, rng) for scene in (*described, *single.values())]
        ids = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids
        same = [[shown == other for other in classes] for shown in classes]
        named = [[name in shown for name in single] for shown in classes]
        positive = torch.cat([torch.tensor(same), torch.tensor(named)], 1)
        pixels = random_crops(self.scenes.images[rows], rng)
        return pixels.to(self.device), ids.to(self.device), positive.to(self.device)


def contrast(model: CLIPModel, pixels: Tensor, ids: Tensor, positive: Tensor) -> Tensor:
    """The loss of a batch of `Batches`: that of the captions plus that of the prompts of the classes."""
    outputs = (
        model.get_image_features(pixel_values=pixels.to(model.dtype)),
        model.get_text_features(input_ids=ids),
    )
    images, texts = (F.normalize(output.pooler_output.float(), dim=-1) for output in outputs)
    logits = model.logit_scale.float().exp().clamp(max=HIGHEST_SCALE) * images @ texts.T
    count = len(images)
    captions = multi_positive_loss(logits[:, :count], positive[:, :count])
    return captions + multi_positive_loss(logits[:, count:], positive[:, count:])


@torch.no_grad()
def held_out_figures(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, scenes: Sequence[DrawnScene]
) -> dict[str, float]:
    """What `model` knows about scenes that it was not trained on, as values in 0 to 1.

    `retrieval`: the share of the scenes of one class whose class has the name, in "a photo of a {}.", that is
    the most similar one to the image; chance is one of 20. `area`: the area under the ROC curve of MaskCLIP's
    map of each class that a scene shows, in the mean; chance is 0.5. `mean_iou_given_labels`: the mean IoU of
    MaskCLIP on the things of scenes of several classes, if only their classes may be predicted. The
    background is not scored, so that no threshold matters. There must be scenes of one class and of several.
    """
    table = load_table("voc")
    protocol = common(table, background="none", size=IMAGE_SIZE)
    preprocessor = Preprocessor(protocol, "clip")
    directions = text_directions(text_encoder(model, tokenizer), protocol)
    segmenter = DenseCLIP(model, last_block, directions)
    decision = Decision(table, protocol, scale=float(model.logit_scale.exp()))
    metric = MeanIoU(len(table.names), table.ignore_index)
    found, areas = [], []
    for scene in scenes:
        pixels = preprocessor(Image.fromarray(scene.image))["pixel_values"].to(model.device, model.dtype)
        shown = [int(k) for k in np.unique(scene.mask) if k != 0]
        if len(shown) == 1:
            vector = model.get_image_features(pixel_values=pixels).pooler_output
            ranked = decision.probabilities(as_map(vector[:, None], directions, (1, 1)), np.empty((1, 1, 3)))
            found.append(int(ranked[1:].argmax()) + 1 == shown[0])
        maps = segmenter(pixels).logits
        values = decision.probabilities(maps, scene.image).flatten(1).cpu().numpy()
        areas += [area_under_curve(values[k], (scene.mask == k).ravel()) for k in shown]
        if len(shown) > 1:
            (ids,) = decision(maps, scene.image, [torch.tensor(shown, device=maps.device)])
            things = np.where(scene.mask == 0, table.ignore_index, scene.mask)
            metric.add(prediction=ids.cpu().numpy(), reference=things)
    return {
        "retrieval": float(np.mean(found)),
        "area": float(np.mean(areas)),
        "mean_iou_given_labels": metric.compute()["mean_iou"],
    }


def train_clip(
    config: CLIPTrainingConfig,
    state: PartialState,
    scenes: SceneStore,
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
) -> dict[str, float]:
    """Train `model` on `scenes`. Returns `held_out_figures` of the averaged weights in the main
    process, and none in the others.
    """
    trainer = Trainer(
        {"model": model},
        state,
        Path(config.output_dir) / "clip.safetensors",
        config.learning_rate,
        config.steps,
    )
    batches = Batches(scenes, tokenizer, state.device)
    checked = list(held_out_scenes("variety", CHECKED)) if state.is_main_process else []

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 9, step, state.process_index])
        return contrast(model, *batches.draw(rng, config.batch_size))

    def check(step: int) -> None:
        figures = held_out_figures(model, tokenizer, checked)
        logger.info("step %d: %s", step, _written(figures))
        trainer.log(stage="check", step=step, **figures)

    trainer.run("clip", loss, check)
    return held_out_figures(model, tokenizer, checked) if state.is_main_process else {}


def _written(figures: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())


def run(config: CLIPTrainingConfig) -> None:
    """Draw the scenes, train, and write the model and its tokenizer."""
    state, folder, started = start_processes(), Path(config.output_dir), time.monotonic()
    scenes = draw_scenes(folder, state, config.scenes, config.seed, studies=STUDIES)
    torch.manual_seed(config.seed)
    tokenizer = make_tokenizer()
    model = make_clip(tokenizer)
    figures = train_clip(config, state, scenes, model, tokenizer)
    if state.is_main_process:
        target = Path(config.export or folder / "weights")
        model.cpu().save_pretrained(target)
        tokenizer.save_pretrained(target)
        made = {
            "options": stored_options(config),
            "images_a_step": state.num_processes * config.batch_size,
            "device": str(state.device),
            "held_out": figures,
        }
        write_file(target / RECORD, json.dumps(made | provenance(), indent=2).encode())
        seconds = time.monotonic() - started
        print(f"{target}: the CLIP model, after {seconds:.0f} s; held-out scenes: {_written(figures)}")
    state.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run_command(CLIPTrainingConfig, run, sys.argv[1:], sys.argv[0], __doc__.splitlines()[0]))
