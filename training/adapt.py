"""Adapts a painter to pictures of a distant domain, as DreamBooth does, with a LoRA.

    accelerate launch training/adapt.py --data frames --output-dir runs/streets
    accelerate launch training/adapt.py --data frames --output-dir runs/streets --resume    # after a kill
    attn2mask build cityscapes --lora runs/streets --out data/adapted

The painter learns the look of the pictures under an identifier, a word that it has no picture for: "sks" in
`--instance-prompt`. Where pictures have captions it is told these, half of the time without the identifier:
a build's prompts name none, and bring the new look all the same. With `--prior-preservation`, which holds the
painter to its own pictures wherever the identifier is missing, the captions of a build must bring it. Of a
word that its tokenizer does not know the embedded painter can learn nothing; "sks" is one that it knows, and
never saw a picture of.

The output directory: the LoRA in diffusers' format, training_config.json (all that a card says of it);
`state.safetensors`, from which `--resume` goes on to the last bit; `samples.png`, what the painter makes of
the same prompts and seeds as it learns, under real pictures; `log.jsonl`, the tracker's files, latents.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.images import encode_png
from attn2mask.builders.options import parse, run_command
from attn2mask.builders.painter import Painter, load_painter
from attn2mask.builders.prompts import image_seed
from attn2mask.builders.provenance import LORA_RECORD, LORA_WEIGHTS, fingerprint, license_of, provenance
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.grammar import caption
from attn2mask.training.adaptation import instance_images, lora
from attn2mask.training.adaptation.config import AdaptConfig
from attn2mask.training.adaptation.instance_images import Crop, Feed, Instance, Latents
from attn2mask.training.charts import sample_sheet
from attn2mask.training.config import BatchPlan, plan_batches
from attn2mask.training.data import Positions
from attn2mask.training.train import (
    CHECK_EVERY,
    end,
    hardware,
    load_state,
    make_accelerator,
    recorded_run,
    save_state,
    saved_step,
    trim_log,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

SAMPLES = 6  # pictures in a row of the sheet, a third of them of the instance prompt


def adapt(config: AdaptConfig) -> None:
    """Adapt as ``config`` says; see the module's text for what is left in the output directory."""
    settings, output, started = config.settings(), Path(config.output_dir), time.time()
    accelerator = make_accelerator(config, output)
    batches = plan_batches(settings.batch_size, accelerator.num_processes, config.micro_batch, mixing=False)
    found = instance_images.find_instances(config.data)
    prompts = sample_prompts(config)
    painter = load_painter(config.model, config.revision, device=str(accelerator.device), dtype=torch.float32)
    lora.check_pipeline(painter.pipe, config.model)
    crop = instance_images.make_crop(settings, painter.pipe.vae_scale_factor)
    identity = config.identity() | {
        "painter": fingerprint(painter.pipe.unet), "pictures": instance_images.digest(found),
    }  # fmt: skip
    recorded_run(output, identity, config.resume)
    if finished(output) == settings.max_steps:
        accelerator.print(f"{output} has all its {settings.max_steps} steps; nothing to do")
        return
    accelerator.print(f"{accelerator.device}, {accelerator.mixed_precision} precision: {batches}")
    accelerator.wait_for_everyone()  # all have looked before the first writes
    feed = make_feed(config, accelerator, painter, found, crop, identity)
    run = Run(config, accelerator, painter, feed, found, identity, prompts)
    run.begin(started)
    places = iter(
        Positions(
            len(feed.latents), settings.batch_size, run.step, settings.max_steps, config.seed,
            accelerator.process_index, accelerator.num_processes,
        )
    )  # fmt: skip
    bar = tqdm(
        total=settings.max_steps, initial=run.step, desc="adapting", unit="step",
        disable=not accelerator.is_main_process, mininterval=1,
    )  # fmt: skip
    with stoppable() as stopped:
        while run.step < settings.max_steps:
            run.note(training_step(run, places, batches), bar)
            bar.update()
            done = run.step == settings.max_steps
            stop = stopped() and accelerator.is_main_process and not done
            if run.step % config.checkpoint_every == 0 or done or stop:
                run.save()
            if stop:
                bar.close()
                accelerator.print(f"{output} holds step {run.step}; --resume goes on from there")
                raise KeyboardInterrupt
            if run.sample_every and (run.step % run.sample_every == 0 or done):
                run.sample()
    bar.close()
    run.finish()
    end(accelerator)


def training_step(run: Run, places: Iterator[tuple[int, int]], batches: BatchPlan) -> torch.Tensor:
    """One optimizer step on one global batch: its loss."""
    accelerator, settings, weights = run.accelerator, run.settings, list(run.weights.values())
    total = torch.zeros((), device=accelerator.device)
    for _ in range(batches.accumulation):
        batch = run.feed([next(places) for _ in range(batches.per_process)])
        with accelerator.autocast():
            loss = lora.batch_loss(run.pipe, run.schedule, batch, settings)
        accelerator.backward(loss / batches.accumulation)
        total += loss.detach() / batches.accumulation
    total = share(accelerator, weights, total)
    accelerator.clip_grad_norm_(weights, settings.clip)
    for group in run.optimizer.param_groups:
        group["lr"] = settings.rate(run.step)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.step += 1
    return total


def share(
    accelerator: Accelerator, weights: Sequence[torch.nn.Parameter], loss: torch.Tensor
) -> torch.Tensor:
    """Average the weights' gradients over the processes, in place, and the loss, which is returned: a LoRA's
    fit in one message.
    """
    if accelerator.num_processes == 1:
        return loss
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = accelerator.reduce(torch.cat([loss[None], *(grad.flatten() for grad in gradients)]), "mean")
    mean, *parts = flat.split([1, *(grad.numel() for grad in gradients)])
    for grad, part in zip(gradients, parts, strict=True):
        grad.copy_(part.view_as(grad))
    return mean[0]


def make_feed(
    config: AdaptConfig, accelerator: Accelerator, painter: Painter, found: Sequence[Instance], crop: Crop,
    identity: dict[str, Any],
) -> Feed:  # fmt: skip
    """The pictures encoded and, with prior preservation, class pictures painted and encoded; what is there is
    kept. Nothing is written where the pictures can't be used.
    """
    output = Path(config.output_dir)

    def encoded(name: str, pictures: Sequence[Instance]) -> Latents:
        file = output / name
        if accelerator.is_main_process and not file.exists():
            made = instance_images.encode_pictures(painter.pipe.vae, pictures, crop, progress=True)
            output.mkdir(parents=True, exist_ok=True)
            write_file(output / "run.json", json.dumps(identity, indent=2).encode())
            Latents.write(file, *made)
        accelerator.wait_for_everyone()
        return Latents(file)

    latents, prior = encoded("latents.safetensors", found), None
    if config.prior_preservation:
        with accelerator.autocast():
            painted = instance_images.paint_class_pictures(
                painter, output / "class_pictures", config.class_prompt, config.prior_images, crop,
                config.seed, accelerator.process_index, accelerator.num_processes,
            )  # fmt: skip
        accelerator.wait_for_everyone()
        prior = encoded("class_latents.safetensors", painted)
    captions = [found[place].caption for place in latents.places]
    timesteps = painter.pipe.scheduler.config.num_train_timesteps
    return Feed(
        latents, captions, crop, config.instance_prompt, config.settings(), config.seed, timesteps, prior,
        config.class_prompt,
    )  # fmt: skip


class Run:
    """What changes as a run goes on, and how it is kept."""

    def __init__(
        self, config: AdaptConfig, accelerator: Accelerator, painter: Painter, feed: Feed,
        found: Sequence[Instance], identity: dict[str, Any], prompts: Sequence[str],
    ) -> None:  # fmt: skip
        self.config, self.settings, self.output = config, config.settings(), Path(config.output_dir)
        self.accelerator, self.painter, self.pipe = accelerator, painter, painter.pipe
        self.feed, self.found, self.identity, self.prompts = feed, found, identity, prompts
        self.schedule = lora.make_schedule(self.pipe)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}
        dtype = half.get(str(accelerator.mixed_precision), torch.float32)
        self.weights = lora.add_lora(self.pipe, self.settings, config.seed, dtype)
        if config.gradient_checkpointing:
            self.pipe.unet.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW(
            self.weights.values(), self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        self.optimizer = accelerator.prepare(optimizer)
        self.step, self.loss, self.seconds = 0, 0.0, 0.0
        fifth = max(1, self.settings.max_steps // 5)
        self.sample_every = fifth if config.sample_every is None else config.sample_every
        self.pending: list[torch.Tensor] = []

    def begin(self, started: float) -> None:
        """Go on from the last checkpoint, or draw what the painter makes of the prompts before it learns."""
        accelerator = self.accelerator
        self.started = started
        if saved_step(self.output):
            self.load()
        elif self.sample_every:
            self.sample()
        trim_log(self.output / "log.jsonl", self.step, accelerator.is_main_process)
        self.shown = (time.time(), self.step)
        values = {k: v for k, v in asdict(self.config).items() if isinstance(v, (int, float, str))}
        accelerator.init_trackers("logs", config=values)
        if unknown := unknown_words(self.painter, self.config.instance_prompt):
            accelerator.print(
                f"attn2mask: warning: the painter has no word {', '.join(unknown)} in --instance-prompt, and"
                " learns nothing of it; it can learn sks"
            )

    def note(self, loss: torch.Tensor, bar: tqdm) -> None:
        """Keep the loss of a step; every `CHECK_EVERY` look at them, show and log them.

        Raises UserError at a loss that is not finite.
        """
        self.pending.append(loss)
        if self.step % CHECK_EVERY and self.step < self.settings.max_steps:
            return
        self.look()
        now, (then, before) = time.time(), self.shown
        speed = (self.step - before) * self.settings.batch_size / max(now - then, 1e-9)
        self.shown = (now, self.step)
        rate = self.settings.rate(self.step)
        record = {"loss": self.loss, "learning_rate": rate, "images_per_second": speed}
        bar.set_postfix(loss=f"{self.loss:.4f}", lr=f"{rate:.2g}", images_s=f"{speed:.1f}")
        self.accelerator.log(record, step=self.step)
        if self.accelerator.is_main_process:
            with (self.output / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.step, **record}) + "\n")
        self.pending.clear()

    def look(self) -> None:
        """The mean of the pending losses. Raises UserError where one is not finite."""
        losses = torch.stack(self.pending).cpu()
        if not losses.isfinite().all():
            place = int((~losses.isfinite()).nonzero()[0])
            step, kept = self.step - len(losses) + 1 + place, saved_step(self.output)
            kept = f"the checkpoint of step {kept} is kept" if kept else "nothing was saved yet"
            raise UserError(f"the loss is {losses[place]} at step {step}; {kept}. Lower --learning-rate")
        self.loss = float(losses.mean())

    def save(self) -> None:
        """Write state.safetensors, then the adapter as it is now. Raises UserError, and keeps what is there,
        where losses or weights are not finite.
        """
        if self.pending:
            self.look()
        if not all(weight.isfinite().all() for weight in self.weights.values()):
            raise UserError(f"the weights are no numbers any more at step {self.step}. Lower --learning-rate")
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        note = {
            "step": self.step, "loss": self.loss, "seconds": self.seconds + time.time() - self.started,
            "scaler": scaler.state_dict() if scaler else None,
        }  # fmt: skip
        save_state(self.output / "state.safetensors", self.weights, self.optimizer, note)
        self.export()

    def export(self) -> None:
        """Write the LoRA, then its record, which says that all is there."""
        writing = self.output / ".writing"
        lora.save_lora(self.pipe, writing)
        os.replace(writing / LORA_WEIGHTS, self.output / LORA_WEIGHTS)
        writing.rmdir()
        write_file(self.output / LORA_RECORD, json.dumps(self.record(), indent=2).encode())

    def load(self) -> None:
        """Go on from state.safetensors."""
        weights, optimizer, note = load_state(self.output / "state.safetensors", self.accelerator.device)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(weights[name])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})
        if note["scaler"]:
            self.accelerator.scaler.load_state_dict(note["scaler"])
        self.step, self.loss, self.seconds = note["step"], note["loss"], note["seconds"]

    def record(self) -> dict[str, Any]:
        """What training_config.json holds."""
        config, facts, latents = self.config, self.painter.facts, self.feed.latents
        prior = {"class_prompt": config.class_prompt, "pictures": config.prior_images}
        return {
            "base_model": facts["model"], "base_version": facts["model_version"],
            "base_fingerprint": self.identity["painter"], "revision": config.revision,
            "license": license_of(config.model, config.revision),
            "table": Path(config.table).name,
            "preset": config.preset, "settings": asdict(self.settings), "seed": config.seed,
            "instance_prompt": config.instance_prompt, "prior": prior if config.prior_preservation else None,
            "data": {
                "name": Path(config.data).name, "digest": self.identity["pictures"], "pictures": len(latents),
                "with_caption": sum(text is not None for text in self.feed.captions),
                "skipped": latents.skipped,
            },
            "step": self.step, "seconds": round(self.seconds + time.time() - self.started, 1),
            "loss": self.loss, "loss_curve": "log.jsonl", "hardware": hardware(self.accelerator),
            "mixed_precision": str(self.accelerator.mixed_precision), **provenance(),
        }  # fmt: skip

    @torch.no_grad()
    def sample(self) -> None:
        """Paint the same prompts from the same noise, and draw samples.png: real pictures, then a row for
        each step that was painted.
        """
        if not self.accelerator.is_main_process:
            return
        folder, pipe, crop, defaults = (
            self.output / "samples",
            self.pipe,
            self.feed.crop,
            self.painter.defaults,
        )
        folder.mkdir(exist_ok=True)
        strip = Image.new("RGB", (len(self.prompts) * crop.width, crop.height))
        real = strip.copy()
        for number, prompt in enumerate(self.prompts):
            with self.accelerator.autocast():
                latents = pipe(
                    prompt, height=crop.height, width=crop.width, num_inference_steps=defaults.steps,
                    guidance_scale=defaults.guidance_scale, output_type="latent",
                    generator=torch.Generator().manual_seed(image_seed(self.config.seed, number, 0)),
                ).images  # fmt: skip
            decoded = pipe.vae.decode(latents.float() / pipe.vae.config.scaling_factor).sample
            strip.paste(pipe.image_processor.postprocess(decoded)[0], (number * crop.width, 0))
            place = self.feed.latents.places[number * len(self.feed.latents) // len(self.prompts)]
            shown = instance_images.decode(self.found[place].read())
            real.paste(crop.fit(shown, ""), (number * crop.width, 0))
        write_file(folder / f"step-{self.step:06d}.png", encode_png(np.asarray(strip)))
        sample_sheet(real, sorted(folder.glob("step-*.png")), self.prompts, self.output / "samples.png")

    def finish(self) -> None:
        """Say what was made and how to use it."""
        if not self.accelerator.is_main_process:
            return
        if finished(self.output) < self.step:  # killed right after the last checkpoint
            self.export()
        seconds, config = self.seconds + time.time() - self.started, self.config
        shown = f", samples in {self.output / 'samples.png'}" if self.sample_every else ""
        print(f"made {self.output / LORA_WEIGHTS}{shown} in {seconds:.0f} s")
        model = "" if config.model == "embedded" else f" --model {config.model}"
        revision = f" --revision {config.revision}" if config.revision else ""
        out = f"data/{Path(config.table).stem}-{self.output.name}"
        print(f"next: attn2mask build {config.table}{model}{revision} --lora {self.output} --out {out}")


def finished(output: Path) -> int:
    """The step of the adapter that stands in a directory; 0 where there is none."""
    record = output / LORA_RECORD
    return json.loads(record.read_text())["step"] if record.exists() else 0


def sample_prompts(config: AdaptConfig) -> list[str]:
    """The instance prompt, and what a build of the table would have painted."""
    table, rng = load_table(config.table), np.random.default_rng([config.seed, 3])
    own = SAMPLES // 3
    return [config.instance_prompt] * own + [caption(table, rng) for _ in range(SAMPLES - own)]


def unknown_words(painter: Painter, prompt: str) -> list[str]:
    """Words that the tokenizer takes for one and the same unknown one; CLIP's has none."""
    tokenizer = painter.tokenizers[0]
    unknown = tokenizer.unk_token_id
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        return []
    return [word for word in prompt.split() if unknown in tokenizer(word, add_special_tokens=False).input_ids]


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Whether an interrupt (Ctrl-C, SIGTERM) came: inside, it no longer ends the program by itself."""
    came: list[int] = []
    before = {
        which: signal.signal(which, lambda number, frame: came.append(number))
        for which in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(came)
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv

    def command() -> None:
        config = parse(AdaptConfig, argv, "training/adapt.py", __doc__.splitlines()[0])
        if config.push_to_hub is None or int(os.environ.get("RANK", 0)):
            adapt(config)
            return
        # Only here does training know of the Hub, and only where it is asked for.
        from attn2mask.hub.publish import Target, check, publish_model

        target = Target(config.push_to_hub)
        check("model", target)
        adapt(config)
        publish_model(Path(config.output_dir), target)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
