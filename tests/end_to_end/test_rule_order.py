"""Rule 1: order and atomicity, told on the wire to a whole engine."""

from collections.abc import Iterator

import pytest
from raw_client import RawClient

from weft.client.messages import Failure, Known, Reply, Resume, Void
from weft.engine import Engine


@pytest.fixture
def raw(engine: Engine) -> Iterator[RawClient]:
    client = RawClient(engine._context, engine.address)
    yield client
    client.socket.close()


def codes(answers: dict[int, Reply | Failure]) -> dict[int, str]:
    return {
        request_id: answer.code if isinstance(answer, Failure) else "done"
        for request_id, answer in sorted(answers.items())
    }


def test_early_numbers_wait_for_their_turn(raw: RawClient) -> None:
    raw.send(raw.create())
    raw.send(raw.step(3, 2))
    raw.send(*raw.call(2, 1))
    assert codes(raw.answers(3)) == {1: "done", 2: "done", 3: "done"}


def test_a_repeat_is_answered_from_memory_and_not_done_twice(raw: RawClient) -> None:
    raw.send(raw.create())
    for _ in range(3):
        raw.send(*raw.call(2, 1))
    raw.send(raw.step(3, 2))
    answers = raw.answers(3)
    step = answers[3]
    assert isinstance(step, Reply)
    assert step.result["metrics"]["applied_calls:sum"] == 1


def test_the_same_number_with_another_payload_is_a_conflict(raw: RawClient) -> None:
    raw.send(raw.create())
    raw.send(*raw.call(2, 1))
    assert codes(raw.answers(2)) == {1: "done", 2: "done"}
    raw.send(*raw.call(3, 1, tokens=(4, 5, 6)))
    assert codes(raw.answers(1)) == {3: "conflict"}


def test_a_refused_number_is_used_up(raw: RawClient) -> None:
    raw.send(raw.create())
    raw.send(*raw.call(2, 1, loss_fn="no_such_loss"))
    raw.send(*raw.call(3, 2))
    raw.send(raw.step(4, 3))
    assert codes(raw.answers(4)) == {1: "done", 2: "bad_request", 3: "done", 4: "done"}


def test_a_voided_range_blocks_nothing(raw: RawClient) -> None:
    raw.send(raw.create())
    raw.send(raw.step(9, 5))
    raw.send(*raw.call(2, 1))
    raw.send(Void(request_id=3, run_id=raw.run_id, first_seq=2, last_seq=4))
    assert codes(raw.answers(4)) == {1: "done", 2: "done", 3: "done", 9: "done"}


def test_a_run_that_cannot_be_created_answers_all_that_follows(raw: RawClient) -> None:
    raw.send(raw.create(rank=4096))
    raw.send(*raw.call(2, 1))
    raw.send(raw.step(3, 2))
    answers = codes(raw.answers(3))
    assert "done" not in answers.values()


def test_a_client_that_comes_back_gets_its_answers(engine: Engine, raw: RawClient) -> None:
    raw.send(raw.create())
    raw.send(*raw.call(2, 1))
    raw.answers(2)
    raw.send(Resume(request_ids=[1, 2, 3]))
    headers = [raw.receive() for _ in range(3)]
    assert Known(request_ids=[1, 2]) in headers
    assert sorted(h.request_id for h in headers if isinstance(h, Reply)) == [1, 2]
