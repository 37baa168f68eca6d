"""Failures of the server's own making, told in bounded number."""

from weft.engine.broker.failures import Failures


def test_many_failures_are_told_as_one_of_each_code() -> None:
    failures = Failures()
    for number in range(1000):
        failures.add("run_lost", f"tenant-{number}", {"request_id": number})
    failures.add("internal", "other", {"request_id": 5})
    assert failures.take() == [
        ("tenant-0", {"request_id": 0, "code": "run_lost", "number": 1000}),
        ("other", {"request_id": 5, "code": "internal", "number": 1}),
    ]


def test_what_was_told_is_told_once() -> None:
    failures = Failures()
    failures.add("internal", "a", {})
    failures.take()
    assert failures.take() == []


def test_faults_of_users_and_full_queues_are_not_the_servers() -> None:
    failures = Failures()
    for code in ("bad_request", "not_found", "cancelled", "busy"):
        failures.add(code, "a", {})
    assert failures.take() == []


def test_an_unknown_code_is_the_servers() -> None:
    failures = Failures()
    failures.add("made_up", "a", {})
    assert [fields["code"] for _, fields in failures.take()] == ["made_up"]
