"""The embedded painter's autoencoder, which maps 8 x 8 pixels to one position of the latents.

It is trained before the UNet, on crops. Its decoder is tuned once more at the end.
"""

from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import PartialState
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.files import replacing
from attn2mask.training.pretraining.scene_store import SceneStore
from attn2mask.training.pretraining.trainer import Trainer, fast_dtype, gaussian_noise
from attn2mask.training.referee import to_tensor

ARCHITECTURE = yaml.safe_load(Path(__file__).with_name("architecture.yaml").read_text("utf-8"))
CROPS, CROP_SIZE = 32, 64  # crops of a step in a process, and their side in pixels


def make_autoencoder() -> AutoencoderKL:
    """The autoencoder with random weights."""
    vae = AutoencoderKL(**ARCHITECTURE["autoencoder"])
    with torch.no_grad():  # only the mean is trained: the variance is fixed and small
        vae.quant_conv.weight[vae.config.latent_channels :] = 0
        vae.quant_conv.bias[vae.config.latent_channels :] = -10
    return vae


def load_autoencoder(folder: str) -> AutoencoderKL:
    """The trained autoencoder in a folder of diffusers. Raises UserError if it cannot be loaded."""
    try:
        vae = AutoencoderKL.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--autoencoder {folder} cannot be loaded: {first_line(error)}") from error
    vae.register_to_config(_name_or_path=Path(folder).name)  # the config is published, the path is not
    return vae


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 + MSE / 2 + L1 of the horizontal and vertical differences, which keeps outlines sharp."""
    difference = output.float() - target
    edges = (difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()) / 2
    return difference.abs().mean() + 0.5 * difference.square().mean() + edges


def train_autoencoder(
    scenes: SceneStore, state: PartialState, folder: Path, *, seed: int, steps: int
) -> AutoencoderKL:
    """Train encoder and decoder on crops, with slight noise on the latents."""
    torch.manual_seed(seed)
    vae = make_autoencoder()
    trainer = Trainer(
        {"vae": vae}, state, folder / "autoencoder.safetensors", learning_rate=1.5e-3, steps=steps
    )

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 2, step, state.process_index])
        target = scenes.crops(CROPS, CROP_SIZE, rng).to(state.device)
        latent = vae.encode(target.to(vae.dtype)).latent_dist.mean
        noise = 0.05 * latent.float().std().detach() * gaussian_noise(latent.shape, rng).to(state.device)
        output = vae.decode(latent + noise.to(latent)).sample
        return reconstruction_loss(output, target) + 1e-4 * latent.float().square().mean()

    trainer.run("autoencoder", loss)
    return vae


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, scenes: SceneStore, state: PartialState, folder: Path) -> np.ndarray:
    """Unscaled latents (2 N, C, h, w) float16 of the scenes, then of their mirror images; made once."""
    path = folder / f"latents-{state.process_index}.npy"
    if not path.exists():
        parts, dtype = [], fast_dtype(state.device)
        encoder = deepcopy(vae).to(state.device, dtype)
        for step in (1, -1):
            starts = range(0, len(scenes.images), 64)
            for start in tqdm(starts, "latents", disable=not state.is_main_process, mininterval=5):
                pixels = to_tensor(scenes.images[start : start + 64, :, ::step]).to(state.device, dtype)
                parts.append(encoder.encode(pixels).latent_dist.mean.half().cpu().numpy())
        with replacing(path) as file:
            np.save(file, np.concatenate(parts))
    state.wait_for_everyone()
    return np.load(path)


def tune_decoder(
    vae: AutoencoderKL, scenes: SceneStore, state: PartialState, folder: Path, *, seed: int, steps: int
) -> None:
    """Train the decoder alone, on latents with more noise, as the UNet makes them."""
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    trainer = Trainer(
        {"vae": vae}, state, folder / "decoder.safetensors", learning_rate=1e-3, steps=steps, decay_from=0.1
    )

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 5, step, state.process_index])
        target = scenes.crops(CROPS, CROP_SIZE, rng).to(state.device)
        with torch.no_grad():
            latent = vae.encode(target.to(vae.dtype)).latent_dist.mean
        noise = 0.1 / vae.config.scaling_factor * gaussian_noise(latent.shape, rng).to(state.device)
        return reconstruction_loss(vae.decode(latent + noise.to(latent)).sample, target)

    trainer.run("decoder", loss)
    vae.requires_grad_(True)
