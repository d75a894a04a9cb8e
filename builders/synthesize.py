"""The main path. Read it first: prompts are painted under the recorder, and become labeled samples.

    prompt -> painter under the recorder -> maps (16 bits) -> class scores (8 bits) -> mask and reliability
           -> gate -> sample

The painter runs in this process, and labeling in a pool of other processes. A sample that fails the gate is
tried again with its own next prompt and seed. Each shard is painted separately and in order: attempt 0 of its
samples in batches, then attempt 1 of the rejected samples, and so on. So an image is always painted in the
same batch, and is bit-identical whichever process makes its shard.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.label import Labeled, label
from attn2mask.builders.painter import ADVICE, Painter, Painting
from attn2mask.builders.prompts import Prompt, PromptSource, image_seed
from attn2mask.builders.rules import Rules
from attn2mask.builders.sample import Sample
from attn2mask.builders.scores import (
    BACKGROUND,
    SELF_ATTENTION,
    pack_maps,
    pack_self_attention,
    quantized_scores,
)

ATTEMPTS = 4  # of a sample, at most; then the best one is kept, and its failed classes are dropped
HOPELESS = 16  # if none of this many images of a shard can be used, the model must be the cause


@dataclass(frozen=True)
class Synthesizer:
    """Makes the samples of a build from their indices.

    `batch_size` is the number of images of a batch.
    """

    table: ClassTable
    source: PromptSource
    painter: Painter
    painting: Painting
    rules: Rules
    pool: ProcessPoolExecutor
    seed: int
    batch_size: int

    @property
    def latent_side(self) -> int:
        """The shorter side of the latents of an image."""
        return self.painter.latent_side(self.painting.height, self.painting.width)

    # The main path.

    def synthesize(self, indices: Sequence[int], attempt: int) -> Iterator["Candidate"]:
        """Paint a batch, and submit its images to the labeling pool: prompts -> paint -> scores -> label."""
        prompts = [self.source.prompt(index, attempt) for index in indices]
        seeds = [image_seed(self.seed, index, attempt) for index in indices]
        images, attention, faults = self.painter.paint(prompts, seeds, self.painting)
        for index, prompt, seed, image, of_word, fault in zip(
            indices, prompts, seeds, images, attention, faults, strict=True
        ):
            maps = [of_word[word] for word in prompt.words] if fault is None else []
            self_attention, background = of_word.get(SELF_ATTENTION), of_word.get(BACKGROUND, ())
            scores, peaks = quantized_scores(maps, self.rules, self.latent_side, self_attention, background)
            classes, words = prompt.classes[: len(maps)], prompt.words[: len(maps)]
            labels = self.pool.submit(label, image, scores, peaks, classes, words, self.rules, self.table)
            columns = {
                "peaks": peaks,
                "scores": scores.tolist(),
                "maps": [pack_maps(of_class) for of_class in maps],
                "self_attention": pack_self_attention(self_attention) if self_attention else None,
            }
            yield Candidate(index, prompt, seed, fault, columns, labels)

    def sample(self, candidate: "Candidate", rejected: tuple[str, ...]) -> Sample:
        """The row of a candidate. `rejected` gives the reason of each rejected attempt."""
        prompt = candidate.prompt
        row = {
            "prompt": prompt.text,
            "caption": prompt.caption,
            "classes": prompt.classes,
            "words": prompt.words,
            "seed": candidate.seed,
            "sample_id": f"{self.table.name}-{self.seed}-{candidate.index:08d}",
            **candidate.columns,
        }
        return candidate.labels.result().sample(row, (*prompt.dropped, *candidate.reasons()), rejected)

    # Attempts: a sample that the gate rejects is painted again.

    def samples(
        self, indices: Sequence[int], settled: Callable[[], object] = lambda: None
    ) -> Iterator[Sample]:
        """The samples of one shard, in the order of `indices`. `settled` is called when a sample is
        accepted or has failed its last attempt. Raises UserError if no image of the shard can be used.
        """
        best: dict[int, Candidate] = {}
        rejected: dict[int, list[str]] = {index: [] for index in indices}
        painted = usable = 0
        tried = list(indices)
        for attempt in range(ATTEMPTS):
            failed = []
            for candidate in self.candidates(tried, attempt):
                index = candidate.index
                best[index] = max(best.get(index, candidate), candidate, key=Candidate.quality)
                painted, usable = painted + 1, usable + (candidate.fault is None)
                if not usable and (painted == HOPELESS or painted == ATTEMPTS * len(indices)):
                    raise UserError(f"none of {painted} images can be used: {candidate.fault}; {ADVICE}")
                if reasons := candidate.reasons():
                    failed.append(index)
                    rejected[index].append(f"attempt {attempt}: {'; '.join(reasons)}")
                if not reasons or attempt == ATTEMPTS - 1:
                    settled()
            tried = failed
        for index in indices:
            yield self.sample(best[index], tuple(rejected[index]))

    def candidates(self, indices: Sequence[int], attempt: int) -> Iterator["Candidate"]:
        """One attempt for each index, in order. Images are labeled while the next ones are painted."""
        waiting: deque[Candidate] = deque()
        for start in range(0, len(indices), self.batch_size):
            waiting += self.synthesize(indices[start : start + self.batch_size], attempt)
            while waiting and waiting[0].labels.done():
                yield waiting.popleft()
        yield from waiting


@dataclass(frozen=True)
class Candidate:
    """An attempt at a sample. `fault` is the reason why the image itself cannot be used, or None. `columns`
    are those that its attention gives to the row.
    """

    index: int
    prompt: Prompt
    seed: int
    fault: str | None
    columns: dict[str, Any]
    labels: Future[Labeled]

    def reasons(self) -> tuple[str, ...]:
        """The reasons why the gate rejects the attempt; empty if it is accepted."""
        return (self.fault,) if self.fault else self.labels.result().dropped

    def quality(self) -> tuple[bool, bool, int]:
        """The order of attempts: an image that can be used is better, then one that the gate accepts, then
        one with more classes.
        """
        return self.fault is None, not self.reasons(), len(self.labels.result().kept)
