"""`attn2mask export`: writes the rows of a dataset in the format of another tool.

    attn2mask export data/voc --format voc --out data/voc-layout
    attn2mask export data/voc --format coco --instances --out data/coco       # needs attn2mask[export]

`rows.py` reads rows as images with ids. `voc.py` writes the layout of VOC. `adapter.py` hands the rows to the
library Datumaro, which writes all other formats of `formats.yaml`.
"""
