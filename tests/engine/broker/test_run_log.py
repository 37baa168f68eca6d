"""Numbers of a run: held, due, voided, used up."""

from core_bench import OTHER, fork_run, optim_step

from weft.engine.broker.run_log import MAX_FATES, RunLog
from weft.engine.broker.sessions import Session
from weft.engine.broker.work import State, Work

SESSION = Session(OTHER, "local", 0.0)


def arrive(log: RunLog, seq: int, missing: int = 0) -> Work:
    work = Work(SESSION, optim_step(seq), "lane")
    work.seq, work.missing = seq, missing
    log.add(work)
    log.check_integrity()
    return work


def arrive_fork(log: RunLog, seq: int) -> Work:
    work = Work(SESSION, fork_run(seq), "lane")
    work.seq, work.missing = seq, 0
    log.add(work)
    return work


def started_log() -> RunLog:
    """A log whose number 0 is used up."""
    log = RunLog()
    arrive(log, 0)
    due(log)
    return log


def due(log: RunLog, can_start: bool = True) -> list[int]:
    numbers = [work.seq for work in log.due(can_start)]
    log.check_integrity()
    return numbers


def test_numbers_are_due_in_order() -> None:
    log = RunLog()
    arrive(log, 1)
    assert due(log) == []
    arrive(log, 0)
    assert due(log) == [0, 1]
    assert log.next_seq == 2


def test_only_number_0_is_due_before_the_run_exists() -> None:
    log = RunLog()
    for seq in (0, 1):
        arrive(log, seq)
    assert due(log, can_start=False) == [0]
    assert due(log, can_start=True) == [1]


def test_a_command_with_missing_parts_is_not_due() -> None:
    log = RunLog()
    work = arrive(log, 0, missing=1)
    assert due(log) == []
    work.missing = 0
    assert due(log) == [0]


def test_voided_ranges_join_and_are_passed_over() -> None:
    log = RunLog()
    for first, last in ((5, 6), (1, 2), (3, 4), (9, 9)):
        log.void(first, last)
    assert log.num_voids == 2
    assert [log.is_used(seq) for seq in (0, 1, 6, 7, 9)] == [False, True, True, False, True]
    arrive(log, 0)
    assert (due(log), log.next_seq) == ([0], 7)


def test_a_void_gives_back_what_has_missing_parts_and_spares_what_is_whole() -> None:
    log = RunLog()
    broken, _ = arrive(log, 1, missing=1), arrive(log, 2)
    assert log.void(0, 3) == [broken]
    broken.state = State.FINISHED
    log.num_held -= 1
    assert (due(log), log.next_seq) == ([2], 4)


def test_a_void_of_used_numbers_changes_nothing() -> None:
    log = RunLog()
    arrive(log, 0)
    assert due(log) == [0]
    assert (log.void(0, 0), log.num_voids) == ([], 0)


def test_a_forgotten_number_stays_used_up() -> None:
    log = RunLog()
    work = arrive(log, 3)
    work.state = State.FINISHED
    log.num_held -= 1
    log.forget(work, "bad_request")
    log.forget(work, "bad_request")
    assert log.is_used(3)
    assert log.fate(3) == "bad_request"


def test_the_fate_of_a_number_says_whether_it_was_in_effect() -> None:
    log = RunLog()
    done = arrive(log, 0)
    due(log)
    log.forget(done, "")
    log.void(1, 2)
    due(log)
    log.void(5, 5)
    log.use_up()
    fates = [log.fate(seq) for seq in range(6)]
    assert fates == [
        "result_expired",
        "cancelled",
        "cancelled",
        "session_expired",
        "session_expired",
        "session_expired",
    ]


def test_only_the_latest_fates_are_kept() -> None:
    log = RunLog()
    for seq in range(MAX_FATES + 1):
        work = arrive(log, seq)
        due(log)
        log.forget(work, "non_finite")
    assert (log.fate(0), log.fate(1)) == ("result_expired", "non_finite")


def test_number_0_can_be_given_back() -> None:
    log = RunLog()
    work = arrive(log, 0)
    assert due(log, can_start=False) == [0]
    log.give_back(work)
    arrive(log, 0)
    assert due(log, can_start=False) == [0]


def test_nothing_is_due_until_a_fork_has_its_outcome() -> None:
    log = started_log()
    fork = arrive_fork(log, 1)
    arrive(log, 2)
    assert due(log) == [1]
    fork.state = State.DISPATCHED
    assert due(log) == []
    assert log.awaited is fork
    fork.state = State.SETTLED
    assert due(log) == [2]


def test_a_fork_that_is_given_back_keeps_the_later_numbers_waiting() -> None:
    log = started_log()
    fork = arrive_fork(log, 1)
    log.void(2, 2)
    arrive(log, 3)
    assert due(log) == [1]
    fork.state = State.FORGOTTEN
    assert log.give_back(fork)
    assert due(log) == []
    arrive_fork(log, 1).state = State.FINISHED
    log.num_held -= 1
    assert due(log) == [3]


def test_a_number_is_not_given_back_once_later_ones_are_used_up() -> None:
    log = started_log()
    fork = arrive_fork(log, 1)
    due(log)
    log.void(2, 5)
    log.use_up()
    assert not log.give_back(fork)
    assert log.is_used(1)


def test_a_run_that_begins_as_a_fork_has_used_up_number_0() -> None:
    log = RunLog()
    log.begin_at_one()
    arrive(log, 1)
    assert (log.is_used(0), log.fate(0)) == (True, "conflict")
    assert due(log, can_start=False) == []
    assert due(log) == [1]
