"""Forks through the real client: each goes on as the original would have, and neither disturbs."""

from collections.abc import Iterator

import numpy as np
import pytest
from raw_client import RawClient
from tenants import logprobs, make_data, train

from weft.client import (
    AdamParams,
    BadRequest,
    Busy,
    Conflict,
    ModelInput,
    NotFound,
    ServiceClient,
    TrainingClient,
)
from weft.client.limits import LIMITS, Limit
from weft.client.messages import ForkRun, Query, Reply
from weft.engine import Engine

PROMPT = ModelInput.from_ints([5, 17, 3, 88, 41])


def add_gradient(run: TrainingClient, seed: int) -> float:
    return run.forward_backward(make_data(seed), "cross_entropy").result(60).metrics["loss:sum"]


def started(service: ServiceClient, model_path: str, rank: int = 8) -> TrainingClient:
    """A run with moments, and a gradient on top."""
    run = service.create_lora_training_client(model_path, rank=rank, seed=1)
    train(run, 1, 2)
    add_gradient(run, 9)
    return run


@pytest.fixture(params=["plain", "exact"])
def any_service(request: pytest.FixtureRequest) -> ServiceClient:
    name = "service" if request.param == "plain" else "exact_service"
    service: ServiceClient = request.getfixturevalue(name)
    return service


def test_a_fork_continues_bitwise_as_the_original_would(
    any_service: ServiceClient, model_path: str
) -> None:
    run = started(any_service, model_path)
    fork = run.fork()
    assert train(fork, 20, 3) == train(run, 20, 3)
    assert np.array_equal(logprobs(fork), logprobs(run))


@pytest.mark.parametrize("is_fork_trained", [True, False])
def test_training_one_leaves_the_other_as_it_was(
    any_service: ServiceClient, model_path: str, is_fork_trained: bool
) -> None:
    run = started(any_service, model_path)
    fork, twin = run.fork(), run.fork()
    trained, untouched = (fork, run) if is_fork_trained else (run, fork)
    before = logprobs(untouched)
    train(trained, 40, 2)
    assert not np.array_equal(logprobs(trained), before)
    assert np.array_equal(logprobs(untouched), before)
    assert train(untouched, 20, 2) == train(twin, 20, 2)


def test_a_fork_takes_its_place_among_pipelined_calls(
    exact_service: ServiceClient, model_path: str
) -> None:
    piped, twin = (exact_service.create_lora_training_client(model_path, seed=1) for _ in range(2))
    pending = [piped.forward_backward(make_data(seed), "cross_entropy") for seed in (1, 2)]
    step = piped.optim_step(AdamParams(learning_rate=1e-2))
    fork = piped._send_fork(None)
    after = [piped.forward_backward(make_data(3), "cross_entropy"), piped.optim_step(AdamParams())]
    for seed in (1, 2):
        add_gradient(twin, seed)
    twin.optim_step(AdamParams(learning_rate=1e-2)).result(60)
    assert np.array_equal(logprobs(fork.result(60)), logprobs(twin))
    for future in (*pending, step, *after):
        future.result(60)
    assert not np.array_equal(logprobs(piped), logprobs(twin))


def test_sixteen_forks_try_rates_from_one_gradient(
    exact_service: ServiceClient, model_path: str
) -> None:
    rates = [2.0 ** -(2 + arm / 2) for arm in range(16)]
    run = exact_service.create_lora_training_client(model_path, rank=4, seed=1)
    add_gradient(run, 1)
    arms = [run.fork({"rate": str(rate)}) for rate in rates]
    steps = [
        arm.optim_step(AdamParams(learning_rate=rate))
        for arm, rate in zip(arms, rates, strict=True)
    ]
    norms = {(step.result(60).metrics or {})["unclipped_grad_l2:mean"] for step in steps}
    assert len(norms) == 1
    for arm, rate in list(zip(arms, rates, strict=True))[::5]:
        alone = exact_service.create_lora_training_client(model_path, rank=4, seed=1)
        add_gradient(alone, 1)
        alone.optim_step(AdamParams(learning_rate=rate)).result(60)
        assert np.array_equal(logprobs(arm), logprobs(alone))
    assert (run.optim_step(AdamParams()).result(60).metrics or {})["applied_calls:sum"] == 1


def test_a_fork_samples_the_same_before_and_after_the_other_is_trained(
    service: ServiceClient, model_path: str
) -> None:
    run = started(service, model_path)
    fork = run.fork()
    samplers = [one.save_weights_and_get_sampling_client() for one in (run, fork)]
    before = samplers[0].compute_logprobs(PROMPT).result(60)
    train(run, 30, 2)
    later = fork.save_weights_and_get_sampling_client()
    for sampler in (*samplers, later):
        assert sampler.compute_logprobs(PROMPT).result(60) == before


def test_a_fork_outlives_its_source_and_forks_again(
    exact_service: ServiceClient, model_path: str
) -> None:
    run = started(exact_service, model_path)
    fork, twin = run.fork(), run.fork()
    run.close()
    second = fork.fork()
    fork.close()
    assert train(second, 20, 2) == train(twin, 20, 2)
    with pytest.raises(NotFound):
        fork.fork()


def test_a_fork_is_listed_with_its_origin(service: ServiceClient, model_path: str) -> None:
    run = started(service, model_path)
    fork = run.fork({"arm": "1"})
    described = service.create_rest_client().get_training_run(fork.model_id).result(60)
    assert (described.forked_from, described.lora_rank) == (run.model_id, 8)
    assert described.user_metadata == {"arm": "1"}
    assert fork.get_info().forked_from == run.model_id


def test_saved_states_of_a_fork_are_its_own(service: ServiceClient, model_path: str) -> None:
    run = started(service, model_path)
    fork = run.fork()
    train(run, 30, 1)
    path = fork.save_state("a").result(60).path
    assert path == f"weft://{fork.model_id}/weights/a"
    resumed = service.create_training_client_from_state_with_optimizer(path)
    fork.load_state_with_optimizer(path).result(60)
    # the same state and the same data; batches may be cut in another order
    assert train(resumed, 50, 2) == pytest.approx(train(fork, 50, 2), rel=1e-5)


def test_a_run_with_ruined_weights_cannot_be_forked(
    service: ServiceClient, model_path: str
) -> None:
    run = started(service, model_path)
    path = run.save_state("good").result(60).path
    run.optim_step(AdamParams(learning_rate=1e38)).result(60)
    with pytest.raises((BadRequest, Conflict)) as caught:
        run.fork()
    assert caught.value.code == "non_finite"
    run.load_state(path).result(60)
    assert run.fork().get_info().forked_from == run.model_id


def test_a_full_memory_refuses_a_fork_and_holds_up_nobody(
    service: ServiceClient, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "room_s", Limit(0.2, "s", "busy", ""))
    run = started(service, model_path, rank=256)
    forks: list[TrainingClient] = []
    with pytest.raises(Busy, match="no room for the training state of a fork"):
        forks.extend(run.fork() for _ in range(64))
    train(run, 20, 1)
    train(forks[-1], 20, 1)
    forks[0].close()
    assert run.fork().get_info().forked_from == run.model_id


@pytest.fixture
def raw(engine: Engine) -> Iterator[RawClient]:
    client = RawClient(engine._context, engine.address)
    yield client
    client.socket.close()


def test_a_repeated_fork_makes_one_run(raw: RawClient) -> None:
    raw.send(raw.create())
    fork = ForkRun(
        request_id=2,
        run_id=raw.run_id,
        seq=1,
        digest=b"",
        new_run_id=f"{raw.session_id}:train:1",
    )
    raw.send(fork)
    first = raw.answers(2)[2]
    raw.send(fork)
    again = raw.answers(1)[2]
    assert isinstance(first, Reply)
    assert first == again
    raw.send(Query(request_id=3, what="runs"))
    runs = raw.answers(1)[3]
    assert isinstance(runs, Reply)
    mine = [run for run in runs.result["runs"] if run["session_id"] == raw.session_id]
    assert {run["run_id"]: run["forked_from"] for run in mine} == {
        raw.run_id: "",
        fork.new_run_id: raw.run_id,
    }
