"""Withdrawing calls: a real broker and the real client, and a worker that answers when told to."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import zmq
from fake_broker import FakeBroker, silent
from fake_worker import FakeWorker

from weft.client import (
    AdamParams,
    Conflict,
    Datum,
    ModelInput,
    SamplingParams,
    ServiceClient,
    TrainingClient,
    WeftError,
)
from weft.client import batch as batch_module
from weft.client.limits import LIMITS, Limit
from weft.client.messages import CreateRun, ForwardBackward, OptimStep, SaveState
from weft.engine.broker.shell import Broker

DEADLINE_S = 20
PROMPT = ModelInput.from_ints([1, 2, 3])


def datum() -> Datum:
    return Datum(PROMPT, {"target_tokens": [2, 3, 4]})


class House:
    """A broker on tcp, a worker that holds what it gets, and a client with an open run."""

    def __init__(self, context: "zmq.Context[Any]") -> None:
        back = f"inproc://{uuid4().hex}"
        self.broker = Broker(["tcp://127.0.0.1:*"], back, context=context)
        self.broker.start()
        self.worker = FakeWorker(context, back, train_credit=1, sample_credit=1)
        self.service = ServiceClient(base_url=self.broker.addresses[0], api_key="")
        self.run = self.service.create_lora_training_client("tiny", rank=4)
        self.worker.wait_for(CreateRun)
        self.worker.hold = True

    def occupy(self) -> Any:
        """A call that the worker has, so that the next one waits at the broker."""
        future = self.run.optim_step(AdamParams())
        self.worker.wait_for(OptimStep)
        return future

    def close(self) -> None:
        self.service.close()
        self.broker.stop()
        assert self.broker.join(DEADLINE_S)
        self.worker.close()


@pytest.fixture
def house() -> Iterator[House]:
    context: zmq.Context[Any] = zmq.Context()
    made = House(context)
    yield made
    made.close()
    context.term()


def code_of(future: Any) -> str:
    try:
        future.result(DEADLINE_S)
    except WeftError as error:
        return error.code
    return ""


def test_a_waiting_command_is_withdrawn_and_a_started_one_is_not(house: House) -> None:
    started = house.occupy()
    waiting, last = house.run.save_state("a"), house.run.optim_step(AdamParams())
    assert waiting.cancel(DEADLINE_S)
    assert not started.cancel(DEADLINE_S)
    assert code_of(waiting) == "cancelled"
    house.worker.release()
    assert (code_of(started), code_of(last)) == ("", "")
    assert not started.cancel(DEADLINE_S)
    assert waiting.cancel(DEADLINE_S)
    assert [h for h in house.worker.seen if isinstance(h, SaveState)] == []


def test_a_coroutine_withdraws_a_waiting_sample(house: House) -> None:
    house.worker.hold = False
    sampler = house.service.create_sampling_client(base_model="tiny")
    house.worker.hold = True
    first, second = (sampler.sample(PROMPT, 1, SamplingParams(max_tokens=4)) for _ in range(2))
    assert asyncio.run(second.cancel_async(DEADLINE_S))
    house.worker.release()
    assert (code_of(first), code_of(second)) == ("", "cancelled")


def test_a_withdrawn_fork_leaves_its_source_alone(house: House) -> None:
    house.occupy()
    fork, later = house.run._send_fork(None), house.run.optim_step(AdamParams())
    assert fork.cancel(DEADLINE_S)
    house.worker.release()
    assert (code_of(fork), code_of(later)) == ("cancelled", "")
    assert house.run.fork().get_info().forked_from == house.run.model_id


def test_a_call_is_withdrawn_while_its_parts_are_being_sent(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "_PART_BYTES", 64)
    started = house.occupy()
    call = house.run.forward_backward([datum()] * 400, "cross_entropy")
    last = house.run.optim_step(AdamParams())
    assert call.cancel(DEADLINE_S)
    house.worker.release()
    assert [code_of(future) for future in (started, call, last)] == ["", "cancelled", ""]
    assert [h for h in house.worker.seen if isinstance(h, ForwardBackward)] == []


def test_withdrawing_a_custom_loss_voids_its_second_pass(house: House) -> None:
    house.occupy()
    call = house.run.forward_backward_custom([datum()], numpy_fn=lambda data, lps: (0.0, lps))
    last = house.run.optim_step(AdamParams())
    assert call.cancel(DEADLINE_S)
    house.worker.release()
    assert (code_of(call), code_of(last)) == ("cancelled", "")


def test_racing_with_the_start_a_call_is_either_withdrawn_or_done(house: House) -> None:
    house.worker.release()
    calls = [house.run.save_state(f"s{number}") for number in range(60)]
    told: dict[int, bool] = {}

    def withdraw(first: int) -> None:
        for number in range(first, 60, 3):
            told[number] = calls[number].cancel(DEADLINE_S)

    threads = [threading.Thread(target=withdraw, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    codes = [code_of(call) for call in calls]
    assert codes == ["cancelled" if told[number] else "" for number in range(60)]
    done = [h.name for h in house.worker.seen if isinstance(h, SaveState)]
    assert done == [f"s{number}" for number in range(60) if not told[number]]
    assert code_of(house.run.optim_step(AdamParams())) == ""


def test_what_no_server_has_seen_is_withdrawn_at_once(tmp_path: Path) -> None:
    with ServiceClient(base_url=f"ipc://{tmp_path}/nobody", api_key="") as service:
        asked = service.get_status()
        assert asked.cancel(DEADLINE_S)
        with pytest.raises(Conflict, match="withdrawn before"):
            asked.result(DEADLINE_S)


def test_a_call_withdrawn_before_a_restart_is_not_sent_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(LIMITS, "heartbeat_s", Limit(0.05, "s", "", ""))
    context: zmq.Context[Any] = zmq.Context()
    address = f"ipc://{tmp_path}/s"
    first = FakeBroker(context, address)
    with ServiceClient(base_url=address, api_key="") as service:
        run = service.create_lora_training_client("tiny")
        first.answers |= {"optim_step": silent, "cancel": silent}
        pending = run.optim_step(AdamParams())
        answers: list[bool] = []
        asking = threading.Thread(target=lambda: answers.append(pending.cancel(DEADLINE_S)))
        asking.start()
        first.wait_for("cancel")
        first.close()
        second = FakeBroker(context, address)
        asking.join(DEADLINE_S)
        assert answers == [True]
        assert code_of(pending) == "cancelled"
        (void,) = second.wait_for("void")
        assert (void.run_id, void.first_seq) == (run.model_id, 1)
    second.close()
    context.term()
    assert [header for header in second.seen if header.kind == "optim_step"] == []


def test_closing_a_run_fails_what_waits_and_frees_its_place(house: House) -> None:
    started = house.occupy()
    waiting = house.run.optim_step(AdamParams())
    house.run.close()
    assert (code_of(started), code_of(waiting)) == ("cancelled", "cancelled")
    house.worker.release()
    runs = house.service.create_rest_client().list_training_runs().result(DEADLINE_S)
    assert [run.training_run_id for run in runs.training_runs] == [house.run.model_id]
    assert isinstance(house.service.create_lora_training_client("tiny"), TrainingClient)
