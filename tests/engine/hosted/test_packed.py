"""Packed batches of a hosted model: every sequence as if it were alone."""

import pytest
import torch
from hosted_models import save_family
from hosted_steps import Unit, gradients, make_run, make_store, train_step

from weft.engine.adapters.store import AdapterStore, Run
from weft.engine.hosted.load import load_hosted
from weft.engine.hosted.model import PackedModel, SequentialHosted

LENGTHS = (5, 40, 12)


@pytest.fixture(scope="module", params=["gemma3_text", "gpt_oss"])  # windows; sinks and experts
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PackedModel | SequentialHosted:
    return load_hosted(save_family(tmp_path_factory.mktemp("model"), request.param))


def tenants(model: PackedModel | SequentialHosted) -> tuple[AdapterStore, list[Run]]:
    """Mixed ranks and mixed targets."""
    store = make_store(model)
    families = tuple({site.family for site in model.sites})
    kinds = ((1, families), (16, ("attn",)), (6, ("unembed",)))
    return store, [make_run(store, rank, rank, chosen) for rank, chosen in kinds]


def test_together_is_as_one_by_one(model: PackedModel) -> None:
    found: list[list[torch.Tensor]] = []
    for is_packed in (True, False):
        store, runs = tenants(model)
        units = [Unit.random(run, length, length) for run in runs for length in LENGTHS]
        batches = [units] if is_packed else [[unit] for unit in units]
        logprobs = [each for batch in batches for each in train_step(model, store, batch)]
        matrices = [matrix for run in runs for matrix in gradients(store, run).values()]
        found.append(logprobs + matrices)
    for mine, other in zip(*found, strict=True):
        # float32: batches of other shapes sum in another order
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_the_nan_of_a_neighbour_stays_its_own(model: PackedModel) -> None:
    results = []
    for is_poisoned in (False, True):
        store, runs = tenants(model)
        if is_poisoned:
            store.version_flat(runs[1].version).fill_(torch.nan)
        units = [Unit.random(run, 17, 3) for run in runs]
        logprobs = train_step(model, store, units)
        results.append((logprobs, [gradients(store, run) for run in runs]))
    (clean, clean_gradients), (poisoned, poisoned_gradients) = results
    assert poisoned[1].isnan().all()
    for place in (0, 2):
        torch.testing.assert_close(poisoned[place], clean[place], rtol=1e-4, atol=1e-5)
        for name, gradient in clean_gradients[place].items():
            torch.testing.assert_close(
                poisoned_gradients[place][name], gradient, rtol=1e-4, atol=1e-5
            )


def test_activations_cannot_be_recomputed(model: PackedModel) -> None:
    with pytest.raises(ValueError, match="does not compute activations again"):
        model.forward(None, None, None, None, checkpoint_layers=[0])  # type: ignore[arg-type]
