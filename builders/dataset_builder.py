"""Builders of the datasets library (`datasets.GeneratorBasedBuilder`) that make the rows of `attn2mask
build`.

    builder = Attn2MaskVOC(num_images=64, seed=1)
    builder.download_and_prepare("data/voc", file_format="parquet", num_proc=2)
    load_dataset("data/voc", split="train")

Unlike `attn2mask build`, the library does not resume an interrupted preparation. With `num_proc`, processes
import the main module again, so that a script needs an `if __name__ == "__main__":` block.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, make_dataclass
from pathlib import Path
from typing import Any

import datasets

from attn2mask.builders.build import BuildConfig, painter_of, quality_of, resolve
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import digest
from attn2mask.builders.painter import folder_of
from attn2mask.builders.sample import features, optional_columns
from attn2mask.builders.shards import plan
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.workers import default_workers, labeling_pool

# The options that concern only the command line.
_OF_COMMANDS = ("table", "out", "dry_run", "num_processes", "accelerate_config", "push_to_hub")
_OPTIONS = [f for f in fields(BuildConfig) if f.name not in _OF_COMMANDS]

# The other options of `attn2mask build`, with the same names and defaults, as datasets expects them.
Attn2MaskConfig = make_dataclass(
    "Attn2MaskConfig", [(f.name, f.type, f.default) for f in _OPTIONS], bases=(datasets.BuilderConfig,)
)
Attn2MaskConfig.__module__ = __name__  # the processes of num_proc import it from here


class Attn2MaskBuilder(datasets.GeneratorBasedBuilder):
    """Painted and labeled images in the classes of a table; keyword arguments are those of `BuildConfig`.

    A subclass gives its table in `TABLE`; if it has several, they are the names of its configurations. Raises
    UserError for the same mistakes as `attn2mask build`.
    """

    TABLE: str | None = None
    BUILDER_CONFIG_CLASS = Attn2MaskConfig
    DEFAULT_WRITER_BATCH_SIZE = 16

    def __init__(self, *args: Any, config_name: str | None = None, hash: str | None = None, **kwargs: Any):
        # The library's cache does not know code, captions and weights. Without a hash of them it would return
        # outdated rows.
        table = self.TABLE or config_name or self.DEFAULT_CONFIG_NAME
        known = [config.name for config in self.BUILDER_CONFIGS]
        if known and table not in known:
            raise UserError(f"{type(self).__name__} has no config_name {table!r}: choose {', '.join(known)}")
        given = {option.name: kwargs[option.name] for option in _OPTIONS if option.name in kwargs}
        hash = hash or self._digest(BuildConfig(table, **given))
        super().__init__(*args, config_name=config_name, hash=hash, **kwargs)

    @property
    def _build(self) -> BuildConfig:
        options = {option.name: getattr(self.config, option.name) for option in _OPTIONS}
        return BuildConfig(self.TABLE or self.config.name, **options)

    def _digest(self, config: BuildConfig) -> str:
        inputs, code = resolve(config), digest(Path(__file__).parent, "*.py")
        folders = [folder_of(model) for model in (config.model, config.score_model) if model is not None]
        models = [digest(folder) if folder else None for folder in folders]
        parts = [code, asdict(inputs.config), inputs.identity(), *models]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _info(self) -> datasets.DatasetInfo:
        build = self._build
        stored = optional_columns(vars(build))
        return datasets.DatasetInfo(features=features(load_table(build.table), stored))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        shards = plan(self.config.num_images, self.config.shard_size)
        return [datasets.SplitGenerator(datasets.Split.TRAIN, {"shards": shards})]

    def _generate_examples(self, shards: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self._build
        painter = painter_of(config)
        inputs = resolve(config).for_painter(painter)
        quality, _ = quality_of(config, inputs.table)
        with labeling_pool(config.workers or default_workers()) as pool:
            synthesizer = inputs.synthesizer(painter, pool)
            for shard in shards:
                for sample in quality.measure(synthesizer.samples(shard.rows)):
                    yield sample.row["sample_id"], sample.to_row(quality.stored)


class Attn2MaskVOC(Attn2MaskBuilder):
    """Painted and labeled images in the 21 classes of PASCAL VOC."""

    TABLE = "voc"


class Attn2MaskCityscapes(Attn2MaskBuilder):
    """Painted and labeled street scenes, twice as wide as high, in the 19 classes of Cityscapes.

    There is no background class: pixels that belong to no class of the prompt are 255 (ignore).
    """

    TABLE = "cityscapes"
