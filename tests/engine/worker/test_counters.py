"""What a worker counts: steps, tokens, tenants, time; and how it travels."""

from types import SimpleNamespace
from typing import cast

import pytest

from weft.client import wire
from weft.client.worker_messages import WorkerCounters
from weft.engine.histogram import TENANTS
from weft.engine.sampling.base_generator import BaseGenerator
from weft.engine.worker.counters import Counters, kind_of
from weft.engine.worker.runs import RunTable
from weft.engine.worker.scheduler import Control, Decision, Optimizers, Passes, Sampling

TRAIN = Passes((), backward=True, num_tokens=48)
FORWARD = Passes((), backward=False, num_tokens=16)


# As much of a generator and of the runs as is counted.
GENERATOR = SimpleNamespace(
    num_prefilled=30, num_decoded=7, num_failed_steps=2, memory={"kv_pages": (3, 64)}
)
RUNS = SimpleNamespace(
    counts={"runs": 2, "samplers": 1},
    store=SimpleNamespace(memory={"adapter_state_bytes": (10, 100)}),
)


def record(counters: Counters) -> WorkerCounters:
    return counters.record(cast(BaseGenerator, GENERATOR), cast(RunTable, RUNS))


@pytest.mark.parametrize(
    ("decision", "kind"),
    [
        (TRAIN, "train"),
        (FORWARD, "forward"),
        (Sampling(), "sample"),
        (Optimizers((1,)), "optimizer"),
        (Control(1), "control"),
    ],
)
def test_every_decision_has_a_kind(decision: Decision, kind: str) -> None:
    counters = Counters()
    counters.spent(decision, 0.25)
    counters.spent(decision, 0.5)
    assert kind_of(decision) == kind
    assert {name: seconds for name, seconds in record(counters).busy_s.items() if seconds} == {
        kind: 0.75
    }


def test_what_passes_through_a_step_is_counted_by_kind() -> None:
    counters = Counters()
    for decision, tenants in ((TRAIN, 4), (TRAIN, 1), (FORWARD, 2)):
        counters.passed(decision, tenants)
    counters.sampled(3)
    told = record(counters)
    steps = {"train": 2, "forward": 1, "sample": 1, "optimizer": 0, "control": 0}
    assert told.steps == steps
    assert told.tokens == {"trained": 96, "forward": 16, "prefill": 30, "decoded": 7}
    assert told.failures["sample"] == 2
    assert told.tenants_sum == {"train": 5, "sample": 3}  # a forward is no train batch
    assert [TENANTS[i] for i, n in enumerate(told.tenants["train"]) if n] == [1, 4]


def test_what_is_used_and_what_there_is_are_told_apart() -> None:
    told = record(Counters())
    used = {"runs": 2, "samplers": 1, "kv_pages": 3, "adapter_state_bytes": 10}
    assert (told.used, told.total) == (used, {"kv_pages": 64, "adapter_state_bytes": 100})
    assert wire.decode(wire.encode(told)) == told


def test_what_was_told_does_not_change_later() -> None:
    counters = Counters()
    told = record(counters)
    counters.passed(TRAIN, 1)
    counters.spent(TRAIN, 1.0)
    assert told == record(Counters())
