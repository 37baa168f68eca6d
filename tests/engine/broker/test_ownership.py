"""Two tenants over real sockets: what is another's answers like what never was, request by request.

Every field of every request is an id, and then it is asked here with somebody else's, or it is
listed as none.
"""

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import zmq
from core_bench import checkpoint
from examples_of_headers import EXAMPLES
from fake_worker import FakeWorker
from raw_client import RawClient

from weft.client import wire
from weft.client.file_messages import OpenDownload, ReadPart
from weft.client.messages import (
    Command,
    CreateSampler,
    Explain,
    Failure,
    Header,
    Hello,
    Query,
    Reply,
    Request,
    Watch,
)
from weft.engine.broker.key_store import KeyStore
from weft.engine.broker.shell import Broker
from weft.engine.files.store import CheckpointFiles
from weft.engine.files.tensors import make_header

REQUESTS = {type(header): header for header in EXAMPLES if isinstance(header, Request)}
TOPICS = ("run", "saved run", "checkpoints", "checkpoint", "sampler", "session")


@dataclass(frozen=True)
class Ids:
    """What a tenant has, or what there is not."""

    session: str
    request: int
    transfer: int

    @property
    def run(self) -> str:
        return f"{self.session}:train:0"

    @property
    def saved_run(self) -> str:
        return f"{self.session}:train:7"

    @property
    def sampler(self) -> str:
        return f"{self.session}:sample:0"

    @property
    def path(self) -> str:
        return f"weft://{self.saved_run}/weights/saved"

    def value(self, name: str) -> Any:
        """What a field of this name is given to mean these things."""
        return {
            "run_id": self.run,
            "new_run_id": self.run,
            "sampler_id": self.sampler,
            "path": self.path,
            "from_path": self.path,
            "model_path": self.path,
            "target": self.path,
            "transfer_id": self.transfer,
            "target_id": self.request,
            "request_ids": [self.request],
        }[name]

    def subject(self, topic: str) -> tuple[str, str]:
        """What to ask and of whom."""
        return {
            "run": ("run", self.run),
            "saved run": ("run", self.saved_run),
            "checkpoints": ("checkpoints", self.saved_run),
            "checkpoint": ("checkpoints", self.path),
            "sampler": ("sampler", self.sampler),
            "session": ("session", self.session),
        }[topic]

    def hidden(self, text: str) -> str:
        """A text without the ids in it."""
        text = text.replace(self.session, "SESSION")
        return re.sub(rf"(request|transfer) ({self.request}|{self.transfer})\b", r"\1 N", text)


OWN = Ids("b" * 32, request=0, transfer=0)
UNKNOWN = Ids("f" * 32, request=4001, transfer=4002)
IDS = {
    "create_run": {"run_id": "bad_request", "from_path": "not_found"},
    "forward_backward": {"run_id": "not_found"},
    "optim_step": {"run_id": "not_found"},
    "save_state": {"run_id": "not_found"},
    "load_state": {"run_id": "not_found", "path": "not_found"},
    "save_for_sampler": {"run_id": "not_found", "sampler_id": "bad_request"},
    "fork_run": {"run_id": "not_found", "new_run_id": "bad_request"},
    "void": {"run_id": "not_found"},
    "create_sampler": {"sampler_id": "bad_request", "model_path": "not_found"},
    "sample": {"sampler_id": "not_found"},
    "close_sampler": {"sampler_id": ""},
    "close_run": {"run_id": "not_found"},
    "cancel": {"target_id": "not_found"},
    "explain": {"request_ids": ""},
    "query": {},  # by topic, below
    "watch": {},
    "delete_checkpoint": {"path": "not_found"},
    "rename_checkpoint": {"path": "not_found"},
    "expire_checkpoint": {"path": "not_found"},
    "publish_checkpoint": {"path": "not_found"},
    "copy_checkpoint": {"path": "not_found", "target": "bad_request"},
    "open_download": {"path": "not_found"},
    "open_upload": {"path": "bad_request"},
    "read_part": {"transfer_id": "not_found"},
    "write_part": {"transfer_id": "not_found"},
    "finish_upload": {"transfer_id": "not_found"},
    "close_transfer": {"transfer_id": ""},
}
"""Of each request the fields that are ids, and the code that a foreign one gets; "" a success."""

NO_IDS = {
    *("alpha", "arrays", "base_model", "beta1", "beta2", "default_stop", "digest", "enabled"),
    *("eps", "first_seq", "form", "forward_only", "grad_clip_norm", "ignore_dropout"),
    *("include_optimizer", "is_external", "last_seq", "learning_rate", "limit", "loss_fn"),
    *("loss_fn_config", "max_tokens", "name", "num_datums", "num_parts", "num_samples"),
    *("num_tokens", "offset", "overwrite", "part", "prompt_alt_tokens_k", "prompt_logprobs"),
    *("prompt_logprobs_last_n", "public", "rank", "request_id", "seed", "seq", "sizes"),
    *("stop_strings", "stop_tokens", "temperature", "top_k", "top_p", "topk_prompt_logprobs"),
    *("topk_sample_logprobs", "train_attn", "train_mlp", "train_unembed", "ttl_s", "unembed"),
    *("user_metadata", "weight_decay", "what", "with_optimizer"),
}

CASES = [(kind, name, code) for kind, named in IDS.items() for name, code in named.items()]


def write_empty(path: Path, metadata: Mapping[str, str]) -> None:
    path.write_bytes(make_header([], metadata))


class World:
    """A broker with keys and files, its worker, and two tenants that are connected."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        store, files = KeyStore(folder), CheckpointFiles(folder)
        (alice, alice_key), (mallory, self.mallory_key) = store.create("alice"), store.create()
        for ids, tenant in ((Ids("a" * 32, 0, 0), alice.tenant), (OWN, mallory.tenant)):
            record = checkpoint("x", path=ids.path, tenant=tenant, has_optimizer=True)
            files.write(record, write_empty)
        is_ready = threading.Event()
        self.broker = Broker(
            ["inproc://front"],
            "inproc://back",
            keys=store,
            files=files,
            context=self.context,
            on_ready=is_ready.set,
        )
        self.broker.start()
        self.worker = FakeWorker(self.context, self.broker.worker_address)
        assert is_ready.wait(20)
        self.alice = RawClient(self.context, "inproc://front", alice_key, "a" * 32)
        self.mallory = RawClient(self.context, "inproc://front", self.mallory_key, OWN.session)
        self.numbers, self.seqs, self.ids = count(100), count(1), count(10)
        self.foreign = self._set_up()

    def ask(self, client: RawClient, header: Request, frames: Any = ()) -> Reply | Failure:
        """Send a request under the next number, and wait for its answer."""
        header = replace(header, request_id=next(self.numbers))
        client.send(header, frames)
        return client.answers(1)[header.request_id]

    def hello(self, session_id: str, must_exist: bool) -> Any:
        """What Mallory's key is told about a session."""
        socket = self.context.socket(zmq.DEALER)
        socket.connect("inproc://front")
        hello = Hello(
            versions=[1], session_id=session_id, api_key=self.mallory_key, must_exist=must_exist
        )
        socket.send(wire.encode(hello))
        assert socket.poll(20_000)
        answer = wire.decode(socket.recv())
        socket.close(0)
        return answer

    def own(self, kind: type[Request]) -> Any:
        """A request of Mallory's that asks for nothing of others."""
        given: dict[str, Any] = {
            "run_id": OWN.run,
            "seq": 1,
            "digest": b"",
            "base_model": "tiny",
            "new_run_id": f"{OWN.session}:train:{next(self.ids)}",
            "is_external": False,
            "from_path": "",
            "model_path": "",
            "path": OWN.path,
            "with_optimizer": False,
            "part": 0,
            "num_parts": 1,
            "loss_fn": "cross_entropy",
            "loss_fn_config": {},
            "target": f"weft://{OWN.session}:train:{next(self.ids)}/weights/copy",
            "sampler_id": f"{OWN.session}:sample:{next(self.ids)}",
            "enabled": False,
            "sizes": {"adapter_config.json": 7, "adapter_model.safetensors": 70},
        }
        example = REQUESTS[kind]
        known = {field.name for field in fields(example)}
        header: Any = replace(example, **{name: given[name] for name in given if name in known})
        if header.kind == "create_run":
            return replace(header, run_id=f"{OWN.session}:train:{next(self.ids)}", seq=0)
        return header

    def of(self, kind: str, name: str, ids: Ids) -> Any:
        """The same, but for one field that means something of others."""
        header = self.own(next(one for one in REQUESTS if one.kind == kind))
        if kind == "create_sampler" and name == "model_path":
            header = replace(header, base_model="")
        if name != "run_id" and isinstance(header, Command) and kind != "create_run":
            header = replace(header, seq=next(self.seqs))
        return replace(header, **{name: ids.value(name)})

    def close(self) -> None:
        """End everything."""
        for client in (self.alice, self.mallory):
            client.socket.close(0)
        self.worker.close()
        self.broker.stop()
        assert self.broker.join(20)
        self.context.term()

    def _set_up(self) -> Ids:
        alice = Ids("a" * 32, request=50, transfer=0)
        for client, ids in ((self.alice, alice), (self.mallory, OWN)):
            assert isinstance(self.ask(client, client.create(base_model="tiny")), Reply)
            sampler = CreateSampler(request_id=0, sampler_id=ids.sampler, base_model="tiny")
            assert isinstance(self.ask(client, sampler), Reply)
        self.alice.send(self.alice.step(alice.request, 9))  # it waits for earlier numbers
        opened = self.ask(self.alice, OpenDownload(request_id=0, path=alice.path, form="state"))
        assert isinstance(opened, Reply)
        return replace(alice, transfer=opened.result["transfer_id"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("state"))
    yield made
    made.close()


def said(answer: Reply | Failure, ids: Ids) -> tuple[str, str]:
    """Code and words of an answer, without ids."""
    if isinstance(answer, Failure):
        return answer.code, ids.hidden(f"{answer.detail} {answer.retry_after_s}")
    return "", ids.hidden(repr(answer.result))


@pytest.mark.parametrize(("kind", "name", "code"), CASES)
def test_what_is_foreign_answers_like_what_never_was(
    world: World, kind: str, name: str, code: str
) -> None:
    unknown = world.ask(world.mallory, world.of(kind, name, UNKNOWN))
    foreign = world.ask(world.mallory, world.of(kind, name, world.foreign))
    assert said(foreign, world.foreign) == said(unknown, UNKNOWN)
    assert said(foreign, world.foreign)[0] == code


@pytest.mark.parametrize("topic", TOPICS)
def test_books_about_what_is_foreign_say_what_they_say_of_nothing(world: World, topic: str) -> None:
    answers = []
    for ids in (world.foreign, UNKNOWN):
        what, subject = ids.subject(topic)
        answer = world.ask(world.mallory, Query(request_id=0, what=what, subject=subject))
        answers.append(said(answer, ids))
    assert answers[0] == answers[1]
    assert answers[0][0] == ("" if topic == "checkpoints" else "not_found")


@pytest.mark.parametrize("topic", TOPICS)
def test_books_about_ones_own_say_something_else(world: World, topic: str) -> None:
    what, subject = world.foreign.subject(topic)
    answer = world.ask(world.alice, Query(request_id=0, what=what, subject=subject))
    assert isinstance(answer, Reply)
    assert world.foreign.session in repr(answer.result)


@pytest.mark.parametrize("what", ["runs", "checkpoints", "sessions", "status", "capabilities"])
def test_no_list_names_what_is_foreign(world: World, what: str) -> None:
    answer = world.ask(world.mallory, Query(request_id=0, what=what))
    assert isinstance(answer, Reply)
    assert world.foreign.session not in repr(answer.result)
    assert "alice" not in repr(answer.result)


def test_a_foreign_session_is_like_one_that_never_was(world: World) -> None:
    answers = [
        said(world.hello(ids.session, must_exist=True), ids) for ids in (world.foreign, UNKNOWN)
    ]
    assert answers[0] == answers[1] == ("session_expired", "no session SESSION 0.0")


def test_of_a_foreign_session_it_can_be_learnt_only_that_its_id_is_taken(world: World) -> None:
    answer = world.hello(world.foreign.session, must_exist=False)
    assert said(answer, world.foreign) == ("conflict", "the session id is taken 0.0")


def test_who_watches_sees_nothing_of_others(world: World) -> None:
    assert isinstance(world.ask(world.mallory, Watch(request_id=0, enabled=True)), Reply)
    sampler = f"{world.foreign.session}:sample:{next(world.ids)}"
    create = CreateSampler(request_id=0, sampler_id=sampler, base_model="tiny")
    assert isinstance(world.ask(world.alice, create), Reply)
    world.mallory.send(replace(create, request_id=9999, sampler_id=f"{OWN.session}:sample:999"))
    told: list[Header] = []
    while not (told and isinstance(told[-1], Reply)):
        told.append(world.mallory.receive())
    assert world.foreign.session not in repr(told)
    assert OWN.session in repr(told[:-1])


def test_what_others_tried_changed_nothing(world: World) -> None:
    alice, ids = world.alice, world.foreign
    read = ReadPart(request_id=0, transfer_id=ids.transfer, part=0)
    listed = Query(request_id=0, what="checkpoints", subject=ids.path)
    again = CreateSampler(request_id=0, sampler_id=ids.sampler, base_model="tiny")
    for header in (read, listed, again):
        assert isinstance(world.ask(alice, header), Reply)
    told = world.ask(alice, Explain(request_id=0, request_ids=[ids.request]))
    assert isinstance(told, Reply)
    assert [reason["code"] for reason in told.result["reasons"]] == ["number"]
    assert isinstance(world.ask(alice, alice.step(0, 1)), Reply)


def test_every_field_of_every_request_is_asked_with_a_foreign_id_or_is_none() -> None:
    found = {kind.kind: {field.name for field in fields(kind)} - NO_IDS for kind in REQUESTS}
    assert found.pop("query") == {"subject"}
    assert found == {kind: set(named) for kind, named in IDS.items() if kind != "query"}


def test_every_request_has_an_example() -> None:
    def kinds(base: type[Request]) -> set[str]:
        below = (kinds(one) for one in base.__subclasses__())
        return ({base.kind} if "kind" in vars(base) else set[str]()).union(*below)

    assert kinds(Request) == {kind.kind for kind in REQUESTS}
