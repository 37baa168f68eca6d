"""The order of a tenant's checkpoints."""

import random

from core_bench import SESSION, checkpoint

from weft.engine.broker.shelf import Shelf
from weft.engine.files.checkpoint import Checkpoint


def run_id(number: int) -> str:
    return f"{SESSION}:train:{number}"


def saved(number: int, name: str, created: float) -> Checkpoint:
    return checkpoint(name, path=f"weft://{run_id(number)}/weights/{name}", created=created)


def test_checkpoints_lie_by_age_whatever_came_first() -> None:
    shelf = Shelf()
    for number, name, created in ((0, "b", 2.0), (1, "c", 3.0), (0, "a", 1.0)):
        shelf.add(run_id(number), saved(number, name, created))
    assert [one.created for one in shelf.checkpoints] == [1.0, 2.0, 3.0]
    assert [one.created for one in shelf.by_run[run_id(0)]] == [1.0, 2.0]
    assert shelf.runs == [(2.0, run_id(0)), (3.0, run_id(1))]


def test_a_run_is_as_old_as_the_newest_that_is_left() -> None:
    shelf = Shelf()
    old, new = saved(0, "a", 1.0), saved(0, "b", 5.0)
    for one in (old, new, saved(1, "c", 3.0)):
        shelf.add(one.path.split("/")[2], one)
    shelf.remove(run_id(0), new)
    assert shelf.runs == [(1.0, run_id(0)), (3.0, run_id(1))]
    shelf.remove(run_id(0), old)
    assert (shelf.runs, list(shelf.by_run)) == ([(3.0, run_id(1))], [run_id(1)])


def test_the_order_holds_through_any_coming_and_going() -> None:
    generator, shelf = random.Random(1), Shelf()
    there: dict[str, Checkpoint] = {}
    for _ in range(500):
        number, name = generator.randrange(5), str(generator.randrange(5))
        one = saved(number, name, float(generator.randrange(4)))  # many of the same time
        known = there.pop(one.path, None)
        if known is None:
            shelf.add(run_id(number), one)
            there[one.path] = one
        else:
            shelf.remove(run_id(number), known)
        assert sorted(there.values(), key=lambda c: (c.created, c.path)) == shelf.checkpoints
        newest: dict[str, float] = {}
        for kept in there.values():
            own = kept.path.split("/")[2]
            newest[own] = max(newest.get(own, 0.0), kept.created)
        assert shelf.runs == sorted((time, own) for own, time in newest.items())
