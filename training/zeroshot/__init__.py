"""Zero-shot segmenters: models of images and text that were trained without masks, and segment by names.

`segmenter.py` says what a method is and loads one. Each method is a file here, named as `--method` names it.
"""
