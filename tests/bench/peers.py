"""`make bench-peers`: recording with DAAM 0.2, compared with plain painting.

It runs in an environment of its own, with the version of diffusers that DAAM needs, and without this
project. Architecture, size and number of steps are those of `recording.py`, in float32 on the CPU.
"""

from types import MappingProxyType, SimpleNamespace

import daam
import torch
from bench.timing import measure
from stable_diffusion import stable_diffusion

TOKENS = 77
PROMPT = "a photo of a dog and a bus on the street"


class Tokenizer:
    """The part of a tokenizer that the pipeline needs. Each word is one token."""

    model_max_length = TOKENS
    bos_token_id, eos_token_id, pad_token_id = 0, 2, 1
    added_tokens_encoder = MappingProxyType({})

    def __call__(self, texts: str | list[str], **_: object) -> SimpleNamespace:
        rows = []
        for text in [texts] if isinstance(texts, str) else texts:
            words = [3 + sum(map(ord, word)) for word in text.split()]
            rows.append([0, *words, *[2] * (TOKENS - 1 - len(words))])
        return SimpleNamespace(input_ids=torch.tensor(rows), attention_mask=torch.ones(len(rows), TOKENS))

    def tokenize(self, text: str) -> list[str]:
        return text.split()

    def batch_decode(self, ids: torch.Tensor) -> list[str]:
        return [""] * len(ids)


def main() -> None:
    pipe = stable_diffusion(Tokenizer()).to("cpu", torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def plain() -> torch.Tensor:
        return pipe(
            PROMPT,
            num_inference_steps=1,
            guidance_scale=7.5,
            height=512,
            width=512,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images

    def traced() -> torch.Tensor:
        with daam.trace(pipe):
            return plain()

    off = float((traced() - plain()).abs().max())
    row = measure("painting under DAAM 0.2 / plain, SD 1.5 float32, batch 1", traced, plain, 8)
    low, high = row.interval
    print(
        f"{row.what}: {row.ratio:.3f} ({low:.3f} to {high:.3f}, {row.pairs} pairs,"
        f" {row.seconds[0]:.2f} / {row.seconds[1]:.2f} s); latents off by up to {off:.1e}"
    )


if __name__ == "__main__":
    main()
