"""The engine behind the datasets library's builder interface: `Attn2MaskVOC` and its siblings."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from datasets import load_dataset

from attn2mask import Attn2MaskCityscapes, Attn2MaskImageNetS, Attn2MaskVOC
from attn2mask.builders import dataset_builder
from attn2mask.builders.errors import UserError

OPTIONS = {"num_images": 4, "shard_size": 2, "steps": 2, "height": 64, "width": 64, "alias_probability": 0.0}


@pytest.fixture
def options(tiny_model, tmp_path):
    (tmp_path / "captions.txt").write_text("a photo of a dog\na red bus on the street\n")
    given = {"model": str(tiny_model("sd15")), "captions": str(tmp_path / "captions.txt")}
    return {**OPTIONS, **given, "cache_dir": str(tmp_path / "cache")}


@pytest.fixture(autouse=True)
def thread(monkeypatch):
    """Labeling in a thread of this process."""

    @contextmanager
    def pool(workers: int):
        with ThreadPoolExecutor(1) as threads:
            yield threads

    monkeypatch.setattr(dataset_builder, "labeling_pool", pool)


def test_it_prepares_parquet_that_loads(options, tmp_path):
    builder = Attn2MaskVOC(**options)
    builder.download_and_prepare(str(tmp_path / "data"), file_format="parquet")
    data = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["sample_id"][:] == [f"voc-0-{index:08d}" for index in range(4)]
    assert data.features == builder.info.features
    assert data[0]["image"].size == (64, 64)


def test_maps_are_stored_on_request(options, tmp_path):
    builder = Attn2MaskVOC(**options, store_maps=True)
    builder.download_and_prepare(str(tmp_path / "data"), file_format="parquet")
    data = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features == builder.info.features
    for row in data:
        assert len(row["maps"]) == len(row["scores"]) == len(row["classes"])
        assert [np.shape(one["values"]) for one in row["maps"][0]] == [(8, 8), (4, 4), (2, 2), (1, 1)]


def test_cityscapes_are_wide_and_know_no_background(options, tmp_path):
    del options["width"]
    builder = Attn2MaskCityscapes(**options)
    builder.download_and_prepare(str(tmp_path / "data"), file_format="parquet")
    data = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    names = data.features["classes"].feature.names
    assert (len(names), names[0]) == (19, "road")
    for row in data:
        assert row["image"].size == row["mask"].size == (128, 64)
        assert set(np.unique(row["mask"])) <= {*row["classes"], 255}


@pytest.mark.parametrize(("name", "mode"), [("imagenet_s_50", "P"), ("imagenet_s_919", "I;16")])
def test_imagenet_s_has_a_config_a_set(options, tmp_path, name, mode):
    del options["captions"]
    builder = Attn2MaskImageNetS(config_name=name, **options | {"num_images": 2})
    builder.download_and_prepare(str(tmp_path / "data"), file_format="parquet")
    data = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["sample_id"][:] == [f"{name}-0-0000000{index}" for index in range(2)]
    assert data[0]["mask"].mode == mode
    assert len({row["prompt"] for row in data}) == 2


def test_imagenet_s_has_three_sets(options):
    assert Attn2MaskImageNetS(**options).config.name == "imagenet_s_50"
    hashes = {
        Attn2MaskImageNetS(config_name=name, **options).hash for name in Attn2MaskImageNetS.builder_configs
    }
    assert len(hashes) == 3
    with pytest.raises(
        UserError, match="no config_name 'imagenet_s_51': choose imagenet_s_50, imagenet_s_300"
    ):
        Attn2MaskImageNetS(config_name="imagenet_s_51", **options)


def test_the_hash_follows_options_captions_and_model(options, tiny_model, tmp_path):
    first = Attn2MaskVOC(**options).hash
    assert Attn2MaskVOC(**options).hash == first
    assert Attn2MaskVOC(**{**options, "seed": 1}).hash != first
    assert Attn2MaskVOC(**{**options, "model": str(tiny_model("sd2"))}).hash != first
    (tmp_path / "captions.txt").write_text("a photo of a cat\n")
    assert Attn2MaskVOC(**options).hash != first


def test_options_are_checked_as_on_the_command_line(options):
    with pytest.raises(UserError, match="--num-images 0"):
        Attn2MaskVOC(**{**options, "num_images": 0})


@pytest.mark.slow
def test_num_proc_splits_the_shards(options, tmp_path):
    script = tmp_path / "prepare.py"
    script.write_text(
        "from attn2mask import Attn2MaskVOC\n"
        f"if __name__ == '__main__':\n    builder = Attn2MaskVOC(**{options!r}, workers=1)\n"
        f"    builder.download_and_prepare({str(tmp_path / 'data')!r}, file_format='parquet', num_proc=2)\n"
    )
    subprocess.run([sys.executable, str(script)], check=True)
    assert len(list((tmp_path / "data").glob("*.parquet"))) == 2
    assert len(load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))) == 4
