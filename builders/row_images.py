"""The content of image files in rows of datasets.

A row holds an image itself, or only the path of a file. The rows of a stranger may hold any path. Therefore
only files of the dataset itself are opened, and nothing from the network or inside an archive.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attn2mask.builders.errors import UserError
from attn2mask.builders.images import UnreadableError


def encoded_columns(rows: Any, names: Iterable[str], dataset: str) -> Any:
    """`rows` of `datasets` with images that stay encoded in the columns `names`: {"bytes", "path"} or None.
    The features keep their modes. `dataset` is what messages call the dataset.

    Raises UserError for a column of another type than images or their bytes.
    """
    from datasets import Image as ImageFeature

    for name in names:
        feature = (rows.features or {}).get(name)
        if not may_hold_images(feature):
            kind = getattr(feature, "dtype", None) or type(feature).__name__
            raise UserError(f"{dataset}: the column {name} of its rows holds {kind}, not images")
        rows = rows.cast_column(name, ImageFeature(mode=getattr(feature, "mode", None), decode=False))
    return rows


def image_content(value: Any, name: str, dataset: str | Path) -> bytes:
    """The content of the image file that a row holds as `value` ({"bytes", "path"} or None); empty if it
    holds none.

    Args:
        name: what messages call the image.
        dataset: the directory of the rows, or their name on the Hub. A path in `value` must lead to a file
            in this directory or in the cache of downloads, links included.

    Raises UserError for another path, and UnreadableError for a file that cannot be read.
    """
    content, path = (value or {}).get("bytes"), (value or {}).get("path")
    if content or not path:
        return content or b""
    file = os.path.realpath(path)
    if "://" in path or not any(Path(file).is_relative_to(folder) for folder in _own_folders(dataset)):
        raise UserError(
            f"{name} is only a path, {path!r}, which is not in the folder of the dataset and is not opened:"
            " store the image itself in the row"
            + (", or leave out --streaming" if path.startswith("hf://") else "")
        )
    if not os.path.isfile(file):
        raise UnreadableError(name, f"there is no file {path}")
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UnreadableError(name, f"{path}: {error.strerror}") from error


def _own_folders(dataset: str | Path) -> list[str]:
    """The real paths of the folders that hold the files of a dataset, and those of the cache."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folders = [Path(config.DOWNLOADED_DATASETS_PATH), Path(config.EXTRACTED_DATASETS_PATH)]
    if os.path.isdir(dataset):
        own = Path(os.path.realpath(dataset))
        folders.append(own)
        # The cache of the Hub holds a dataset as snapshots/REVISION, whose files are links into blobs.
        folders += [parent.parent / "blobs" for parent in own.parents if parent.name == "snapshots"]
    else:
        folders.append(Path(HF_HUB_CACHE) / repo_folder_name(repo_id=str(dataset), repo_type="dataset"))
    return [os.path.realpath(folder) for folder in folders]


def may_hold_images(feature: Any) -> bool:
    """Whether a column with this feature of `datasets` may hold images: as such, or as their bytes."""
    from datasets import Image as ImageFeature
    from datasets import Value

    if isinstance(feature, dict):
        return {"bytes", "path"} == set(feature)
    is_bytes = isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")
    return is_bytes or isinstance(feature, ImageFeature)
