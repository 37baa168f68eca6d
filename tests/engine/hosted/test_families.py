"""Architectures of transformers, each through its own code: what is adapted, numbers, gradients."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hosted_models import FAMILIES, Family, own_module, save_family
from hosted_steps import Unit, gradients, make_run, make_store, plain_step, train_step

from weft.engine.hosted.load import load_hosted
from weft.engine.hosted.model import PackedModel, SequentialHosted

# float32, another order of summation; recurrences and random routers carry it along.
TOLERANCE = 1e-3


@dataclass
class Loaded:
    family: Family
    path: Path
    model: PackedModel | SequentialHosted


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    path = save_family(tmp_path_factory.mktemp(request.param), request.param)
    return Loaded(FAMILIES[request.param], path, load_hosted(path))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-12))


def test_how_it_runs_and_what_is_adapted_is_as_documented(loaded: Loaded) -> None:
    model, family = loaded.model, loaded.family
    assert model.runs_on == family.runs_on
    assert {site.name.rsplit(".", 1)[1] for site in model.sites[:-1]} == set(family.adapted)
    targets = {site.family for site in model.sites}
    assert targets == set(family.targets)
    reasons = {note.rsplit("(", 1)[1][:-1] for note in model.notes if note.startswith("frozen")}
    assert reasons == set(family.frozen)


def test_adapted_logprobs_and_gradients_are_those_of_its_own_code(loaded: Loaded) -> None:
    model, module = loaded.model, own_module(loaded.path)
    store = make_store(model)
    wide = make_run(store, 5, 1, loaded.family.targets)
    narrow = make_run(store, 2, 2, ("attn",))
    tenants = [
        [Unit.random(wide, 9, 0), Unit.random(wide, 21, 1)],
        [Unit.random(narrow, 13, 2)],
        [Unit.random(None, 11, 3)],
    ]

    found = iter(train_step(model, store, [unit for tenant in tenants for unit in tenant]))

    for tenant in tenants:
        expected, wanted = plain_step(module, store, tenant)
        for logprobs_T in expected:
            assert error(next(found), logprobs_T) < TOLERANCE
        run = tenant[0].run
        mine = {} if run is None else gradients(store, run)
        assert mine.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert error(mine[name], gradient) < TOLERANCE, name
