"""Rule 4: a train step is a transaction; whatever fails in it, nobody notices."""

import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from tenants import make_data, train

from weft.client import AdamParams, APIFuture, BadRequest, EngineFailed, ServiceClient
from weft.client.messages import Header
from weft.client.worker_messages import Dispatch
from weft.engine import Engine
from weft.engine.adapters import head, lora
from weft.engine.adapters.optimizer import step as optimizer_step
from weft.engine.adapters.store import AdapterStore
from weft.engine.model import decoder as model
from weft.engine.worker import optimizing
from weft.engine.worker.assembler import Assembler
from weft.engine.worker.commands import PassWork
from weft.engine.worker.scheduler import Passes
from weft.engine.worker.train import Outcome, Trainer

NUM_LAYERS = 2
RANKS = (4, 7, 16)

POINTS = {
    "layer": (model.Decoder, "_run_layer"),
    "head": (head.Head, "forward_backward"),
    "backward": (lora, "_block_backward"),
    "flush": (lora.LoraLinears, "flush"),
    "commit": (AdapterStore, "stage_is_finite"),
}
ERRORS: dict[str, Callable[[], Exception]] = {
    "out of memory": lambda: torch.OutOfMemoryError("injected"),
    "host out of memory": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    "exception": lambda: ZeroDivisionError("injected"),
}


class Bomb:
    """Raises on one call of a function, counted from when it is armed."""

    def __init__(self, patch: pytest.MonkeyPatch, point: str) -> None:
        owner, name = POINTS[point]
        original = getattr(owner, name)
        self._left = -1
        self._error: Callable[[], Exception] | None = None
        self.has_exploded = False

        def call(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0 and self._error is not None:
                self.has_exploded = True
                raise self._error()
            return original(*arguments, **named)

        patch.setattr(owner, name, call)

    def arm(self, calls: int, error: Callable[[], Exception]) -> None:
        self._error, self._left = error, calls


def tenants(engine: Engine, model_path: str, arm: Callable[[], None]) -> list[list[float]]:
    """Three tenants train together; `arm` is called when all have gradients pending."""
    barrier = threading.Barrier(len(RANKS), action=arm)

    def tenant(place: int) -> list[float]:
        with engine.client() as service:
            run = service.create_lora_training_client(model_path, rank=RANKS[place], seed=place)
            first = train(run, 10 * place, 1)
            run.forward_backward(make_data(70 + place), "cross_entropy").result(60)
            barrier.wait(60)
            return first + train(run, 20 * place, 2)

    with ThreadPoolExecutor(len(RANKS)) as pool:
        return list(pool.map(tenant, range(len(RANKS))))


@pytest.fixture(scope="module")
def undisturbed(exact_engine: Engine, model_path: str) -> list[list[float]]:
    return tenants(exact_engine, model_path, lambda: None)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("point", "calls"),
    [
        *(pytest.param("layer", n + 1, id=f"forward-{n}") for n in range(NUM_LAYERS)),
        pytest.param("head", 1, id="head"),
        *(pytest.param("backward", n + 1, id=f"backward-{n}") for n in range(4 * NUM_LAYERS)),
        pytest.param("flush", 1, id="flush"),
        pytest.param("commit", 1, id="commit"),
    ],
)
def test_a_fault_at_any_layer_leaves_all_tenants_as_if_it_had_not_been(
    exact_engine: Engine,
    model_path: str,
    undisturbed: list[list[float]],
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    calls: int,
    error: str,
) -> None:
    bomb = Bomb(monkeypatch, point)
    disturbed = tenants(exact_engine, model_path, lambda: bomb.arm(calls, ERRORS[error]))
    assert bomb.has_exploded
    assert disturbed == undisturbed


def test_a_call_that_fails_even_alone_is_given_up_and_the_next_one_runs(
    service: ServiceClient, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model.Decoder.forward

    def forward(self: model.Decoder, tokens_T: torch.Tensor, *rest: Any, **named: Any) -> Any:
        if len(tokens_T) >= 33:
            raise torch.OutOfMemoryError("injected")
        return original(self, tokens_T, *rest, **named)

    monkeypatch.setattr(model.Decoder, "forward", forward)
    run = service.create_lora_training_client(model_path, rank=4)
    doomed = run.forward_backward(make_data(1, (33,)), "cross_entropy")
    good = run.forward_backward(make_data(2, (20,)), "cross_entropy")
    stepped = run.optim_step(AdamParams())
    with pytest.raises(EngineFailed) as caught:
        doomed.result(60)
    assert caught.value.code == "out_of_memory"
    assert good.result(60).metrics["loss:sum"] > 0
    metrics = stepped.result(60).metrics or {}
    assert metrics["applied_calls:sum"] == 1
    assert metrics["applied_tokens:sum"] == 20


def test_an_optimizer_step_without_a_gradient_is_refused(
    service: ServiceClient, model_path: str
) -> None:
    run = service.create_lora_training_client(model_path, rank=4)
    with pytest.raises(BadRequest) as caught:
        run.optim_step(AdamParams()).result(60)
    assert caught.value.code == "no_gradients"
    assert np.isfinite(train(run, 1, 1)).all()


def test_values_that_overflow_inside_a_shared_batch_fail_their_own_call_only(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights large enough to overflow float32, in the same batches as a healthy tenant."""
    gate = threading.Event()
    gate.set()
    original = Trainer.step

    def step(self: Trainer, decision: Passes, works: Sequence[PassWork]) -> Outcome:
        gate.wait(60)
        return original(self, decision, works)

    monkeypatch.setattr(Trainer, "step", step)
    arrived: queue.SimpleQueue[str] = queue.SimpleQueue()
    add = Assembler.add

    def counted_add(self: Assembler, dispatch: Dispatch, header: Header, frames: Any) -> Any:
        work = add(self, dispatch, header, frames)
        arrived.put(header.kind)
        return work

    monkeypatch.setattr(Assembler, "add", counted_add)
    with (
        Engine(model_path, memory_bytes=1 << 30) as engine,
        engine.client() as service,
        engine.client() as sick_service,
    ):
        expected = train(service.create_lora_training_client(model_path, rank=4, seed=1), 1, 3)
        healthy = service.create_lora_training_client(model_path, rank=4, seed=1)
        sick = sick_service.create_lora_training_client(model_path, rank=4, seed=2)
        sick.forward_backward(make_data(1), "cross_entropy").result(60)
        sick.optim_step(AdamParams(learning_rate=1e15)).result(60)
        while not arrived.empty():
            arrived.get()
        got: list[float] = []
        codes: list[str] = []
        for number in range(3):
            gate.clear()  # the compute thread waits with this while the others arrive
            blocker = service.create_lora_training_client(model_path, rank=2)
            blocked = blocker.forward(make_data(5), "cross_entropy")
            while arrived.get(timeout=60) != "forward_backward":
                continue
            bad = [sick.forward_backward(make_data(n), "cross_entropy") for n in range(2)]
            passed = healthy.forward_backward(make_data(1 + number), "cross_entropy")
            stepped = healthy.optim_step(AdamParams(learning_rate=1e-2))
            kinds = Counter(arrived.get(timeout=60) for _ in range(4))
            assert kinds == {"forward_backward": 3, "optim_step": 1}
            gate.set()
            blocked.result(60)
            assert passed.result(60).metrics["batch_tenants:max"] == 2
            got.append(passed.result().metrics["loss:sum"])
            got.append((stepped.result(60).metrics or {})["unclipped_grad_l2:mean"])
            codes += [_code(one) for one in bad]
    assert codes == ["non_finite"] * 6
    np.testing.assert_allclose(got, expected, rtol=1e-4)  # the order of float32 sums differs


def _code(future: APIFuture[Any]) -> str:
    try:
        future.result(60)
    except BadRequest as error:
        return error.code
    return "done"


def test_a_fault_in_the_optimizer_fails_its_own_run_and_the_worker_lives(
    service: ServiceClient, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(store: AdapterStore, due: Any) -> Any:
        if any(params.learning_rate == 0.125 for _, params in due):
            raise ZeroDivisionError("injected")
        return optimizer_step(store, due)

    monkeypatch.setattr(optimizing, "step", step)
    doomed, other = (service.create_lora_training_client(model_path, rank=4) for _ in range(2))
    doomed.forward_backward(make_data(1), "cross_entropy").result(60)
    with pytest.raises(EngineFailed, match="ZeroDivisionError"):
        doomed.optim_step(AdamParams(learning_rate=0.125)).result(60)
    with pytest.raises(BadRequest, match="load a saved state"):
        doomed.forward(make_data(1), "cross_entropy").result(60)
    assert np.isfinite(train(other, 1, 1)).all()
