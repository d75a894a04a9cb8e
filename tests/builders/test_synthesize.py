"""The order of attempts at a sample."""

from concurrent.futures import Future

from attn2mask.builders.label import Labeled
from attn2mask.builders.prompts import Prompt
from attn2mask.builders.synthesize import Candidate


def attempt(kept: int, dropped: int, fault: str | None = None) -> Candidate:
    labels: Future[Labeled] = Future()
    reasons = tuple(f"class {k}: its map is empty" for k in range(dropped))
    labels.set_result(Labeled(b"", b"", b"", tuple(range(kept)), reasons, 0.5, 0.9))
    prompt = Prompt("a dog", "a dog", "1", (12,), ("dog",), ((2,),))
    return Candidate(0, prompt, 0, fault, {}, labels)


def test_an_accepted_attempt_is_better_than_a_rejected_one_with_more_classes():
    accepted, rejected = attempt(1, 0), attempt(2, 1)
    assert (accepted.reasons(), len(rejected.reasons())) == ((), 1)
    assert max(rejected, accepted, key=Candidate.quality) is accepted
    assert max(attempt(1, 1), rejected, key=Candidate.quality) is rejected
    assert max(attempt(0, 0, "the image is black"), rejected, key=Candidate.quality) is rejected
