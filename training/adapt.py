"""Adapts a painter to images of a distant domain by DreamBooth with a LoRA.

    attn2mask adapt --data frames --output-dir runs/streets
    attn2mask adapt --data frames --output-dir runs/streets --resume    # after a kill
    accelerate launch training/adapt.py --data frames --output-dir runs/streets
    attn2mask build cityscapes --lora runs/streets --out data/adapted

The painter learns the look of the images under an identifier, a word that it has no images for: "sks" in
`--instance-prompt`. Half of the captions are used without the identifier, so that the prompts of a build,
which have none, also produce the new look. A build adds the instance prompt to its prompts where most images
had no caption, and after `--prior-preservation`, which keeps the original look for prompts without the
identifier. The embedded painter can only learn words that its tokenizer knows; "sks" is one of them, and no
image of its training had it.

The output directory holds the LoRA in diffusers' format with `training_config.json` and `adapt.yaml`;
`samples.png`, images of the same prompts and seeds as training proceeds, below real images; the latents; and
the files of a run (see `run.py`).
"""

import sys

if __name__ == "__main__":  # before all other imports, so that Ctrl-C can be handled from here on
    from attn2mask.__main__ import main

    sys.exit(main(["adapt", *sys.argv[1:]]))

import json
import logging
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from attn2mask.builders.errors import UserError
from attn2mask.builders.files import set_usual_mode, write_file
from attn2mask.builders.images import encode_png, read_image
from attn2mask.builders.options import to_yaml
from attn2mask.builders.painter import Painter, load_painter
from attn2mask.builders.prompts import image_seed
from attn2mask.builders.provenance import LORA_RECORD, LORA_WEIGHTS, fingerprint, license_of
from attn2mask.builders.seals import check_weights, read_sealed, with_weights
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.grammar import caption
from attn2mask.training.adaptation import lora
from attn2mask.training.adaptation.batches import Batches
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.adaptation.images import (
    Crop,
    Latents,
    TrainingImage,
    encode_images,
    find_images,
    images_digest,
    make_crop,
    paint_class_images,
)
from attn2mask.training.charts import strip_sheet
from attn2mask.training.config import BatchPlan
from attn2mask.training.data import Positions
from attn2mask.training.run import Run, end, make_accelerator, recorded_run, working_in, write_identity

logger = logging.getLogger(__name__)

SAMPLES = 6  # images in a row of the sheet; a third of them has the instance prompt


def adapt(config: AdaptConfig) -> None:
    """Adapt by `config`; the module's text says what the output directory holds afterwards.

    Raises UserError for options, images and directories that cannot be used, and for a loss that is not
    finite.
    """
    config, output, started = config.resolve(), Path(config.output_dir), time.monotonic()
    accelerator, batch_plan = make_accelerator(config, mixing=False)
    images = find_images(
        config.data, config.allow_incomplete, not config.no_verify and accelerator.is_main_process
    )
    prompts = sample_prompts(config)
    logger.info("Loading the painter")
    painter = load_painter(config.model, config.revision, device=str(accelerator.device), dtype=torch.float32)
    lora.check_pipeline(painter.pipe, config.model)
    crop = make_crop(config, painter.pipe.vae_scale_factor)
    facts = {"painter": fingerprint(painter.pipe.unet), "images": images_digest(images)}
    identity = config.identity() | facts
    recorded_run(output, identity, config.resume)
    if is_exported(output, config.max_steps):
        logger.info("%s is finished: all %d steps are done", output, config.max_steps)
        return
    warn_of_unknown_words(painter, config.instance_prompt)
    with working_in(output, accelerator):
        recorded_run(output, identity, config.resume)  # another run may have started or gone on
        accelerator.wait_for_everyone()  # before the first process writes, all have checked the directory
        batches = make_batches(config, accelerator, painter, images, crop, identity)
        run = Adaptation(config, accelerator, painter, batches, images, facts)
        run.begin(started)
        sample_every = max(1, config.max_steps // 5) if config.sample_every is None else config.sample_every
        logger.info("%s, %s precision: %s", accelerator.device, accelerator.mixed_precision, batch_plan)
        if sample_every and run.step == 0:
            run.sample(prompts)
        with run.progress("adapting"):
            run.train(batch_plan, sample_every, prompts)
        run.finish()
        end(accelerator)


def average_gradients(accelerator: Accelerator, weights: Sequence[torch.Tensor]) -> None:
    """Average the gradients over the processes, in place and in one message."""
    # Not by DistributedDataParallel: it waits for the gradients of all weights, but no output depends on the
    # LoRA of XL's last text layer.
    if accelerator.num_processes == 1:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def make_batches(
    config: AdaptConfig,
    accelerator: Accelerator,
    painter: Painter,
    images: Sequence[TrainingImage],
    crop: Crop,
    identity: dict[str, Any],
) -> Batches:
    """Encode the images, and paint and encode class images; existing files are kept."""
    output = Path(config.output_dir)

    def encoded(name: str, images: Sequence[TrainingImage]) -> Latents:
        file = output / name
        if accelerator.is_main_process and not file.exists():
            latents, skipped = encode_images(painter.pipe.vae, images, crop, progress=True)
            write_identity(output, identity)
            Latents.write(file, latents, skipped)
        accelerator.wait_for_everyone()
        return Latents(file, verify=not config.no_verify and accelerator.is_main_process)

    latents, class_latents = encoded("latents.safetensors", images), None
    if config.prior_preservation:
        with accelerator.autocast():
            rank, processes = accelerator.process_index, accelerator.num_processes
            painted = paint_class_images(painter, output / "class_images", config, crop, rank, processes)
        accelerator.wait_for_everyone()
        class_latents = encoded("class_latents.safetensors", painted)
    captions = [images[place].caption for place in latents.places]
    timesteps = painter.pipe.scheduler.config.num_train_timesteps
    return Batches(config, crop, latents, captions, timesteps, class_latents)


class Adaptation(Run):
    """A run that trains a LoRA of a painter."""

    config: AdaptConfig

    def __init__(
        self,
        config: AdaptConfig,
        accelerator: Accelerator,
        painter: Painter,
        batches: Batches,
        images: Sequence[TrainingImage],
        facts: dict[str, str],
    ) -> None:
        """`facts` holds the fingerprint of the `painter` and the digest of the `images`."""
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = dtypes.get(str(accelerator.mixed_precision), torch.float32)
        weights = lora.add_lora(painter.pipe, config, dtype)
        if config.gradient_checkpointing:
            painter.pipe.unet.enable_gradient_checkpointing()
        rate = config.learning_rate
        group = {"params": list(weights.values()), "lr": rate, "initial_lr": rate}
        optimizer = torch.optim.AdamW([group], weight_decay=config.weight_decay)
        super().__init__(config, accelerator, lambda: weights, accelerator.prepare(optimizer))
        self.painter, self.batches, self.images, self.facts = painter, batches, images, facts

    def train(self, batch_plan: BatchPlan, sample_every: int, prompts: Sequence[str]) -> None:
        """Train to the last step. Raises KeyboardInterrupt and SystemExit as `stop`."""
        config, accelerator, pipe = self.config, self.accelerator, self.painter.pipe
        parameters = list(self.weights().values())
        schedule = lora.make_schedule(pipe)
        positions = iter(Positions([len(self.batches.latents)], config.seed, self.share()))
        while not self.finished:
            self.set_rate()
            total = torch.zeros((), device=accelerator.device)
            for _ in range(batch_plan.accumulation):
                batch = self.batches([next(positions) for _ in range(batch_plan.per_process)])
                with accelerator.accumulate():
                    with accelerator.autocast():
                        loss = lora.batch_loss(pipe, schedule, batch, config)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        average_gradients(accelerator, parameters)
                        if config.clip:
                            accelerator.clip_grad_norm_(parameters, config.clip)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                total += loss.detach() / batch_plan.accumulation
            self.count({"loss": total})
            stop = self.must_stop()
            if self.step % config.checkpoint_every == 0 or self.finished or stop:
                self.save()
            if sample_every and (self.step % sample_every == 0 or self.finished):
                self.sample(prompts)
            if stop:
                self.stop()

    def save(self) -> None:
        """Write the state, then the adapter."""
        super().save()
        if self.accelerator.is_main_process:
            self.export()

    def export(self) -> None:
        """Write the LoRA and its options, then the record, which marks that everything is there."""
        writing = self.output / ".writing"
        lora.save_lora(self.painter.pipe, writing)
        set_usual_mode(writing)
        os.replace(writing / LORA_WEIGHTS, self.output / LORA_WEIGHTS)
        writing.rmdir()
        options = to_yaml(self.config, "attn2mask adapt --config adapt.yaml")
        write_file(self.output / "adapt.yaml", options.encode())
        record = with_weights(self.adapter_record(), self.output, [LORA_WEIGHTS])
        write_file(self.output / LORA_RECORD, json.dumps(record, indent=2).encode())

    def adapter_record(self) -> dict[str, Any]:
        """What training_config.json holds."""
        config, painter, batches = self.config, self.painter.facts, self.batches
        return self.record(
            "adapt",
            base_model=painter["model"],
            base_version=painter["model_version"],
            base_fingerprint=self.facts["painter"],
            revision=config.revision,
            license=license_of(config.model, config.revision),
            table=Path(config.table).name,
            data={
                "name": Path(config.data).name,
                "digest": self.facts["images"],
                "images": len(batches.latents),
                "with_caption": sum(text is not None for text in batches.captions),
                "skipped": len(batches.latents.skipped),  # their names are not for publication
            },
            loss=self.loss,
            loss_curve="log.jsonl",
        )

    @torch.no_grad()
    def sample(self, prompts: Sequence[str]) -> None:
        """Paint the prompts, always from the same noise, and draw samples.png, with real images on top."""
        if not self.accelerator.is_main_process:
            return
        folder, pipe, crop = self.output / "samples", self.painter.pipe, self.batches.crop
        defaults, latents = self.painter.defaults, self.batches.latents
        folder.mkdir(exist_ok=True)
        samples, real = [], []
        for number, prompt in enumerate(prompts):
            with self.accelerator.autocast():
                painted = pipe(
                    prompt,
                    height=crop.height,
                    width=crop.width,
                    num_inference_steps=defaults.steps,
                    guidance_scale=defaults.guidance_scale,
                    output_type="latent",
                    generator=torch.Generator().manual_seed(image_seed(self.config.seed, number, 0)),
                ).images
            pixels = pipe.vae.decode(painted.float() / pipe.vae.config.scaling_factor).sample
            samples.append(np.asarray(pipe.image_processor.postprocess(pixels)[0]))
            place = latents.places[number * len(latents) // len(prompts)]
            image = crop.fit(self.images[place].read(), self.images[place].name)
            real.append(image[: crop.height, : crop.width])
        write_file(folder / f"step-{self.step:06d}.png", encode_png(np.hstack(samples)))
        strips = {"real": np.hstack(real)}
        for file in sorted(folder.glob("step-*.png")):
            strips[f"step {int(file.stem.split('-')[1])}"] = read_image(file, str(file))
        notes = [f"{number}: {prompt}" for number, prompt in enumerate(prompts, 1)]
        strip_sheet(strips, self.output / "samples.png", notes)

    def finish(self) -> None:
        """Print what was made and how to use it."""
        if not self.accelerator.is_main_process:
            return
        if not is_exported(self.output, self.step):  # killed between the last checkpoint and its export
            self.export()
        config = self.config
        sheet = self.output / "samples.png"
        samples = f", samples in {sheet}" if sheet.exists() else ""
        print(f"made {self.output / LORA_WEIGHTS}{samples} in {self.seconds:.0f} s")
        model = [] if config.model == "embedded" else ["--model", config.model]
        revision = ["--revision", config.revision] if config.revision else []
        out = f"data/{Path(config.table).stem}-{self.output.name}"
        options = [config.table, *model, *revision, "--lora", str(self.output), "--out", out]
        print(f"next: attn2mask build {shlex.join(options)}")


def is_exported(output: Path, step: int) -> bool:
    """Whether a directory holds the adapter of a step as it was written. Raises UserError for a record that
    is not as it was written.
    """
    file = output / LORA_RECORD
    if not file.exists():
        return False
    record = read_sealed(file, "delete it, and the same command with --resume writes it again")
    try:
        check_weights(output)
    except UserError:  # killed between the weights and their record, or damaged
        return False
    return record.get("step") == step


def sample_prompts(config: AdaptConfig) -> list[str]:
    """The instance prompt, and captions as a build of the table would have them."""
    table, rng = load_table(config.table), np.random.default_rng([config.seed, 3])
    own = SAMPLES // 3
    return [config.instance_prompt] * own + [caption(table, rng) for _ in range(SAMPLES - own)]


def warn_of_unknown_words(painter: Painter, prompt: str) -> None:
    """Warn of words that the tokenizer reads as its one unknown word; CLIP's tokenizer has none."""
    tokenizer = painter.tokenizers[0]
    unknown = tokenizer.unk_token_id
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return
    words = [w for w in prompt.split() if unknown in tokenizer(w, add_special_tokens=False).input_ids]
    if words:
        logger.warning(
            "the painter does not know %s in --instance-prompt and cannot learn it; it can learn sks",
            ", ".join(words),
        )
