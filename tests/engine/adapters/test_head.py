"""The head against the oracle: mixed losses, adapters on the unembedding, chunks."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from head_helpers import UNEMBED, bind_units, make_head, on_host
from lora_helpers import adapter_of, gradient_matrices, make_bases, make_run, make_store
from plain_losses import CONFIGS, plain_losses, random_inputs
from torch import Tensor

from weft.client.losses import LOSSES
from weft.engine.adapters.binding import BoundLinears
from weft.engine.adapters.head import Head
from weft.engine.adapters.lora import LoraLinears
from weft.engine.adapters.loss_head import HeadResult
from weft.engine.adapters.losses import LossBatch
from weft.engine.adapters.store import AdapterStore, Run
from weft.kernels.reference import lora_linear, target_logprobs

LOSS_FNS = tuple(LOSSES)


@dataclass
class Case:
    """One batch of the head."""

    units: list[tuple[Run | None, int]]
    hidden_TD: Tensor
    targets: np.ndarray
    inputs: dict[str, np.ndarray]
    loss_fns: list[str]

    def take(self, unit: int) -> "Case":
        """One unit alone."""
        start = sum(count for _, count in self.units[:unit])
        rows = slice(start, start + self.units[unit][1])
        return Case(
            [self.units[unit]],
            self.hidden_TD[rows],
            self.targets[rows],
            {name: column[rows] for name, column in self.inputs.items()},
            [self.loss_fns[unit]],
        )


def make_case(units: list[tuple[Run | None, int]], seed: int = 0, idle: float = 0.3) -> Case:
    rng = np.random.default_rng(seed)
    total = sum(count for _, count in units)
    made = [random_inputs(rng, count, idle, level=-4.6) for _, count in units]
    return Case(
        units,
        torch.from_numpy(rng.normal(size=(total, 32)).astype(np.float32)),
        rng.integers(0, 100, total),
        {name: np.concatenate([one[name] for one in made]) for name in made[0]},
        [LOSS_FNS[index % len(LOSS_FNS)] for index in range(len(units))],
    )


@dataclass
class Outcome:
    result: HeadResult
    gradients: list[dict[str, Tensor]]

    @property
    def logprobs_T(self) -> Tensor:
        return self.result.logprobs_T

    @property
    def losses_T(self) -> Tensor:
        return self.result.losses_T

    @property
    def dhidden_TD(self) -> Tensor:
        return self.result.dhidden_TD


def run_head(
    store: AdapterStore, case: Case, is_deterministic: bool = False, chunk_rows: int = 32
) -> Outcome:
    hidden_TD = case.hidden_TD.to(store.device)
    runs = list({id(run): run for run, _ in case.units if run is not None}.values())
    losses, linears = bind(store, case, is_deterministic)
    store.begin(*runs)
    head = make_head(store, hidden_TD, chunk_rows=chunk_rows, is_deterministic=is_deterministic)
    result = head.forward_backward(hidden_TD, losses, linears)
    linears.flush()
    store.commit(*runs)
    return Outcome(on_host(result), [gradient_matrices(store, run) for run in runs])


def run_forward(store: AdapterStore, case: Case) -> HeadResult:
    hidden_TD = case.hidden_TD.to(store.device)
    losses, linears = bind(store, case)
    return on_host(make_head(store, hidden_TD).forward(hidden_TD, losses, linears))


def bind(
    store: AdapterStore, case: Case, is_deterministic: bool = False
) -> tuple[LossBatch, BoundLinears]:
    counts = [count for _, count in case.units]
    losses = LossBatch.build(
        loss_fns=case.loss_fns,
        configs=[CONFIGS[loss_fn] for loss_fn in case.loss_fns],
        row_counts=counts,
        targets=case.targets,
        inputs=case.inputs,
        device=store.device,
        cu_seqlens=np.cumsum([0, *(count for count in counts if count)]).astype(np.int32),
    )
    owners = [run for run, _ in case.units]
    return losses, bind_units(store, owners, counts, is_deterministic=is_deterministic)


def check(store: AdapterStore, case: Case, is_deterministic: bool = False) -> None:
    outcome = run_head(store, case, is_deterministic)
    adapters = {id(run): adapter_of(store, run, UNEMBED) for run, _ in case.units}
    hidden = case.hidden_TD.double().requires_grad_()
    logits_TV = lora_linear(
        hidden,
        make_bases((UNEMBED,))[0].weight_OD,
        None,
        [count for _, count in case.units],
        [adapters[id(run)] for run, _ in case.units],
    )
    logprobs_T = target_logprobs(logits_TV, torch.from_numpy(case.targets))
    torch.testing.assert_close(
        outcome.logprobs_T.double(), logprobs_T.detach(), rtol=1e-5, atol=1e-5
    )
    losses, start = [], 0
    for (_, count), loss_fn in zip(case.units, case.loss_fns, strict=True):
        rows = slice(start, start + count)
        inputs = {name: column[rows] for name, column in case.inputs.items()}
        if count:
            losses.append(plain_losses(loss_fn, logprobs_T[rows], inputs))
        start += count
    total = torch.cat(losses)
    torch.testing.assert_close(outcome.losses_T.double(), total.detach(), rtol=1e-5, atol=2e-5)
    torch.autograd.backward(total.sum())
    assert hidden.grad is not None
    # float32 sums over 100 logits and up to 70 rows
    torch.testing.assert_close(outcome.dhidden_TD.double(), hidden.grad, rtol=1e-4, atol=1e-5)
    runs = list({id(run): run for run, _ in case.units if run is not None}.values())
    for run, gradients in zip(runs, outcome.gradients, strict=True):
        adapter = adapters[id(run)]
        if adapter is None:
            continue
        for half in "ab":
            expected = getattr(adapter, f"lora_{half}").grad
            found = gradients[f"lm_head.lora_{half}"].double()
            if expected is None:
                assert not found.any()
            else:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_mixed_losses_ranks_and_bare_rows_equal_the_oracle(
    store: AdapterStore, is_deterministic: bool
) -> None:
    runs = [make_run(store, rank, seed=rank, mask=mask) for rank, mask in ((1, 7), (4, 3), (7, 4))]
    runs += [make_run(store, rank, seed=rank) for rank in (16, 64)]
    units: list[tuple[Run | None, int]] = [
        (run, count) for run, count in zip(runs, (5, 16, 0, 70, 33), strict=True)
    ]
    units += [(None, 20), (runs[2], 12), (runs[3], 1)]
    check(store, make_case(units), is_deterministic)


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_every_loss_equals_the_oracle_over_chunks_that_cut_its_sequences(
    store: AdapterStore,
    is_deterministic: bool,
) -> None:
    units: list[tuple[Run | None, int]] = [
        (make_run(store, 3 + index, seed=index), 21 + 13 * index) for index in range(len(LOSSES))
    ]
    check(store, make_case(units, seed=1), is_deterministic)


@pytest.mark.parametrize("loss_fn", LOSS_FNS)
def test_a_loss_without_any_advantage_has_no_gradient(loss_fn: str) -> None:
    store = make_store()
    case = make_case([(make_run(store, 5), 30), (make_run(store, 5, seed=1), 30)])
    case.loss_fns[0] = loss_fn
    for name in ("weights", "advantages", "logprobs"):
        case.inputs[name][:30] = 0
    outcome = run_head(store, case)
    assert outcome.logprobs_T[:30].all()
    assert not outcome.losses_T[:30].any()
    assert not outcome.dhidden_TD[:30].any()
    assert outcome.dhidden_TD[30:].any()


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([16, 16, 16], id="several entries a chunk"),
        pytest.param([100], id="longer than a chunk"),
        pytest.param([1], id="one row"),
    ],
)
def test_chunks_equal_the_oracle(store: AdapterStore, counts: list[int]) -> None:
    run = make_run(store, 5)
    check(store, make_case([(run, count) for count in counts], idle=0))


def test_forward_gives_the_bits_of_forward_backward_and_no_gradient(store: AdapterStore) -> None:
    run = make_run(store, 5)
    case = make_case([(run, 40), (None, 9), (run, 24), (run, 8), (None, 5)])
    for name in ("weights", "advantages"):
        case.inputs[name][:] = 0.5  # of every row, so that both have the same chunks
    outcome = run_head(store, case)
    before = gradient_matrices(store, run)
    result = run_forward(store, case)
    assert torch.equal(result.logprobs_T, outcome.logprobs_T)
    assert torch.equal(result.losses_T, outcome.losses_T)
    assert torch.equal(gradient_matrices(store, run)["lm_head.lora_b"], before["lm_head.lora_b"])


def test_forward_alone_gives_the_losses_of_gspo(store: AdapterStore) -> None:
    case = make_case([(make_run(store, 5), 40), (None, 9)])
    case.loss_fns = ["gspo", "ppo"]
    losses_T = run_forward(store, case).losses_T
    # the ratio comes from another pass, whose chunks hold other rows
    torch.testing.assert_close(losses_T, run_head(store, case).losses_T, rtol=1e-6, atol=1e-6)


def test_a_unit_without_loss_function_is_left_out(store: AdapterStore) -> None:
    case = make_case([(None, 10), (None, 6)])
    case.hidden_TD[10:] = float("nan")
    losses, linears = bind(store, case)
    losses.is_scored_host[10:] = False
    hidden_TD = case.hidden_TD.to(store.device)
    result = make_head(store, hidden_TD).forward_backward(hidden_TD, losses, linears)
    assert not result.logprobs_T[10:].any()
    assert not result.losses_T[10:].any()
    assert not result.dhidden_TD[10:].any()


@pytest.mark.parametrize("counts", [(16, 16, 16), (9, 40, 3)], ids=["whole", "padded"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_neighbours_non_finite_rows_never_reach_others(
    store: AdapterStore, counts: tuple[int, ...], poison: float
) -> None:
    runs = [make_run(store, rank, seed=rank) for rank in (5, 6, 8)]
    case = make_case(list(zip(runs, counts, strict=True)))
    clean = run_head(store, case)
    bad = slice(counts[0], counts[0] + counts[1])
    case.hidden_TD[bad] = poison
    for run in runs:
        run.has_gradient = False
    spoiled = run_head(store, case)
    good = torch.ones(len(case.hidden_TD), dtype=torch.bool)
    good[bad] = False
    assert torch.equal(clean.logprobs_T[good], spoiled.logprobs_T[good])
    assert torch.equal(clean.dhidden_TD[good], spoiled.dhidden_TD[good])
    for index in (0, 2):
        kept, found = clean.gradients[index], spoiled.gradients[index]
        assert all(torch.equal(kept[name], found[name]) for name in kept)


def test_zero_weight_rows_change_nothing(store: AdapterStore) -> None:
    run, twin = make_run(store, 5), make_run(store, 5)
    case = make_case([(run, 16)], idle=0)
    more = make_case([(twin, 40)], seed=1)
    for column in more.inputs.values():
        column[:] = 0
    more.hidden_TD[:16] = case.hidden_TD
    more.targets[:16] = case.targets
    for name, column in case.inputs.items():
        more.inputs[name][:16] = column
    one, other = run_head(store, case), run_head(store, more)
    assert torch.equal(one.dhidden_TD, other.dhidden_TD[:16])
    assert not other.dhidden_TD[16:].any()
    assert not other.losses_T[16:].any()
    kept, found = one.gradients[0], other.gradients[0]
    assert all(torch.equal(kept[name], found[name]) for name in kept)


@pytest.mark.parametrize("loss_fn", ["cross_entropy", "gspo", "dro"])
@pytest.mark.parametrize("rows", [1, 16, 19, 70])
def test_deterministic_bits_do_not_depend_on_neighbours(rows: int, loss_fn: str) -> None:
    store = make_store()
    run = make_run(store, 7, seed=1)
    others = [make_run(store, rank, seed=rank) for rank in (8, 5, 16)]
    units = [(others[0], rows), (others[1], 37), (run, rows), (None, 21), (others[2], 50)]
    case = make_case(list(units))
    case.loss_fns[2:4] = [loss_fn, "gspo"]
    among = run_head(store, case, is_deterministic=True)
    by_run = {id(r): g for r, g in zip((others[0], others[1], run), among.gradients, strict=False)}
    for one in (run, *others):
        one.has_gradient = False
    alone = run_head(store, case.take(2), is_deterministic=True)
    own = slice(rows + 37, 2 * rows + 37)
    assert torch.equal(among.logprobs_T[own], alone.logprobs_T)
    assert torch.equal(among.dhidden_TD[own], alone.dhidden_TD)
    kept, found = alone.gradients[0], by_run[id(run)]
    assert all(torch.equal(kept[name], found[name]) for name in kept)


def test_logits_of_the_batch_are_never_held() -> None:
    store = make_store()
    case = make_case([(make_run(store, 5), 500)])
    losses, linears = bind(store, case)
    head = Head(make_bases((UNEMBED,))[0], UNEMBED, chunk_rows=32)
    head.forward_backward(case.hidden_TD, losses, linears)
    assert isinstance(linears, LoraLinears)
    assert linears.workspace.take("logits", (1,), torch.float32).untyped_storage().nbytes() <= (
        32 * 100 * 4
    )


def test_bfloat16_hidden_states_have_float32_logprobs() -> None:
    store = make_store(torch.bfloat16)
    run = make_run(store, 8)
    case = make_case([(run, 20), (None, 5)])
    case.hidden_TD = case.hidden_TD.bfloat16()
    result = run_head(store, case).result
    base = make_bases((UNEMBED,), like=case.hidden_TD)[0]
    assert result.logprobs_T.dtype == result.losses_T.dtype == torch.float32
    assert result.dhidden_TD.dtype == torch.bfloat16
    exact = case.hidden_TD.double() @ base.weight_OD.double().t()
    expected = target_logprobs(exact, torch.from_numpy(case.targets))[20:]
    # bfloat16 logits of size up to 4 are known to 2 ** -7
    torch.testing.assert_close(result.logprobs_T[20:].double(), expected, rtol=0, atol=3e-2)


def test_a_chunk_size_that_breaks_row_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_rows is 40"):
        Head(make_bases((UNEMBED,))[0], UNEMBED, chunk_rows=40)
