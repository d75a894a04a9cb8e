"""Builds as `datasets.GeneratorBasedBuilder`: the same engine and rows, kept by the datasets library.

    builder = Attn2MaskVOC(num_images=64, seed=1)
    builder.download_and_prepare("data/voc", file_format="parquet", num_proc=2)
    load_dataset("data/voc", split="train")

The library's preparation
does not resume; for long runs `attn2mask build` does. `num_proc` splits the shards over processes that import
the main module anew, so a script needs its `if __name__ == "__main__":`.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, make_dataclass
from pathlib import Path
from typing import Any

import datasets

from attn2mask.builders.build import BuildConfig, resolve
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import digest
from attn2mask.builders.painter import folder_of, load_painter
from attn2mask.builders.sample import features
from attn2mask.builders.shards import plan
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.workers import default_workers, labeling_pool

# Options that only a command has.
_OF_COMMANDS = ("table", "out", "num_processes", "accelerate_config", "push_to_hub")
_OPTIONS = [f for f in fields(BuildConfig) if f.name not in _OF_COMMANDS]

# The options of `attn2mask build` by the same names and with the same defaults, as datasets wants them.
Attn2MaskConfig = make_dataclass(
    "Attn2MaskConfig", [(f.name, f.type, f.default) for f in _OPTIONS], bases=(datasets.BuilderConfig,)
)
Attn2MaskConfig.__module__ = __name__  # so that processes of num_proc find it


class Attn2MaskBuilder(datasets.GeneratorBasedBuilder):
    """Painted and labeled images in the classes of a table; keyword arguments are those of `BuildConfig`.

    A subclass names its table in `TABLE`, or, where it has several, as the names of its configurations.
    Raises UserError as `attn2mask build` does.
    """

    TABLE: str | None = None
    BUILDER_CONFIG_CLASS = Attn2MaskConfig
    DEFAULT_WRITER_BATCH_SIZE = 16

    def __init__(self, *args: Any, config_name: str | None = None, hash: str | None = None, **kwargs: Any):
        # The library's cache knows neither code nor captions nor weights: without a hash of them it gives
        # stale rows.
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
        inputs, folder = resolve(config), folder_of(config.model)
        parts = {
            "code": digest(Path(__file__).parent, "*.py"),
            "options": asdict(inputs.config),
            "identity": inputs.identity(),
            "model": digest(folder) if folder else None,
        }
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            features=features(load_table(self._build.table), self.config.store_scores)
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        shards = plan(self.config.num_images, self.config.shard_size)
        return [datasets.SplitGenerator(datasets.Split.TRAIN, {"shards": shards})]

    def _generate_examples(self, shards: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self._build
        painter = load_painter(config.model, config.revision, config.lora, config.lora_scale)
        inputs = resolve(config).for_painter(painter)
        with labeling_pool(config.workers or default_workers()) as pool:
            synthesizer = inputs.synthesizer(painter, pool)
            for shard in shards:
                for sample in synthesizer.samples(shard.rows):
                    yield sample.sample_id, sample.to_row(config.store_scores)


class Attn2MaskVOC(Attn2MaskBuilder):
    """Painted and labeled images in the 21 classes of PASCAL VOC."""

    TABLE = "voc"


class Attn2MaskCityscapes(Attn2MaskBuilder):
    """Painted and labeled street scenes, twice as wide as high, in the 19 classes of Cityscapes.

    There is no background class: pixels that belong to no class of the prompt are 255 (ignore).
    """

    TABLE = "cityscapes"
