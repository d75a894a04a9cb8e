"""attn2mask: semantic segmentation datasets without pixel labels.

A text-to-image diffusion model paints images from captions. Its cross-attention shows where each class word
landed, and this becomes the mask. The names below are the public interface. Each is imported when it is first
used, so that `import attn2mask` loads no heavy library.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Otherwise the threads of torch wait actively, and take the cores from other processes. torch reads this when
# it is imported; later it has no effect.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from attn2mask.builders.build import BuildConfig, build_dataset
    from attn2mask.builders.classes import ClassTable
    from attn2mask.builders.dataset_builder import Attn2MaskCityscapes, Attn2MaskVOC
    from attn2mask.builders.errors import UserError
    from attn2mask.builders.imagenet_s import Attn2MaskImageNetS
    from attn2mask.builders.label import label_image
    from attn2mask.builders.painter import Painter, load_painter
    from attn2mask.builders.pipeline import Attn2MaskPipeline
    from attn2mask.builders.prompts import PromptSource
    from attn2mask.builders.recorder import AttentionRecorder
    from attn2mask.builders.rules import Rules
    from attn2mask.builders.sample import Sample
    from attn2mask.builders.table_reader import load_table
    from attn2mask.builders.words.captions import read_captions
    from attn2mask.training.checkpoint import load_checkpoint
    from attn2mask.training.miou import MeanIoU

_MODULES = {
    "AttentionRecorder": "builders.recorder",
    "Attn2MaskCityscapes": "builders.dataset_builder",
    "Attn2MaskImageNetS": "builders.imagenet_s",
    "Attn2MaskPipeline": "builders.pipeline",
    "Attn2MaskVOC": "builders.dataset_builder",
    "BuildConfig": "builders.build",
    "ClassTable": "builders.classes",
    "MeanIoU": "training.miou",
    "Painter": "builders.painter",
    "PromptSource": "builders.prompts",
    "Rules": "builders.rules",
    "Sample": "builders.sample",
    "UserError": "builders.errors",
    "build_dataset": "builders.build",
    "label_image": "builders.label",
    "load_checkpoint": "training.checkpoint",
    "load_painter": "builders.painter",
    "load_table": "builders.table_reader",
    "read_captions": "builders.words.captions",
}

__all__ = [
    "AttentionRecorder",
    "Attn2MaskCityscapes",
    "Attn2MaskImageNetS",
    "Attn2MaskPipeline",
    "Attn2MaskVOC",
    "BuildConfig",
    "ClassTable",
    "MeanIoU",
    "Painter",
    "PromptSource",
    "Rules",
    "Sample",
    "UserError",
    "__version__",
    "build_dataset",
    "label_image",
    "load_checkpoint",
    "load_painter",
    "load_table",
    "read_captions",
]


__version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("attn2mask")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
