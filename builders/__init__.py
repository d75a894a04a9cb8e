"""Builders: captions or drawn scenes become datasets of images with masks. `synthesize` is the main path."""
