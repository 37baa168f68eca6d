"""What the broker refuses by its books: names, paths, ranks, models."""

from dataclasses import replace
from typing import Any

import pytest
from core_bench import (
    CARD,
    OTHER,
    RUN,
    SESSION,
    CoreBench,
    checkpoint,
    create_run,
    create_sampler,
    digest,
    dispatched,
    forward_backward,
    optim_step,
    ready_bench,
    save_for_sampler,
    save_state,
    told,
)

from weft.client.messages import LoadState
from weft.engine.broker.events import CatalogLoaded

SAVED = f"weft://{RUN}/weights/saved"
FROZEN = f"weft://{RUN}/sampler_weights/frozen"


def load_state(seq: int, path: str) -> LoadState:
    return LoadState(
        request_id=10 + seq,
        run_id=RUN,
        seq=seq,
        digest=digest(f"load{seq}"),
        path=path,
        with_optimizer=True,
    )


def saved_bench(**fields: Any) -> CoreBench:
    """A bench whose catalog holds a training state and sampler weights."""
    bench = ready_bench()
    frozen = checkpoint("frozen", path=FROZEN, **fields)
    bench.handle(CatalogLoaded((checkpoint("saved", path=SAVED, **fields), frozen)))
    return bench


@pytest.mark.parametrize("rank", [0, -1, 17, 4096])
def test_a_rank_beyond_the_models_is_refused(rank: int) -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    assert told(bench.say(create_run(rank=rank))) == [(1, "bad_request")]


def test_a_run_must_train_something() -> None:
    bench = CoreBench()
    bench.hello()
    header = create_run(train_attn=False, train_mlp=False)
    assert told(bench.say(header)) == [(1, "bad_request")]


def test_a_run_must_train_what_its_model_has() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker(card=replace(CARD, targets=["attn", "unembed"]))
    header = create_run(train_attn=True, train_mlp=True)
    assert told(bench.say(header)) == [(1, "bad_request")]
    other = create_run(2, f"{SESSION}:train:1", train_attn=True, train_mlp=False)
    assert dispatched(bench.say(other)) == [("create_run", 0)]


@pytest.mark.parametrize("name", ["", "a/b", "..", "../x", ".hidden", "a\x00b", "x" * 200, "a b"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    bench = ready_bench()
    assert told(bench.say(save_state(1, name=name))) == [(11, "bad_request")]


def test_a_name_that_is_taken_needs_overwrite() -> None:
    bench = saved_bench()
    assert told(bench.say(save_state(1, name="saved"))) == [(11, "conflict")]
    assert dispatched(bench.say(save_state(2, name="saved", overwrite=True))) == [("save_state", 2)]
    taken = save_for_sampler(3, name="frozen", sampler_id="")
    assert told(bench.say(taken)) == [(13, "conflict")]


def test_saving_for_a_sampler_needs_a_name_or_a_sampler() -> None:
    bench = ready_bench()
    assert told(bench.say(save_for_sampler(1, sampler_id=""))) == [(11, "bad_request")]


def test_checkpoints_of_a_tenant_are_bounded() -> None:
    bench = ready_bench(checkpoints=1)
    bench.handle(CatalogLoaded((checkpoint("only"),)))
    assert told(bench.say(save_state(1, name="another"))) == [(11, "too_large")]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("weft://nonsense", "bad_request"),
        ("/etc/passwd", "bad_request"),
        (f"weft://{RUN}/weights/../x", "bad_request"),
        (f"weft://{RUN}/weights/absent", "not_found"),
    ],
)
def test_a_state_that_is_not_there_cannot_be_loaded(path: str, code: str) -> None:
    bench = saved_bench()
    assert told(bench.say(load_state(1, path))) == [(11, code)]
    assert told(bench.say(create_run(request_id=5, run_id=RUN[:-1] + "1", from_path=path))) == [
        (5, code)
    ]


@pytest.mark.parametrize("kind", ["sampler_weights", "external_weights"])
def test_weights_of_any_kind_are_trained_from_but_bring_no_optimizer(kind: str) -> None:
    bench = ready_bench()
    path = f"weft://{RUN}/{kind}/w"
    bench.handle(CatalogLoaded((checkpoint("w", path=path, has_optimizer=False),)))
    run_id = f"{SESSION}:train:1"
    refused = create_run(5, run_id, from_path=path, with_optimizer=True)
    assert told(bench.say(refused)) == [(5, "not_found")]
    fresh = create_run(6, f"{SESSION}:train:2", from_path=path, digest=digest("fresh"))
    assert dispatched(bench.say(fresh)) == [("create_run", 0)]


def test_a_run_loads_the_weights_that_it_is_saving() -> None:
    bench = ready_bench()
    bench.say(save_for_sampler(1, name="w", sampler_id=""))
    load = replace(load_state(2, f"weft://{RUN}/sampler_weights/w"), with_optimizer=False)
    assert dispatched(bench.say(load)) == [("load_state", 2)]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"name": ""}, id="no name"),
        pytest.param({"name": "", "sampler_id": ""}, id="neither"),
        pytest.param({"name": "w"}, id="a sampler, too"),
        pytest.param({"name": "taken", "sampler_id": ""}, id="a name that is taken"),
    ],
)
def test_external_weights_are_a_file_of_a_free_name(fields: dict[str, str]) -> None:
    bench = ready_bench()
    path = f"weft://{RUN}/external_weights/taken"
    bench.handle(CatalogLoaded((checkpoint("taken", path=path),)))
    header = save_for_sampler(1, is_external=True, **fields)
    assert told(bench.say(header)) == [
        (11, "conflict" if fields.get("name") == "taken" else "bad_request")
    ]


def test_a_foreign_state_cannot_be_loaded() -> None:
    bench = saved_bench(tenant="somebody else")
    assert told(bench.say(load_state(1, SAVED))) == [(11, "not_found")]
    assert told(bench.say(create_sampler(5, model_path=FROZEN))) == [(5, "not_found")]


def test_a_state_may_be_loaded_before_its_saving_is_done() -> None:
    bench = ready_bench()
    bench.say(save_state(1, name="new"))
    path = f"weft://{RUN}/weights/new"
    assert dispatched(bench.say(load_state(2, path))) == [("load_state", 2)]


def test_a_run_starts_from_a_state_on_a_worker_with_its_model() -> None:
    bench = saved_bench()
    second = create_run(request_id=5, run_id=RUN[:-1] + "1", base_model="", from_path=SAVED)
    assert dispatched(bench.say(second)) == [("create_run", 0)]


def test_a_state_of_another_model_is_refused() -> None:
    bench = saved_bench(base_model="llama")
    second = create_run(request_id=5, run_id=RUN[:-1] + "1", from_path=SAVED)
    assert told(bench.say(second)) == [(5, "bad_request")]


def test_a_model_that_nobody_knows_is_not_that_of_a_state() -> None:
    bench = saved_bench()
    second = create_run(5, RUN[:-1] + "1", base_model="no/such", from_path=SAVED)
    assert told(bench.say(second)) == [(5, "bad_request")]


@pytest.mark.parametrize("path", [SAVED, FROZEN])
def test_a_sampler_opens_on_saved_weights_of_both_kinds(path: str) -> None:
    bench = saved_bench()
    actions = bench.say(create_sampler(5, model_path=path))
    assert dispatched(actions) == [("create_sampler", 5)]


@pytest.mark.parametrize(
    "fields",
    [
        {"loss_fn": "magic"},
        {"num_tokens": 0},
        {"num_datums": 0},
        {"num_datums": 9, "num_tokens": 8},
        {"num_parts": 0},
        {"part": 1},
        {"part": -1},
    ],
)
def test_a_bad_part_is_refused(fields: dict[str, Any]) -> None:
    bench = ready_bench()
    (answer,) = told(bench.say(forward_backward(1, **fields)))
    assert answer[1] in ("bad_request", "malformed", "too_large")
    assert dispatched(bench.say(optim_step(2))) == [("optim_step", 2)]


def test_a_later_part_may_hold_nothing_but_targets() -> None:
    bench = ready_bench()
    more = {"num_parts": 2, "part": 1, "num_datums": 0, "num_tokens": 0}
    assert told(bench.say(forward_backward(1, num_parts=2))) == []
    assert dispatched(bench.say(forward_backward(1, **more))) == [("forward_backward", 1)] * 2


def test_number_0_is_for_create_run_only() -> None:
    bench = CoreBench()
    bench.hello()
    bench.add_worker()
    assert told(bench.say(create_run(seq=1))) == [(1, "bad_request")]
    assert told(bench.say(optim_step(0, run_id=f"{OTHER}:train:0"))) == [(10, "not_found")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", float("nan")),
        ("learning_rate", -1.0),
        ("beta1", 1.0),
        ("beta2", -0.5),
        ("eps", float("inf")),
        ("weight_decay", -1.0),
        ("grad_clip_norm", float("nan")),
    ],
)
def test_an_optimizer_step_out_of_range_is_refused(field: str, value: float) -> None:
    bench = ready_bench()
    assert told(bench.say(optim_step(1, **{field: value}))) == [(11, "bad_request")]
    assert dispatched(bench.say(optim_step(2))) == [("optim_step", 2)]
