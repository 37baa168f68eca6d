"""A training run: numbers, parts, results, and what is refused before it is sent."""

import asyncio
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fake_broker import DEADLINE_S, FakeBroker, failure, forward_backward, silent

from weft.client import (
    AdamParams,
    BadRequest,
    Busy,
    Conflict,
    Datum,
    ForwardBackwardOutput,
    ModelInput,
    NotFound,
    ServiceClient,
    TrainingClient,
)
from weft.client import batch as batch_module
from weft.client.limits import LIMITS, Limit
from weft.client.messages import Command


@pytest.fixture
def run(service: ServiceClient) -> TrainingClient:
    return service.create_lora_training_client("tiny", rank=4, seed=3)


def datum(*targets: int, **inputs: Any) -> Datum:
    tokens = [1] * len(targets)
    return Datum(ModelInput.from_ints(tokens), {"target_tokens": list(targets), **inputs})


def logprobs_of(output: ForwardBackwardOutput) -> list[list[float]]:
    return [
        [round(value, 4) for value in one["logprobs"].tolist()] for one in output.loss_fn_outputs
    ]


def test_commands_are_numbered_from_one_in_the_order_of_the_calls(
    broker: FakeBroker, run: TrainingClient
) -> None:
    pending: list[Any] = [
        run.forward_backward([datum(5)], "cross_entropy"),
        run.optim_step(AdamParams(learning_rate=1e-3)),
        run.forward([datum(5)], "cross_entropy"),
        run.save_state("a"),
        run.save_weights_for_sampler("b"),
        run.load_state(f"weft://{run.model_id}/weights/a"),
    ]
    for future in pending:
        future.result(DEADLINE_S)
    commands = [header for header in broker.seen if isinstance(header, Command)]
    assert [(header.kind, header.seq) for header in commands] == [
        ("create_run", 0),
        ("forward_backward", 1),
        ("optim_step", 2),
        ("forward_backward", 3),
        ("save_state", 4),
        ("save_for_sampler", 5),
        ("load_state", 6),
    ]
    assert {header.run_id for header in commands} == {run.model_id}
    assert [header.forward_only for header in broker.wait_for("forward_backward")] == [False, True]


def test_a_fork_is_ordered_like_any_command_and_goes_on_with_number_1(
    broker: FakeBroker, run: TrainingClient
) -> None:
    run.forward_backward([datum(5)], "cross_entropy")
    fork = run.fork({"arm": "3"})
    later = [run.optim_step(AdamParams()), fork.optim_step(AdamParams())]
    for future in later:
        future.result(DEADLINE_S)
    (header,) = broker.wait_for("fork_run")
    assert (header.run_id, header.seq, header.new_run_id) == (run.model_id, 2, fork.model_id)
    assert header.user_metadata == {"arm": "3"}
    steps = {(step.run_id, step.seq) for step in broker.wait_for("optim_step", 2)}
    assert steps == {(run.model_id, 3), (fork.model_id, 1)}


def test_a_fork_tells_where_it_comes_from(run: TrainingClient) -> None:
    fork = asyncio.run(run.fork_async())
    assert fork.get_info() == replace(
        run.get_info(), model_id=fork.model_id, forked_from=run.model_id
    )
    assert fork.fork().get_info().forked_from == fork.model_id


def test_a_fork_that_finds_no_room_gives_up_its_number(
    monkeypatch: pytest.MonkeyPatch, broker: FakeBroker, run: TrainingClient
) -> None:
    monkeypatch.setitem(LIMITS, "room_s", Limit(0, "s", "busy", ""))
    broker.answers["fork_run"] = lambda header, _: [failure(header, "busy", "no room", 0.001)]
    with pytest.raises(Busy, match="no room"):
        run.fork()
    (void,) = broker.wait_for("void")
    assert (void.run_id, void.first_seq, void.last_seq) == (run.model_id, 1, 1)
    run.optim_step(AdamParams()).result(DEADLINE_S)


def test_a_closed_run_takes_no_more_calls(broker: FakeBroker, run: TrainingClient) -> None:
    with run:
        run.optim_step(AdamParams()).result(DEADLINE_S)
    for call in (
        lambda: run.optim_step(AdamParams()),
        lambda: run.forward_backward([datum(5)], "cross_entropy"),
        lambda: run.save_state("a"),
        run.fork,
    ):
        with pytest.raises(NotFound, match="was closed"):
            call()
    run.close()
    assert [header.run_id for header in broker.wait_for("close_run")] == [run.model_id]


def test_a_run_closes_without_its_server(service: ServiceClient, run: TrainingClient) -> None:
    service.close()
    run.close()
    with pytest.raises(NotFound, match="was closed"):
        run.optim_step(AdamParams())


def test_a_refused_call_that_is_withdrawn_gives_up_its_number(
    broker: FakeBroker, run: TrainingClient
) -> None:
    broker.answers["save_state"] = lambda header, _: [failure(header, "busy", "full", 60.0)]
    refused = run.save_state("a")
    while not refused.waiting_for.endswith("so far"):
        broker.wait_for("save_state")
    assert refused.cancel(DEADLINE_S)
    with pytest.raises(Conflict, match="withdrawn"):
        refused.result(DEADLINE_S)
    (void,) = broker.wait_for("void")
    assert (void.first_seq, void.last_seq) == (1, 1)
    run.optim_step(AdamParams()).result(DEADLINE_S)


def test_a_call_that_no_queue_takes_fails_and_gives_up_its_number(
    monkeypatch: pytest.MonkeyPatch, broker: FakeBroker, run: TrainingClient
) -> None:
    monkeypatch.setitem(LIMITS, "admission_s", Limit(0, "s", "busy", ""))
    broker.answers["save_state"] = lambda header, _: [failure(header, "busy", "full", 0.001)]
    with pytest.raises(Busy, match="full"):
        run.save_state("a").result(DEADLINE_S)
    (void,) = broker.wait_for("void")
    assert (void.first_seq, void.last_seq) == (1, 1)


def test_outputs_come_back_datum_by_datum(run: TrainingClient) -> None:
    output = run.forward_backward(
        [datum(5), datum(6, 7, weights=[1.0, 0.0])], "cross_entropy"
    ).result(DEADLINE_S)
    assert logprobs_of(output) == [[-0.05], [-0.06, -0.07]]
    assert output.metrics == {"loss:sum": pytest.approx(0.11)}


def test_a_call_in_parts_is_one_command_and_one_result(
    monkeypatch: pytest.MonkeyPatch, broker: FakeBroker, run: TrainingClient
) -> None:
    monkeypatch.setattr(batch_module, "_PART_BYTES", 64)
    data = [datum(*range(first, first + 3)) for first in range(20)]
    output = run.forward_backward(data, "cross_entropy").result(DEADLINE_S)
    parts = broker.wait_for("forward_backward")
    assert len(parts) > 3
    assert {(part.seq, part.request_id, part.num_parts) for part in parts} == {
        (1, parts[0].request_id, len(parts))
    }
    assert len({part.digest for part in parts}) == len(parts)
    assert sum(part.num_datums for part in parts) == 20
    assert logprobs_of(output) == [
        [round(-i / 100, 4) for i in range(first, first + 3)] for first in range(20)
    ]
    assert output.metrics["loss:sum"] == pytest.approx(sum(3 * (i + 1) for i in range(20)) / 100)


def test_results_belong_to_the_caller(run: TrainingClient) -> None:
    output = run.forward([datum(5)], "cross_entropy").result(DEADLINE_S)
    output.loss_fn_outputs[0]["logprobs"].to_numpy()[0] = 1


def test_options_of_a_loss_travel_with_their_defaults(
    broker: FakeBroker, run: TrainingClient
) -> None:
    data = [datum(5, logprobs=[-1.0], advantages=[1.0])]
    run.forward_backward(data, "ppo", {"clip_low_threshold": 0.5}).result(DEADLINE_S)
    (header,) = broker.wait_for("forward_backward")
    assert header.loss_fn_config == {"clip_low_threshold": 0.5, "clip_high_threshold": 1.2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda run: run.forward_backward([datum(500)], "cross_entropy"),
            "target_tokens 500",
            id="data",
        ),
        pytest.param(
            lambda run: run.forward_backward([datum(5)], "cross_entropy", {"beta": 1.0}),
            "cross_entropy has no option 'beta'",
            id="option",
        ),
        pytest.param(lambda run: run.forward([datum(5)], "dpo"), "loss_fn 'dpo'", id="loss"),
        pytest.param(
            lambda run: run.optim_step(AdamParams(learning_rate=float("nan"))),
            "learning_rate is nan",
            id="nan rate",
        ),
        pytest.param(lambda run: run.optim_step(AdamParams(beta1=1.0)), "beta1 is 1.0", id="beta"),
        pytest.param(
            lambda run: run.optim_step(AdamParams(), adam_params=AdamParams()),
            "two names",
            id="two",
        ),
        pytest.param(lambda run: run.optim_step({}), "optim_params is", id="no parameters"),
        pytest.param(lambda run: run.save_state("a/b"), "'a/b' is no name", id="slash"),
        pytest.param(lambda run: run.save_state("../x"), "is no name", id="dots"),
        pytest.param(lambda run: run.save_state("a", ttl_seconds=0), "ttl_seconds is 0", id="ttl"),
        pytest.param(lambda run: run.load_state("/etc/passwd"), "is no path", id="path"),
        pytest.param(
            lambda run: run.save_weights_external("a", age_encryption_recipients=["age1"]),
            "age_encryption_recipients is not served",
            id="encryption",
        ),
        pytest.param(
            lambda run: run.save_state("a", user_metadata={"k": 1}), "not a string", id="metadata"
        ),
        pytest.param(
            lambda run: run.forward_backward_custom([datum(5)]), "exactly one of", id="no function"
        ),
    ],
)
def test_a_refused_call_uses_no_number(
    broker: FakeBroker, run: TrainingClient, call: Any, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        call(run)
    run.optim_step(AdamParams()).result(DEADLINE_S)
    assert [header.seq for header in broker.wait_for("optim_step")] == [1]


def test_a_failed_command_does_not_block_the_next(broker: FakeBroker, run: TrainingClient) -> None:
    broker.answers["save_state"] = lambda header, _: [failure(header, "conflict", "name taken")]
    with pytest.raises(Conflict, match="name taken"):
        run.save_state("a").result(DEADLINE_S)
    assert run.optim_step(AdamParams()).result(DEADLINE_S).metrics


def test_weights_and_states_have_paths(run: TrainingClient) -> None:
    assert run.save_state("a").result(DEADLINE_S).path == f"weft://{run.model_id}/weights/a"
    assert (
        run.save_weights_for_sampler("b").result(DEADLINE_S).path
        == f"weft://{run.model_id}/sampler_weights/b"
    )


def test_external_weights_have_a_path_and_the_size_of_an_adapter(
    broker: FakeBroker, run: TrainingClient
) -> None:
    saved = run.save_weights_external("c", ttl_seconds=60).result(DEADLINE_S)
    assert (saved.path, saved.size_bytes) == (f"weft://{run.model_id}/external_weights/c", 7)
    (header,) = broker.wait_for("save_for_sampler")
    assert (header.is_external, header.sampler_id, header.ttl_s) == (True, "", 60)


def test_coroutines_get_futures_of_commands_and_finished_clients(run: TrainingClient) -> None:
    async def train() -> list[Any]:
        passed = await run.forward_backward_async([datum(5)], "cross_entropy")
        stepped = await run.optim_step_async(AdamParams())
        sampler = await run.save_weights_and_get_sampling_client_async("ignored")
        response = await sampler.compute_logprobs_async(ModelInput.from_ints([5, 6]))
        return [(await passed).metrics, (await stepped).metrics, response]

    passed, stepped, logprobs = asyncio.run(train())
    assert passed["loss:sum"] == pytest.approx(0.05)
    assert stepped == {"unclipped_grad_l2:mean": 0.5}
    assert logprobs == [None, pytest.approx(-0.06)]


def test_a_client_is_its_own_future(run: TrainingClient) -> None:
    async def wait() -> TrainingClient:
        return await run

    assert run.result() is run
    assert asyncio.run(wait()) is run


def test_the_info_is_known_without_asking(run: TrainingClient) -> None:
    info = run.get_info()
    assert (info.model_id, info.lora_rank, info.lora_alpha, info.model_name) == (
        run.model_id,
        4,
        32.0,
        "tiny",
    )
    with pytest.raises(NotFound, match="no tokenizer for tiny"):
        run.get_tokenizer()


def test_an_unpickled_run_goes_on_with_the_next_number(ipc_broker: FakeBroker) -> None:
    with ServiceClient(base_url=ipc_broker.address, api_key="") as service:
        run = service.create_lora_training_client("tiny")
        run.optim_step(AdamParams()).result(DEADLINE_S)
        pickle.loads(pickle.dumps(run)).optim_step(AdamParams()).result(DEADLINE_S)
    assert [header.seq for header in ipc_broker.wait_for("optim_step")] == [1, 2]


# --- custom losses --------------------------------------------------------------------------------


def squares(data: list[Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
    loss = torch.stack([(one**2).sum() for one in logprobs]).sum()
    return loss, {"largest:max": max(one.detach().abs().max() for one in logprobs)}


def numpy_squares(data: list[Datum], logprobs: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
    return float(sum((one**2).sum() for one in logprobs)), [2 * one for one in logprobs]


@pytest.mark.parametrize(
    "functions", [{"loss_fn": squares}, {"numpy_fn": numpy_squares}], ids=["torch", "numpy"]
)
def test_a_custom_loss_is_sent_as_signed_weights(
    broker: FakeBroker, run: TrainingClient, functions: dict[str, Any]
) -> None:
    data = [datum(5), datum(6, 7)]
    output = run.forward_backward_custom(data, **functions).result(DEADLINE_S)
    first, second = broker.wait_for("forward_backward", 2)
    assert [(first.seq, first.forward_only), (second.seq, second.forward_only)] == [
        (1, True),
        (2, False),
    ]
    sent = broker.arrays[broker.seen.index(second)]
    assert sent["weights"].tolist() == pytest.approx([0.1, 0.12, 0.14])  # -2 lp
    assert output.metrics["loss:sum"] == pytest.approx(0.05**2 + 0.06**2 + 0.07**2)
    assert output.metrics["surrogate_loss:sum"] == pytest.approx(2 * output.metrics["loss:sum"])


def test_metrics_of_a_custom_loss_are_the_callers(run: TrainingClient) -> None:
    output = run.forward_backward_custom([datum(5)], squares).result(DEADLINE_S)
    assert output.metrics["largest:max"] == pytest.approx(0.05)


def test_calls_made_meanwhile_come_after_the_custom_loss(
    broker: FakeBroker, run: TrainingClient
) -> None:
    custom = run.forward_backward_custom([datum(5)], squares)
    stepped = run.optim_step(AdamParams())
    stepped.result(DEADLINE_S)
    custom.result(DEADLINE_S)
    assert [header.seq for header in broker.wait_for("optim_step")] == [3]


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        pytest.param(lambda data, lp: 1 / 0, ZeroDivisionError, "division", id="raises"),
        pytest.param(lambda data, lp: lp[0], BadRequest, "must return", id="no pair"),
        pytest.param(lambda data, lp: (lp[0], {}), BadRequest, "one element", id="no scalar"),
        pytest.param(
            lambda data, lp: ((lp[0] * float("inf")).sum(), {}),
            BadRequest,
            "weights is -?inf",
            id="infinite gradient",
        ),
    ],
)
def test_a_custom_loss_that_fails_gives_up_its_number(
    broker: FakeBroker, run: TrainingClient, function: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        run.forward_backward_custom([datum(5, 6)], function).result(DEADLINE_S)
    (void,) = broker.wait_for("void")
    assert (void.run_id, void.first_seq, void.last_seq) == (run.model_id, 2, 2)
    run.optim_step(AdamParams()).result(DEADLINE_S)
    assert [header.seq for header in broker.wait_for("optim_step")] == [3]


def test_numpy_gradients_must_have_the_shape_of_the_logprobs(run: TrainingClient) -> None:
    with pytest.raises(BadRequest, match="gradients of shapes"):
        run.forward_backward_custom(
            [datum(5, 6)], numpy_fn=lambda data, lp: (1.0, [np.zeros(3)])
        ).result(DEADLINE_S)


def test_a_failed_first_pass_gives_up_the_second_number(
    broker: FakeBroker, run: TrainingClient
) -> None:
    broker.answers["forward_backward"] = lambda header, _: [failure(header, "non_finite", "nan")]
    with pytest.raises(BadRequest, match="nan"):
        run.forward_backward_custom([datum(5)], squares).result(DEADLINE_S)
    (void,) = broker.wait_for("void")
    assert void.first_seq == 2


def test_a_loss_without_gradient_sends_zeros(broker: FakeBroker, run: TrainingClient) -> None:
    run.forward_backward_custom([datum(5)], lambda data, lp: (torch.tensor(3.0), {})).result(
        DEADLINE_S
    )
    second = broker.wait_for("forward_backward", 2)[1]
    assert broker.arrays[broker.seen.index(second)]["weights"].tolist() == [0]


def test_a_silent_first_pass_is_what_a_custom_loss_waits_for(
    broker: FakeBroker, run: TrainingClient
) -> None:
    broker.answers["forward_backward"] = silent
    pending = run.forward_backward_custom([datum(5)], squares)
    (first,) = broker.wait_for("forward_backward")
    assert pending.waiting_for.startswith("forward_backward")
    broker.answers["forward_backward"] = forward_backward
    ((answer, frames),) = forward_backward(first, broker.arrays[broker.seen.index(first)])
    broker.push((answer, frames))
    assert pending.result(DEADLINE_S).metrics["loss:sum"] == pytest.approx(0.0025)
