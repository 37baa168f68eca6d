"""What the broker's log says: ids, codes and counts, and nothing that a tenant sent."""

import logging
from typing import Any

import pytest
from core_bench import (
    LANE,
    RUN,
    SESSION,
    CoreBench,
    create_run,
    forward_backward,
    optim_step,
    ready_bench,
    save_state,
)

from weft.client.messages import CloseRun, Goodbye, Hello
from weft.engine.broker.events import Noted, WorkerGone
from weft.engine.broker.telling import tell

SECRET = "the-quick-brown-fox"


def names(bench: CoreBench) -> list[str]:
    return [noted.name for noted in bench.noted]


def test_sessions_runs_and_workers_are_noted() -> None:
    bench = ready_bench()
    bench.say(CloseRun(request_id=9, run_id=RUN))
    bench.say(Goodbye())
    assert names(bench) == [
        "session_opened",
        "worker_loading",
        "worker_ready",
        "run_created",
        "run_ended",
        "session_ended",
    ]


def test_a_lost_run_is_noted_with_its_ids() -> None:
    bench = ready_bench()
    bench.handle(WorkerGone("w0", "it died"))
    (noted,) = [noted for noted in bench.noted if noted.name == "run_lost"]
    ids = {"run_id": RUN, "session_id": SESSION, "code": "run_lost"}
    assert noted == Noted("run_lost", "local", ids)


@pytest.mark.parametrize("logs_requests", [True, False])
def test_single_requests_are_noted_only_when_asked_for(logs_requests: bool) -> None:
    bench = CoreBench(logs_requests=logs_requests)
    bench.hello()
    bench.add_worker()
    bench.open_run()
    bench.noted.clear()
    bench.say(optim_step(1))
    bench.finish()
    bench.say(create_run(request_id=9, run_id="nonsense"))
    found = [noted for noted in bench.noted if noted.name in ("dispatched", "done", "refused")]
    assert [noted.name for noted in found] == ["dispatched", "done", "refused"] * logs_requests
    if logs_requests:
        ids = {"kind": "optim_step", "lane": LANE, "request_id": 11, "run_id": RUN, "seq": 1}
        assert found[1] == Noted("done", "local", ids)


def test_failures_of_the_servers_making_are_noted_once_a_tick() -> None:
    bench = ready_bench()
    for seq in (1, 2, 3):
        bench.say(forward_backward(seq))
        bench.fail("out_of_memory")
    bench.say(optim_step(4))
    bench.fail("no_gradients")
    assert "failures" not in names(bench)
    bench.tick()
    (noted,) = [noted for noted in bench.noted if noted.name == "failures"]
    assert (noted.fields["code"], noted.fields["number"], noted.fields["request_id"]) == (
        "out_of_memory",
        3,
        11,
    )


def told(noted: Noted, caplog: pytest.LogCaptureFixture) -> logging.LogRecord | None:
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "weft.engine.broker.telling"):
        tell(noted)
    return caplog.records[0] if caplog.records else None


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("session_opened", logging.INFO),
        ("done", logging.DEBUG),
        ("refused", logging.DEBUG),
        ("failures", logging.WARNING),
        ("run_lost", logging.WARNING),
        ("worker_lost", logging.WARNING),
        ("no_worker", logging.ERROR),
        ("something_new", logging.INFO),
    ],
)
def test_every_note_has_its_level(name: str, level: int, caplog: pytest.LogCaptureFixture) -> None:
    record = told(Noted(name, "anna", {"lane": LANE, "request_id": 3}), caplog)
    assert record is not None
    assert (record.levelno, record.getMessage()) == (level, name.replace("_", " "))
    expected = {"request_id": 3, "session_id": SESSION, "tenant": "anna"}
    assert record.fields == expected  # type: ignore[attr-defined]


def test_a_sentence_about_a_users_fault_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    fields: dict[str, Any] = {"lane": LANE, "code": "bad_request", "detail": f"token {SECRET}"}
    for name in ("failed", "run_ended", "refused", "something_new"):
        record = told(Noted(name, "local", fields), caplog)
        assert record is not None
        assert SECRET not in str(record.__dict__)


def test_a_sentence_of_our_own_is_told(caplog: pytest.LogCaptureFixture) -> None:
    record = told(Noted("worker_lost", "", {"worker_id": "w", "detail": "it died"}), caplog)
    assert record is not None
    assert record.fields == {"worker_id": "w", "detail": "it died"}  # type: ignore[attr-defined]


def test_nothing_a_tenant_sent_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bench = CoreBench(logs_requests=True, tenant_of=lambda key: "anna" if key == "right" else None)
    metadata = {SECRET: SECRET}
    for key in ("right", SECRET):
        hello = Hello(versions=[1], session_id=SESSION, api_key=key, user_metadata=metadata)
        bench.say(hello)
    bench.add_worker()
    bench.say(create_run(user_metadata=metadata))
    bench.finish()
    bench.say(forward_backward(1, loss_fn=SECRET), SECRET.encode())
    bench.fail("bad_request")
    bench.say(save_state(2, user_metadata=metadata))
    bench.finish()
    bench.tick()
    with caplog.at_level(logging.DEBUG, "weft.engine.broker.telling"):
        for noted in bench.noted:
            tell(noted)
    assert len(caplog.records) == len(bench.noted) > 5
    assert not [record for record in caplog.records if SECRET in str(record.__dict__)]
