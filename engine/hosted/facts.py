"""What config.json of any architecture says about sizes and limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...client.errors import BadRequest
from ..model.fields import read_json, token_ids

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
UNSTATED_CONTEXT = 4096  # tokens, where an architecture has no limit of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedFacts:
    """Numbers of a hosted model; see `ModelFacts`."""

    model_type: str
    vocab_size: int
    width: int
    num_layers: int
    num_kv_heads: int = 0  # where heads are not the same in every layer, as `head_dim`
    head_dim: int = 0
    max_context: int
    context_note: str = ""  # why that is less than the model was made for
    eos_token_ids: tuple[int, ...] = ()


def read_facts(module: Any, directory: Path) -> HostedFacts:
    """The facts of a loaded module, but for its attention heads; raises BadRequest."""
    config = module.config.get_text_config(decoder=True)
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    if head is None or embedding is None or not hasattr(head, "weight"):
        raise BadRequest(f"{type(module).__name__} has no output layer that can be found")
    if head.weight.shape[0] != embedding.weight.shape[0]:
        raise BadRequest(
            f"the output layer knows {head.weight.shape[0]} tokens and the embedding "
            f"{embedding.weight.shape[0]}"
        )
    fields = read_json(directory / "config.json")
    ends = config.eos_token_id if config.eos_token_id is not None else fields.get("eos_token_id")
    if (directory / "generation_config.json").is_file():
        stated = read_json(directory / "generation_config.json").get("eos_token_id")
        ends = ends if stated is None else stated
    max_context, note = _context(config)
    return HostedFacts(
        model_type=str(module.config.model_type),
        vocab_size=int(head.weight.shape[0]),
        width=int(head.weight.shape[1]),
        num_layers=int(config.num_hidden_layers),
        max_context=max_context,
        context_note=note,
        eos_token_ids=token_ids({"eos_token_id": ends}, "eos_token_id"),
    )


def _context(config: Any) -> tuple[int, str]:
    """Tokens of context for which positions mean the same in every batch, and why fewer.

    Longrope turns every position by other angles as soon as one sequence of the batch is longer
    than in pretraining, so the context ends there.
    """
    stated = next((value for key in _CONTEXT_KEYS if (value := getattr(config, key, None))), None)
    if stated is None:
        return UNSTATED_CONTEXT, f"{UNSTATED_CONTEXT} tokens of context, since none is stated"
    for rope in _ropes(getattr(config, "rope_parameters", None)):
        first = rope.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if rope.get("rope_type") == "longrope" and first and first < stated:
            return int(first), (
                f"{first} of {stated} tokens of context: beyond, longrope turns the positions of a "
                "whole batch by its longest sequence"
            )
    return int(stated), ""


def _ropes(parameters: object) -> Iterator[dict[str, Any]]:
    """The rope parameters, which some models state once for each type of layer."""
    if isinstance(parameters, dict):
        yield parameters
        for value in parameters.values():
            yield from _ropes(value)
