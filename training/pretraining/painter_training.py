"""Trains the embedded painter from nothing: a small text-to-image model on pictures that this project
draws.

    torchrun --nproc-per-node 2 training/painter.py --output-dir runs/painter     # what `make painter` runs

Stages, each resumable where it was killed: draw scenes -> autoencoder (f = 8) -> latents -> text encoder
and UNet -> autoencoder's decoder once more -> export in diffusers' StableDiffusionPipeline format. The
trade-off is size: 128 x 128 pictures and about 10 M parameters, so that two CPU cores train it in about three
hours and paint in tenths of a second. Parameters and activations are bfloat16 with float32 master weights,
attention is the plain one: on CPUs its backward pass is several times faster than the fused one's. Every
random choice is a function of (seed, stage, step, rank).
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from attn2mask.builders.drawn.canvas import PALETTE
from attn2mask.builders.drawn.kinds import KINDS, Kind, kinds_of
from attn2mask.builders.drawn.scenes import STUDY_THINGS, draw_scene, shown_in
from attn2mask.builders.drawn.street import BACKDROPS
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import run_command
from attn2mask.builders.painter import load_painter
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.english import plural
from attn2mask.builders.words.grammar import (
    ADJECTIVES,
    HAUNTS,
    JOINTS,
    NUMBERS,
    OPENINGS,
    PLACES,
    SCENE_WORDS,
    VERBS,
    nouns,
    phrase,
    sentence,
)
from attn2mask.training.pretraining.trainer import Ranks, Trainer

SIZE, FACTOR, CHANNELS, TOKENS, WIDTH = 128, 8, 8, 32, 128
STUDIES = 0.12  # share of Cityscapes' single things and grounds among the scenes
BOS, EOS, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|unknown|>"


@dataclass(frozen=True)
class PainterConfig:
    """What `training/painter.py` takes."""

    output_dir: str = "runs/painter"
    scenes: int = field(default=40_000, metadata={"help": "pictures drawn to train on"})
    autoencoder_steps: int = field(default=2_000, metadata={"help": "steps of 32 crops a process"})
    decoder_steps: int = field(default=1_000, metadata={"help": "last steps of the decoder alone"})
    steps: int = field(default=12_000, metadata={"help": "steps of text encoder and UNet"})
    batch_size: int = field(default=24, metadata={"help": "pictures a step and process"})
    learning_rate: float = 1e-3
    seed: int = 0
    start_from: str = field(
        default="",
        metadata={"help": "pipeline to go on from where there is no checkpoint (its autoencoder stays)"},
    )
    export: str = field(default="", metadata={"help": "folder that the finished pipeline is written to"})


# --- words ----------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """Every word of the tables, kinds, backdrops and the grammar, in alphabetical order."""
    texts = [
        *SCENE_WORDS,
        *PALETTE,
        *ADJECTIVES,
        *VERBS,
        *JOINTS,
        *OPENINGS,
        *PLACES,
        *STUDY_THINGS,
        ", . - ' ! ? 's",
    ]
    texts += [p for phrases in (*BACKDROPS.values(), *HAUNTS.values(), *NUMBERS.values()) for p in phrases]
    for table in ("voc", "cityscapes"):
        for label in load_table(table).classes:
            texts += [form for word in (*label.base, *label.aliases) for form in (word, plural(word))]
    texts += [form for kind in KINDS for name in (kind.thing, *kind.names) for form in (name, plural(name))]
    split = _pre_tokenizer()
    return sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})


def _pre_tokenizer():
    from tokenizers import Regex, pre_tokenizers

    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]+|[^\s\p{L}\p{N}]"
    return pre_tokenizers.Split(Regex(words), behavior="removed", invert=True)


def make_tokenizer():
    """A word-level tokenizer with CLIP's conventions: a word that it does not know costs one token."""
    from tokenizers import Regex, Tokenizer, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate([*vocabulary(), UNKNOWN, BOS, EOS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.post_processor = processors.RobertaProcessing(
        (EOS, vocab[EOS]), (BOS, vocab[BOS]), False, False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, unk_token=UNKNOWN,
        model_max_length=TOKENS,
    )  # fmt: skip


class Captions:
    """Writes a caption of a drawn scene, a new one each time, in words that are true of what is drawn."""

    def __init__(self) -> None:
        self.base = {label.name: nouns(label) for label in load_table("voc").classes}
        self.loose: dict[str, list[str]] = {}  # aliases that no kind claims: any kind may bear them
        for label in load_table("voc").classes:
            painted = [kind for kind in kinds_of(label.name) if shown_in("objects", kind)]
            claimed = {name.lower() for kind in painted for name in kind.names}
            self.loose[label.name] = [alias for alias in label.aliases if alias not in claimed]

    def noun(self, kind: Kind, rng: np.random.Generator) -> str:
        """A word for a thing: its class, its kind, or an alias of its class."""
        base = self.base.get(kind.thing, [kind.thing])
        loose = self.loose.get(kind.thing, [])
        draw = rng.random()
        if draw < 0.25 and kind.names:
            return kind.names[rng.integers(len(kind.names))]
        if draw < 0.45 and loose:
            return loose[rng.integers(len(loose))]
        return base[rng.integers(len(base)) if rng.random() < 0.5 else 0]

    def __call__(self, scene: dict, rng: np.random.Generator) -> str:
        """``scene``: {"things": [[index in KINDS, color], ...], "place": phrase}."""
        things = [(KINDS[k], color) for k, color in scene["things"]]
        if not things:
            name = scene["place"]
            noun = f"a {name}" if name in ("road", "sidewalk", "wall", "building") else name
            return sentence([noun if rng.random() < 0.5 else f"the {name}"], "", rng)
        noise = rng.random() < 0.35  # words it does not know, as real captions have them
        counted: dict[str, list] = {}
        for kind, color in things:
            counted.setdefault(kind.thing, []).append((kind, color))
        phrases = []
        for group in counted.values():
            kind, color = group[rng.integers(len(group))]
            same = all(k is kind for k, _ in group)
            noun = self.noun(kind, rng) if same else self.base.get(kind.thing, [kind.thing])[0]
            adjective = ""
            if len(group) == 1 and rng.random() < 0.35:
                adjective = color
            elif rng.random() < 0.15:
                adjective = ADJECTIVES[rng.integers(len(ADJECTIVES))]
            elif noise and rng.random() < 0.3:
                adjective = "zz"
            phrases.append(phrase(noun, len(group), rng, adjective))
        order = rng.permutation(len(phrases))
        place = scene["place"] if rng.random() < 0.9 else ""
        if noise:
            extra = (
                "with zz",
                "zz",
                "zz zz",
                "and zz",
                "with a zz",
                "of zz",
                "zz zz zz",
                "near zz zz",
                "at the zz",
            )
            joined = [place, extra[rng.integers(len(extra))]]
            place = " ".join(joined if rng.random() < 0.7 else joined[::-1])
        return sentence([phrases[i] for i in order], place, rng)


# --- stage 1: scenes ------------------------------------------------------------------------------


def draw(
    scenes: int, seed: int, ranks: Ranks, folder: Path, studies: float = 0.0, world: str = "objects"
) -> None:
    """Draw the scenes once: pictures and masks as .npy files, what is in them as JSON lines, one part a
    process; a share of ``studies`` of Cityscapes' words among them.
    """
    done = folder / f"scenes-{ranks.rank}.jsonl"
    mine = range(ranks.rank, scenes, ranks.size)
    if not done.exists():
        images = np.lib.format.open_memmap(
            folder / f"images-{ranks.rank}.npy", "w+", np.uint8, (len(mine), SIZE, SIZE, 3)
        )
        masks = np.lib.format.open_memmap(
            folder / f"masks-{ranks.rank}.npy", "w+", np.uint8, (len(mine), SIZE, SIZE)
        )
        lines = []
        for row, index in enumerate(tqdm(mine, desc="drawing", disable=not ranks.main, mininterval=5)):
            rng = np.random.default_rng([seed, 1, index])
            scene = draw_scene("studies" if rng.random() < studies else world, rng, SIZE)
            images[row], masks[row] = scene.image, scene.mask
            things = [[KINDS.index(t.kind), t.color] for t in scene.things]
            lines.append(json.dumps({"things": things, "place": scene.place}))
        temporary = done.with_suffix(".tmp")
        temporary.write_text("\n".join(lines))
        os.replace(temporary, done)
    ranks.wait()


class Pictures:
    """The pictures that this process drew, and their masks and contents."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.images = np.load(folder / f"images-{rank}.npy", mmap_mode="r")
        self.masks = np.load(folder / f"masks-{rank}.npy", mmap_mode="r")
        self.scenes = [
            json.loads(line) for line in (folder / f"scenes-{rank}.jsonl").read_text().splitlines()
        ]

    def crops(self, count: int, side: int, rng: np.random.Generator) -> torch.Tensor:
        """Random crops, most of them about a point of a thing: (count, 3, side, side) in [-1, 1]."""
        out = np.empty((count, side, side, 3), np.uint8)
        for i, index in enumerate(rng.integers(len(self.images), size=count)):
            y, x = rng.integers(0, SIZE, 2)
            inside = np.flatnonzero(self.masks[index])
            if len(inside) and rng.random() < 0.75:
                y, x = divmod(int(inside[rng.integers(len(inside))]), SIZE)
            y, x = np.clip([y - side // 2, x - side // 2], 0, SIZE - side)
            crop = self.images[index, y : y + side, x : x + side]
            out[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
        return to_tensor(out)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


# --- stage 2: autoencoder -------------------------------------------------------------------------


def make_autoencoder():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96), layers_per_block=1, latent_channels=CHANNELS, norm_num_groups=8,
        sample_size=SIZE, mid_block_add_attention=False,
    )  # fmt: skip
    with torch.no_grad():  # the encoder is trained by its mean alone: its variance is fixed and small
        vae.quant_conv.weight[CHANNELS:] = 0
        vae.quant_conv.bias[CHANNELS:] = -10
    return vae


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + MSE / 2 + L1 of horizontal and vertical differences, which keeps outlines sharp."""
    difference = output.float() - target
    edges = (difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()) / 2
    return difference.abs().mean() + 0.5 * difference.square().mean() + edges


def train_autoencoder(config: PainterConfig, ranks: Ranks, folder: Path, pictures: Pictures):
    torch.manual_seed(config.seed)
    vae = make_autoencoder()
    trainer = Trainer(
        {"vae": vae}, ranks, folder / "autoencoder.safetensors",
        learning_rate=1.5e-3, steps=config.autoencoder_steps, ema=0.998,
    )  # fmt: skip

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([config.seed, 2, step, ranks.rank])
        target = pictures.crops(32, 64, rng).to(ranks.device)
        latent = vae.encode(target.bfloat16()).latent_dist.mean
        spread = latent.float().std().detach()
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))
        noisy = latent + (0.05 * spread * noise.to(ranks.device)).to(latent)
        return reconstruction_loss(vae.decode(noisy).sample, target) + 1e-4 * latent.float().square().mean()

    trainer.run("autoencoder", loss)
    trainer.mean_weights()
    return vae


@torch.no_grad()
def encode(ranks: Ranks, folder: Path, vae, pictures: Pictures) -> np.ndarray:
    """Latents of all pictures and of their mirror images: (2 N, C, h, w) float16, not yet scaled."""
    path = folder / f"latents-{ranks.rank}.npy"
    if not path.exists():
        parts = []
        for mirror in (False, True):
            for start in tqdm(
                range(0, len(pictures.images), 64), desc="latents", disable=not ranks.main, mininterval=5
            ):
                batch = pictures.images[start : start + 64]
                x = to_tensor(batch[:, :, ::-1] if mirror else batch).to(ranks.device)
                parts.append(vae.encode(x).latent_dist.mean.half().cpu().numpy())
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.save(file, np.concatenate(parts))
        os.replace(temporary, path)
    ranks.wait()
    return np.load(path)


# --- stage 3: text encoder and UNet ---------------------------------------------------------------


def make_text_encoder(tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=1,
            num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=WIDTH,
            pad_token_id=tokenizer.pad_token_id, **ids,
        )
    )  # fmt: skip


def make_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE // FACTOR, in_channels=CHANNELS, out_channels=CHANNELS, layers_per_block=1,
        block_out_channels=(80, 128, 160), norm_num_groups=16, cross_attention_dim=WIDTH,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3,
        use_linear_projection=True,
    )  # fmt: skip


def make_scheduler():
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        steps_offset=1,
    )  # fmt: skip


def alphas() -> torch.Tensor:
    """Cumulative signal variance by timestep of Stable Diffusion's schedule (1000,)."""
    return make_scheduler().alphas_cumprod


def timesteps(count: int, rng: np.random.Generator) -> torch.Tensor:
    """Half uniform, half logit-normal about the middle, where what is in the picture is decided."""
    uniform = rng.random(count)
    normal = 1 / (1 + np.exp(-rng.normal(0.2, 1.0, count)))
    return torch.from_numpy(np.where(rng.random(count) < 0.5, uniform, normal) * 999).long()


def train_painter(
    config: PainterConfig,
    ranks: Ranks,
    folder: Path,
    vae,
    latents: np.ndarray,
    pictures: Pictures,
    start=None,
):
    from diffusers.models.attention_processor import AttnProcessor

    torch.manual_seed(config.seed + 1)
    tokenizer = make_tokenizer()
    text_encoder, unet = make_text_encoder(tokenizer), make_unet()
    if start is not None:
        if start.tokenizer.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                f"--start_from {config.start_from}: its words are not those of today's vocabulary"
            )
        text_encoder.load_state_dict(start.text_encoder.state_dict())
        unet.load_state_dict(start.unet.state_dict())
    unet.set_attn_processor(AttnProcessor())
    trainer = Trainer(
        {"text_encoder": text_encoder, "unet": unet}, ranks, folder / "painter.safetensors",
        learning_rate=config.learning_rate, steps=config.steps, ema=0.9985,
    )  # fmt: skip
    captions, signal = Captions(), alphas().to(ranks.device)
    scale = vae.config.scaling_factor
    count = len(pictures.scenes)
    occupied = np.stack([m.reshape(16, 8, 16, 8).max((1, 3)) > 0 for m in pictures.masks])

    def batch(rng: np.random.Generator, size: int, dropout: float):
        rows = rng.integers(2 * count, size=size)  # the second half are mirror images
        texts = ["" if rng.random() < dropout else captions(pictures.scenes[r % count], rng) for r in rows]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        weight = np.stack([occupied[r % count][:, :: -1 if r >= count else 1] for r in rows])
        noise = torch.randn(
            (size, CHANNELS, 16, 16), generator=torch.Generator().manual_seed(int(rng.integers(2**62)))
        )
        x = torch.from_numpy(latents[rows]).float() * scale
        weight = 1 + torch.from_numpy(weight.astype(np.float32))[:, None]
        return [t.to(ranks.device) for t in (x, noise, timesteps(size, rng), ids, weight / weight.mean())]

    def velocity_error(x, noise, t, ids, weight) -> torch.Tensor:
        a = signal[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * x + (1 - a).sqrt() * noise
        target = a.sqrt() * noise - (1 - a).sqrt() * x
        text = text_encoder(ids).last_hidden_state
        output = unet(noisy.bfloat16(), t, text).sample.float()
        return ((output - target).square() * weight).mean()

    def loss(step: int) -> torch.Tensor:
        return velocity_error(
            *batch(np.random.default_rng([config.seed, 3, step, ranks.rank]), config.batch_size, 0.1)
        )

    @torch.no_grad()
    def every(step: int) -> None:
        x, noise, t, ids, weight = batch(np.random.default_rng([config.seed, 4]), 128, 0.0)
        true = float(velocity_error(x, noise, t, ids, weight))
        shuffled = float(velocity_error(x, noise, t, ids.roll(1, 0), weight))
        print(
            f"\nstep {step}: v-error {true:.4f} with true captions, {shuffled:.4f} with others'",
            file=sys.stderr,
        )
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"stage": "check", "step": step, "true": true, "shuffled": shuffled}) + "\n")

    trainer.run("painter", loss, every)
    trainer.mean_weights()
    return tokenizer, text_encoder, unet


# --- stage 4: decoder and export ------------------------------------------------------------------


def tune_decoder(config: PainterConfig, ranks: Ranks, folder: Path, vae, pictures: Pictures) -> None:
    """The decoder alone once more, on whole pictures with noisier latents, as the UNet gives them."""
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    trainer = Trainer(
        {"vae": vae}, ranks, folder / "decoder.safetensors",
        learning_rate=1e-3, steps=config.decoder_steps, ema=0.998, decay_from=0.1,
    )  # fmt: skip
    scale = vae.config.scaling_factor

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng([config.seed, 5, step, ranks.rank])
        target = pictures.crops(32, 64, rng).to(ranks.device)
        with torch.no_grad():
            latent = vae.encode(target.bfloat16()).latent_dist.mean
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62))))
        noisy = latent + (0.1 / scale * noise.to(ranks.device)).to(latent)
        return reconstruction_loss(vae.decode(noisy).sample, target)

    trainer.run("decoder", loss)
    trainer.mean_weights()
    vae.requires_grad_(True)


def make_pipeline(vae, tokenizer, text_encoder, unet):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=make_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def export(pipe, folder: Path) -> int:
    """Save the pipeline so that a plain ``from_pretrained`` loads it; returns its size in bytes.

    The UNet and the autoencoder are stored in float16, which diffusers reads back as float32; the text
    encoder in float32, since transformers keeps the type that it finds.
    """
    pipe.vae.half()
    pipe.unet.half()
    pipe.text_encoder.float()
    pipe.save_pretrained(folder, safe_serialization=True)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


SHEET_PROMPTS = (
    *("an airplane in the sky", "a bicycle on a road", "a bird in a park", "a boat on the water"),
    *("a bottle in a kitchen", "a bus on the street", "a car on a dirt road", "a cat in a room"),
    *("a chair in a room", "a cow in a field", "a table in a kitchen", "a dog on the grass"),
    *("a horse in a field", "a motorcycle on the street", "a person on the beach", "a plant in a room"),
    *("a sheep in a meadow", "a sofa in a living room", "a train on the tracks", "a tv in a room"),
)


@torch.no_grad()
def sample_sheet(pipe, path: Path, per_prompt: int = 4) -> None:
    """A contact sheet: one row for each class's prompt."""
    from PIL import Image

    pipe.set_progress_bar_config(disable=True)
    sheet = Image.new("RGB", (2 * per_prompt * SIZE, len(SHEET_PROMPTS) // 2 * SIZE))
    for row, prompt in enumerate(SHEET_PROMPTS):
        seeds = [torch.Generator().manual_seed(1000 * row + c) for c in range(per_prompt)]
        images = pipe(
            [prompt] * per_prompt, num_inference_steps=20, guidance_scale=3.0, generator=seeds
        ).images
        for column, image in enumerate(images):
            sheet.paste(image, ((row % 2 * per_prompt + column) * SIZE, row // 2 * SIZE))
    sheet.save(path)


def main(argv: list[str] | None = None) -> None:
    from transformers import HfArgumentParser

    (config,) = HfArgumentParser(PainterConfig).parse_args_into_dataclasses(argv)
    ranks = Ranks()
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if ranks.main:
        print(
            f"{ranks.size} processes on {ranks.device}, {ranks.size * config.batch_size} pictures a step",
            file=sys.stderr,
        )
    started = time.time()
    draw(config.scenes, config.seed, ranks, folder, STUDIES)
    pictures = Pictures(folder, ranks.rank)
    start = load_painter(config.start_from).pipe if config.start_from else None
    vae = start.vae if start else train_autoencoder(config, ranks, folder, pictures)
    latents = encode(ranks, folder, vae, pictures)
    if start is None:
        spread = ranks.mean_(torch.tensor([float(latents[::7].astype(np.float32).std())]).to(ranks.device))
        vae.register_to_config(scaling_factor=1 / float(spread))
    tokenizer, text_encoder, unet = train_painter(config, ranks, folder, vae, latents, pictures, start)
    tune_decoder(config, ranks, folder, vae, pictures)
    if ranks.main:
        pipe = make_pipeline(vae.cpu(), tokenizer, text_encoder.cpu(), unet.cpu())
        target = Path(config.export or folder / "pipeline")
        sample_sheet(pipe, folder / "sheet.png")
        size = export(pipe, target)
        sheet = folder / "sheet.png"
        print(f"wrote {target} ({size / 1e6:.1f} MB) and {sheet} after {time.time() - started:.0f} s")
        print(f"next: attn2mask build voc --model {target} --out data/voc")
    ranks.leave()


if __name__ == "__main__":
    sys.exit(run_command(main))
