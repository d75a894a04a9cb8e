"""attn2mask.builders: makes segmentation datasets. Read `synthesize` first; what is listed here is the public
interface.

Names are imported when they are first used, so that `import attn2mask.builders` costs nothing.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "AttentionRecorder": "recorder",
    "Attn2MaskCityscapes": "dataset_builder",
    "Attn2MaskImageNetS": "imagenet_s",
    "Attn2MaskVOC": "dataset_builder",
    "BuildConfig": "build",
    "ClassTable": "classes",
    "PRESETS": "rules",
    "Painter": "painter",
    "PromptSource": "prompts",
    "Rules": "rules",
    "Sample": "sample",
    "UserError": "errors",
    "label_image": "label",
    "load_painter": "painter",
    "load_table": "table_reader",
    "read_captions": "words.captions",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
