"""A sample request is looked at a second time by the worker, whoever sent it."""

from typing import Any

import numpy as np
import pytest

from weft.client.errors import BadRequest
from weft.client.messages import Sample
from weft.engine.worker import sample_work
from weft.engine.worker.commands import ModelLimits, Origin
from weft.engine.worker.sample_work import read_sample

ORIGIN = Origin(5, 1, "local/s", 1)
LIMITS = ModelLimits(vocab_size=100, max_context=32, unit_tokens=8, max_datum_tokens=16)


def header(**fields: Any) -> Sample:
    plain: dict[str, Any] = {
        "request_id": 1,
        "sampler_id": "s",
        "digest": b"",
        "num_tokens": 3,
        "num_samples": 1,
        "max_tokens": 4,
        "temperature": 1.0,
        "top_k": -1,
        "top_p": 1.0,
        "seed": 0,
        "stop_tokens": [],
        "stop_strings": [],
        "default_stop": True,
        "prompt_logprobs": False,
        "arrays": [],
    }
    return Sample(**(plain | fields))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


PROMPT = {"tokens": ints(1, 2, 3)}
TARGETS = {"target_counts": ints(2, 0), "target_tokens": ints(7, 99)}


def test_targets_come_with_the_prompt() -> None:
    work = read_sample(ORIGIN, header(), PROMPT | TARGETS, LIMITS)
    assert work.tokens.tolist() == [1, 2, 3]
    assert work.targets is not None
    assert work.targets.counts.tolist() == [2, 0]
    assert work.targets.tokens.tolist() == [7, 99]


def test_a_plain_request_has_none() -> None:
    assert read_sample(ORIGIN, header(), PROMPT, LIMITS).targets is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_counts": ints(2)}, r"target_counts has shape \[1\], not \[2\]"),
        ({"target_counts": ints(3, -1)}, "target_counts holds -1"),
        ({"target_counts": ints(2, 1)}, r"shape \[2\], target_counts add up to 3"),
        ({"target_counts": ints(2, 0).astype(np.float32)}, "no int32 array 'target_counts'"),
        ({"target_tokens": ints(7, 100)}, "target token 100 is outside 0 .. 99"),
        ({"target_tokens": ints(7, -1)}, "target token -1 is outside 0 .. 99"),
        ({"target_weights": ints(1)}, "a sample request takes no array 'target_weights'"),
    ],
)
def test_arrays_that_contradict_the_prompt_are_refused(
    changes: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        read_sample(ORIGIN, header(), PROMPT | TARGETS | changes, LIMITS)


@pytest.mark.parametrize("missing", ["target_counts", "target_tokens"])
def test_targets_are_whole_or_not_there(missing: str) -> None:
    named = {name: values for name, values in (PROMPT | TARGETS).items() if name != missing}
    with pytest.raises(BadRequest, match=f"no int32 array '{missing}'"):
        read_sample(ORIGIN, header(), named, LIMITS)


def test_more_targets_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_work, "_MAX_CELLS", 1)
    with pytest.raises(BadRequest, match="2 target tokens, at most 1") as caught:
        read_sample(ORIGIN, header(), PROMPT | TARGETS, LIMITS)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"topk_prompt_logprobs": 129}, "topk_prompt_logprobs is 129"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 3}, "prompt_logprobs_last_n is 3"),
        ({"num_tokens": 4}, "the declared token count differs"),
        ({"max_tokens": 30}, "exceeds the model's context window"),
    ],
)
def test_a_header_that_cannot_be_honoured_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        read_sample(ORIGIN, header(**fields), PROMPT, LIMITS)
