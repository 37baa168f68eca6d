"""Every loss through the real client: against the caller's own formula, cut up, and among others."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from docs_pages import DOCS
from loss_data import as_sparse, loss_data, policy_data, soft_data
from plain_losses import POLICY, plain_losses
from tenants import VOCAB_SIZE, grad_norm, logprobs, make_data
from transformers import AutoModelForCausalLM

from weft.client import AdamParams, Datum, ServiceClient, TrainingClient
from weft.client.errors import BadRequest
from weft.client.losses import LOSSES

# float32 sums of some hundred terms in another order.
ROUNDING = 1e-5


def new_runs(service: ServiceClient, model_path: str, number: int) -> list[TrainingClient]:
    return [service.create_lora_training_client(model_path, rank=7, seed=3) for _ in range(number)]


@pytest.mark.parametrize("loss_fn", POLICY)
def test_a_loss_equals_the_callers_own_formula(
    service: ServiceClient, model_path: str, loss_fn: str
) -> None:
    data = policy_data(1, loss_fn)

    def own(data: list[Datum], logprobs: list[torch.Tensor]) -> Any:
        losses = [
            plain_losses(loss_fn, one, {k: v.array for k, v in datum.loss_fn_inputs.items()})
            for datum, one in zip(data, logprobs, strict=True)
        ]
        return torch.cat(losses).sum(), {}

    built_in, custom = new_runs(service, model_path, 2)
    found = built_in.forward_backward(data, loss_fn).result(60)
    expected = custom.forward_backward_custom(data, own).result(60)
    assert found.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=ROUNDING)
    assert grad_norm(built_in) == pytest.approx(grad_norm(custom), rel=ROUNDING)
    np.testing.assert_allclose(logprobs(built_in), logprobs(custom), rtol=0, atol=1e-4)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_several_targets_have_the_log_probabilities_of_transformers(
    service: ServiceClient, model_path: str, is_sparse: bool
) -> None:
    data = soft_data(1, 6)
    data = [as_sparse(datum) for datum in data] if is_sparse else data
    (run,) = new_runs(service, model_path, 1)
    output = run.forward(data, "cross_entropy").result(60)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    loss = 0.0
    for datum, one in zip(data, output.loss_fn_outputs, strict=True):
        targets = datum.loss_fn_inputs["target_tokens"]
        tokens = torch.tensor(datum.model_input.to_ints())
        with torch.no_grad():
            exact = model(tokens[None]).logits[0].double().log_softmax(1)
        picked = exact.gather(1, targets.to_torch()).numpy()
        expected = (
            picked if targets.csr is None else targets.csr.spread(targets.csr.collect(picked))
        )
        assert one["logprobs"].csr == targets.csr
        np.testing.assert_allclose(one["logprobs"].to_numpy(), expected, rtol=0, atol=1e-4)
        loss -= float((datum.loss_fn_inputs["weights"].to_numpy() * expected).sum())
    assert output.metrics["loss:sum"] == pytest.approx(loss, rel=1e-4)


def test_several_targets_equal_a_call_for_each_of_them(
    service: ServiceClient, model_path: str
) -> None:
    data = soft_data(2, 3)
    one, many = new_runs(service, model_path, 2)
    whole = one.forward_backward(data, "cross_entropy").result(60)
    losses = []
    for column in range(3):
        single = [
            Datum(
                datum.model_input,
                {name: value.array[:, column] for name, value in datum.loss_fn_inputs.items()},
            )
            for datum in data
        ]
        passed = many.forward_backward(single, "cross_entropy").result(60)
        losses.append(passed.metrics["loss:sum"])
    assert sum(losses) == pytest.approx(whole.metrics["loss:sum"], rel=ROUNDING)
    assert grad_norm(many) == pytest.approx(grad_norm(one), rel=ROUNDING)
    np.testing.assert_allclose(logprobs(many), logprobs(one), rtol=0, atol=1e-4)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_custom_loss_of_several_targets_equals_their_weights(
    service: ServiceClient, model_path: str, is_sparse: bool
) -> None:
    data = soft_data(3, 4)
    data = [as_sparse(datum) for datum in data] if is_sparse else data
    weights = [datum.loss_fn_inputs["weights"].to_torch() for datum in data]

    def own(data: list[Datum], logprobs: list[torch.Tensor]) -> Any:
        assert [one.shape for one in logprobs] == [one.shape for one in weights]
        terms = [-(one * weight).sum() for one, weight in zip(logprobs, weights, strict=True)]
        return torch.stack(terms).sum() + sum(one.sum() * 0 for one in logprobs), {"n": 1.0}

    plain, custom = new_runs(service, model_path, 2)
    expected = plain.forward_backward(data, "cross_entropy").result(60)
    found = custom.forward_backward_custom(data, own).result(60)
    for name in ("loss:sum", "surrogate_loss:sum"):  # the latter is of the weights that were sent
        assert found.metrics[name] == pytest.approx(expected.metrics["loss:sum"], rel=ROUNDING)
    assert grad_norm(custom) == pytest.approx(grad_norm(plain), rel=ROUNDING)


def test_a_custom_loss_in_numpy_gives_gradients_in_the_shape_of_its_targets(
    service: ServiceClient, model_path: str
) -> None:
    data = [as_sparse(datum) for datum in soft_data(4, 4)]
    plain, custom = new_runs(service, model_path, 2)
    expected = plain.forward_backward(data, "cross_entropy").result(60).metrics["loss:sum"]

    def own(data: list[Datum], logprobs: list[np.ndarray]) -> Any:
        # What a gradient says of targets that are not listed is not used.
        weights = [datum.loss_fn_inputs["weights"].to_numpy() for datum in data]
        pairs = zip(logprobs, weights, strict=True)
        return 0.0, [np.where(one == 0, 7, -weight) for one, weight in pairs]

    found = custom.forward_backward_custom(data, numpy_fn=own).result(60)
    assert found.metrics["surrogate_loss:sum"] == pytest.approx(expected, rel=ROUNDING)
    assert grad_norm(custom) == pytest.approx(grad_norm(plain), rel=ROUNDING)


def test_negative_weights_turn_the_gradient_around(
    exact_service: ServiceClient, model_path: str
) -> None:
    up, down = new_runs(exact_service, model_path, 2)
    losses = [
        run.forward_backward(make_data(1, weight=weight), "cross_entropy").result(60)
        for run, weight in ((up, 1.0), (down, -1.0))
    ]
    assert losses[0].metrics["loss:sum"] == -losses[1].metrics["loss:sum"]
    down.forward_backward(make_data(1, weight=2.0), "cross_entropy").result(60)
    assert grad_norm(up) == pytest.approx(grad_norm(down), rel=ROUNDING)


@pytest.mark.parametrize("loss_fn", [*LOSSES, "several targets"])
def test_many_calls_equal_one_call_to_the_bit_where_the_units_are_the_same(
    exact_service: ServiceClient, model_path: str, loss_fn: str
) -> None:
    is_soft = loss_fn == "several targets"
    name = "cross_entropy" if is_soft else loss_fn
    calls = [soft_data(seed, 5) if is_soft else loss_data(seed, name) for seed in (1, 2, 3)]
    one, many = new_runs(exact_service, model_path, 2)
    whole = one.forward_backward([datum for call in calls for datum in call], name).result(60)
    parts = [many.forward_backward(call, name).result(60) for call in calls]
    losses = [part.metrics["loss:sum"] for part in parts]
    assert sum(losses) == pytest.approx(whole.metrics["loss:sum"], rel=1e-12)
    assert grad_norm(many) == grad_norm(one)
    np.testing.assert_array_equal(logprobs(many), logprobs(one))


def test_a_mixed_batch_of_every_loss_gives_each_what_it_has_alone(
    exact_service: ServiceClient, model_path: str
) -> None:
    names = [*LOSSES, "cross_entropy"]
    calls = [loss_data(7 + index, name) for index, name in enumerate(names)]
    calls[-1] = soft_data(3, 9)
    alone, together = (new_runs(exact_service, model_path, len(names)) for _ in range(2))
    expected = [
        run.forward_backward(call, name).result(60)
        for run, call, name in zip(alone, calls, names, strict=True)
    ]
    futures = [
        run.forward_backward(call, name)
        for run, call, name in zip(together, calls, names, strict=True)
    ]
    for future, one in zip(futures, expected, strict=True):
        found = future.result(60)
        assert found.metrics["loss:sum"] == one.metrics["loss:sum"]
        assert found.loss_fn_outputs == one.loss_fn_outputs
    assert [grad_norm(run) for run in together] == [grad_norm(run) for run in alone]


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_forward_alone_gives_the_same_loss_and_no_gradient(
    exact_service: ServiceClient, model_path: str, loss_fn: str
) -> None:
    data = loss_data(4, loss_fn)
    (run,) = new_runs(exact_service, model_path, 1)
    only = run.forward(data, loss_fn).result(60)
    with pytest.raises(BadRequest, match="gradient"):
        run.optim_step(AdamParams()).result(60)
    both = run.forward_backward(data, loss_fn).result(60)
    assert only.metrics["loss:sum"] == pytest.approx(both.metrics["loss:sum"], rel=1e-6)
    assert only.loss_fn_outputs == both.loss_fn_outputs


def test_targets_over_several_parts_come_back_whole(
    service: ServiceClient, model_path: str
) -> None:
    data = soft_data(5, 700, (200, 3, 150))
    (run,) = new_runs(service, model_path, 1)
    output = run.forward(data, "cross_entropy").result(60)
    for datum, one in zip(data, output.loss_fn_outputs, strict=True):
        first = Datum(
            datum.model_input, {"target_tokens": datum.loss_fn_inputs["target_tokens"].array[:, 0]}
        )
        (expected,) = run.forward([first], "cross_entropy").result(60).loss_fn_outputs
        found = one["logprobs"].to_numpy()
        np.testing.assert_allclose(found[:, 0], expected["logprobs"].to_numpy(), rtol=0, atol=1e-4)
        assert np.isfinite(found).all()


def test_a_policy_that_sampled_what_it_trains_on_has_ratio_1(
    exact_service: ServiceClient, model_path: str
) -> None:
    (run,) = new_runs(exact_service, model_path, 1)
    data = policy_data(1, "ppo")
    for datum, one in zip(data, run.forward(data, "ppo").result(60).loss_fn_outputs, strict=True):
        datum.loss_fn_inputs["logprobs"] = one["logprobs"]
    metrics = run.forward_backward(data, "ppo").result(60).metrics
    assert metrics["ratio:mean"] == metrics["ratio:max"] == 1
    assert metrics["kl_sample_train_v1:mean"] == metrics["kl_sample_train_v2:mean"] == 0
    assert metrics["clip_fraction:mean"] == 0
    assert metrics["entropy:mean"] == pytest.approx(np.log(VOCAB_SIZE), rel=0.1)
    assert (metrics["num_datums:sum"], metrics["num_tokens:sum"]) == (2, 64)
    assert metrics["num_loss_tokens:sum"] == 54
    assert metrics["queue_s:max"] >= 0
    assert metrics["compute_s:sum"] > 0


def test_every_metric_is_documented_and_every_documented_one_is_there(
    service: ServiceClient, model_path: str
) -> None:
    (run,) = new_runs(service, model_path, 1)

    def nothing(data: list[Datum], logprobs: list[np.ndarray]) -> Any:
        return 0.0, [0 * one for one in logprobs]

    outputs = [run.forward(loss_data(1, loss_fn), loss_fn).result(60) for loss_fn in LOSSES]
    outputs.append(run.forward_backward_custom(make_data(1), numpy_fn=nothing).result(60))
    found = {name for output in outputs for name in output.metrics}
    assert found == set(re.findall(r"^\| `(\w+:\w+)`", (DOCS / "losses.md").read_text(), re.M))
