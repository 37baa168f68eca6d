"""The head by Triton kernels: bits, bfloat16, stages. What both forms share is in test_head.py."""

from dataclasses import dataclass

import interpreter
import numpy as np
import pytest
import torch
from head_helpers import UNEMBED, bind_units, make_head, on_host
from lora_helpers import adapter_of, gradient_matrices, make_bases, make_run, make_store, rms_error
from plain_losses import CONFIGS, random_inputs
from torch import Tensor

from weft.engine.adapters.head_form import head_bytes, open_head
from weft.engine.adapters.loss_head import HeadResult
from weft.engine.adapters.losses import LossBatch
from weft.engine.adapters.states import GRADIENT, STAGE
from weft.engine.adapters.store import AdapterStore, Run
from weft.kernels.reference import lora_linear, target_logprobs


@pytest.fixture
def store() -> AdapterStore:
    return make_store(uses_triton=True, device=interpreter.kernel_device())


@dataclass
class Unit:
    """The rows of one unit, on the host."""

    run: Run | None
    loss_fn: str
    hidden_TD: Tensor
    targets: np.ndarray
    inputs: dict[str, np.ndarray]


def make_unit(run: Run | None, num_rows: int, loss_fn: str = "ppo", seed: int = 0) -> Unit:
    rng = np.random.default_rng(seed)
    hidden_TD = torch.from_numpy(rng.normal(size=(num_rows, 32)).astype(np.float32))
    inputs = random_inputs(rng, num_rows, idle=0.2, level=-4.6)
    return Unit(run, loss_fn, hidden_TD, rng.integers(0, 100, num_rows), inputs)


def run_units(
    store: AdapterStore, units: list[Unit], unit_order: list[int] | None = None
) -> list[HeadResult]:
    """Forward and backward of a batch, deterministic; the results unit by unit."""
    counts = [len(unit.targets) for unit in units]
    losses = LossBatch.build(
        loss_fns=[unit.loss_fn for unit in units],
        configs=[CONFIGS[unit.loss_fn] for unit in units],
        row_counts=counts,
        targets=np.concatenate([unit.targets for unit in units]),
        inputs={
            name: np.concatenate([unit.inputs[name] for unit in units]) for name in units[0].inputs
        },
        device=store.device,
        cu_seqlens=np.cumsum([0, *counts]).astype(np.int32),
    )
    hidden_TD = torch.cat([unit.hidden_TD for unit in units]).to(store.device, store.dtype)
    runs = list({id(unit.run): unit.run for unit in units if unit.run is not None}.values())
    linears = bind_units(
        store,
        [unit.run for unit in units],
        counts,
        is_deterministic=True,
        unit_order=unit_order,
    )
    store.begin(*runs)
    head = make_head(store, hidden_TD, is_deterministic=True)
    result = on_host(head.forward_backward(hidden_TD, losses, linears))
    linears.flush()
    store.commit(*runs)
    columns = (result.logprobs_T, result.losses_T, result.dhidden_TD)
    parts = [torch.split(column, counts) for column in columns]
    return [HeadResult(a, b, result.soft_logprobs_M, c) for a, b, c in zip(*parts, strict=True)]


def is_same(one: HeadResult, other: HeadResult) -> bool:
    names = ("logprobs_T", "losses_T", "dhidden_TD")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("loss_fn", ["cross_entropy", "gspo"])
def test_company_and_its_order_change_no_bit(store: AdapterStore, rows: int, loss_fn: str) -> None:
    run, other, third = (make_run(store, rank, seed=rank) for rank in (7, 16, 40))
    mine = make_unit(run, rows, loss_fn)
    company = [
        make_unit(other, 37, "gspo", 1),
        make_unit(None, 21, "dro", 2),
        make_unit(third, 40, "ppo", 3),
    ]
    (alone,), expected = run_units(store, [mine]), gradient_matrices(store, run)
    for place in (1, 3):
        for each in (run, other, third):
            each.has_gradient = False
        among = run_units(store, [*company[:place], mine, *company[place:]])[place]
        assert is_same(among, alone)
        found = gradient_matrices(store, run)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_units_of_a_run_are_summed_in_their_order_wherever_they_lie(store: AdapterStore) -> None:
    run = make_run(store, 7)
    units = [make_unit(run, num_rows, seed=num_rows) for num_rows in (50, 9, 33)]
    run_units(store, units, [0, 1, 2])
    expected = gradient_matrices(store, run)
    run.has_gradient = False
    run_units(store, [units[2], units[0], units[1]], [2, 0, 1])
    found = gradient_matrices(store, run)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_call_adds_to_the_gradient_of_the_one_before(store: AdapterStore) -> None:
    run = make_run(store, 7)
    unit = make_unit(run, 50)
    run_units(store, [unit])
    once = gradient_matrices(store, run)["lm_head.lora_b"]
    run_units(store, [unit])
    twice = gradient_matrices(store, run)["lm_head.lora_b"]
    # the second call's sums start from the first one's
    torch.testing.assert_close(twice, 2 * once, rtol=1e-5, atol=1e-6)


def test_runs_without_a_row_that_has_a_loss_get_no_gradient(store: AdapterStore) -> None:
    store.states.planes[[GRADIENT, STAGE]] = float("nan")  # as fresh memory may be
    run, other = make_run(store, 7), make_run(store, 3, mask=3)
    idle, trained = make_unit(run, 20), make_unit(other, 20, seed=1)
    for name in ("weights", "advantages", "logprobs"):
        idle.inputs[name][:] = 0
    results = run_units(store, [idle, trained])
    assert results[0].logprobs_T.all()
    assert not results[0].dhidden_TD.any()
    assert results[1].dhidden_TD.any()
    assert not any(gradient.any() for gradient in gradient_matrices(store, run).values())


def test_bfloat16_is_as_close_as_the_batched_form() -> None:
    errors: dict[bool, list[float]] = {}
    for uses_triton in (False, True):
        store = make_store(torch.bfloat16, uses_triton, interpreter.kernel_device())
        run = make_run(store, 16)
        unit = make_unit(run, 60, "cross_entropy")
        (result,) = run_units(store, [unit])
        hidden = unit.hidden_TD.bfloat16().double().requires_grad_()
        base, adapter = make_bases((UNEMBED,), like=hidden.bfloat16())[0], None
        adapter = adapter_of(store, run, UNEMBED)
        assert adapter is not None
        logits_TV = lora_linear(hidden, base.weight_OD, None, [60], [adapter])
        logprobs_T = target_logprobs(logits_TV, torch.from_numpy(unit.targets))
        weights_T = torch.from_numpy(unit.inputs["weights"]).double()
        torch.autograd.backward(-(weights_T * logprobs_T).sum())
        gradients = gradient_matrices(store, run)
        leaves = {"a": adapter.lora_a.grad, "b": adapter.lora_b.grad}
        assert hidden.grad is not None
        errors[uses_triton] = [
            rms_error(result.logprobs_T, logprobs_T),
            rms_error(result.dhidden_TD, hidden.grad),
            *(
                rms_error(gradients[f"lm_head.lora_{half}"], leaf)
                for half, leaf in leaves.items()
                if leaf is not None
            ),
        ]
    assert len(errors[True]) == 4
    for ours, batched in zip(errors[True], errors[False], strict=True):
        assert ours <= 2 * batched


def test_the_plan_of_memory_holds_the_logits_of_a_chunk_once() -> None:
    class Model:
        sites = ()
        head = make_bases((UNEMBED,))[0]
        logit_softcap = 0.0

    head = open_head(Model(), uses_triton=True)  # type: ignore[arg-type]
    planned = head_bytes(151936, torch.bfloat16, uses_triton=True, is_capped=True)
    assert planned == head.chunk_rows * 151936 * 2
