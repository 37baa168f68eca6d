"""The forms in which a caller reads what was sampled."""

import numpy as np

from weft.client.types import SampledSequence, SampleResponse, TopkLogprobs

TOP = TopkLogprobs(
    np.array([[0, 0], [0, 3], [4, 0]], np.int32),
    np.array([[-99999, -99999], [-1, -2], [-3, -99999]], np.float32),
)


def test_padding_is_left_out_of_lists_and_token_0_is_not() -> None:
    assert TOP.to_lists() == [None, [(0, -1.0), (3, -2.0)], [(4, -3.0)]]


def test_lists_are_those_of_the_arrays() -> None:
    sequence = SampledSequence(stop_reason="stop", tokens=[1, 2, 3], topk_logprobs=TOP)
    response = SampleResponse(sequences=[sequence], topk_prompt_logprobs=TOP)
    assert sequence.topk_logprobs == response.topk_prompt_logprobs == TOP.to_lists()
