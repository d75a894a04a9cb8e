"""attn2mask.builders: makes segmentation datasets. Read `synthesize` first; what is listed here is the public
interface.

Names are imported when they are first used, so that `import attn2mask.builders` costs nothing.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "AttentionRecorder": "recorder",
    "Attn2MaskCityscapes": "cityscapes",
    "Attn2MaskImageNetS": "imagenet_s",
    "Attn2MaskVOC": "voc",
    "BuildConfig": "build",
    "ClassTable": "labels",
    "PRESETS": "rules",
    "Painter": "painter",
    "PromptSource": "prompts",
    "Rules": "rules",
    "Sample": "sample",
    "UserError": "errors",
    "label_picture": "labeling",
    "load_painter": "painter",
    "load_table": "labels",
    "read_captions": "captions",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
