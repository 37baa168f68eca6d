"""Sampling: from the body of a post to `asample` to the message that is sent, and a result back."""

from ...client.messages import ModelCard
from ...client.sample_call import SampleCall, build_sample
from ...client.sample_results import SampledSequence, SampleResponse, TopkLogprobs
from ...client.tensor_data import TensorData
from ...client.types import ModelInput, SamplingParams
from .bodies import EncodedTextChunk, Sample, Tensor
from .protobuf import Values, encode
from .schema import SAMPLE_RESPONSE, STOP_REASONS
from .tensors import LOGPROBS, TOKENS, to_bytes, write_tensor
from .unserved import refuse_unserved


def build_call(body: Sample, card: ModelCard, number: int) -> SampleCall:
    """Validate a post with the client's own code, and lay it out.

    A seed that is not given is made of the request's number, so that a repeat of the post is the
    same request.

    Args:
        body: of the post.
        card: of the sampler's base model.
        number: of the request, from `names.request_number`.

    Raises:
        Unserved: a field that is not served.
        BadRequest: something in it cannot be; names the field.
    """
    refuse_unserved(body)
    asked = body.sampling_params
    return build_sample(
        _prompt(body),
        body.num_samples,
        SamplingParams(
            max_tokens=asked.max_tokens,
            seed=number & 0xFFFF_FFFF if asked.seed is None else asked.seed,
            stop=asked.stop,  # type: ignore[arg-type]  # a list of both kinds is refused there
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
        ),
        card=card,
        sampler_id=body.sampling_session_id,
        request_id=number,
        include_prompt_logprobs=bool(body.prompt_logprobs),
        topk_prompt_logprobs=body.topk_prompt_logprobs,
        topk_sample_logprobs=body.topk_sample_logprobs,
        target_prompt_logprobs=_targets(body.target_prompt_logprobs),
        prompt_alt_tokens_k=body.prompt_alt_tokens_k,
        prompt_logprobs_last_n=body.prompt_logprobs_last_n,
    )


def write_samples(response: SampleResponse) -> bytes:
    """The body of a sample's result; what was not asked for is left out."""
    told: Values = {"sequences": [_sequence(sequence) for sequence in response.sequences]}
    if response.prompt_logprobs_np is not None:
        told["prompt_logprobs"] = to_bytes(response.prompt_logprobs_np, LOGPROBS)
    if response.topk_prompt_logprobs_np is not None:
        told["topk_prompt_logprobs"] = _topk(response.topk_prompt_logprobs_np)
    if response.target_prompt_logprobs is not None:
        told["target_prompt_logprobs"] = write_tensor(response.target_prompt_logprobs)
    if response.prompt_alt_tokens is not None:
        told["prompt_alt_tokens"] = {
            "tokens": write_tensor(response.prompt_alt_tokens.tokens),
            "logprobs": write_tensor(response.prompt_alt_tokens.logprobs),
        }
    return encode(SAMPLE_RESPONSE, told)


def _prompt(body: Sample) -> ModelInput:
    tokens: list[int] = []
    for chunk in body.prompt.chunks:
        assert isinstance(chunk, EncodedTextChunk)  # others were refused by name
        tokens += chunk.tokens
    return ModelInput.from_ints(tokens)


def _targets(tensor: Tensor | None) -> TensorData | None:
    if tensor is None:
        return None
    return TensorData(
        tensor.data,
        tensor.dtype,
        tensor.shape,
        tensor.sparse_crow_indices,
        tensor.sparse_col_indices,
    )


def _sequence(sequence: SampledSequence) -> Values:
    told: Values = {
        "stop_reason": STOP_REASONS.index(sequence.stop_reason),
        "tokens": to_bytes(sequence.tokens_np, TOKENS),
    }
    if sequence.logprobs_np is not None:
        told["logprobs"] = to_bytes(sequence.logprobs_np, LOGPROBS)
    if sequence.topk_logprobs_np is not None:
        told["topk_sampled_logprobs"] = _topk(sequence.topk_logprobs_np)
    return told


def _topk(topk: TopkLogprobs) -> Values:
    length, k = topk.token_ids.shape
    return {
        "token_ids": to_bytes(topk.token_ids, TOKENS),
        "logprobs": to_bytes(topk.logprobs, LOGPROBS),
        "k": k,
        "length": length,
    }
