"""attn2mask.training: trains painters and segmenters, and scores them. Importing it makes DeepLabv3+ known to
transformers' Auto classes, so that its checkpoints load like any other.
"""

from transformers import AutoConfig, AutoModelForSemanticSegmentation

from attn2mask.training.deeplabv3plus import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation

AutoConfig.register("deeplabv3plus", DeepLabV3PlusConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(
    DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation, exist_ok=True
)
