import random

from weft.engine.worker.progress import Started
from weft.engine.worker.scheduler import (
    Control,
    GivenUp,
    Job,
    Optimizers,
    Passes,
    Sampling,
    Scheduler,
    Slice,
)


def a_pass(job_id: int, run_id: str, *units: int, kind: str = "forward_backward") -> Job:
    return Job(job_id, run_id, kind, units)


def scheduler(*jobs: Job, batch_tokens: int = 100) -> Scheduler:
    made = Scheduler(batch_tokens)
    for job in jobs:
        made.add(job)
    return made


def test_ready_passes_of_many_runs_share_a_batch() -> None:
    made = scheduler(a_pass(1, "a", 10), a_pass(2, "b", 20), a_pass(3, "c", 30))
    assert made.next(False) == Passes(
        (Slice(1, 0, 1, True), Slice(2, 0, 1, True), Slice(3, 0, 1, True)), True, 60
    )


def test_a_job_under_way_is_told_with_its_units() -> None:
    made = scheduler(a_pass(1, "a", 60, 60, 60), a_pass(2, "b", 20))
    step = made.next(False)
    assert isinstance(step, Passes)
    assert made.started() == []
    made.advance(step)
    assert made.started() == [Started(1, 1, 3), Started(2, 1, 1)]
    made.restart(1)
    made.finish(2)
    assert made.started() == []


def test_without_fusing_a_batch_holds_one_run() -> None:
    made = scheduler(a_pass(1, "a", 10), a_pass(2, "b", 20))
    made.fused = False
    assert made.next(False) == Passes((Slice(1, 0, 1, True),), True, 10)


def test_several_whole_jobs_of_one_run_share_a_batch() -> None:
    made = scheduler(a_pass(1, "a", 10), a_pass(2, "a", 20))
    assert made.next(False) == Passes((Slice(1, 0, 1, True), Slice(2, 0, 1, True)), True, 30)


def test_a_finished_job_and_a_beginning_of_the_next_never_share_a_stage() -> None:
    made = scheduler(a_pass(1, "a", 60), a_pass(2, "a", 30, 30))
    assert made.next(False) == Passes((Slice(1, 0, 1, True),), True, 60)


def test_a_long_job_goes_on_where_it_stopped() -> None:
    made = scheduler(a_pass(1, "a", 60, 60, 60))
    first = made.next(False)
    assert first == Passes((Slice(1, 0, 1, False),), True, 60)
    assert made.advance(first) == ()
    assert made.next(False) == Passes((Slice(1, 1, 2, False),), True, 60)


def test_a_unit_over_the_budget_still_runs_alone() -> None:
    made = scheduler(a_pass(1, "a", 500), a_pass(2, "b", 10))
    assert made.next(False) == Passes((Slice(1, 0, 1, True),), True, 500)


def test_a_batch_keeps_within_its_workspace() -> None:
    made = Scheduler(100, workspace_bytes=25)
    for job_id in (1, 2, 3):
        made.add(Job(job_id, f"r{job_id}", "forward_backward", (10,), unit_bytes=10))
    assert made.next(False) == Passes((Slice(1, 0, 1, True), Slice(2, 0, 1, True)), True, 20)


def test_a_unit_over_the_workspace_still_runs_alone() -> None:
    made = Scheduler(100, workspace_bytes=5)
    for job_id in (1, 2):
        made.add(Job(job_id, f"r{job_id}", "forward_backward", (10,), unit_bytes=10))
    assert made.next(False) == Passes((Slice(1, 0, 1, True),), True, 10)


def test_an_optimizer_step_waits_for_the_passes_before_it() -> None:
    made = scheduler(a_pass(1, "a", 10), Job(2, "a", "optim_step"))
    first = made.next(False)
    assert isinstance(first, Passes)
    assert made.advance(first) == (1,)
    made.finish(1)
    assert made.next(False) == Optimizers((2,))


def test_all_due_optimizer_steps_go_together() -> None:
    made = scheduler(Job(1, "a", "optim_step"), a_pass(2, "b", 10), Job(3, "c", "optim_step"))
    assert made.next(False) == Optimizers((1, 3))


def test_control_jobs_go_first_when_their_turn_has_come() -> None:
    made = scheduler(a_pass(1, "a", 10), Job(2, "b", "create_run"))
    assert made.next(True) == Control(2)


def test_forward_and_forward_backward_do_not_share_a_batch() -> None:
    made = scheduler(a_pass(1, "a", 10, kind="forward"), a_pass(2, "b", 10))
    assert made.next(False) == Passes((Slice(1, 0, 1, True),), False, 10)


def test_a_failed_batch_is_retried_one_job_at_a_time_and_then_unit_by_unit() -> None:
    made = scheduler(a_pass(1, "a", 10, 10), a_pass(2, "b", 20))
    both = made.next(False)
    assert isinstance(both, Passes)
    assert made.retry_smaller(both, out_of_memory=False) == []
    alone = made.next(False)
    assert alone == Passes((Slice(1, 0, 2, True),), True, 20)
    assert made.retry_smaller(alone, out_of_memory=False) == []
    one_unit = made.next(False)
    assert one_unit == Passes((Slice(1, 0, 1, False),), True, 10)
    assert made.retry_smaller(one_unit, out_of_memory=False) == [GivenUp(1)]
    made.finish(1)
    assert made.next(False) == Passes((Slice(2, 0, 1, True),), True, 20)


def test_a_single_unit_is_given_up_when_it_fails_twice() -> None:
    made = scheduler(a_pass(1, "a", 10))
    first = made.next(False)
    assert isinstance(first, Passes)
    assert made.retry_smaller(first, out_of_memory=False) == []
    assert made.next(False) == first
    assert made.retry_smaller(first, out_of_memory=False) == [GivenUp(1)]


def test_a_failed_batch_starts_its_long_jobs_over() -> None:
    made = scheduler(a_pass(1, "a", 60, 60))
    first = made.next(False)
    assert isinstance(first, Passes)
    made.advance(first)
    second = made.next(False)
    assert second == Passes((Slice(1, 1, 2, True),), True, 60)
    made.add(a_pass(2, "b", 10))
    made.retry_smaller(Passes((Slice(1, 1, 2, True), Slice(2, 0, 1, True)), True, 70), True)
    assert made.next(False) == Passes((Slice(1, 0, 1, False),), True, 60)


def test_memory_trouble_halves_the_budget_and_success_restores_it() -> None:
    made = scheduler(a_pass(1, "a", 50), a_pass(2, "b", 50))
    both = made.next(False)
    assert isinstance(both, Passes)
    made.retry_smaller(both, out_of_memory=True)
    for job_id in (1, 2):
        made.finish(job_id)
    for job_id in range(3, 70):
        made.add(a_pass(job_id, f"r{job_id}", 50))
    sizes = []
    while (step := made.next(False)) is not None:
        assert isinstance(step, Passes)
        sizes.append(len(step.slices))
        for job_id in made.advance(step):
            made.finish(job_id)
    assert sizes[0] == 1
    assert 2 in sizes


def test_training_and_sampling_alternate_by_time_used() -> None:
    made = scheduler(a_pass(1, "a", 10))
    train = made.next(True)
    assert isinstance(train, Passes)
    made.spent(train, 1.0)
    assert made.next(True) == Sampling()
    made.spent(Sampling(), 0.6)
    assert made.next(True) == Sampling()
    made.spent(Sampling(), 0.6)
    assert isinstance(made.next(True), Passes)


def test_sampling_runs_alone_when_nothing_trains() -> None:
    assert scheduler().next(True) == Sampling()
    assert scheduler().next(False) is None


def test_random_loads_finish_every_job_once_and_in_order() -> None:
    generator = random.Random(7)
    made = Scheduler(64)
    order: dict[str, list[int]] = {}
    expected: dict[str, list[int]] = {}
    for job_id in range(200):
        run_id = f"r{generator.randrange(6)}"
        kind = generator.choice(["forward_backward", "forward_backward", "forward", "optim_step"])
        units = tuple(generator.randrange(1, 40) for _ in range(generator.randrange(1, 5)))
        made.add(Job(job_id, run_id, kind, units if kind != "optim_step" else ()))
        expected.setdefault(run_id, []).append(job_id)
        order.setdefault(run_id, [])
    owner = {job_id: run for run, jobs in expected.items() for job_id in jobs}
    while (step := made.next(False)) is not None:
        finished: tuple[int, ...]
        match step:
            case Passes():
                if generator.random() < 0.1:
                    finished = tuple(gone.job_id for gone in made.retry_smaller(step, True))
                else:
                    finished = made.advance(step)
            case Optimizers(job_ids):
                finished = job_ids
            case Control(job_id):
                finished = (job_id,)
            case Sampling():
                finished = ()
        for job_id in finished:
            made.finish(job_id)
            order[owner[job_id]].append(job_id)
    assert order == expected
    assert len(made) == 0
