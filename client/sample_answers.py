"""From the parts of an answer to the samples that callers get; every array here is their own."""

from collections.abc import Mapping, Sequence

import numpy as np

from .actions import AnswerPart
from .answers import read_result
from .arrays import NumpyArray, unpack_arrays
from .errors import EngineFailed
from .messages import Sample
from .sample_call import SampleCall
from .sample_results import (
    PAD_LOGPROB,
    PromptAltTokens,
    SampledSequence,
    SampleResponse,
    TopkLogprobs,
)
from .tensor_data import TensorData

Arrays = Mapping[str, NumpyArray]


def read_samples(parts: Sequence[AnswerPart], call: SampleCall) -> SampleResponse:
    """The continuations of one prompt, and what was asked about its tokens.

    Raises:
        EngineFailed: the arrays of the answer contradict each other or the call.
    """
    reasons = read_result(parts)["stop_reasons"]
    arrays = _join(parts)
    tokens, lengths, logprobs = (arrays[name] for name in ("tokens", "lengths", "logprobs"))
    if not len(reasons) == len(lengths) or not len(tokens) == len(logprobs) == lengths.sum():
        raise EngineFailed(
            f"{len(reasons)} stop reasons, {len(lengths)} lengths, {len(tokens)} tokens and "
            f"{len(logprobs)} logprobs in an answer"
        )
    header = call.header
    top = _top(arrays, "topk_sample", len(tokens), header.topk_sample_logprobs)
    ends = np.cumsum(lengths).tolist()
    sequences = [
        SampledSequence(
            stop_reason=reason,
            tokens=tokens[start:end],
            logprobs=logprobs[start:end],
            sequence_id=f"{header.request_id}:{index}",
            topk_logprobs=top and TopkLogprobs(top.token_ids[start:end], top.logprobs[start:end]),
        )
        for index, (reason, start, end) in enumerate(
            zip(reasons, [0, *ends[:-1]], ends, strict=False)
        )
    ]
    prompt_logprobs = None
    if header.prompt_logprobs:
        prompt_logprobs = _shaped(arrays, "prompt_logprobs", (header.num_tokens,))
    target_logprobs = None
    if call.targets is not None:
        found = _shaped(arrays, "target_prompt_logprobs", call.targets.tokens.shape)
        target_logprobs = call.targets.arrange(found)
    return SampleResponse(
        sequences=sequences,
        prompt_logprobs=prompt_logprobs,
        topk_prompt_logprobs=_prompt_top(arrays, header),
        target_prompt_logprobs=target_logprobs,
        prompt_alt_tokens=_alternatives(arrays, header),
    )


def _join(parts: Sequence[AnswerPart]) -> Arrays:
    """The arrays of all parts, each joined along its first dimension."""
    pieces: dict[str, list[NumpyArray]] = {}
    for part in parts:
        for name, array in unpack_arrays(part.reply.arrays, part.frames).items():
            pieces.setdefault(name, []).append(array)
    return {name: np.concatenate(found) for name, found in pieces.items()}


def _prompt_top(arrays: Arrays, header: Sample) -> TopkLogprobs | None:
    """The likeliest tokens in place of every prompt token, padding where none were asked for."""
    k = header.topk_prompt_logprobs
    num_scored = header.prompt_logprobs_last_n or header.num_tokens - 1
    top = _top(arrays, "topk_prompt", num_scored, k)
    if top is None:
        return None
    unscored = (header.num_tokens - num_scored, k)
    return TopkLogprobs(
        np.concatenate((np.zeros(unscored, np.int32), top.token_ids)),
        np.concatenate((np.full(unscored, PAD_LOGPROB, np.float32), top.logprobs)),
    )


def _alternatives(arrays: Arrays, header: Sample) -> PromptAltTokens | None:
    k = header.prompt_alt_tokens_k
    if not k:
        return None
    tokens, logprobs = (
        TensorData(_shaped(arrays, f"prompt_alt_{what}", (header.num_tokens - 1, k)))
        for what in ("tokens", "logprobs")
    )
    return PromptAltTokens(tokens, logprobs)


def _top(arrays: Arrays, name: str, num_rows: int, k: int) -> TopkLogprobs | None:
    if not k:
        return None
    token_ids, logprobs = (
        _shaped(arrays, f"{name}_{what}", (num_rows, k)) for what in ("tokens", "logprobs")
    )
    return TopkLogprobs(token_ids, logprobs)


def _shaped(arrays: Arrays, name: str, shape: tuple[int, ...]) -> NumpyArray:
    array = arrays.get(name)
    if array is None or array.shape != shape:
        raise EngineFailed(f"no {name} of shape {list(shape)} in an answer")
    return array
