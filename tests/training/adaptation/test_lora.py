"""The loss of DreamBooth, and a LoRA that learns."""

from dataclasses import replace

import pytest
import torch
from streets import png, street

from attn2mask.builders.painter import load_painter
from attn2mask.training.adaptation.batches import Batch, Batches
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.adaptation.images import Crop, Latents, TrainingImage, encode_images
from attn2mask.training.adaptation.lora import (
    add_lora,
    batch_loss,
    encode_prompts,
    make_schedule,
    prediction_errors,
)

PROMPT = "a red bus on the street"


@pytest.mark.parametrize("kind", ["sd15", "sd2", "sdxl"])
def test_the_error_is_that_of_what_the_unet_predicts(tiny_pipeline, kind):
    pipe = tiny_pipeline(kind)
    schedule, generator = make_schedule(pipe), torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 2, 4, 8, 8, generator=generator).unbind()
    t = torch.tensor([10, 700])
    with torch.no_grad():
        texts, added = encode_prompts(pipe, [PROMPT, ""], torch.tensor([[64, 64, 0, 0, 64, 64]] * 2))
        errors = prediction_errors(pipe, schedule, x, noise, t, (texts, added))
        a = pipe.scheduler.alphas_cumprod[t].view(2, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        said = pipe.unet(noisy, t, texts, added_cond_kwargs=added).sample
    target = a.sqrt() * noise - (1 - a).sqrt() * x if kind == "sd2" else noise
    torch.testing.assert_close(errors, (said - target).square().mean((1, 2, 3)))
    if kind == "sdxl":
        assert added["time_ids"].shape == (2, 6)
        assert texts[0].any()
        assert not texts[1].any()  # as XL's guidance has it


def test_prior_preservation_adds_the_error_on_class_images(tiny_pipeline):
    pipe = tiny_pipeline("sd15")
    batch = Batch(
        torch.randn(4, 4, 8, 8),
        torch.randn(4, 4, 8, 8),
        torch.tensor([5, 50, 500, 900]),
        [PROMPT] * 4,
        torch.zeros(4, 6),
    )
    with torch.no_grad():
        schedule, config = make_schedule(pipe), AdaptConfig().resolve()
        alone = [Batch(*(values[k : k + 1] for values in vars(batch).values())) for k in range(4)]
        each = [float(batch_loss(pipe, schedule, one, config)) for one in alone]
        loss = batch_loss(pipe, schedule, batch, replace(config, prior_preservation=True, prior_weight=0.5))
    assert float(loss) == pytest.approx((each[0] + each[1]) / 2 + 0.5 * (each[2] + each[3]) / 2, rel=1e-4)


def test_a_lora_learns(tmp_path):
    """The embedded painter's error on what it is shown falls."""
    painter = load_painter()
    streets = [TrainingImage(str(k), None, lambda k=k: png(street(k))) for k in range(4)]
    latents, _ = encode_images(painter.pipe.vae, streets, Crop(64, 128, 8))
    Latents.write(tmp_path / "l", latents, [])
    config = AdaptConfig(learning_rate=2e-3, rank=8, dropout=0.0, instance_prompt="sks").resolve()
    batches = Batches(config, Crop(64, 128, 8), Latents(tmp_path / "l"), [None] * 4, 1000)
    weights = list(add_lora(painter.pipe, config).values())
    optimizer, schedule = torch.optim.AdamW(weights, config.learning_rate), make_schedule(painter.pipe)
    fixed = batches([(position, position % 4) for position in range(1000, 1008)])

    def error() -> float:
        with torch.no_grad():
            return float(batch_loss(painter.pipe, schedule, fixed, config))

    before = error()
    for step in range(10):
        batch_loss(painter.pipe, schedule, batches([(4 * step + k, k) for k in range(4)]), config).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert error() < 0.95 * before
