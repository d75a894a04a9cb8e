"""The example of `docs/painters.md` runs as it stands there."""

import re
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from families import autoencoder, sharpened, t5, t5_tokenizer
from transformers import UMT5EncoderModel

PAGE = Path(__file__).parents[2] / "docs" / "painters.md"


def aura_flow() -> AuraFlowPipeline:
    tokenizer = t5_tokenizer()
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    pipe = AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer, UMT5EncoderModel).eval(),
        vae=autoencoder(4).eval(),
        transformer=sharpened(transformer).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_example_of_a_layout_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names: dict = {}
    exec(code, names)
    pipe = aura_flow()

    def paint(prompt: str):
        return pipe(
            [prompt],
            num_inference_steps=2,
            height=128,
            width=128,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images

    plain = paint("a dog and a cat")
    painted = []
    wrapped = SimpleNamespace(
        transformer=pipe.transformer,
        tokenizer=pipe.tokenizer,
        scheduler=pipe.scheduler,
    )

    class Called(type(wrapped)):
        def __call__(self, prompt: str) -> None:
            painted.append(paint(prompt))

    maps = names["record"](Called(**vars(wrapped)), "a dog and a cat", "dog")
    assert torch.equal(painted[0], plain)
    assert list(maps) == [(8, 8)]
    other = names["record"](Called(**vars(wrapped)), "a dog and a cat", "cat")
    assert not torch.allclose(maps[8, 8], other[8, 8])
    # Position 8 is the first token of the text: changing it alone changes its key alone.
    ((span,),) = names["AuraFlow"].stretches(pipe)[0].spans("a dog", [(2, 5)])
    assert span == (8 + 1,)
