"""What a worker has done since it started. Touched by the compute thread alone."""

from ...client.worker_messages import WorkerCounters
from ..histogram import TENANTS, Histogram
from ..sampling.base_generator import BaseGenerator
from .runs import RunTable
from .scheduler import Control, Decision, Optimizers, Passes, Sampling

KINDS = ("train", "forward", "sample", "optimizer", "control")  # of steps


class Counters:
    """Steps of the compute thread and what went through them."""

    def __init__(self) -> None:
        self.steps = dict.fromkeys(KINDS, 0)
        self.failures = dict.fromkeys(KINDS, 0)
        self.busy_s = dict.fromkeys(KINDS, 0.0)
        self.tokens = {"trained": 0, "forward": 0}
        self.tenants = {kind: Histogram(TENANTS) for kind in ("train", "sample")}

    def spent(self, decision: Decision, seconds: float) -> None:
        """Note how long a step has taken, whatever became of it."""
        self.busy_s[kind_of(decision)] += seconds

    def passed(self, decision: Passes, num_tenants: int) -> None:
        """Count a train or forward step that succeeded as a whole."""
        self.steps[kind_of(decision)] += 1
        if decision.backward:
            self.tokens["trained"] += decision.num_tokens
            self.tenants["train"].add(num_tenants)
        else:
            self.tokens["forward"] += decision.num_tokens

    def sampled(self, num_tenants: int) -> None:
        """Count a sample step in which anything was computed."""
        self.steps["sample"] += 1
        self.tenants["sample"].add(num_tenants)

    def record(self, generator: BaseGenerator, runs: RunTable) -> WorkerCounters:
        """All of it as it travels, with what generator and runs have counted and hold now."""
        memory = {**runs.store.memory, **generator.memory}
        sampled = {"prefill": generator.num_prefilled, "decoded": generator.num_decoded}
        return WorkerCounters(
            steps=dict(self.steps),
            failures={**self.failures, "sample": generator.num_failed_steps},
            busy_s=dict(self.busy_s),
            tokens={**self.tokens, **sampled},
            tenants={kind: list(found.counts) for kind, found in self.tenants.items()},
            tenants_sum={kind: int(found.sum) for kind, found in self.tenants.items()},
            used={**runs.counts, **{name: used for name, (used, _) in memory.items()}},
            total={name: total for name, (_, total) in memory.items()},
        )


def kind_of(decision: Decision) -> str:
    """The kind under which a step is counted."""
    match decision:
        case Passes():
            return "train" if decision.backward else "forward"
        case Optimizers():
            return "optimizer"
        case Control():
            return "control"
        case Sampling():
            return "sample"
