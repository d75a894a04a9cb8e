"""The snippet of docs/export.md exports a checkpoint to ONNX."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from attn2mask.builders.table_reader import load_table
from attn2mask.training.checkpoint import make_processor, save_checkpoint
from attn2mask.training.models import build_network

PAGE = Path(__file__).parents[3] / "docs" / "export.md"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch's exporter, about its own code
@pytest.mark.slow
def test_the_snippet_exports_a_network_for_any_batch_and_size(tmp_path, monkeypatch):
    network = build_network("deeplabv3plus", "scratch:small", load_table("voc"), 0).eval()
    save_checkpoint(tmp_path / "runs" / "small", network, None, make_processor(64), {})
    (snippet,) = re.findall(r"```python\n(.*?torch\.onnx\.export.*?)```", PAGE.read_text("utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, str(PAGE), "exec"), {})
    session = onnxruntime.InferenceSession("model.onnx")
    for seed, shape in enumerate([(1, 3, 64, 64), (3, 3, 70, 131)]):
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = network(pixel_values=pixels).logits.numpy()
        (found,) = session.run(None, {"pixel_values": pixels.numpy()})
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4
