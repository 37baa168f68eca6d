"""Adapters: layout, versions, stages, files."""

import pytest
import torch

from weft.client.errors import BadRequest, Busy
from weft.engine.adapters.states import MASTER
from weft.engine.adapters.store import AdapterStore, Run
from weft.engine.adapters.targets import LAYERS, Targets
from weft.engine.model.config import decoder_site

SITES = [
    decoder_site(0, "q", 32, 48),
    decoder_site(0, "k", 32, 16),
    decoder_site(0, "v", 32, 16),
    decoder_site(0, "o", 48, 32),
    decoder_site(0, "gate", 32, 80),
    decoder_site(0, "up", 32, 80),
    decoder_site(0, "down", 80, 32),
    decoder_site(-1, "unembed", 32, 100),
]


def make_store(state_bytes: int = 1 << 20, weights_bytes: int = 1 << 20) -> AdapterStore:
    return AdapterStore(
        SITES,
        device="cpu",
        dtype=torch.float32,
        state_bytes=state_bytes,
        weights_bytes=weights_bytes,
    )


def make_run(store: AdapterStore, rank: int = 4, seed: int = 0, unembed: bool = False) -> Run:
    return store.create(
        rank=rank, alpha=32.0, train_attn=True, train_mlp=True, train_unembed=unembed, seed=seed
    )


def gradient_of(store: AdapterStore, run: Run) -> torch.Tensor:
    return store.flat(run, run.gradient_plane)


def noise(store: AdapterStore, run: Run, seed: int) -> torch.Tensor:
    return torch.randn(store.flat(run, MASTER).shape, generator=torch.Generator().manual_seed(seed))


def test_a_family_of_which_the_model_has_no_linears_is_refused() -> None:
    store = AdapterStore(
        [*SITES[:4], SITES[-1]],
        device="cpu",
        dtype=torch.float32,
        state_bytes=1 << 20,
        weights_bytes=1 << 20,
    )
    with pytest.raises(BadRequest, match=r"no linears of MLP .*, only of ATTN\|UNEMBED"):
        make_run(store)
    run = store.create(
        rank=4, alpha=1.0, train_attn=True, train_mlp=False, train_unembed=True, seed=0
    )
    assert run.targets == Targets.ATTN | Targets.UNEMBED


def test_a_starts_uniform_from_its_seed_and_b_zero() -> None:
    store = make_store()
    first, again, other = (
        store.export_weights(make_run(store, seed=seed).version) for seed in (1, 1, 2)
    )
    for name, matrix in first.items():
        assert torch.equal(matrix, again[name])
        if name.endswith("lora_b"):
            assert not matrix.any()
        else:
            assert not torch.equal(matrix, other[name])
            assert matrix.abs().max() <= matrix.shape[1] ** -0.5


def test_the_scale_is_alpha_over_rank() -> None:
    store = make_store()
    run = store.create(
        rank=4, alpha=6.0, train_attn=True, train_mlp=False, train_unembed=False, seed=0
    )
    assert run.scale == run.version.scale == 1.5
    assert store.prepare_version(run).scale == 1.5


def test_names_and_shapes_are_those_of_peft() -> None:
    store = make_store()
    weights = store.export_weights(make_run(store, rank=3, unembed=True).version)
    for site in SITES:
        assert weights[f"{site.name}.lora_a"].shape == (3, site.in_features)
        assert weights[f"{site.name}.lora_b"].shape == (site.out_features, 3)
    assert len(weights) == 2 * len(SITES)


def test_targets_choose_the_sites() -> None:
    store = make_store()
    run = store.create(
        rank=2, alpha=1, train_attn=False, train_mlp=True, train_unembed=False, seed=0
    )
    assert run.targets == Targets.MLP
    names = {name.split(".lora")[0] for name in store.export_weights(run.version)}
    assert names == {f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")}


@pytest.mark.parametrize("rank", [0, -1, 257, 4096])
def test_a_rank_out_of_range_is_refused(rank: int) -> None:
    with pytest.raises(BadRequest, match=f"rank is {rank}"):
        make_run(make_store(), rank=rank)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_scale_is_refused(alpha: float) -> None:
    with pytest.raises(BadRequest, match="alpha"):
        make_store().create(
            rank=1, alpha=alpha, train_attn=True, train_mlp=True, train_unembed=True, seed=0
        )


def test_no_target_is_refused() -> None:
    with pytest.raises(BadRequest, match="all false"):
        make_store().create(
            rank=1, alpha=1, train_attn=False, train_mlp=False, train_unembed=False, seed=0
        )


@pytest.mark.parametrize(("state", "weights"), [(1000, 1 << 20), (1 << 20, 1000)])
def test_a_full_arena_is_busy_and_takes_nothing(state: int, weights: int) -> None:
    store = make_store(state, weights)
    with pytest.raises(Busy):
        make_run(store)
    store.states.blocks.check_integrity()
    assert store.states.blocks.num_free == store.states.blocks.size


def test_dropped_runs_leave_room_for_others() -> None:
    store = make_store(400_000, 200_000)
    for seed in range(50):
        store.drop(make_run(store, rank=16, seed=seed))
    assert store._weights_blocks.num_free == store._weights_blocks.size - 1


def test_a_stage_starts_as_a_copy_of_the_gradient() -> None:
    store = make_store()
    run = make_run(store)
    first, second = noise(store, run, 1), noise(store, run, 2)
    for gradient in (first, second):
        store.begin(run)
        store.add_to_stages([run], [[gradient]], LAYERS)
        store.commit(run)
    assert torch.equal(gradient_of(store, run), first + second)


def test_a_stage_without_additions_commits_zeros() -> None:
    store = make_store()
    run = make_run(store)
    store.flat(run, run.stage_plane).fill_(float("nan"))
    store.begin(run)
    assert store.stage_is_finite([run]) == [True]
    store.commit(run)
    assert run.has_gradient
    assert not gradient_of(store, run).any()


def test_a_discarded_stage_leaves_the_gradient() -> None:
    store = make_store()
    run = make_run(store)
    first = noise(store, run, 1)
    store.begin(run)
    store.add_to_stages([run], [[first]], LAYERS)
    store.commit(run)
    store.begin(run)
    store.add_to_stages([run], [[torch.full_like(first, float("nan"))]], LAYERS)
    assert store.stage_is_finite([run]) == [False]
    store.discard(run)
    assert torch.equal(gradient_of(store, run), first)


def test_additions_of_one_run_keep_their_order_among_other_runs() -> None:
    store = make_store()
    run, other = make_run(store), make_run(store, rank=7)
    parts = [noise(store, run, seed) * 10**seed for seed in range(3)]
    store.begin(run, other)
    foreign = noise(store, other, 9)
    store.add_to_stages(
        [run, other, run, other, run],
        [[parts[0]], [foreign], [parts[1]], [foreign], [parts[2]]],
        LAYERS,
    )
    store.commit(run, other)
    assert torch.equal(gradient_of(store, run), (parts[0] + parts[1]) + parts[2])
    assert torch.equal(gradient_of(store, other), foreign + foreign)


def test_a_non_finite_stage_is_told_from_its_neighbours() -> None:
    store = make_store()
    runs = [make_run(store, rank=rank) for rank in (1, 3, 8)]
    store.begin(*runs)
    gradients = [noise(store, run, 1) for run in runs]
    gradients[1][5] = float("inf")
    store.add_to_stages(runs, [[gradient] for gradient in gradients], LAYERS)
    assert store.stage_is_finite(runs) == [True, False, True]


def test_a_held_version_gets_its_successor_elsewhere() -> None:
    store = make_store()
    run = make_run(store)
    held = store.retain(run.version)
    before = store.export_weights(held)
    version = store.prepare_version(run)
    store.version_flat(version).fill_(3.0)
    store.publish(run, version)
    assert all(torch.equal(before[name], new) for name, new in store.export_weights(held).items())
    free = store._weights_blocks.num_free
    store.release(held)
    assert store._weights_blocks.num_free > free


def test_an_unheld_version_is_followed_in_place_under_a_new_id() -> None:
    store = make_store()
    run = make_run(store)
    old = run.version
    free = store._weights_blocks.num_free
    store.publish(run, store.prepare_version(run))
    assert run.version.start == old.start
    assert run.version.id != old.id
    assert store._weights_blocks.num_free == free


def test_a_forgotten_version_frees_its_room() -> None:
    store = make_store()
    run = make_run(store)
    store.retain(run.version)
    free = store._weights_blocks.num_free
    store.forget(run, store.prepare_version(run))
    assert store._weights_blocks.num_free == free


def test_a_state_comes_back_whole() -> None:
    store = make_store()
    run, copy = make_run(store, seed=1), make_run(store, seed=2)
    store.states.planes[:, run.block.start * store.layout.granule :].normal_()
    tensors, _ = store.export_state(run)
    copy.has_gradient = True
    store.import_state(copy, tensors, 17, with_optimizer=True)
    again, step = store.export_state(copy)
    assert step == 17
    assert not copy.has_gradient
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    weights = store.export_weights(copy.version)
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)


def test_weights_alone_start_a_fresh_optimizer() -> None:
    store = make_store()
    run, copy = make_run(store, seed=1), make_run(store, seed=2)
    store.states.planes.normal_()
    store.import_state(copy, store.export_state(run)[0], 17, with_optimizer=False)
    tensors, step = store.export_state(copy)
    assert step == 0
    assert not any(tensors[name].any() for name in tensors if name.startswith("moment"))


def test_loaded_weights_are_a_version_of_their_own() -> None:
    store = make_store()
    run = make_run(store)
    tensors = store.export_weights(run.version)
    version = store.import_weights(
        tensors, rank=4, alpha=8, train_attn=True, train_mlp=True, train_unembed=False
    )
    assert version.scale == 2.0
    loaded = store.export_weights(version)
    assert all(torch.equal(tensors[name], loaded[name]) for name in tensors)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "nan"])
def test_a_state_that_does_not_fit_changes_nothing(fault: str) -> None:
    store = make_store()
    run = make_run(store)
    tensors, _ = store.export_state(run)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    name = "model.layers.0.self_attn.o_proj.lora_b"
    match fault:
        case "missing":
            del tensors[name]
        case "extra":
            tensors["model.layers.9.self_attn.q_proj.lora_a"] = torch.zeros(1)
        case "shape":
            tensors[name] = tensors[name].t()
        case _:
            tensors[name][0, 0] = float("nan")
    with pytest.raises(BadRequest):
        store.import_state(run, tensors, 1, with_optimizer=True)
    after, step = store.export_state(run)
    assert step == 0
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_memory_of_runs_and_versions_is_told_apart() -> None:
    store = make_store()
    empty = store.memory
    run = make_run(store)
    version = store.retain(run.version)
    elements = store.flat(run, MASTER).numel()
    assert store.memory["adapter_state_bytes"][0] == 5 * 4 * elements  # five planes
    assert store.memory["adapter_weights_bytes"][0] == 4 * elements
    store.drop(run)
    assert store.memory["adapter_state_bytes"] == empty["adapter_state_bytes"]
    store.release(version)
    assert store.memory == empty
    assert all(0 < total <= 1 << 20 for _, total in empty.values())
