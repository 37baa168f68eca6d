"""What a sample request may ask about tokens beside those drawn; client and worker both check it."""

from .arguments import require_int
from .errors import BadRequest
from .limits import limit
from .messages import Sample

_MAX_TOP = limit("topk_logprobs")
_MAX_BYTES = limit("answer_bytes")
_PAIR_BYTES = 8  # an id and its log-probability


def check_sample_options(header: Sample, max_context: int) -> None:
    """Refuse options that cannot be honoured.

    Args:
        header: a request of at least one prompt token.
        max_context: of the model; what samples without max_tokens may reach.

    Raises:
        BadRequest: naming the option, or what makes the answer too long.
    """
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        require_int(name, getattr(header, name), 0, _MAX_TOP)
    last_n = header.prompt_logprobs_last_n
    if last_n:
        if header.num_tokens < 2:
            raise BadRequest("prompt_logprobs_last_n needs a prompt of at least 2 tokens")
        require_int("prompt_logprobs_last_n", last_n, 1, header.num_tokens - 1)
        if not header.prompt_logprobs:
            raise BadRequest(
                "prompt_logprobs_last_n needs prompt logprobs, which are not asked for"
            )
    new = header.max_tokens if header.max_tokens > 0 else max_context - header.num_tokens
    prompt_pairs = (header.num_tokens - 1) * header.prompt_alt_tokens_k
    prompt_pairs += (last_n or header.num_tokens - 1) * header.topk_prompt_logprobs
    sample_pairs = header.num_samples * new * header.topk_sample_logprobs
    if (prompt_pairs + sample_pairs) * _PAIR_BYTES > _MAX_BYTES:
        raise BadRequest(
            f"topk_prompt_logprobs, topk_sample_logprobs and prompt_alt_tokens_k make an answer of "
            f"up to {(prompt_pairs + sample_pairs) * _PAIR_BYTES} bytes, at most {_MAX_BYTES}; a "
            f"sample may have {new} tokens",
            "too_large",
        )
