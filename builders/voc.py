"""PASCAL VOC as a builder of the datasets library."""

from attn2mask.builders.generator import Attn2MaskBuilder


class Attn2MaskVOC(Attn2MaskBuilder):
    """Painted and labelled pictures in the 21 classes of PASCAL VOC."""

    TABLE = "voc"
