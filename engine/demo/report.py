"""What the demo has measured, and how it is written down; pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..trace import EngineStats


@dataclass(frozen=True, slots=True)
class Score:
    """One value for each held-out prompt, in the order of the prompts."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def standard_error(self) -> float:
        return _standard_error(self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One tenant's result; `label` is its name in tables."""

    name: str
    method: str  # "SFT", "RL", "DPO"
    rank: int
    learning_rate: float
    steps: int
    metric: str
    is_higher_better: bool
    is_control: bool
    before: Score
    after: Score
    samples: tuple[str, ...]  # its adapter's answers to the common prompts

    @property
    def label(self) -> str:
        return label(self.name, is_control=self.is_control)

    @property
    def change(self) -> Score:
        """The difference for each prompt: its standard error is that of the change, paired."""
        pairs = zip(self.before.values, self.after.values, strict=True)
        return Score(tuple(after - before for before, after in pairs))

    @property
    def gain_sigmas(self) -> float:
        """Improvement in standard errors; negative when it got worse, 0 when nothing changed."""
        change = self.change
        if change.mean == 0:
            return 0.0
        gain = change.mean if self.is_higher_better else -change.mean
        return gain / change.standard_error if change.standard_error else math.copysign(99, gain)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """Everything the demo ends with."""

    arms: Sequence[ArmResult]
    seconds: float  # of training, all tenants together
    prompts: tuple[str, ...]  # the common ones
    base_samples: tuple[str, ...]
    stats: EngineStats | None = None
    checks: Sequence[str] = field(default_factory=list)  # what was asserted, in words

    def failures(self) -> list[str]:
        """Say what did not come out as a demo should; [] when all is well.

        A learner must gain at least 3 standard errors. A control must not gain more than 3; with
        learning rate 0 nothing may change at all.
        """
        found = []
        for arm in self.arms:
            sigmas = arm.gain_sigmas
            if arm.is_control and arm.learning_rate == 0 and any(arm.change.values):
                found.append(f"{arm.name}: changed although its learning rate is 0")
            elif arm.is_control and sigmas > 3:
                found.append(f"{arm.name}: a control gained {sigmas:.1f} standard errors")
            elif not arm.is_control and sigmas < 3:
                found.append(f"{arm.name}: gained only {sigmas:.1f} standard errors")
        return found

    def __str__(self) -> str:
        return "\n".join((*self._results(), "", *self._engine(), "", *self._samples()))

    def _results(self) -> list[str]:
        rows = [
            ("tenant", "method", "rank", "rate", "steps", "held-out", "before", "after", "change")
        ]
        for arm in sorted(self.arms, key=lambda arm: arm.is_control):
            rows.append(
                (
                    arm.label,
                    arm.method,
                    str(arm.rank),
                    f"{arm.learning_rate:g}",
                    str(arm.steps),
                    f"{arm.metric}, n={len(arm.before.values)}",
                    _show(arm.before, arm.metric),
                    _show(arm.after, arm.metric),
                    _show(arm.change, arm.metric, is_signed=True),
                )
            )
        return [*align(rows), "value +- standard error; change is paired, prompt by prompt"]

    def _engine(self) -> list[str]:
        lines = [f"trained together for {self.seconds:.0f} s, {len(self.arms)} tenants, one engine"]
        if self.stats is not None:
            counts = sorted(self.stats.batches_by_tenants.items())
            shown = ", ".join(f"{tenants}: {count}" for tenants, count in counts)
            lines.append(
                f"tenants per fused train batch: mean {self.stats.mean_tenants:.1f} ({shown})"
            )
            lines.append(f"busy fraction of the compute thread: {self.stats.busy_fraction:.0%}")
        return [*lines, *self.checks]

    def _samples(self) -> list[str]:
        rows = [("one answer each, temperature 0", *map(repr, self.prompts))]
        rows.append(("(base model)", *map(repr, self.base_samples)))
        rows += [(arm.label, *map(repr, arm.samples)) for arm in self.arms]
        return align(rows)


def label(name: str, *, is_control: bool) -> str:
    """Name a tenant for tables."""
    return f"control: {name}" if is_control else name


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad each column to its widest cell, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _show(score: Score, metric: str, *, is_signed: bool = False) -> str:
    sign = "+" if is_signed else ""
    if metric.startswith("bits"):
        return f"{score.mean:{sign}.2f} +- {score.standard_error:.2f}"
    return f"{100 * score.mean:{sign}.1f} +- {100 * score.standard_error:.1f} %"


def _standard_error(values: Sequence[float]) -> float:
    num = len(values)
    if num < 2:
        return 0.0
    mean = sum(values) / num
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (num - 1) / num)
