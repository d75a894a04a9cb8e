"""Train the embedded painter, a small text-to-image model, from random weights on drawn scenes.

    torchrun --nproc-per-node 2 training/pretraining/painter_training.py --output-dir runs/painter

`make painter` runs it, on GPUs or CPUs. `run` lists the stages, each of which resumes where it was
interrupted. The images have 128 x 128 pixels. Attention is the plain implementation: on CPUs its backward
pass is several times as fast as that of the fused one. Every random choice is a function of (seed, stage,
step, process).

Two decisions ground the words, so that the attention of a class word covers its thing. The text encoder has
no layers, so that each token carries its own word alone. With causal layers, the end tokens carry the whole
caption, and nothing makes the UNet attend to the words. And the encoder of the UNet has cross-attention only
at 4 x 4 positions, because at its finer levels nothing is known yet about where things are.
"""

import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import make_image_grid
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from attn2mask.builders.command import run_command
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.options import option, stored_options
from attn2mask.builders.painter import Painter, Painting, load_painter
from attn2mask.builders.provenance import provenance
from attn2mask.builders.table_reader import load_table
from attn2mask.training.experiments.grounding import grounding
from attn2mask.training.held_out import held_out_scenes
from attn2mask.training.mask_quality import record_scenes
from attn2mask.training.pretraining.autoencoder import (
    ARCHITECTURE,
    encode_scenes,
    load_autoencoder,
    train_autoencoder,
    tune_decoder,
)
from attn2mask.training.pretraining.scene_store import IMAGE_SIZE, STUDIES, SceneStore, draw_scenes
from attn2mask.training.pretraining.trainer import PretrainingConfig, Trainer, gaussian_noise, start_processes
from attn2mask.training.pretraining.vocabulary import MAX_TOKENS, Captions, make_tokenizer

logger = logging.getLogger(__name__)

RECORD = "training.json"  # beside the weights: how they were made
PAINTING = Painting(steps=20, guidance_scale=3.0, height=IMAGE_SIZE, width=IMAGE_SIZE)
LATENT_SIZE = IMAGE_SIZE // 8
CHECKED = 128  # images that the error is measured on while training
SAMPLE_PROMPTS = """
    an airplane in the sky | a bicycle on a road | a bird in a park | a boat on the water
    a bottle in a kitchen | a bus on the street | a car on a dirt road | a cat in a room
    a chair in a room | a cow in a field | a table in a kitchen | a dog on the grass
    a horse in a field | a motorcycle on the street | a person on the beach | a plant in a room
    a sheep in a meadow | a sofa in a living room | a train on the tracks | a tv in a room
"""


@dataclass(frozen=True)
class PainterTrainingConfig(PretrainingConfig):
    """The options of `training/pretraining/painter_training.py`."""

    output_dir: str = option("directory of scenes and checkpoints", "runs/painter", stored=False)
    scenes: int = option("number of drawn scenes to train on", 40_000, at_least=1)
    autoencoder_steps: int = option("steps of the autoencoder, 32 crops in each process", 2_000, at_least=1)
    decoder_steps: int = option("steps of the decoder alone, at the end", 1_000, at_least=0)
    steps: int = option("steps of the text encoder and the UNet", 40_000, at_least=1)
    decay_from: float = option(
        "fraction of the steps from which on the learning rate falls", 0.6, at_least=0, at_most=1
    )
    batch_size: int = option("images of a step in each process", 24, at_least=1)
    learning_rate: float = option("highest learning rate of text encoder and UNet", 1e-3, above=0)
    autoencoder: str | None = option(
        "autoencoder to keep, a folder of diffusers", None, default_text="one is trained", metavar="DIR"
    )
    start_from: str | None = option(
        "pipeline whose weights training starts from, if there is no checkpoint; its autoencoder is kept",
        None,
        default_text="random weights",
        metavar="DIR",
    )


# Models, with random weights


def make_text_encoder(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """The text encoder for the words of `tokenizer`."""
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        **ARCHITECTURE["text_encoder"],
        **special,
    )
    return CLIPTextModel(config)


def make_unet() -> UNet2DConditionModel:
    """The UNet."""
    return UNet2DConditionModel(**ARCHITECTURE["unet"])


def make_scheduler() -> DPMSolverMultistepScheduler:
    """The scheduler, which has no weights."""
    return DPMSolverMultistepScheduler(**ARCHITECTURE["scheduler"])


# Training


def random_timesteps(count: int, rng: np.random.Generator) -> Tensor:
    """Timesteps (count,) in 0 to 999: half uniform, half logit-normal about the middle of the schedule."""
    uniform = rng.random(count)
    normal = 1 / (1 + np.exp(-rng.normal(0.2, 1.0, count)))
    return torch.from_numpy(np.where(rng.random(count) < 0.5, uniform, normal) * 999).long()


class Batches:
    """Random training batches: latents of scenes or of their mirror images, with new captions and noise."""

    def __init__(
        self,
        scenes: SceneStore,
        latents: np.ndarray,
        scale: float,
        tokenizer: PreTrainedTokenizerFast,
        device: torch.device,
    ) -> None:
        """`latents` (2 N, C, h, w) are those of `encode_scenes`, which `scale` multiplies."""
        self.scenes, self.latents, self.scale = scenes, latents, scale
        self.tokenizer, self.device, self.captions = tokenizer, device, Captions()
        blocks = (LATENT_SIZE, IMAGE_SIZE // LATENT_SIZE)
        self.covered = np.stack([mask.reshape(*blocks, *blocks).max((1, 3)) > 0 for mask in scenes.masks])

    def draw(self, rng: np.random.Generator, size: int, dropout: float) -> list[Tensor]:
        """Scaled latents (B, C, h, w), noise of the same shape, timesteps (B,), token ids (B, tokens), and
        weights of the loss (B, 1, h, w) of mean 1, twice as high on things.

        `dropout` is the probability that a caption is empty, which classifier-free guidance needs.
        """
        count = len(self.scenes.scenes)
        rows = rng.integers(2 * count, size=size)  # the second half are mirror images
        texts = [
            "" if rng.random() < dropout else self.captions(self.scenes.scenes[row % count], rng)
            for row in rows
        ]
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        covered = np.stack([self.covered[row % count][:, :: -1 if row >= count else 1] for row in rows])
        noise = gaussian_noise((size, *self.latents.shape[1:]), rng)
        latents = torch.from_numpy(self.latents[rows]).float() * self.scale
        weight = 1 + torch.from_numpy(covered.astype(np.float32))[:, None]
        batch = (latents, noise, random_timesteps(size, rng), ids, weight / weight.mean())
        return [tensor.to(self.device) for tensor in batch]


def start_weights(
    tokenizer: PreTrainedTokenizerFast, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, model: str
) -> AutoencoderKL:
    """Put the weights of the pipeline `model` into the text encoder and the UNet. Returns its autoencoder.

    Raises UserError if it cannot be loaded, or has another vocabulary or architecture.
    """
    start = load_painter(model, device="cpu").pipe
    if start.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise UserError(f"--start-from {model}: its tokenizer has another vocabulary")
    for name, module in (("text encoder", text_encoder), ("UNet", unet)):
        part = getattr(start, name.lower().replace(" ", "_"))
        try:
            module.load_state_dict(part.state_dict())
        except RuntimeError as error:
            raise UserError(f"--start-from {model}: its {name} has another architecture") from error
    return start.vae


def train_unet(
    config: PainterTrainingConfig,
    state: PartialState,
    scenes: SceneStore,
    latents: np.ndarray,
    pipe: StableDiffusionPipeline,
) -> None:
    """Train the text encoder and the UNet of `pipe` on the unscaled `latents` of `encode_scenes`."""
    text_encoder, unet, scale = pipe.text_encoder, pipe.unet, pipe.vae.config.scaling_factor
    unet.set_attn_processor(AttnProcessor())
    trainer = Trainer(
        {"text_encoder": text_encoder, "unet": unet},
        state,
        Path(config.output_dir) / "painter.safetensors",
        learning_rate=config.learning_rate,
        steps=config.steps,
        ema=0.9985,
        decay_from=config.decay_from,
    )
    batches = Batches(scenes, latents, scale, pipe.tokenizer, state.device)
    signal = pipe.scheduler.alphas_cumprod.to(state.device)  # share of the signal's variance by timestep
    checked = list(held_out_scenes("variety", CHECKED)) if state.is_main_process else []

    def velocity_error(x: Tensor, noise: Tensor, t: Tensor, ids: Tensor, weight: Tensor) -> Tensor:
        a = signal[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        target = a.sqrt() * noise - (1 - a).sqrt() * x
        text = text_encoder(ids).last_hidden_state
        output = unet(noisy.to(unet.dtype), t, text).sample.float()
        return ((output - target).square() * weight).mean()

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 3, step, state.process_index])
        return velocity_error(*batches.draw(rng, config.batch_size, dropout=0.1))

    @torch.no_grad()
    def check(step: int) -> None:
        x, noise, t, ids, weight = batches.draw(np.random.default_rng([config.seed, 4]), CHECKED, dropout=0.0)
        true = float(velocity_error(x, noise, t, ids, weight))
        shuffled = float(velocity_error(x, noise, t, ids.roll(1, 0), weight))
        recorded = record_scenes(Painter(pipe, PAINTING, {}), load_table("voc"), checked)
        words = grounding(recorded, [scene.mask for scene in checked])
        logger.info(
            "step %d: error %.4f with true captions, %.4f with shuffled ones; area of class words %s",
            step,
            true,
            shuffled,
            ", ".join(f"{size} {values['auc']:.3f}" for size, values in words.items()),
        )
        trainer.log(stage="check", step=step, true=true, shuffled=shuffled, grounding=words)

    trainer.run("painter", loss, check)


# The finished pipeline


def export(pipe: StableDiffusionPipeline, folder: Path) -> int:
    """Save the pipeline so that `from_pretrained` loads it. Returns its size in bytes.

    The UNet and the autoencoder are stored in float16, which diffusers reads as float32. The text encoder is
    stored in float32, because transformers keeps the type that it finds.
    """
    pipe.vae.half()
    pipe.unet.half()
    pipe.text_encoder.float()
    pipe.save_pretrained(folder, safe_serialization=True)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@torch.no_grad()
def sample_sheet(pipe: StableDiffusionPipeline, path: Path, per_prompt: int = 4) -> None:
    """Paint each of `SAMPLE_PROMPTS` a few times and save all images as one sheet, two prompts to a row."""
    pipe.set_progress_bar_config(disable=True)
    images = []
    for number, prompt in enumerate(SAMPLE_PROMPTS.replace("\n", "|").strip(" |").split("|")):
        seeds = [torch.Generator().manual_seed(1000 * number + k) for k in range(per_prompt)]
        prompts = [prompt.strip()] * per_prompt
        images += pipe(
            prompts,
            num_inference_steps=PAINTING.steps,
            guidance_scale=PAINTING.guidance_scale,
            generator=seeds,
        ).images
    make_image_grid(images, len(images) // (2 * per_prompt), 2 * per_prompt).save(path)


def record(config: PainterTrainingConfig, state: PartialState) -> dict[str, Any]:
    """What is needed to make the weights again: options (of folders the name alone), images a step, versions;
    and the same of the weights that training started from, if there were such, as `start`.
    """
    options = stored_options(config)
    for name in ("autoencoder", "start_from"):
        options[name] = options[name] and Path(options[name]).name
    batch = state.num_processes * config.batch_size
    made = {"options": options, "images_a_step": batch, "device": str(state.device)}
    before = config.start_from and Path(config.start_from) / RECORD
    if before and before.is_file():
        made["start"] = json.loads(before.read_text())
    return made | provenance()


def run(config: PainterTrainingConfig) -> None:
    """Run all stages. Raises UserError if the weights to start from cannot be used."""
    state, folder, started = start_processes(), Path(config.output_dir), time.monotonic()
    if state.is_main_process:
        batch = state.num_processes * config.batch_size
        logger.info(
            "Training with %d processes on %s, %d images a step", state.num_processes, state.device, batch
        )
    torch.manual_seed(config.seed + 1)
    tokenizer = make_tokenizer()
    text_encoder, unet = make_text_encoder(tokenizer), make_unet()
    vae = None
    if config.start_from:
        vae = start_weights(tokenizer, text_encoder, unet, config.start_from)
    if config.autoencoder:
        vae = load_autoencoder(config.autoencoder)
    scenes = draw_scenes(folder, state, config.scenes, config.seed, studies=STUDIES)
    scaled = vae is not None
    if vae is None:
        vae = train_autoencoder(scenes, state, folder, seed=config.seed, steps=config.autoencoder_steps)
    latents = encode_scenes(vae.to(state.device), scenes, state, folder)
    if not scaled:
        spread = torch.tensor(float(latents[::7].astype(np.float32).std()), device=state.device)
        vae.register_to_config(scaling_factor=1 / float(reduce(spread, "mean")))
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    train_unet(config, state, scenes, latents, pipe)
    tune_decoder(vae, scenes, state, folder, seed=config.seed, steps=config.decoder_steps)
    if state.is_main_process:
        target = Path(config.export or folder / "pipeline")
        sheet = folder / "sheet.png"
        sample_sheet(pipe.to("cpu"), sheet)
        megabytes, seconds = export(pipe, target) / 1e6, time.monotonic() - started
        write_file(target / RECORD, json.dumps(record(config, state), indent=2).encode())
        print(f"{target}: the painter, {megabytes:.1f} MB, after {seconds:.0f} s; {sheet} shows it")
        print(f"next: attn2mask build voc --model {target} --out data/voc")
    state.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run_command(PainterTrainingConfig, run, sys.argv[1:], sys.argv[0], __doc__.splitlines()[0]))
