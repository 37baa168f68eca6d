"""What is prefilled and started next, under the limits of pages, rows and sequences."""

import random

import pytest

from weft.engine.sampling.admission import Admission, Entry, Prefill, Start, Step
from weft.engine.sampling.costs import PageCosts


def admission(num_pages: int = 100, max_sequences: int = 16, step_tokens: int = 64) -> Admission:
    return Admission(
        capacity=num_pages,
        costs=PageCosts(4),
        max_sequences=max_sequences,
        step_tokens=step_tokens,
    )


def test_requests_are_prefilled_in_the_order_of_arrival() -> None:
    queue = admission()
    queue.add(Entry("a", 10, 5, 1))
    queue.add(Entry("b", 20, 5, 2))
    assert queue.next_step() == Step(
        (Prefill("a", 0, 10), Prefill("b", 0, 20)), (Start("a", 0), Start("b", 0), Start("b", 1))
    )
    assert queue.next_step() == Step()


def test_a_prompt_beyond_the_rows_of_a_step_waits_for_the_next() -> None:
    queue = admission(step_tokens=25)
    queue.add(Entry("a", 10, 5, 1))
    queue.add(Entry("b", 20, 5, 1))
    assert queue.next_step().prefills == (Prefill("a", 0, 10),)
    assert queue.next_step().prefills == (Prefill("b", 0, 20),)


def test_a_prompt_longer_than_a_step_is_computed_alone() -> None:
    queue = admission(step_tokens=8)
    queue.add(Entry("a", 30, 5, 1))
    queue.add(Entry("b", 4, 5, 1))
    assert queue.next_step().prefills == (Prefill("a", 0, 30),)


def test_nothing_overtakes_a_request_that_does_not_fit() -> None:
    queue = admission(num_pages=10)
    queue.add(Entry("a", 16, 17, 1))
    queue.add(Entry("b", 12, 5, 1))
    queue.add(Entry("c", 4, 1, 1))
    assert queue.next_step().prefills == (Prefill("a", 0, 16),)
    assert queue.next_step() == Step()
    queue.end_sample("a", 0)
    assert [prefill.key for prefill in queue.next_step().prefills] == ["b", "c"]


def test_samples_of_a_prompt_start_as_pages_allow() -> None:
    queue = admission(num_pages=8)
    queue.add(Entry("a", 6, 7, 5))  # 2 pages of prompt; a sample shares 1 and needs 2
    assert queue.next_step().starts == (Start("a", 0), Start("a", 1), Start("a", 2))
    queue.end_sample("a", 1)
    assert queue.next_step() == Step((), (Start("a", 3),))


def test_a_sample_that_ended_with_its_first_token_never_starts() -> None:
    queue = admission(max_sequences=1)
    queue.add(Entry("a", 6, 7, 3))
    assert queue.next_step().starts == (Start("a", 0),)
    queue.end_sample("a", 1)
    queue.end_sample("a", 0)
    assert queue.next_step() == Step((), (Start("a", 2),))


def test_a_request_is_forgotten_with_its_last_sample() -> None:
    queue = admission()
    queue.add(Entry("a", 6, 7, 2))
    queue.next_step()
    queue.end_sample("a", 0)
    assert "a" in queue
    queue.end_sample("a", 1)
    assert "a" not in queue
    assert (queue.num_reserved, queue.num_running) == (0, 0)


def test_a_request_that_can_never_run_is_refused() -> None:
    with pytest.raises(ValueError, match="4 pages needed, there are 3"):
        admission(num_pages=3).add(Entry("a", 8, 9, 1))


def test_a_running_sample_never_lacks_rows_for_long() -> None:
    queue = admission(max_sequences=2)
    for key in "abc":
        queue.add(Entry(key, 4, 4, 1))
    assert len(queue.next_step().starts) == 2
    queue.drop("a")
    assert queue.next_step().starts == (Start("c", 0),)


@pytest.mark.parametrize("seed", range(10))
def test_random_requests_all_get_through(seed: int) -> None:
    rng = random.Random(seed)
    queue = admission(num_pages=12, max_sequences=4, step_tokens=24)
    waiting: dict[int, set[int]] = {}
    started: list[Start] = []
    submitted = 0
    while submitted < 60 or waiting:
        if submitted < 60 and rng.random() < 0.5:
            queue.add(Entry(submitted, rng.randint(1, 24), rng.randint(1, 20), rng.randint(1, 6)))
            waiting[submitted] = set(range(queue._requests[submitted].entry.num_samples))
            submitted += 1
        started += queue.next_step().starts
        assert 0 <= queue.num_reserved <= 12
        assert len(started) == queue.num_running <= 4
        if waiting and rng.random() < 0.1:
            key = rng.choice(list(waiting))
            queue.drop(key)
            del waiting[key]
            started = [start for start in started if start.key != key]
        elif started:
            ended = started.pop(rng.randrange(len(started)))
            queue.end_sample(ended.key, ended.sample)
            waiting[ended.key].discard(ended.sample)  # type: ignore[index]
            waiting = {key: samples for key, samples in waiting.items() if samples}
    assert (len(queue), queue.num_reserved, queue.num_running) == (0, 0, 0)
