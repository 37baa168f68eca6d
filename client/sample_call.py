"""From the arguments of `SamplingClient.sample` to the message that is sent."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from .arguments import is_number, require_int, require_type, shown
from .batch import check_prompt, pack_prompt
from .errors import BadRequest
from .limits import limit
from .messages import ModelCard, Sample
from .prompt_targets import PromptTargets, read_prompt_targets
from .sample_options import check_sample_options
from .tensor_data import TensorData
from .types import ModelInput, SamplingParams

_MAX_SAMPLES = limit("num_samples")
_MAX_STOPS = limit("stops")


@dataclass(frozen=True, slots=True)
class SampleCall:
    """One request, and what its answer is read by."""

    header: Sample  # its digest is still empty
    frames: list[memoryview]
    targets: PromptTargets | None = None


def build_sample(
    prompt: ModelInput,
    num_samples: int,
    sampling_params: SamplingParams,
    *,
    card: ModelCard,
    sampler_id: str,
    request_id: int,
    include_prompt_logprobs: bool = False,
    topk_prompt_logprobs: int = 0,
    topk_sample_logprobs: int = 0,
    target_prompt_logprobs: TensorData | None = None,
    prompt_alt_tokens_k: int = 0,
    prompt_logprobs_last_n: int | None = None,
) -> SampleCall:
    """Validate a call and lay it out; the arguments are those of `SamplingClient.sample`.

    A seed that is not given is drawn here.

    Raises:
        BadRequest: something in the call cannot be; the message names it.
    """
    require_type("prompt", prompt, ModelInput, "a ModelInput")
    _check_params(sampling_params, num_samples)
    check_prompt(prompt.length, card, room=sampling_params.max_tokens or 1)
    targets = None
    if target_prompt_logprobs is not None:
        targets = read_prompt_targets(target_prompt_logprobs, prompt.length, card.vocab_size)
    arrays, frames = pack_prompt(prompt.to_numpy(), card, targets)
    stop_tokens, stop_strings = _stops(sampling_params.stop, card.vocab_size)
    if prompt_logprobs_last_n is not None:
        require_int("prompt_logprobs_last_n", prompt_logprobs_last_n, 1, max(prompt.length - 1, 1))
    header = Sample(
        request_id=request_id,
        sampler_id=sampler_id,
        digest=b"",
        num_tokens=prompt.length,
        num_samples=num_samples,
        max_tokens=-1 if sampling_params.max_tokens is None else sampling_params.max_tokens,
        temperature=float(sampling_params.temperature),
        top_k=sampling_params.top_k,
        top_p=float(sampling_params.top_p),
        seed=secrets.randbits(32) if sampling_params.seed is None else sampling_params.seed,
        stop_tokens=stop_tokens,
        stop_strings=stop_strings,
        default_stop=sampling_params.stop is None,
        prompt_logprobs=bool(include_prompt_logprobs),
        topk_prompt_logprobs=topk_prompt_logprobs,
        topk_sample_logprobs=topk_sample_logprobs,
        prompt_alt_tokens_k=prompt_alt_tokens_k,
        prompt_logprobs_last_n=prompt_logprobs_last_n or 0,
        arrays=arrays,
    )
    check_sample_options(header, card.max_context)
    return SampleCall(header, frames, targets)


def _check_params(params: SamplingParams, num_samples: int) -> None:
    require_type("sampling_params", params, SamplingParams, "SamplingParams")
    require_int("num_samples", num_samples, 1, _MAX_SAMPLES)
    if params.max_tokens is not None:
        require_int("max_tokens", params.max_tokens, 1, 2**31)
    if params.seed is not None:
        require_int("seed", params.seed, -(2**63), 2**63 - 1)
    if params.top_k != -1:
        require_int("top_k", params.top_k, 1, 2**31)
    for name, low, high in (("temperature", 0.0, float("inf")), ("top_p", 0.0, 1.0)):
        value = getattr(params, name)
        if not is_number(value) or not low <= value <= high:
            raise BadRequest(f"{name} is {shown(value)}, not a number from {low:g} to {high:g}")
    if params.top_p == 0:
        raise BadRequest("top_p is 0, which keeps no token")


def _stops(
    stop: str | Sequence[str] | Sequence[int] | None, vocab_size: int
) -> tuple[list[int], list[str]]:
    """Stop tokens and stop strings; a list holds one or the other."""
    items: list[object] = [stop] if isinstance(stop, str) else list(stop or ())
    if len(items) > _MAX_STOPS:
        raise BadRequest(f"{len(items)} stops, at most {_MAX_STOPS}", "too_large")
    tokens = [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
    strings = [item for item in items if isinstance(item, str)]
    if len(items) not in (len(tokens), len(strings)) or "" in strings:
        raise BadRequest("stop must be a string, strings or token ids, none of them empty")
    for token in tokens:
        require_int("a stop token", token, 0, vocab_size - 1)
    return tokens, strings
