"""attn2mask.training: trains painters and segmenters, and scores them. Importing it makes DeepLabv3+ known to
transformers, so that its checkpoints load like any other.
"""

from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from attn2mask.training.deeplabv3plus import DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation

AutoConfig.register(DeepLabV3PlusConfig.model_type, DeepLabV3PlusConfig, exist_ok=True)
AutoModelForSemanticSegmentation.register(
    DeepLabV3PlusConfig, DeepLabV3PlusForSemanticSegmentation, exist_ok=True
)
# What `pipeline` knows by name; it complains of models that it does not, and runs them all the same.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(
    DeepLabV3PlusConfig.model_type, DeepLabV3PlusForSemanticSegmentation.__name__
)
