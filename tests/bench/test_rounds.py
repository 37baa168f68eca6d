"""Works are timed in turn, on the clock and on a device."""

import pytest
import torch
from gpu_timing import REPEATS, Stopwatch, Timing, Work
from rounds import measure, median_ratio


def test_every_round_times_every_variant_and_waits_for_it() -> None:
    calls: list[str] = []
    names = ("one", "other")
    variants = {name: lambda name=name: calls.append(name) for name in names}
    seconds = measure(variants, 2, lambda: calls.append("wait"))
    assert calls == ["one", "wait", "other", "wait"] * 3
    assert {name: len(own) for name, own in seconds.items()} == dict.fromkeys(names, 2)


def test_a_ratio_compares_within_rounds() -> None:
    assert median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_works_on_a_device_take_turns_in_every_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, order = Stopwatch(torch.device("cuda")), list[str]()

    def repeat(work: Work) -> list[float]:
        work(0)
        return [1.0 + len(order)]

    monkeypatch.setattr(watch, "_repeat", repeat)
    timings = watch.alternate(
        {"a": lambda index: order.append("a"), "b": lambda index: order.append("b")}
    )
    assert order == [*"aaabbb", *"ab" * REPEATS]
    assert timings["b"] == Timing.of([[9.0 + 2 * place] for place in range(REPEATS)])
