"""Cityscapes as a builder of the datasets library."""

from attn2mask.builders.generator import Attn2MaskBuilder


class Attn2MaskCityscapes(Attn2MaskBuilder):
    """Painted and labelled street scenes, twice as wide as high, in the 19 classes of Cityscapes.

    There is no background: pixels that none of the prompt's classes explains are 255.
    """

    TABLE = "cityscapes"
