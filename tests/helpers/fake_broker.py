"""A broker and its worker in one small thread, for tests of the client.

It welcomes, remembers what it has seen, and answers every request by a function of its kind, which
a test may replace. Log-probabilities are -token / 100 of the targets, so that tests can check them.
"""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zmq
from sample_extras import sample_extras

from weft.client import wire
from weft.client.arrays import pack_arrays, unpack_arrays
from weft.client.messages import (
    Array,
    CreateRun,
    Failure,
    ForkRun,
    ForwardBackward,
    Header,
    Hello,
    Known,
    ModelCard,
    Query,
    Reply,
    Request,
    Resume,
    Sample,
    SaveForSampler,
    SaveState,
    Welcome,
)

CARD = ModelCard(
    name="tiny",
    aliases=["org/tiny"],
    vocab_size=100,
    max_context=64,
    max_rank=256,
    width=2000,
    model_type="qwen3",
)
DEADLINE_S = 20.0

Arrays = dict[str, np.ndarray]
Message = tuple[Header, Sequence[Any]]
Answer = Callable[[Any, Arrays], list[Message]]


class FakeBroker:
    """Serves one address until it is closed."""

    def __init__(self, context: "zmq.Context[Any]", address: str) -> None:
        self.address = address
        self.seen: list[Header] = []
        self.arrays: list[Arrays] = []  # beside `seen`
        self.known: set[int] = set()  # request ids that a `Resume` is told of
        self.answers: dict[str, Answer] = {
            "hello": welcome,
            "resume": lambda header, _: [(Known(request_ids=self._known(header)), ())],
            "create_run": create_run,
            "fork_run": fork_run,
            "cancel": lambda header, _: [failure(header, "too_late")],
            "forward_backward": forward_backward,
            "optim_step": lambda header, _: [reply(header, {"metrics": {NORM: 0.5}})],
            "save_state": save_state,
            "load_state": lambda header, _: [reply(header, {})],
            "save_for_sampler": save_for_sampler,
            "create_sampler": lambda header, _: [reply(header, {})],
            "close_sampler": lambda header, _: [reply(header, {})],
            "close_run": lambda header, _: [reply(header, {})],
            "void": lambda header, _: [reply(header, {})],
            "sample": sample,
            "query": query,
            "watch": lambda header, _: [reply(header, {})],
        }
        self._sessions: dict[bytes, str] = {}
        self._changed = threading.Condition()
        self._bell_name = f"inproc://fake-bell-{id(self)}"
        self._context = context
        self._bell = context.socket(zmq.PAIR)
        self._bell.bind(self._bell_name)
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._is_ready.wait(DEADLINE_S)

    def wait_for(self, kind: str, number: int = 1) -> list[Any]:
        """The headers of a kind, once there are so many."""

        def found() -> list[Header]:
            return [header for header in self.seen if header.kind == kind]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= number, DEADLINE_S), self.seen
            return found()

    def push(self, message: Message) -> None:
        """Send to every client from outside, as if a worker had finished."""
        header, frames = message
        self._bell.send_multipart([wire.encode(header), *frames])

    def close(self) -> None:
        self._bell.send(b"")
        self._thread.join(DEADLINE_S)
        self._bell.close(0)

    def _run(self) -> None:
        ear = self._context.socket(zmq.PAIR)
        ear.connect(self._bell_name)
        router = self._context.socket(zmq.ROUTER)
        router.linger = 0
        router.bind(self.address)
        if self.address.endswith("*"):
            self.address = router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._is_ready.set()
        poller = zmq.Poller()
        poller.register(ear, zmq.POLLIN)
        poller.register(router, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if ear in ready:
                told = ear.recv_multipart()
                if told == [b""]:
                    break
                for peer in self._sessions:
                    router.send_multipart([peer, *told])
            if router in ready:
                peer, raw, *frames = router.recv_multipart()
                for header, sent in self._handle(peer, raw, frames):
                    router.send_multipart([peer, wire.encode(header), *sent])
        ear.close(0)
        router.close(0)

    def _handle(self, peer: bytes, raw: bytes, frames: list[bytes]) -> list[Message]:
        header = wire.decode(raw)
        described: list[Array] = getattr(header, "arrays", [])
        arrays = unpack_arrays(described, frames)
        with self._changed:
            self.seen.append(header)
            self.arrays.append(arrays)
            self._changed.notify_all()
        if isinstance(header, Hello):
            self._sessions[peer] = header.session_id
        elif peer not in self._sessions:
            number = header.request_id if isinstance(header, Request) else 0
            return [(Failure(request_id=number, code="unknown_session", detail="who?"), ())]
        answer = self.answers.get(header.kind)
        return [] if answer is None else answer(header, arrays)

    def _known(self, header: Resume) -> list[int]:
        return [number for number in header.request_ids if number in self.known]


NORM = "unclipped_grad_l2:mean"


def reply(header: Request, result: dict[str, Any], arrays: Arrays | None = None) -> Message:
    described, frames = pack_arrays(arrays or {})
    return Reply(request_id=header.request_id, result=result, arrays=described), frames


def failure(header: Request, code: str, detail: str = "", retry_after_s: float = 0.0) -> Message:
    number = header.request_id
    return Failure(request_id=number, code=code, detail=detail, retry_after_s=retry_after_s), ()


def silent(header: Request, arrays: Arrays) -> list[Message]:
    return []


def welcome(header: Hello, arrays: Arrays) -> list[Message]:
    return [
        (
            Welcome(
                version=1,
                session_id=header.session_id,
                server="fake/1",
                models=[CARD],
                limits={},
            ),
            (),
        )
    ]


def create_run(header: CreateRun, arrays: Arrays) -> list[Message]:
    result = {
        "run_id": header.run_id,
        "rank": header.rank,
        "alpha": header.alpha,
        "base_model": CARD.name,
    }
    return [reply(header, result)]


def fork_run(header: ForkRun, arrays: Arrays) -> list[Message]:
    return [reply(header, {"run_id": header.new_run_id, "base_model": CARD.name})]


def forward_backward(header: ForwardBackward, arrays: Arrays) -> list[Message]:
    logprobs = (-arrays["target_tokens"] / 100).astype(np.float32)
    loss = float(-(arrays.get("weights", np.float32(1)) * logprobs).sum())
    described, frames = pack_arrays({"logprobs": logprobs})
    answer = Reply(
        request_id=header.request_id,
        part=header.part,
        num_parts=header.num_parts,
        result={"metrics": {"loss:sum": loss}},
        arrays=described,
    )
    return [(answer, frames)]


def save_state(header: SaveState, arrays: Arrays) -> list[Message]:
    return [reply(header, {"path": f"weft://{header.run_id}/weights/{header.name}"})]


def save_for_sampler(header: SaveForSampler, arrays: Arrays) -> list[Message]:
    kind = "external_weights" if header.is_external else "sampler_weights"
    path = f"weft://{header.run_id}/{kind}/{header.name}"
    return [reply(header, {"path": path, "size_bytes": 7} if header.name else {})]


def sample(header: Sample, arrays: Arrays) -> list[Message]:
    """Counts upwards from the prompt's last token; every continuation is one token longer."""
    last = int(arrays["tokens"][-1])
    lengths = np.arange(1, header.num_samples + 1, dtype=np.int32)
    tokens = np.concatenate([last + np.arange(1, n + 1) for n in lengths]).astype(np.int32)
    found = {
        "tokens": tokens,
        "lengths": lengths,
        "logprobs": (-tokens / 100).astype(np.float32),
    }
    if header.prompt_logprobs:
        found["prompt_logprobs"] = (-arrays["tokens"] / 100).astype(np.float32)
        found["prompt_logprobs"][: -header.prompt_logprobs_last_n or 1] = np.nan
    found |= sample_extras(header, arrays, len(tokens))
    return [reply(header, {"stop_reasons": ["length"] * header.num_samples}, found)]


def query(header: Query, arrays: Arrays) -> list[Message]:
    match header.what:
        case "capabilities":
            return [reply(header, {"models": [dataclasses.asdict(CARD)]})]
        case "sampler":
            return [reply(header, {"sampler_id": header.subject, "base_model": "tiny"})]
        case _:
            return [failure(header, "bad_request", f"no {header.what}")]
