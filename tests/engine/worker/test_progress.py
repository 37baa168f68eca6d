"""What a worker reports unasked, and how often."""

from weft.client.limits import limit
from weft.client.messages import Header
from weft.client.worker_messages import Underway, WorkerCounters, WorkerProgress
from weft.engine.worker.progress import (
    CommandProgress,
    CountersReport,
    LoadingProgress,
    Started,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_phase_is_reported_at_once_and_its_fraction_now_and_then() -> None:
    clock = Clock()
    sent: list[Header] = []
    progress = LoadingProgress(sent.append, clock)
    progress.report("starting")
    for step in range(11):
        progress.read(step / 10)
        clock.now += 0.125
    progress.report("preparing")
    phases = [("starting", -1.0)] + [("reading weights", step / 10) for step in range(0, 11, 2)]
    assert sent == [
        WorkerProgress(phase=phase, fraction=fraction)
        for phase, fraction in [*phases, ("preparing", -1.0)]
    ]


def test_the_end_of_a_phase_is_reported_at_once() -> None:
    sent: list[Header] = []
    progress = LoadingProgress(sent.append, Clock())
    progress.read(0.5)
    progress.read(1.0)
    assert [header.fraction for header in sent] == [0.5, 1.0]  # type: ignore[attr-defined]


def test_commands_under_way_are_reported_about_once_a_second() -> None:
    clock = Clock()
    sent: list[Header] = []
    progress = CommandProgress(sent.append, clock)
    found = [Started(5, 3, 8), Started(7, 1, 2)]
    for _ in range(4):
        progress.report(lambda: found)
        clock.now += 0.5
    assert sent == [Underway(dispatch_ids=[5, 7], done=[3, 1], total=[8, 2])]


def test_a_worker_with_nothing_under_way_says_nothing() -> None:
    clock = Clock()
    sent: list[Header] = []
    progress = CommandProgress(sent.append, clock)
    clock.now += 5
    progress.report(list)
    assert sent == []


def test_a_report_fits_into_its_header() -> None:
    clock = Clock()
    sent: list[Header] = []
    progress = CommandProgress(sent.append, clock)
    clock.now += 5
    progress.report(lambda: [Started(number, 1, 2) for number in range(10_000)])
    assert [len(header.dispatch_ids) for header in sent] == [limit("request_ids")]  # type: ignore[attr-defined]


COUNTERS = WorkerCounters(
    steps={}, failures={}, busy_s={}, tokens={}, tenants={}, tenants_sum={}, used={}, total={}
)


def test_counters_are_reported_once_a_second_and_only_after_a_change() -> None:
    clock = Clock()
    sent: list[float] = []
    report = CountersReport(lambda header: sent.append(clock.now), lambda: COUNTERS, clock)
    report.report()  # what there is of everything
    for _ in range(7):
        if clock.now < 101.5:
            report.changed()
        report.report()
        clock.now += 0.25
    assert sent == [100.0, 101.0]
    assert report.due_in_s == 0.25  # of the change at 101.25
    clock.now += 0.25
    report.report()
    assert report.due_in_s is None
