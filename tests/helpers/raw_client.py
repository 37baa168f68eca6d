"""A client that says exactly what a test wants, byte by byte."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import zmq

from weft.client import wire
from weft.client.arrays import pack_arrays
from weft.client.messages import (
    Command,
    CreateRun,
    Failure,
    ForwardBackward,
    Header,
    Heartbeat,
    Hello,
    OptimStep,
    Reply,
    Welcome,
)

DEADLINE_MS = 60_000  # a hang guard


class RawClient:
    """A DEALER with a session of its own."""

    def __init__(self, context: Any, address: str, api_key: str = "", session_id: str = "") -> None:
        self.session_id = session_id or uuid4().hex
        self.run_id = f"{self.session_id}:train:0"
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(address)
        self.send(Hello(versions=[1], session_id=self.session_id, api_key=api_key))
        welcome = self.receive()
        if not isinstance(welcome, Welcome):
            raise TypeError(f"no welcome but {welcome}")
        self.model = welcome.models[0].name

    def send(self, header: Header, frames: Sequence[Any] = ()) -> None:
        """Send a header; a command gets its digest."""
        if isinstance(header, Command) and not header.digest:
            header = replace(header, digest=wire.digest(header, frames))
        self.socket.send_multipart([wire.encode(header), *frames])

    def send_bytes(self, *frames: bytes) -> None:
        """Send anything."""
        self.socket.send_multipart(frames)

    def receive(self) -> Header:
        """The next message that is no heartbeat."""
        while True:
            if not self.socket.poll(DEADLINE_MS):
                raise TimeoutError("the server says nothing")
            header = wire.decode(self.socket.recv_multipart()[0])
            if not isinstance(header, Heartbeat):
                return header

    def answers(self, number: int) -> dict[int, Reply | Failure]:
        """This many answers, by request."""
        found: dict[int, Reply | Failure] = {}
        while len(found) < number:
            header = self.receive()
            if isinstance(header, Reply | Failure):
                found[header.request_id] = header
        return found

    def create(self, request_id: int = 1, **fields: Any) -> CreateRun:
        """The first command of the run."""
        values = {
            "request_id": request_id,
            "run_id": self.run_id,
            "seq": 0,
            "digest": b"",
            "base_model": self.model,
            "rank": 4,
            "alpha": 32.0,
            "seed": 1,
            "train_attn": True,
            "train_mlp": True,
            "train_unembed": False,
        }
        return CreateRun(**{**values, **fields})

    def call(
        self,
        request_id: int,
        seq: int,
        tokens: Sequence[int] = (1, 2, 3),
        arrays: Mapping[str, np.ndarray] | None = None,
        **fields: Any,
    ) -> tuple[ForwardBackward, list[Any]]:
        """A forward_backward of one datum."""
        named = {
            "tokens": np.array(tokens, np.int32),
            "lengths": np.array([len(tokens)], np.int32),
            "target_tokens": np.array(tokens, np.int32),
            "weights": np.ones(len(tokens), np.float32),
        }
        described, frames = pack_arrays({**named, **(arrays or {})})
        values = {
            "request_id": request_id,
            "run_id": self.run_id,
            "seq": seq,
            "digest": b"",
            "part": 0,
            "num_parts": 1,
            "num_datums": 1,
            "num_tokens": len(tokens),
            "loss_fn": "cross_entropy",
            "loss_fn_config": {},
            "forward_only": False,
            "arrays": described,
        }
        return ForwardBackward(**{**values, **fields}), list(frames)

    def step(self, request_id: int, seq: int, **fields: Any) -> OptimStep:
        """An optim_step."""
        values = {
            "request_id": request_id,
            "run_id": self.run_id,
            "seq": seq,
            "digest": b"",
            "learning_rate": 1e-3,
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": 1e-12,
            "weight_decay": 0.0,
            "grad_clip_norm": 0.0,
        }
        return OptimStep(**{**values, **fields})
