"""The main path. Read it first: prompts are painted under the recorder, and become labeled samples.

    prompt -> painter under the recorder -> maps (16 bits) -> class scores (8 bits) -> mask and reliability
           -> gate -> sample

The painter runs in this process, and labeling in a pool of other processes. A sample that fails the gate is
tried again with its own next prompt and seed. Each shard is painted separately and in rounds: attempt 0 of
its samples in batches, then attempt 1 of the rejected samples, and so on. So an image is always painted in
the same batch, and is bit-identical whichever process makes its shard under equal conditions (see
`conditions.py`). A GPU paints a full batch in hardly more time than a single image: there, the last batch of
a round of retries is filled with further attempts.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
Attempt = tuple[int, int]  # the index of a sample, and the number of the attempt at it, from 0
HOPELESS = 16  # if none of this many images of a shard can be used, the model must be the cause


@dataclass(frozen=True)
class Synthesizer:
    """Makes the samples of a build from their indices.

    `batch_size` is the number of images of a batch; `fill_batches` says whether retries fill them, and
    `with_overlay` whether the masks are also drawn over the images.
    """

    table: ClassTable
    source: PromptSource
    painter: Painter
    painting: Painting
    rules: Rules
    pool: ProcessPoolExecutor
    seed: int
    batch_size: int
    fill_batches: bool = False
    with_overlay: bool = False

    @property
    def latent_side(self) -> int:
        """The shorter side of the latents of an image."""
        return self.painter.latent_side(self.painting.height, self.painting.width)

    # The main path.

    def synthesize(self, attempts: Sequence[Attempt]) -> Iterator["Candidate"]:
        """Paint a batch, and submit its images to the labeling pool: prompts -> paint -> scores -> label."""
        prompts = [self.source.prompt(index, attempt) for index, attempt in attempts]
        seeds = [image_seed(self.seed, index, attempt) for index, attempt in attempts]
        images, attention, faults = self.painter.paint(prompts, seeds, self.painting)
        for (index, attempt), prompt, seed, image, of_word, fault in zip(
            attempts, prompts, seeds, images, attention, faults, strict=True
        ):
            maps = [of_word[word] for word in prompt.words] if fault is None else []
            self_attention, background = of_word.get(SELF_ATTENTION), of_word.get(BACKGROUND, ())
            scores, peaks = quantized_scores(maps, self.rules, self.latent_side, self_attention, background)
            classes, words = prompt.classes[: len(maps)], prompt.words[: len(maps)]
            labeling = (image, scores, peaks, classes, words, self.rules, self.table, None, self.with_overlay)
            labels = self.pool.submit(label, *labeling)
            columns = {
                "peaks": peaks,
                "scores": scores.tolist(),
                "maps": [pack_maps(of_class) for of_class in maps],
                "self_attention": pack_self_attention(self_attention) if self_attention else None,
            }
            yield Candidate(index, attempt, prompt, seed, fault, columns, labels)

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
        tried = [(index, 0) for index in indices]
        while tried:
            for candidate in self.candidates(tried):
                index = candidate.index
                painted, usable = painted + 1, usable + (candidate.fault is None)
                if not usable and (painted == HOPELESS or painted == ATTEMPTS * len(indices)):
                    raise UserError(f"none of {painted} images can be used: {candidate.fault}; {ADVICE}")
                if index in best and not best[index].reasons():
                    continue  # an attempt that filled a batch, after one that was accepted
                best[index] = max(best.get(index, candidate), candidate, key=Candidate.quality)
                if reasons := candidate.reasons():
                    rejected[index].append(f"attempt {candidate.attempt}: {'; '.join(reasons)}")
                if not reasons or candidate.attempt == ATTEMPTS - 1:
                    settled()
            tried = self.retries([index for index in indices if best[index].reasons()], dict(tried))
        for index in indices:
            yield self.sample(best[index], tuple(rejected[index]))

    def retries(self, failed: Sequence[int], last: Mapping[int, int]) -> list[Attempt]:
        """The next attempts at samples that failed; `last` is the last attempt at each, from 0. On a GPU,
        further ones at the same samples fill the last batch. Each sample has its attempts in their order.
        """
        rounds = [
            [(index, last[index] + further) for index in failed if last[index] + further < ATTEMPTS]
            for further in range(1, ATTEMPTS)
        ]
        if not rounds[0]:
            return []
        room = -len(rounds[0]) % self.batch_size if self.fill_batches else 0
        filling = [attempt for more in rounds[1:] for attempt in more]
        return [*rounds[0], *filling[:room]]

    def candidates(self, attempts: Sequence[Attempt]) -> Iterator["Candidate"]:
        """One candidate for each attempt, in order. Images are labeled while the next ones are painted."""
        waiting: deque[Candidate] = deque()
        for start in range(0, len(attempts), self.batch_size):
            waiting += self.synthesize(attempts[start : start + self.batch_size])
            while waiting and waiting[0].labels.done():
                yield waiting.popleft()
        yield from waiting


@dataclass(frozen=True)
class Candidate:
    """An attempt at a sample. `fault` is the reason why the image itself cannot be used, or None. `columns`
    are those that its attention gives to the row.
    """

    index: int
    attempt: int
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
