"""`Attn2MaskVOC`: the engine behind the datasets library's builder interface."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from datasets import load_dataset

from attn2mask.builders import voc
from attn2mask.builders.errors import UserError
from attn2mask.builders.voc import Attn2MaskVOC

OPTIONS = {"num_images": 4, "shard_size": 2, "steps": 2, "height": 64, "width": 64, "alias_probability": 0.0}


@pytest.fixture
def options(tiny_model, tmp_path):
    (tmp_path / "captions.txt").write_text("a photo of a dog\na red bus on the street\n")
    given = {"model": str(tiny_model("sd15")), "captions": str(tmp_path / "captions.txt")}
    return {**OPTIONS, **given, "cache_dir": str(tmp_path / "cache")}


def test_it_prepares_parquet_that_loads(options, tmp_path, monkeypatch):
    @contextmanager
    def thread(workers: int):
        with ThreadPoolExecutor(1) as pool:
            yield pool

    monkeypatch.setattr(voc, "labelling_pool", thread)
    builder = Attn2MaskVOC(**options)
    builder.download_and_prepare(str(tmp_path / "data"), file_format="parquet")
    data = load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["sample_id"][:] == [f"voc-0-{index:08d}" for index in range(4)]
    assert data.features == builder.info.features
    assert data[0]["image"].size == (64, 64)


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
        "from attn2mask.builders import Attn2MaskVOC\n"
        f"if __name__ == '__main__':\n    builder = Attn2MaskVOC(**{options!r}, workers=1)\n"
        f"    builder.download_and_prepare({str(tmp_path / 'data')!r}, file_format='parquet', num_proc=2)\n"
    )
    subprocess.run([sys.executable, str(script)], check=True)
    assert len(list((tmp_path / "data").glob("*.parquet"))) == 2
    assert len(load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))) == 4
