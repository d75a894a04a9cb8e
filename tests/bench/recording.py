"""Painting with the recorder, compared with painting without it: the embedded painter, and with random
weights the architectures of Stable Diffusion 1.5 and, on a GPU, of Stable Diffusion 3 and FLUX.1.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from bench.timing import Row, measure, peak_memory
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from stable_diffusion import stable_diffusion
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTokenizerFast

from attn2mask.builders.layouts import layout_of
from attn2mask.builders.painter import EMBEDDED, Painting, load_painter
from attn2mask.builders.prompts import PromptSource, image_seed
from attn2mask.builders.recorder import AttentionRecorder
from attn2mask.builders.table_reader import load_table

WORDS = {"dog": (5,), "bus": (8, 9)}
SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
PROMPT = "a photo of a dog and a bus on the street"


def pipe_options(painting: Painting) -> dict[str, object]:
    """The options of a pipeline that paints in this way."""
    return {
        "num_inference_steps": painting.steps,
        "guidance_scale": painting.guidance_scale,
        "height": painting.height,
        "width": painting.width,
        "output_type": "np",
    }


def draw(pipe, texts: list[str], seeds: list[int], **options) -> np.ndarray:
    """Plain painting, by the pipeline alone."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipe(texts, generator=generators, **options).images
    return images.float().cpu().numpy() if isinstance(images, torch.Tensor) else images


def record(pipe, texts: list[str], seeds: list[int], spans: list[dict], **options) -> np.ndarray:
    """The same with the recorder."""
    with AttentionRecorder(pipe, spans):
        return draw(pipe, texts, seeds, **options)


def embedded(model: str, quick: bool) -> Iterator[Row]:
    """The painter of `model`; all denoising steps."""
    painter = load_painter(model)
    source = PromptSource(load_table("voc"), None, painter.tokenizers, seed=0)
    prompts = [source.prompt(index, 0) for index in range(8)]
    seeds = [image_seed(0, index, 0) for index in range(8)]
    options = pipe_options(painter.defaults)
    spans = [dict(zip(p.words, p.spans, strict=True)) for p in prompts]
    for size, pairs in ((1, 3 if quick else 20), (8, 2 if quick else 8)):
        texts = [prompt.text for prompt in prompts[:size]]
        plain = partial(draw, painter.pipe, texts, seeds[:size], **options)
        recorded = partial(record, painter.pipe, texts, seeds[:size], spans[:size], **options)
        same = bool(np.array_equal(recorded(), plain()))
        yield measure(
            f"painting recorded / plain, {model}, batch {size}", recorded, plain, pairs, same_images=same
        )


def architecture(quick: bool) -> Iterator[Row]:
    """Stable Diffusion 1.5, 512 x 512 with guidance: one denoising step on a CPU, ten on a GPU. Latents are
    compared, not images.
    """
    gpu = torch.cuda.is_available()
    tokenizer = CLIPTokenizerFast.from_pretrained(EMBEDDED / "tokenizer", model_max_length=77)
    pipe = stable_diffusion(tokenizer)
    pipe.set_progress_bar_config(disable=True)
    options = {
        "num_inference_steps": 10 if gpu else 1,
        "guidance_scale": 7.5,
        "height": 512,
        "width": 512,
        "output_type": "latent",
    }
    pairs, sizes = (2 if quick else 16), ((1, 8) if gpu else (1,))
    on_cpu = (torch.bfloat16,) if quick else (torch.float32, torch.bfloat16)
    dtypes = (torch.float16, torch.bfloat16) if gpu else on_cpu
    for dtype in dtypes:
        pipe.to("cuda" if gpu else "cpu", dtype)
        for size in sizes:
            texts, seeds, spans = [PROMPT] * size, list(range(size)), [WORDS] * size
            plain = partial(draw, pipe, texts, seeds, **options)
            recorded = partial(record, pipe, texts, seeds, spans, **options)
            same = bool(np.array_equal(recorded(), plain()))
            memory = peak_memory(recorded) / peak_memory(plain)
            kind = str(dtype).removeprefix("torch.")
            yield measure(
                f"painting recorded / plain, SD 1.5 {kind}, batch {size}",
                recorded,
                plain,
                pairs,
                goal="<= 1.02" if gpu else "<= 1.01",
                same_images=same,
                memory=memory,
                **floor(pipe, plain),
            )


def transformers(quick: bool) -> Iterator[Row]:
    """The transformers of Stable Diffusion 3 and FLUX.1 with random weights, on a GPU alone: four calls for
    images of 1024 x 1024 pixels, with the layers that are published.
    """
    if not torch.cuda.is_available():
        return
    published = {  # the transformers' configs, where they differ from the defaults of their classes
        "SD 3": (SD3Transformer2DModel, SD3, sd3),
        "FLUX.1": (FluxTransformer2DModel, {"guidance_embeds": True}, flux),
    }
    for name, (kind, config, inputs) in published.items():
        model = random_model(kind, **config)
        for size in (1, 2):
            call = inputs(size)

            @torch.no_grad()
            def plain(model=model, call=call) -> torch.Tensor:
                for _ in range(4):
                    output = model(**call, return_dict=False)[0]
                return output.float().cpu()

            def recorded(model=model, plain=plain, size=size) -> torch.Tensor:
                with AttentionRecorder(model, [WORDS] * size):
                    return plain()

            same = torch.equal(recorded(), plain())
            what = f"painting recorded / plain, {name} bfloat16, batch {size}"
            pairs = 2 if quick else 16
            yield measure(what, recorded, plain, pairs, goal="<= 1.02", same_images=same)
        del model
        torch.cuda.empty_cache()


def random_model(kind: type, **config) -> torch.nn.Module:
    """A transformer with random weights in bfloat16, which are made on the GPU."""
    with torch.device("meta"):
        model = kind(**config)
    model = model.to(torch.bfloat16).to_empty(device="cuda").requires_grad_(False)
    for tensor in (*model.parameters(), *model.buffers()):
        torch.nn.init.normal_(tensor, std=0.02)
    return model


def sd3(size: int) -> dict[str, torch.Tensor]:
    """The arguments of a call with guidance, for `size` images."""
    return on_gpu(
        hidden_states=torch.randn(2 * size, 16, 128, 128),
        encoder_hidden_states=torch.randn(2 * size, 333, 4096),
        pooled_projections=torch.randn(2 * size, 2048),
        timestep=torch.full((2 * size,), 500.0),
    )


def flux(size: int) -> dict[str, torch.Tensor]:
    """The arguments of a call, for `size` images."""
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(64.0), torch.arange(64.0))
    return on_gpu(
        hidden_states=torch.randn(size, 4096, 64),
        encoder_hidden_states=torch.randn(size, 512, 4096),
        pooled_projections=torch.randn(size, 768),
        timestep=torch.full((size,), 0.5),
        guidance=torch.full((size,), 3.5),
        img_ids=grid,
        txt_ids=torch.zeros(512, 3),
    )


def on_gpu(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: tensor.to("cuda", torch.bfloat16) for name, tensor in tensors.items()}


def floor(pipe, plain) -> dict[str, float]:
    """The least additional work of recording in one call of the denoiser for one image.

    `floor_operations`: one product of the conditional half's queries and keys, as a share of the operations
    of the denoiser. `floor_bytes`: both are read once more and a map for each word is added, as a share of
    the bytes of the weights.
    """
    shapes: dict[str, list[torch.Size]] = {}
    hooks = []
    for name, layer in layout_of(pipe).layers.items():
        for module in (layer.to_q, layer.to_k):
            hooks.append(
                module.register_forward_hook(
                    lambda module, args, output, name=name: shapes.setdefault(name, []).append(output.shape)
                )
            )
    with FlopCounterMode(display=False) as counter:
        plain()
    for hook in hooks:
        hook.remove()
    calls = len(pipe.scheduler.timesteps)
    denoiser = counter.get_flop_counts()["UNet2DConditionModel"]
    operations = moved = 0
    for query, key in (seen[:2] for seen in shapes.values()):
        half = query[0] // 2
        operations += 2 * half * query[1] * query[2] * key[1]
        moved += half * (query[1] + key[1]) * query[2] * pipe.unet.dtype.itemsize
        moved += 2 * half * query[1] * len(WORDS) * 4  # a float32 map is read and written
    weights = sum(p.numel() * p.element_size() for p in pipe.unet.parameters())
    return {
        "floor_operations": operations * calls / sum(denoiser.values()),
        "floor_bytes": moved / weights,
    }
