"""Tokens to be scored at positions of a prompt: from a matrix to ragged columns and back.

On the wire `target_counts` says how many tokens are wanted at each position after the first, and
`target_tokens` holds those of all positions end to end. What a caller left out is not sent.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arguments import require_type
from .columns import join_tokens
from .csr import Csr
from .errors import BadRequest
from .limits import limit
from .tensor_data import NumpyArray, TensorData

MAX_CELLS = limit("target_cells")
SKIPPED = -1  # a cell that asks for nothing


@dataclass(frozen=True, slots=True, eq=False)
class PromptTargets:
    """The cells [prompt - 1, K] that ask for something, row after row."""

    counts: NDArray[np.int32]  # [prompt - 1] of each row
    tokens: NDArray[np.int32]  # [M]
    is_wanted: NDArray[np.bool_]  # of each cell that was given: all, or those a CSR lists
    csr: Csr | None

    def arrange(self, logprobs: NumpyArray) -> TensorData:
        """Log-probabilities of the cells, [M], in the layout of the matrix; 0 in skipped cells."""
        values = np.zeros(self.is_wanted.shape, np.float32)
        values[self.is_wanted] = logprobs
        return TensorData(values) if self.csr is None else TensorData.listed(values, self.csr)


def read_prompt_targets(given: TensorData, prompt_tokens: int, vocab_size: int) -> PromptTargets:
    """Validate the matrix of `target_prompt_logprobs`.

    Args:
        given: a TensorData of token ids, [prompt_tokens - 1, K], dense or CSR; -1 skips a cell.
        prompt_tokens: length of the prompt.
        vocab_size: of the model.

    Raises:
        BadRequest: another shape or type, an id that is not in the vocabulary, no id at all, or
            more than `target_cells`.
    """
    name = "target_prompt_logprobs"
    require_type(name, given, TensorData, "a TensorData")
    if given.dtype != "int64":
        raise BadRequest(f"{name} holds floats, not token ids")
    shape = given.shape
    if len(shape) != 2 or shape[0] != prompt_tokens - 1:
        raise BadRequest(f"{name} has shape {shape}, not [{prompt_tokens - 1}, K] as the prompt")
    values = given.array
    is_wanted = values != SKIPPED
    num_cells = int(np.count_nonzero(is_wanted))
    if num_cells == 0:
        raise BadRequest(f"{name} names no token")
    if num_cells > MAX_CELLS:
        raise BadRequest(f"{name} names {num_cells} tokens, at most {MAX_CELLS}", "too_large")
    wanted = values[is_wanted]
    if given.csr is None:
        counts = is_wanted.sum(1)
        rows = np.repeat(np.arange(len(counts)), counts)
    else:
        rows = (given.csr.places // given.csr.width)[is_wanted]
        counts = np.bincount(rows, minlength=shape[0])
    tokens = join_tokens(name, [wanted], vocab_size, lambda index: f"row {rows[index]}")
    return PromptTargets(counts.astype(np.int32), tokens, is_wanted, given.csr)
