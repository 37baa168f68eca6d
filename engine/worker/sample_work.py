"""From the message of a sample request to work for the compute thread, validated a second time."""

from collections.abc import Mapping

import numpy as np

from ...client.errors import BadRequest
from ...client.limits import limit
from ...client.messages import Sample
from ...client.sample_options import check_sample_options
from ..sampling.prompt_targets import PromptTargets
from .columns import check_ids, read_ints
from .commands import Int32s, ModelLimits, Origin, SampleWork

_MAX_CELLS = limit("target_cells")
_NAMES = {"tokens", "target_counts", "target_tokens"}


def read_sample(
    origin: Origin, header: Sample, named: Mapping[str, np.ndarray], limits: ModelLimits
) -> SampleWork:
    """Validate a request.

    Args:
        origin: where it came from.
        header: its message.
        named: the arrays of the message.
        limits: of the model.

    Raises:
        BadRequest: naming what cannot be.
    """
    if unknown := sorted(named.keys() - _NAMES):
        raise BadRequest(f"a sample request takes no array {unknown[0]!r}", "malformed")
    tokens = read_ints(named, "tokens")
    _check_prompt(header, tokens, limits)
    check_sample_options(header, limits.max_context)
    targets = None
    if len(named) > 1:
        targets = _read_targets(named, len(tokens), limits.vocab_size)
    return SampleWork(origin, header, tokens, targets)


def _check_prompt(header: Sample, tokens: Int32s, limits: ModelLimits) -> None:
    if len(tokens) != header.num_tokens:
        raise BadRequest("the declared token count differs from the array", "malformed")
    if len(tokens) == 0:
        raise BadRequest("the prompt is empty")
    check_ids("tokens", tokens, limits.vocab_size)
    new = max(header.max_tokens, 1)
    if len(tokens) + new > limits.max_context:
        raise BadRequest(
            "prompt length plus max_tokens exceeds the model's context window: "
            f"{len(tokens)} + {new} > {limits.max_context}",
            "too_large",
        )


def _read_targets(
    named: Mapping[str, np.ndarray], prompt_tokens: int, vocab_size: int
) -> PromptTargets:
    targets = PromptTargets(read_ints(named, "target_counts"), read_ints(named, "target_tokens"))
    if len(targets.tokens) > _MAX_CELLS:
        raise BadRequest(f"{len(targets.tokens)} target tokens, at most {_MAX_CELLS}", "too_large")
    targets.check(prompt_tokens, vocab_size)
    return targets
