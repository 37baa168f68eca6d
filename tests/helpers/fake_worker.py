"""A worker without a model: it answers at once, with arrays of the right shapes.

Log-probabilities are -token / 100 of the targets, samples count upwards from the prompt's last
token, and every run knows its step. What a test wants otherwise it puts into `answers` or `hold`.
"""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq
from sample_extras import sample_extras

from weft.client import wire
from weft.client.arrays import pack_arrays, unpack_arrays
from weft.client.errors import WeftError
from weft.client.messages import (
    Command,
    CreateRun,
    CreateSampler,
    ForkRun,
    ForwardBackward,
    Header,
    Heartbeat,
    LoadState,
    ModelCard,
    OptimStep,
    Reply,
    Sample,
    SaveForSampler,
    SaveState,
)
from weft.client.paths import CheckpointPath
from weft.client.worker_messages import (
    Dispatch,
    Done,
    Failed,
    Stop,
    Withdraw,
    WorkerHello,
    WorkerReady,
)

CARD = ModelCard(name="tiny", aliases=["org/tiny"], vocab_size=100, max_context=64, max_rank=256)
DEADLINE_S = 20.0

Arrays = dict[str, np.ndarray]
Part = tuple[dict[str, Any], Arrays]  # result and arrays
Answer = Callable[[Any, Arrays], Part]


class FakeWorker:
    """Serves one broker until it is told to stop, or `close` is called.

    Args:
        context: of an inproc:// broker; for other addresses any.
        address: the broker's, for workers.
        hold: dispatched work is kept in `held` and not answered.
    """

    def __init__(
        self,
        context: "zmq.Context[Any]",
        address: str,
        *,
        worker_id: str = "worker-0",
        secret: str = "",
        card: ModelCard = CARD,
        train_credit: int = 100_000,
        sample_credit: int = 100_000,
        hold: bool = False,
        is_ready: bool = True,
    ) -> None:
        self.hold = hold
        self.card = card
        self.seen: list[Header] = []  # requests, and what the broker itself says
        self.held: list[tuple[Dispatch, Header]] = []
        self.steps: Counter[str] = Counter()  # optimizer steps by run
        self.answers: dict[type, Answer] = {
            CreateRun: self._create_run,
            ForkRun: lambda header, _: (
                {"run_id": header.new_run_id, "rank": 4, "base_model": card.name},
                {},
            ),
            ForwardBackward: _forward_backward,
            OptimStep: self._optim_step,
            SaveState: lambda header, _: ({"path": _path(header, "weights"), "size_bytes": 10}, {}),
            LoadState: lambda header, _: ({"path": header.path}, {}),
            SaveForSampler: _save_for_sampler,
            CreateSampler: lambda header, _: (
                {"sampler_id": header.sampler_id, "base_model": card.name},
                {},
            ),
            Sample: _sample,
        }
        self._changed = threading.Condition()
        self._is_closed = threading.Event()
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)
        self._bell = context.socket(zmq.PAIR)
        self._bell.bind(f"inproc://fake-worker-{id(self)}")
        self._ear = context.socket(zmq.PAIR)
        self._ear.connect(f"inproc://fake-worker-{id(self)}")
        self._ready = WorkerReady(
            model=card, train_credit=train_credit, sample_credit=sample_credit
        )
        self._send(WorkerHello(versions=[1], worker_id=worker_id, secret=secret, pid=1))
        if is_ready:
            self._send(self._ready)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_for(self, kind: type[Header], number: int = 1) -> list[Any]:
        """The headers of a kind, once so many have come."""

        def found() -> list[Header]:
            return [header for header in self.seen if isinstance(header, kind)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= number, DEADLINE_S), self.seen
            return found()

    def become_ready(self) -> None:
        """Say that the model is loaded."""
        self._bell.send(b"ready")

    def release(self) -> None:
        """Answer what is held, and from now on everything."""
        self._bell.send(b"release")

    def close(self) -> None:
        """Vanish without a word."""
        self._bell.send(b"close")
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self._bell.close(0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._ear, zmq.POLLIN)
        poller.register(self._socket, zmq.POLLIN)
        kept: list[tuple[Dispatch, list[bytes]]] = []
        while True:
            ready = dict(poller.poll(1000))
            if self._ear in ready:
                word = self._ear.recv()
                if word == b"close":
                    break
                if word == b"ready":
                    self._send(self._ready)
                else:
                    self.hold = False
                    for dispatch, frames in kept:
                        self._answer(dispatch, frames)
                    kept.clear()
            if self._socket in ready:
                raw, *frames = self._socket.recv_multipart()
                self._receive(wire.decode(raw), frames, kept)
            elif not ready:
                self._send(Heartbeat())
        self._ear.close(0)
        self._socket.close(0)

    def _receive(
        self, header: Header, frames: list[bytes], kept: list[tuple[Dispatch, list[bytes]]]
    ) -> None:
        if isinstance(header, Dispatch):
            request = wire.decode(frames[0])
            if self.hold:
                kept.append((header, frames))
                self.held.append((header, request))
            else:
                self._answer(header, frames)
            self._note(request)
        elif isinstance(header, Stop | Withdraw):
            self._note(header)

    def _answer(self, dispatch: Dispatch, frames: list[bytes]) -> None:
        request: Any = wire.decode(frames[0])
        described = getattr(request, "arrays", [])
        common = {"dispatch_id": dispatch.dispatch_id, "lease_epoch": dispatch.lease_epoch}
        try:
            if isinstance(request, Command | Sample):
                assert wire.digest(request, frames[1:]) == request.digest
            answer = self.answers[type(request)]
            result, arrays = answer(request, unpack_arrays(described, frames[1:]))
        except WeftError as error:
            self._send(Failed(code=error.code, detail=str(error), **common))
            return
        part, num_parts = getattr(request, "part", 0), getattr(request, "num_parts", 1)
        usage = {"tokens": getattr(request, "num_tokens", 0)} if part == 0 else {}
        array_headers, payload = pack_arrays(arrays)
        reply = Reply(
            request_id=request.request_id,
            part=part,
            num_parts=num_parts,
            result=result,
            arrays=array_headers,
        )
        done = Done(part=part, num_parts=num_parts, usage=usage, **common)
        self._send(done, wire.encode(reply), *payload)

    def _note(self, header: Header) -> None:
        with self._changed:
            self.seen.append(header)
            self._changed.notify_all()

    def _send(self, header: Header, *frames: Any) -> None:
        self._socket.send_multipart([wire.encode(header), *frames])

    def _create_run(self, header: CreateRun, arrays: Arrays) -> Part:
        result = {
            "run_id": header.run_id,
            "rank": header.rank,
            "alpha": header.alpha,
            "base_model": self.card.name,
            "tokenizer": "",
        }
        return result, {}

    def _optim_step(self, header: OptimStep, arrays: Arrays) -> Part:
        self.steps[header.run_id] += 1
        metrics = {"unclipped_grad_l2:mean": 0.5, "step:max": float(self.steps[header.run_id])}
        return {"metrics": metrics}, {}


def _path(header: Any, kind: str) -> str:
    return str(CheckpointPath(header.run_id, kind, header.name))


def _save_for_sampler(header: SaveForSampler, arrays: Arrays) -> Part:
    kind = "external_weights" if header.is_external else "sampler_weights"
    named = {"path": _path(header, kind), "size_bytes": 5} if header.name else {}
    return {**named, "sampler_id": header.sampler_id}, {}


def _forward_backward(header: ForwardBackward, arrays: Arrays) -> Part:
    logprobs = (-arrays["target_tokens"] / 100).astype(np.float32)
    loss = float(-(arrays.get("weights", np.float32(1)) * logprobs).sum())
    return {"metrics": {"loss:sum": loss}} if header.part == 0 else {}, {"logprobs": logprobs}


def _sample(header: Sample, arrays: Arrays) -> Part:
    count = max(header.max_tokens, 1)
    last = int(arrays["tokens"][-1])
    tokens = np.tile(np.arange(last + 1, last + 1 + count, dtype=np.int32), header.num_samples)
    found = {
        "tokens": tokens,
        "lengths": np.full(header.num_samples, count, np.int32),
        "logprobs": (-tokens / 100).astype(np.float32),
    }
    if header.prompt_logprobs:
        found["prompt_logprobs"] = np.full(len(arrays["tokens"]), -1.0, np.float32)
        found["prompt_logprobs"][: -header.prompt_logprobs_last_n or 1] = np.nan
    found |= sample_extras(header, arrays, len(tokens))
    return {"stop_reasons": ["length"] * header.num_samples}, found
