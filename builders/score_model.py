"""Scores of images by a model of CLIP's kind (`--score-model`): does the image show what the prompt says?

    model = load_score_model("openai/clip-vit-base-patch32")
    RowScorer(model, table).scores(rows)  # [{"clip_score": 0.31, "presence": [0.98]}, ...]

The model is any of the Hub's, or a folder, that transformers loads with an image tower, a text tower and a
`logit_scale`: CLIP, SigLIP and their like. Only safetensors are read, and no code of the model runs.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.devices import default_device
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.files import digest
from attn2mask.builders.loading import check_all_loaded, quiet
from attn2mask.builders.words.english import article
from attn2mask.builders.words.grammar import nouns

BATCH = 32  # images or texts that the model gets at a time
NEUTRAL = "a photo"
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of a repository of the Hub


@dataclass(frozen=True)
class ScoreModel:
    """A model of CLIP's kind, in float32 and in evaluation mode, on the device of `network`.

    `facts` are its name and its version: the commit of the Hub, or a digest of the folder.
    """

    network: Any
    processor: Any
    facts: dict[str, str]

    @property
    def scale(self) -> float:
        """The factor of the cosines before a softmax, with which the model was trained."""
        return self.network.logit_scale.exp().item()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """The unit vectors (N, D) of texts. Of a text, what is too long for the model is left out."""
        config = self.network.config
        fit = {
            "padding": "max_length",
            "truncation": True,
            "max_length": config.get_text_config().max_position_embeddings,
            # SigLIP was trained with what fills a text up to this length. Other models do not see it.
            "return_attention_mask": not config.model_type.startswith("siglip"),
        }
        parts = [
            self.network.get_text_features(
                **self.processor(text=list(part), return_tensors="pt", **fit).to(self.network.device)
            ).pooler_output
            for part in _batches(texts)
        ]
        return F.normalize(torch.cat(parts).float(), dim=1).cpu()

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """The unit vectors (N, D) of RGB images."""
        parts = [
            self.network.get_image_features(
                **self.processor(images=list(part), return_tensors="pt").to(self.network.device)
            ).pooler_output
            for part in _batches(images)
        ]
        return F.normalize(torch.cat(parts).float(), dim=1).cpu()


def load_score_model(name: str, device: str | None = None) -> ScoreModel:
    """The model in a folder, or of that name on the Hub, on `device` (by default the GPU, if there is one).

    Raises UserError if there is no such model, if it is none of CLIP's kind, and if it has no safetensors.
    """
    folder = Path(name) if Path(name).is_dir() else None
    with quiet():
        try:
            files = folder or Path(snapshot_download(name, allow_patterns=_FILES))
        except Exception as error:  # the Hub's client raises errors of many types
            raise UserError(
                f"--score-model {name}: there is no such folder, and it cannot be loaded from the Hub:"
                f" {first_line(error)}"
            ) from error
        if not any(files.glob("*.safetensors")):
            raise UserError(
                f"--score-model {name} has no weights in the format safetensors: choose another model, such"
                " as openai/clip-vit-large-patch14"
            )
        try:
            network, report = AutoModel.from_pretrained(
                files,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except Exception as error:  # as the next one: transformers raises errors of many types
            raise UserError(f"--score-model {name} cannot be loaded: {first_line(error)}") from error
        towers = ("get_text_features", "get_image_features", "logit_scale")
        if not all(hasattr(network, part) for part in towers):
            raise UserError(
                f"--score-model {name} is a {type(network).__name__}, which does not compare images with"
                " texts: choose a model of CLIP's kind, such as openai/clip-vit-large-patch14"
            )
        check_all_loaded(f"--score-model {name}", network, report)
        try:
            # Pillow alone resizes, so that scores are the same where torchvision is installed.
            processor = AutoProcessor.from_pretrained(files, backend="pil", trust_remote_code=False)
            complete = None not in (processor.tokenizer, processor.image_processor)
        except Exception as error:
            raise UserError(
                f"--score-model {name}: its processor of images and texts cannot be loaded:"
                f" {first_line(error)}"
            ) from error
        if not complete:
            raise UserError(f"--score-model {name} lacks a tokenizer or an image processor")
    device = device or default_device()
    facts = {
        "score_model": folder.resolve().name if folder else name,
        "score_model_version": digest(folder) if folder else files.name,
    }
    model = ScoreModel(network.eval().requires_grad_(False).to(device), processor, facts)
    try:
        trial = agreement(model.images([Image.new("RGB", (64, 64))]), model.texts([NEUTRAL]))
    except Exception as error:
        raise UserError(
            f"--score-model {name} cannot compare an image with a text: {first_line(error)}"
        ) from error
    if not trial.isfinite().all():
        raise UserError(f"--score-model {name} gives no numbers: its weights are damaged")
    return model


@dataclass(frozen=True)
class RowScorer:
    """Scores the rows of a class table by a model."""

    model: ScoreModel
    table: ClassTable

    def scores(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The columns `clip_score` and `presence` of rows, which have `image`, `prompt` and `classes`."""
        if not rows:
            return []
        pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
        images, prompts = self.model.images(pictures), self.model.texts([row["prompt"] for row in rows])
        return [
            {"clip_score": score, "presence": self._presence(image, row["classes"])}
            for row, image, score in zip(rows, images, agreement(images, prompts).tolist(), strict=True)
        ]

    def _presence(self, image: Tensor, classes: Sequence[int]) -> list[float]:
        positions = [k - self.table.first_id for k in classes]
        competing = [k for k, label in enumerate(self.table.classes) if label.thing and k not in positions]
        logits = self.model.scale * (self._texts @ image)
        return presence(logits[positions], torch.cat([logits[competing], logits[-1:]])).tolist()

    @cached_property
    def _texts(self) -> Tensor:
        """The unit vectors of a text for each class of the table, and of the neutral text."""
        names = [nouns(label)[0] for label in self.table.classes]
        return self.model.texts([*(f"a photo of {article(name)} {name}" for name in names), NEUTRAL])


def agreement(images: Tensor, texts: Tensor) -> Tensor:
    """The cosine (N,), -1 to 1, of the vectors (N, D) of images and of their texts.

    It is the similarity by which CLIP is trained (Radford et al. 2021), and by which LAION selected its pairs
    (Schuhmann et al. 2021). CLIPScore (Hessel et al. 2021) is 2.5 times this, and 0 where it is negative.
    """
    return F.cosine_similarity(images, texts, dim=1)


def presence(named: Tensor, others: Tensor) -> Tensor:
    """Whether each class is in an image, 0 to 1 (K,): its share of a softmax over its own logit and `others`.

    `named` (K,) are the logits, cosine times scale, of the classes that the prompt names. They do not compete
    with each other, since all of them may be there. `others` (M,), M > 0, are the logits of the things of the
    table that the prompt does not name, and of a neutral text, without which the only class of a table would
    always be there. Stuff such as sky does not compete, since most images show it unasked.

    This is the zero-shot classification of CLIP (Radford et al. 2021), once for each class. A class that
    is not there is as likely as any of the others, whose number therefore sets the scale: 0.05 for VOC.
    """
    rest = torch.logsumexp(others, dim=0)
    return torch.sigmoid(named - rest)


def _batches(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), BATCH):
        yield values[start : start + BATCH]
