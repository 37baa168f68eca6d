"""Drives a `BrokerCore` by hand: a clock, a journal that is never behind, and short messages."""

from collections.abc import Callable
from typing import Any

from weft.client import wire
from weft.client.messages import (
    CreateRun,
    CreateSampler,
    ForkRun,
    ForwardBackward,
    Header,
    Hello,
    ModelCard,
    OptimStep,
    Reply,
    Request,
    Sample,
    SaveForSampler,
    SaveState,
)
from weft.client.worker_messages import Dispatch, Done, Failed, WorkerHello, WorkerReady
from weft.engine.broker.config import BrokerConfig
from weft.engine.broker.core import BrokerCore
from weft.engine.broker.events import (
    Action,
    ClientMessage,
    Event,
    Noted,
    Persist,
    Persisted,
    Tick,
    ToClient,
    ToWorker,
    WorkerMessage,
)
from weft.engine.broker.key_book import KeyBook, Secret, digest_of
from weft.engine.files.checkpoint import Checkpoint

SESSION = "a" * 32
OTHER = "b" * 32
RUN = f"{SESSION}:train:0"
SAMPLER = f"{SESSION}:sample:0"
LANE = f"local/{SESSION}"
CLIENT = b"client"
WORKER = b"worker"
CARD = ModelCard(name="tiny", aliases=["org/tiny"], vocab_size=100, max_context=64, max_rank=16)


KEYS = ("", "a", "b", "c", "k", "spy", "right", "wrong")  # that a bench may know


def key_book(tenant_of: Callable[[str], str | None]) -> KeyBook:
    """Those of `KEYS` that have a tenant."""
    tenants = {key: tenant_of(key) for key in KEYS}
    found = [Secret(digest_of(key), f"id-{key}", name) for key, name in tenants.items() if name]
    return KeyBook(found)


class CoreBench:
    """A core, its time, and what it was last told to dispatch."""

    def __init__(
        self,
        *,
        persists: bool = True,
        tenant_of: Callable[[str], str | None] | None = None,
        **settings: Any,
    ) -> None:
        names = ("secret", "keys", "wall_offset", "started", "logs_requests")
        others = {name: settings.pop(name) for name in names if name in settings}
        if tenant_of is not None:
            others["keys"] = key_book(tenant_of)
        self.core = BrokerCore(BrokerConfig(**settings), server="weft test", **others)
        self.now = 1000.0
        self.persists = persists  # Persist is answered at once, and not shown
        self.dispatches: list[tuple[Dispatch, Header]] = []
        self.noted: list[Noted] = []  # what the log is told, which is not shown among the actions

    def handle(self, event: Event) -> list[Action]:
        """Let the core take an event, and its own Persists."""
        actions = self._note(self.core.handle(event, self.now))
        if not self.persists:
            return actions
        shown: list[Action] = []
        while actions:
            numbers = [action.number for action in actions if isinstance(action, Persist)]
            shown += [action for action in actions if not isinstance(action, Persist)]
            actions = []
            if numbers:
                actions = self._note(self.core.handle(Persisted(numbers[-1]), self.now))
        self.core.check_integrity()
        return shown

    def say(self, header: Header, *payload: bytes, peer: bytes = CLIENT) -> list[Action]:
        """A client sends a message."""
        return self.handle(ClientMessage(peer, header, message(header, *payload)))

    def work(self, header: Header, *frames: bytes, peer: bytes = WORKER) -> list[Action]:
        """A worker sends a message."""
        return self.handle(WorkerMessage(peer, header, frames))

    def tick(self, seconds: float = 0.0) -> list[Action]:
        """Time passes."""
        self.now += seconds
        return self.handle(Tick())

    def hello(self, session_id: str = SESSION, peer: bytes = CLIENT, api_key: str = "") -> None:
        """A client connects."""
        self.say(Hello(versions=[1], session_id=session_id, api_key=api_key), peer=peer)

    def add_worker(
        self,
        worker_id: str = "w0",
        peer: bytes = WORKER,
        card: ModelCard = CARD,
        train_credit: int = 1_000_000,
        sample_credit: int = 1_000_000,
    ) -> list[Action]:
        """A worker connects and is ready."""
        self.work(WorkerHello(versions=[1], worker_id=worker_id, secret="", pid=1), peer=peer)
        ready = WorkerReady(model=card, train_credit=train_credit, sample_credit=sample_credit)
        return self.work(ready, peer=peer)

    def finish(self, index: int = -1, peer: bytes = WORKER, **result: Any) -> list[Action]:
        """The worker answers one of its dispatches, the last unless said otherwise."""
        dispatch, request = self.dispatches[index]
        assert isinstance(request, Request)
        reply = wire.encode(Reply(request_id=request.request_id, result=result))
        done = Done(dispatch_id=dispatch.dispatch_id, lease_epoch=dispatch.lease_epoch)
        return self.work(done, reply, peer=peer)

    def fail(self, code: str, index: int = -1, peer: bytes = WORKER) -> list[Action]:
        """The worker fails one of its dispatches."""
        dispatch, _ = self.dispatches[index]
        failed = Failed(
            dispatch_id=dispatch.dispatch_id,
            lease_epoch=dispatch.lease_epoch,
            code=code,
            detail="it failed",
        )
        return self.work(failed, peer=peer)

    def open_run(self, session_id: str = SESSION, peer: bytes = CLIENT, request_id: int = 1) -> str:
        """Create a run, with a ready worker there."""
        header = create_run(request_id=request_id, run_id=f"{session_id}:train:0")
        self.say(header, peer=peer)
        self.finish(rank=4, alpha=32.0, base_model="tiny")
        return header.run_id

    def _note(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            if isinstance(action, ToWorker) and isinstance(action.header, Dispatch):
                self.dispatches.append((action.header, wire.decode(action.frames[0])))  # type: ignore[arg-type]
        self.noted += [action for action in actions if isinstance(action, Noted)]
        return [action for action in actions if not isinstance(action, Noted)]


def ready_bench(**settings: Any) -> CoreBench:
    """A bench with a connected client, a ready worker and an open run."""
    bench = CoreBench(**settings)
    bench.hello()
    bench.add_worker()
    bench.open_run()
    return bench


def sampling_bench(**settings: Any) -> CoreBench:
    """A ready bench with an open sampler on the base model."""
    bench = ready_bench(**settings)
    bench.say(create_sampler(2))
    bench.finish(base_model="tiny")
    return bench


def message(header: Header, *payload: bytes) -> list[bytes]:
    """The frames of a message."""
    return [wire.encode(header), *payload]


def dispatched(actions: list[Action]) -> list[tuple[str, int]]:
    """Kind and sequence number (or request id) of what was sent to workers."""
    found = []
    for action in actions:
        if isinstance(action, ToWorker) and isinstance(action.header, Dispatch):
            header: Any = wire.decode(action.frames[0])  # type: ignore[arg-type]
            found.append((header.kind, getattr(header, "seq", header.request_id)))
    return found


def told(actions: list[Action], peer: bytes = CLIENT) -> list[tuple[int, str]]:
    """Request id and code ("" for a success) of the answers sent to a client."""
    found = []
    for action in actions:
        if isinstance(action, ToClient) and action.peer == peer:
            header: Any = action.header or wire.decode(action.frames[0])  # type: ignore[arg-type]
            found.append((getattr(header, "request_id", 0), getattr(header, "code", "")))
    return found


def create_run(request_id: int = 1, run_id: str = RUN, **fields: Any) -> CreateRun:
    given: dict[str, Any] = {
        "base_model": "tiny",
        "rank": 4,
        "alpha": 32.0,
        "seed": 1,
        "train_attn": True,
        "train_mlp": True,
        "train_unembed": False,
        "seq": 0,
        "digest": digest("create"),
    }
    return CreateRun(request_id=request_id, run_id=run_id, **given | fields)


def forward_backward(seq: int, *, part: int = 0, num_parts: int = 1, **fields: Any) -> Any:
    given: dict[str, Any] = {
        "request_id": 10 + seq,
        "run_id": RUN,
        "digest": digest(f"fb{seq}.{part}"),
        "num_datums": 1,
        "num_tokens": 8,
        "loss_fn": "cross_entropy",
        "loss_fn_config": {},
        "forward_only": False,
        "arrays": [],
    }
    return ForwardBackward(seq=seq, part=part, num_parts=num_parts, **given | fields)


def optim_step(seq: int, **fields: Any) -> OptimStep:
    given: dict[str, Any] = {
        "request_id": 10 + seq,
        "run_id": RUN,
        "digest": digest(f"opt{seq}"),
        "learning_rate": 1e-4,
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-12,
        "weight_decay": 0.0,
        "grad_clip_norm": 0.0,
    }
    return OptimStep(seq=seq, **given | fields)


def fork_run(seq: int, new_run_id: str = f"{SESSION}:train:1", **fields: Any) -> ForkRun:
    given: dict[str, Any] = {
        "request_id": 10 + seq,
        "run_id": RUN,
        "digest": digest(f"fork{seq}"),
    }
    return ForkRun(seq=seq, new_run_id=new_run_id, **given | fields)


def save_state(seq: int, name: str = "state", **fields: Any) -> SaveState:
    given: dict[str, Any] = {
        "request_id": 10 + seq,
        "run_id": RUN,
        "digest": digest(f"save{seq}"),
    }
    return SaveState(seq=seq, name=name, **given | fields)


def save_for_sampler(seq: int, **fields: Any) -> SaveForSampler:
    given: dict[str, Any] = {
        "request_id": 10 + seq,
        "run_id": RUN,
        "digest": digest(f"freeze{seq}"),
        "sampler_id": SAMPLER,
    }
    return SaveForSampler(seq=seq, **given | fields)


def create_sampler(request_id: int, **fields: Any) -> CreateSampler:
    given: dict[str, Any] = {"sampler_id": SAMPLER} | fields
    if "model_path" not in given:
        given.setdefault("base_model", "tiny")
    return CreateSampler(request_id=request_id, **given)


def sample(request_id: int, **fields: Any) -> Sample:
    given: dict[str, Any] = {
        "sampler_id": SAMPLER,
        "digest": digest(f"sample{request_id}"),
        "num_tokens": 4,
        "num_samples": 1,
        "max_tokens": 5,
        "temperature": 1.0,
        "top_k": -1,
        "top_p": 1.0,
        "seed": 1,
        "stop_tokens": [],
        "stop_strings": [],
        "default_stop": True,
        "prompt_logprobs": False,
        "arrays": [],
    }
    return Sample(request_id=request_id, **given | fields)


def checkpoint(name: str, **fields: Any) -> Checkpoint:
    given: dict[str, Any] = {
        "path": f"weft://{RUN}/weights/{name}",
        "tenant": "local",
        "base_model": "tiny",
        "rank": 4,
        "alpha": 32.0,
        "train_attn": True,
        "train_mlp": True,
        "train_unembed": False,
        "step": 3,
        "size_bytes": 10,
        "created": 1.0,
    }
    return Checkpoint(**given | fields)


def digest(text: str) -> bytes:
    """16 bytes that tell payloads apart."""
    return text.encode().ljust(16, b".")
