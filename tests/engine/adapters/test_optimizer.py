"""Optimizer steps: the numbers, and who is touched."""

from dataclasses import dataclass

import interpreter
import pytest
import torch
from lora_helpers import SITES, CountOps, make_run, make_store

from weft.engine.adapters.optimizer import StepResult, step
from weft.engine.adapters.states import MASTER, MOMENT1, MOMENT2
from weft.engine.adapters.store import AdapterStore, Run
from weft.engine.adapters.targets import LAYERS
from weft.kernels.gpu import optimizer as gpu
from weft.kernels.reference import AdamState, adamw


@dataclass(frozen=True)
class Params:
    """AdamParams with the official defaults."""

    learning_rate: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@pytest.fixture(params=[False, True], ids=["torch", "triton"])
def uses_triton(request: pytest.FixtureRequest) -> bool:
    if request.param and not interpreter.IS_INTERPRETED:
        pytest.skip("the stores here are no CUDA device's")
    return bool(request.param)


def put_gradient(store: AdapterStore, run: Run, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(store.flat(run, MASTER).shape, generator=generator) * scale
    store.begin(run)
    store.add_to_stages([run], [[gradient]], LAYERS)
    store.commit(run)
    return gradient


def state_of(store: AdapterStore, run: Run) -> AdamState:
    weight, moment1, moment2 = (
        store.flat(run, plane).clone() for plane in (MASTER, MOMENT1, MOMENT2)
    )
    return AdamState(weight, moment1, moment2, run.step)


def assert_state(store: AdapterStore, run: Run, expected: AdamState) -> None:
    found = state_of(store, run)
    assert found.step == expected.step
    # float32 against float64
    for name in ("weight", "moment1", "moment2"):
        torch.testing.assert_close(
            getattr(found, name).double(), getattr(expected, name), rtol=1e-5, atol=1e-7
        )
    assert torch.equal(store.version_flat(run.version), found.weight)


@pytest.mark.parametrize(
    "params",
    [
        pytest.param(Params(), id="defaults"),
        pytest.param(Params(weight_decay=0.3), id="decay"),
        pytest.param(Params(beta1=0.5, beta2=0.7, eps=0.1), id="betas and eps"),
        pytest.param(Params(grad_clip_norm=0.5), id="clipped"),
        pytest.param(Params(grad_clip_norm=1e12), id="not clipped"),
        pytest.param(Params(learning_rate=0.0), id="rate zero"),
    ],
)
def test_three_steps_equal_the_oracle(params: Params, uses_triton: bool) -> None:
    store = make_store(uses_triton=uses_triton)
    run = make_run(store, 5, mask=3)
    expected = state_of(store, run)
    for seed in range(3):
        gradient = put_gradient(store, run, seed)
        expected = adamw(expected, gradient, **vars(params))
        (result,) = step(store, [(run, params)])
        assert result.applied
        assert result.grad_norm == pytest.approx(float(gradient.norm()), rel=1e-5)
        assert not run.has_gradient
    assert_state(store, run, expected)


def test_runs_step_together_as_alone(uses_triton: bool) -> None:
    together, alone = make_store(uses_triton=uses_triton), make_store(uses_triton=uses_triton)
    settings = [
        Params(eps=1.0, grad_clip_norm=0.5),  # by its own norm; without eps Adam hides a scale
        Params(learning_rate=0.1),
        Params(weight_decay=0.5),
        Params(),
    ]
    ranks = (1, 4, 7, 16)
    runs = [make_run(together, rank, seed=rank, mask=3) for rank in ranks]
    for index, run in enumerate(runs):
        put_gradient(together, run, index)
    step(together, list(zip(runs, settings, strict=True)))
    for index, rank in enumerate(ranks):
        run = make_run(alone, rank, seed=rank, mask=3)
        put_gradient(alone, run, index)
        step(alone, [(run, settings[index])])
        assert torch.equal(together.flat(runs[index], MASTER), alone.flat(run, MASTER))


def test_decay_and_moments_touch_only_runs_that_are_due(uses_triton: bool) -> None:
    store = make_store(uses_triton=uses_triton)
    due, idle = make_run(store, 4, seed=1, mask=3), make_run(store, 4, seed=2, mask=3)
    put_gradient(store, due, 1)
    kept = put_gradient(store, idle, 2)
    before, version = state_of(store, idle), idle.version
    weights = store.version_flat(version).clone()
    step(store, [(due, Params(weight_decay=0.9))])
    after = state_of(store, idle)
    for name in ("weight", "moment1", "moment2"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert idle.version is version
    assert idle.has_gradient
    assert torch.equal(store.version_flat(version), weights)
    assert torch.equal(store.flat(idle, idle.gradient_plane), kept)


def test_a_held_version_is_not_changed_by_later_steps(uses_triton: bool) -> None:
    store = make_store(uses_triton=uses_triton)
    run = make_run(store, 4, mask=3)
    snapshot = store.retain(run.version)
    before = store.export_weights(snapshot)
    for seed in range(3):
        put_gradient(store, run, seed)
        step(store, [(run, Params())])
    after = store.export_weights(snapshot)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(store.version_flat(run.version), store.version_flat(snapshot))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_gradient_is_refused_and_cleared_for_its_run_only(
    value: float, uses_triton: bool
) -> None:
    store = make_store(uses_triton=uses_triton)
    bad, good = make_run(store, 4, seed=1, mask=3), make_run(store, 7, seed=2, mask=3)
    put_gradient(store, bad, 1)
    store.flat(bad, bad.gradient_plane)[3] = value
    expected = adamw(
        state_of(store, good), put_gradient(store, good, 2), **vars(Params(weight_decay=0.1))
    )
    before = state_of(store, bad)
    refused, applied = step(store, [(bad, Params()), (good, Params(weight_decay=0.1))])
    assert (refused.applied, applied.applied) == (False, True)
    assert refused.error is not None
    assert refused.error.code == "non_finite"
    assert not bad.has_gradient
    after = state_of(store, bad)
    assert after.step == 0
    assert torch.equal(before.weight, after.weight)
    assert_state(store, good, expected)


def test_a_step_without_gradient_is_refused(uses_triton: bool) -> None:
    store = make_store(uses_triton=uses_triton)
    (result,) = step(store, [(make_run(store, 4), Params())])
    assert not result.applied
    assert result.error is not None
    assert result.error.code == "no_gradients"


def test_all_zero_gradients_count_as_gradients(uses_triton: bool) -> None:
    store = make_store(uses_triton=uses_triton)
    run = make_run(store, 4)
    store.begin(run)
    store.commit(run)
    assert step(store, [(run, Params())]) == [StepResult(0.0, applied=True)]
    assert run.step == 1


def test_no_room_for_a_new_version_keeps_the_gradient(uses_triton: bool) -> None:
    size = AdapterStore(
        SITES, device="cpu", dtype=torch.float32, state_bytes=1 << 20, weights_bytes=1 << 20
    ).layout.block_size(4, 3)
    store = AdapterStore(
        SITES,
        device="cpu",
        dtype=torch.float32,
        state_bytes=1 << 20,
        weights_bytes=(size + 1) * 16 * 4,
        uses_triton=uses_triton,
    )
    run = store.create(
        rank=4, alpha=32, train_attn=True, train_mlp=True, train_unembed=False, seed=0
    )
    snapshot = store.retain(run.version)
    put_gradient(store, run, 1)
    (result,) = step(store, [(run, Params())])
    assert result.error is not None
    assert result.error.code == "busy"
    assert run.has_gradient
    store.release(snapshot)
    assert step(store, [(run, Params())])[0].applied


def test_a_step_that_overflows_says_so_and_spares_the_others(uses_triton: bool) -> None:
    store = make_store(uses_triton=uses_triton)
    wild, calm = make_run(store, 4, seed=1, mask=3), make_run(store, 4, seed=2, mask=3)
    for run in (wild, calm):
        put_gradient(store, run, 3)
    results = step(store, [(wild, Params(learning_rate=1e30, weight_decay=1e30)), (calm, Params())])
    assert [result.weights_are_finite for result in results] == [False, True]
    tensors, _ = store.export_state(calm)
    store.import_state(wild, tensors, 0, with_optimizer=True)
    assert torch.isfinite(store.version_flat(wild.version)).all()


def test_no_operation_count_grows_with_runs_of_equal_settings(uses_triton: bool) -> None:
    counts = []
    for num_runs in (1, 9):
        store = make_store(uses_triton=uses_triton)
        runs = [make_run(store, 1 + index, seed=index, mask=3) for index in range(num_runs)]
        for index, run in enumerate(runs):
            put_gradient(store, run, index)
        with CountOps() as ops:
            step(store, [(run, Params(grad_clip_norm=0.1)) for run in runs])
        counts.append(ops.counts)
    assert counts[0] == counts[1]


def test_a_fork_steps_apart_from_its_origin(uses_triton: bool) -> None:
    store = make_store(uses_triton=uses_triton)
    run = make_run(store, 4, mask=3)
    gradient = put_gradient(store, run, 1)
    fork, before = store.fork(run), state_of(store, run)
    step(store, [(fork, Params(weight_decay=0.1))])
    assert_state(store, fork, adamw(before, gradient, **vars(Params(weight_decay=0.1))))
    after = state_of(store, run)
    for name in ("weight", "moment1", "moment2"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert torch.equal(store.flat(run, run.gradient_plane), gradient)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_a_stage_that_is_not_finite_is_found_among_others(value: float, uses_triton: bool) -> None:
    store = make_store(uses_triton=uses_triton)
    runs = [make_run(store, rank, mask=7) for rank in (1, 16, 5)]
    store.begin(*runs)
    for run in runs[:2]:
        stage = torch.randn(store.flat(run, run.stage_plane, LAYERS).shape)
        stage[-1] = value if run is runs[1] else 1.0
        store.add_to_stages([run], [[stage]], LAYERS)
    assert store.stage_is_finite(runs) == [True, False, True]


@pytest.mark.skipif(not interpreter.IS_INTERPRETED, reason="the store is no CUDA device's")
def test_without_memory_for_the_tables_nothing_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = make_store(uses_triton=True)
    run = make_run(store, 4, mask=3)
    snapshot = store.retain(run.version)
    gradient, before = put_gradient(store, run, 1), state_of(store, run)
    free = store.memory
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "_shared", _out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            step(store, [(run, Params())])
    assert run.has_gradient
    assert (run.step, run.version, store.memory) == (0, snapshot, free)
    assert torch.equal(before.weight, store.flat(run, MASTER))
    assert torch.equal(gradient, store.flat(run, run.gradient_plane))
    assert step(store, [(run, Params())])[0].applied


def _out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("no memory")
