"""What is computed twice: each comparison has our part, the reference's part and a judgement.

The parts run far apart, since only one side's weights are in memory at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from ..model.base import BaseModel
from ..sampling.base_generator import BaseGenerator
from .compare import (
    compare_gradients,
    compare_greedy,
    compare_logits,
    gradients_limit,
    logits_limit,
)
from .ours import greedy_of, logits_of
from .probes import Probe, far_probe, make_probes
from .record import Check
from .reference import Reference
from .training import Tenant, gradients_of

GREEDY_PROMPT, GREEDY_TOKENS = 16, 16
_SLACK = 6.0  # limits that the difference of two logits may have, of some thousands


@dataclass(frozen=True, slots=True)
class Side:
    """Our model, opened."""

    model: BaseModel
    generator: BaseGenerator
    tokenizer: Any | None
    tenants: Sequence[Tenant]

    @property
    def is_packed(self) -> bool:
        return self.model.runs_on != "sequential"

    @property
    def limit(self) -> float:
        return logits_limit(self.model.dtype, self.model.config.num_layers)


class Comparison(Protocol):
    """One row that needs both sides."""

    name: str

    def compute(self, side: Side) -> None:
        """Our part; keeps what the judgement needs, and nothing of the model."""

    def judge(self, reference: Reference) -> Check:
        """The reference's part, and the row."""


@dataclass(slots=True)
class Logits:
    """Logits of a few sequences, one of them at the end of the context where that is packed."""

    name: str = "logits"
    _probes: list[Probe] = field(default_factory=list)
    _ours: list[Tensor] = field(default_factory=list)
    _limit: float = 0.0
    _is_packed: bool = True

    def compute(self, side: Side) -> None:
        config = side.model.config
        self._probes = make_probes(side.tokenizer, config.vocab_size, config.max_context)
        far = far_probe(self._probes, config.max_context)
        if far is not None and side.model.runs_on == "native":
            self._probes.append(far)
        self._ours = logits_of(side.model, self._probes)
        self._limit, self._is_packed = side.limit, side.is_packed

    def judge(self, reference: Reference) -> Check:
        theirs = reference.logits_of(self._probes)
        return compare_logits(self._ours, theirs, self._limit, self._is_packed)


@dataclass(slots=True)
class Greedy:
    """The likeliest continuations, by our sampler and by `generate`."""

    name: str = "greedy"
    _prompts: list[tuple[int, ...]] = field(default_factory=list)
    _count: int = 0
    _ours: list[list[int]] = field(default_factory=list)
    _limit: float = 0.0

    def compute(self, side: Side) -> None:
        config = side.model.config
        half = config.max_context // 2
        self._count = min(GREEDY_TOKENS, half)
        probes = make_probes(side.tokenizer, config.vocab_size, half)
        self._prompts = [probe.tokens[:GREEDY_PROMPT] for probe in probes]
        self._ours = greedy_of(side.generator, self._prompts, self._count)
        self._limit = side.limit

    def judge(self, reference: Reference) -> Check:
        theirs = reference.greedy_of(self._prompts, self._count)
        gaps = [
            reference.gaps_of(prompt, answer)
            for prompt, answer in zip(self._prompts, self._ours, strict=True)
        ]
        return compare_greedy(self._ours, theirs, gaps, _SLACK * self._limit)


@dataclass(slots=True)
class Gradients:
    """Gradients of adapters of several ranks and families in one batch, and through `peft`."""

    name: str = "gradients"
    _tenants: Sequence[Tenant] = ()
    _ours: list[dict[str, Tensor]] = field(default_factory=list)
    _limit: float = 0.0
    _is_packed: bool = True

    def compute(self, side: Side) -> None:
        self._tenants = side.tenants
        self._ours = gradients_of(side.model, side.tenants)
        self._limit = gradients_limit(side.model.dtype, side.model.config.num_layers)
        self._is_packed = side.is_packed

    def judge(self, reference: Reference) -> Check:
        theirs = [reference.gradients_of(tenant) for tenant in self._tenants]
        ranks = [tenant.rank for tenant in self._tenants]
        tensors = [each.tensors for each in theirs]
        check = compare_gradients(self._ours, tensors, ranks, self._limit, self._is_packed)
        refusals = [each.refusal for each in theirs if each.refusal]
        if not refusals:
            return check
        against = "transformers with adapters added by hooks"
        detail = check.detail.replace("against peft", f"against {against}", 1)
        return replace(check, detail=f"{detail}. peft refuses: {refusals[0]}")
