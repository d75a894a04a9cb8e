"""The order of attempts at a sample."""

from concurrent.futures import Future
from dataclasses import replace

import pytest

from attn2mask.builders.label import Labeled
from attn2mask.builders.prompts import Prompt
from attn2mask.builders.synthesize import ATTEMPTS, Candidate, Synthesizer


def attempt(kept: int, dropped: int, fault: str | None = None) -> Candidate:
    labels: Future[Labeled] = Future()
    reasons = tuple(f"class {k}: its map is empty" for k in range(dropped))
    labels.set_result(Labeled(b"", b"", b"", b"", None, tuple(range(kept)), reasons, 0.5, 0.9))
    prompt = Prompt("a dog", "a dog", "1", (12,), ("dog",), ((2,),))
    return Candidate(0, 0, prompt, 0, fault, {}, labels)


def test_an_accepted_attempt_is_better_than_a_rejected_one_with_more_classes():
    accepted, rejected = attempt(1, 0), attempt(2, 1)
    assert (accepted.reasons(), len(rejected.reasons())) == ((), 1)
    assert max(rejected, accepted, key=Candidate.quality) is accepted
    assert max(attempt(1, 1), rejected, key=Candidate.quality) is rejected
    assert max(attempt(0, 0, "the image is black"), rejected, key=Candidate.quality) is rejected


class Scripted(Synthesizer):
    """Paints nothing: `accepted` says which attempt at each sample passes the gate, or none does."""

    def synthesize(self, attempts):
        self.painted.append(list(attempts))
        for index, number in attempts:
            candidate = attempt(1, 0) if self.accepted[index] == number else attempt(0, 1)
            yield replace(candidate, index=index, attempt=number)

    def sample(self, candidate, rejected):
        return candidate.index, candidate.attempt, len(rejected)


def scripted(accepted: dict[int, int | None], batch_size: int, fill: bool):
    synthesizer = Scripted(None, None, None, None, None, None, 0, batch_size, fill)
    object.__setattr__(synthesizer, "painted", [])
    object.__setattr__(synthesizer, "accepted", accepted)
    settled = []
    return list(synthesizer.samples(list(accepted), lambda: settled.append(1))), synthesizer.painted, settled


@pytest.mark.parametrize("fill", [False, True])
def test_filling_batches_does_not_change_which_attempts_are_taken(fill):
    accepted = {0: 0, 1: 2, 2: 1, 3: None, 4: 3, 5: 0}
    made, painted, settled = scripted(accepted, 4, fill)
    assert [index for index, *_ in made] == list(accepted)
    assert [number for _, number, _ in made] == [0, 2, 1, 0, 3, 0]  # of equals, the first one
    assert [rejected for *_, rejected in made] == [0, 2, 1, ATTEMPTS, 3, 0]
    assert len(settled) == len(accepted)
    attempts = [each for batch in painted for each in batch]
    assert len(set(attempts)) == len(attempts)


def test_retries_fill_their_last_batch_on_a_gpu():
    accepted = {0: 2, 1: 1, 2: 0, 3: 0}
    assert scripted(accepted, 4, False)[1] == [
        [(0, 0), (1, 0), (2, 0), (3, 0)],
        [(0, 1), (1, 1)],
        [(0, 2)],
    ]
    assert scripted(accepted, 4, True)[1] == [
        [(0, 0), (1, 0), (2, 0), (3, 0)],
        [(0, 1), (1, 1), (0, 2), (1, 2)],
    ]
