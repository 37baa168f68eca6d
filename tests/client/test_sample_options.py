"""Options of a sample request that cannot be honoured, as a client and a worker refuse them."""

from typing import Any

import pytest

from weft.client.errors import BadRequest
from weft.client.messages import Sample
from weft.client.sample_options import check_sample_options

CONTEXT = 1 << 20


def header(**fields: Any) -> Sample:
    plain: dict[str, Any] = {
        "request_id": 1,
        "sampler_id": "s",
        "digest": b"",
        "num_tokens": 5,
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


@pytest.mark.parametrize(
    "fields",
    [
        {"topk_prompt_logprobs": 128, "topk_sample_logprobs": 128, "prompt_alt_tokens_k": 128},
        {"prompt_logprobs": True, "prompt_logprobs_last_n": 1},
        {"prompt_logprobs": True, "prompt_logprobs_last_n": 4},
        {"num_tokens": 1, "prompt_logprobs": True, "prompt_alt_tokens_k": 1},
    ],
)
def test_what_can_be_honoured_passes(fields: dict[str, Any]) -> None:
    check_sample_options(header(**fields), CONTEXT)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"topk_prompt_logprobs": 129}, "topk_prompt_logprobs is 129, not an integer from 0 to"),
        ({"topk_sample_logprobs": -1}, "topk_sample_logprobs is -1"),
        ({"prompt_alt_tokens_k": 2.0}, "prompt_alt_tokens_k is 2.0"),
        ({"prompt_logprobs_last_n": 2}, "needs prompt logprobs"),
        ({"prompt_logprobs_last_n": 5}, "prompt_logprobs_last_n is 5, not an integer from 1 to 4"),
        ({"prompt_logprobs_last_n": -1}, "prompt_logprobs_last_n is -1"),
        ({"prompt_logprobs_last_n": 1, "num_tokens": 1}, "a prompt of at least 2 tokens"),
    ],
)
def test_what_cannot_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        check_sample_options(header(**fields), CONTEXT)


@pytest.mark.parametrize(
    "fields",
    [
        # 8 bytes a pair: 2**17 tokens x 128 are 128 MiB
        pytest.param({"num_tokens": 2**17 + 2, "topk_prompt_logprobs": 128}, id="prompt"),
        pytest.param({"num_tokens": 2**17 + 2, "prompt_alt_tokens_k": 128}, id="alternatives"),
        pytest.param(
            {"num_samples": 2**10, "max_tokens": 129, "topk_sample_logprobs": 128}, id="k"
        ),
        pytest.param({"max_tokens": -1, "topk_sample_logprobs": 128}, id="up to the context"),
    ],
)
def test_an_answer_that_may_become_too_long_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="at most 134217728") as caught:
        check_sample_options(header(**fields), CONTEXT)
    assert caught.value.code == "too_large"


def test_the_last_tokens_of_a_long_prompt_make_a_short_answer() -> None:
    fields = {"num_tokens": 2**17 + 2, "topk_prompt_logprobs": 128, "prompt_logprobs": True}
    check_sample_options(header(**fields, prompt_logprobs_last_n=100), CONTEXT)
