"""What a broker and its workers say to each other, as `messages.py` has what clients say.

Requests and answers are those of clients: a `Dispatch` carries the one, a `Done` the other.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from .messages import Header, ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSpan:
    """Linear layers of one shape that can carry an adapter: a module of some layers."""

    name: str  # of the module; "{}" stands for the layer's number
    layers: list[int]  # empty: one module, outside the layers
    family: str  # "attn", "mlp" or "unembed"
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHello(Header):
    """First message of a worker, before it loads; `Heartbeat`s follow whatever it does."""

    kind: ClassVar[str] = "worker_hello"
    versions: list[int]
    worker_id: str
    secret: str = field(repr=False)  # given to the worker by whoever started it
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReady(Header):
    """The model is loaded and warm. Credits bound the weighted tokens dispatched and unfinished."""

    kind: ClassVar[str] = "worker_ready"
    model: ModelCard
    train_credit: int
    sample_credit: int
    sites: list[SiteSpan] = field(default_factory=list[SiteSpan])  # where an adapter can sit


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProgress(Header):
    """How far a worker is that has said hello and is not ready; not answered."""

    kind: ClassVar[str] = "worker_progress"
    phase: str  # "starting", "reading weights", "preparing" or "warming"
    fraction: float = -1.0  # of the phase, 0 to 1; -1 when it is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Underway(Header):
    """Worker to broker, now and then: how far dispatches are that take several steps."""

    kind: ClassVar[str] = "underway"
    dispatch_ids: list[int]
    done: list[int]  # units computed of each
    total: list[int]  # units of each


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCounters(Header):
    """Worker to broker, at most once a second and after a change: what it did since its hello.

    Numbers only grow, so that a lost message loses nothing; but for `used` and `total`.
    """

    kind: ClassVar[str] = "worker_counters"
    steps: dict[str, int]  # of the compute thread: train, forward, sample, optimizer, control
    failures: dict[str, int]  # steps of these kinds that raised, to be repeated smaller or given up
    busy_s: dict[str, float]  # that they took, failed ones included
    tokens: dict[str, int]  # trained, forward, prefill, decoded; of steps that succeeded
    # Train and sample batches by how many tenants' lanes they hold: see `histogram.TENANTS`.
    tenants: dict[str, list[int]]
    tenants_sum: dict[str, int]
    used: dict[str, int]  # now: runs, samplers, adapter_state_bytes, kv_pages, ...
    total: dict[str, int]  # of what has a fixed size


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch(Header):
    """Broker to worker. The client's header frame and payload frames follow untouched."""

    kind: ClassVar[str] = "dispatch"
    dispatch_id: int  # one for all parts of a command
    lease_epoch: int  # of the run, 0 for samples
    lane: str  # "<tenant>/<session_id>", for the trace
    queued_s: float = 0.0  # from the arrival of the whole request to this dispatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw(Header):
    """Broker to worker: forget these dispatches if they have not started, and the things named."""

    kind: ClassVar[str] = "withdraw"
    dispatch_ids: list[int] = field(default_factory=list[int])
    run_ids: list[str] = field(default_factory=list[str])
    sampler_ids: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Header):
    """Worker to broker. A `Reply` header frame and its payload frames follow, to be passed on."""

    kind: ClassVar[str] = "done"
    dispatch_id: int
    lease_epoch: int
    part: int = 0
    num_parts: int = 1
    usage: dict[str, int] = field(
        default_factory=dict[str, int]
    )  # e.g. {"train_tokens": 512}; part 0 only


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Header):
    """Worker to broker: the command failed and left no trace."""

    kind: ClassVar[str] = "failed"
    dispatch_id: int
    lease_epoch: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop(Header):
    """Broker to worker: no more answers are awaited; exit after the step under way."""

    kind: ClassVar[str] = "stop"
