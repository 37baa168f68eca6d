"""What failures and successes leave behind for the commands that follow."""

from typing import Any

from core_bench import forward_backward, optim_step, ready_bench

from weft.engine.broker.events import Action


def details(actions: list[Action]) -> list[str]:
    found: list[Any] = actions
    return [action.header.detail for action in found]


def test_an_optimizer_step_without_a_gradient_names_the_calls_that_failed() -> None:
    bench = ready_bench()
    for seq in (1, 2):
        bench.say(forward_backward(seq))
        bench.fail("non_finite")
    bench.say(optim_step(3))
    assert details(bench.fail("no_gradients")) == [
        "it failed; call 1 failed, non_finite: it failed; call 2 failed, non_finite: it failed"
    ]


def test_a_call_that_was_refused_at_the_door_is_named_too() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1, loss_fn="mse"))
    bench.say(optim_step(2))
    (detail,) = details(bench.fail("no_gradients"))
    assert "call 1 failed, bad_request: unknown loss_fn 'mse'" in detail


def test_calls_that_failed_before_an_earlier_optimizer_step_are_not_named() -> None:
    bench = ready_bench()
    bench.say(optim_step(2))
    bench.say(forward_backward(1))
    bench.say(forward_backward(3))
    bench.fail("too_large", -1)  # call 3, before the step is done
    bench.fail("non_finite", -3)  # call 1
    bench.finish(-2)
    bench.say(optim_step(4))
    assert details(bench.fail("no_gradients")) == ["it failed; call 3 failed, too_large: it failed"]


def test_a_forward_that_failed_is_not_named() -> None:
    bench = ready_bench()
    bench.say(forward_backward(1, forward_only=True))
    bench.fail("non_finite")
    bench.say(optim_step(2))
    assert details(bench.fail("no_gradients")) == ["it failed"]
