"""What the compute thread is given to do: requests, decoded and validated."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...client.messages import Request, Sample
from ..adapters.soft_targets import SoftTargets
from ..sampling.prompt_targets import PromptTargets
from .units import Unit

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where work came from and where its answer goes."""

    dispatch_id: int
    lease_epoch: int
    lane: str
    request_id: int
    queued_s: float = 0.0  # the wait at the broker
    arrived: float = field(default_factory=time.monotonic, compare=False)  # the last part, here


@dataclass(frozen=True, slots=True)
class PassWork:
    """One whole forward or forward_backward command, its parts joined."""

    origin: Origin
    run_id: str
    loss_fn: str
    loss_fn_config: Mapping[str, float]
    forward_only: bool
    part_outputs: tuple[int, ...]  # log-probabilities of each part, for cutting the answer
    tokens: Int32s  # [T]
    lengths: Int32s  # [N], all > 0
    targets: Int32s  # [T]; 0 where a token has none or several
    inputs: Mapping[str, Float32s]  # the loss function's other inputs, [T] each
    units: tuple[Unit, ...]
    soft: SoftTargets | None = None  # of the tokens with several targets
    output_starts: Int64s | None = None  # [T + 1] of each token's targets; None: one a token

    def rows(self, unit: int) -> slice:
        """The tokens of a unit."""
        first = int(self.lengths[: self.units[unit].first_datum].sum())
        return slice(first, first + self.units[unit].num_tokens)

    def outputs(self, rows: slice) -> slice:
        """The log-probabilities of some tokens in the answer."""
        if self.output_starts is None:
            return rows
        return slice(int(self.output_starts[rows.start]), int(self.output_starts[rows.stop]))


@dataclass(frozen=True, slots=True)
class CommandWork:
    """An ordered command other than a pass, or a request that needs the compute thread."""

    origin: Origin
    header: Request


@dataclass(frozen=True, slots=True)
class SampleWork:
    """One sample request with its prompt."""

    origin: Origin
    header: Sample
    tokens: Int32s  # [P]
    targets: PromptTargets | None = None  # tokens to score in place of the prompt's


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the loaded model can take."""

    vocab_size: int
    max_context: int  # tokens
    unit_tokens: int
    max_datum_tokens: int  # what fits into the activation budget, at most the context


Work = PassWork | CommandWork | SampleWork
