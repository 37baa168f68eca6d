"""Bad input gets a typed error, promptly, and the server lives on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tenants import VOCAB_SIZE, make_data, train

from weft.client import (
    AdamParams,
    BadRequest,
    Conflict,
    Datum,
    ModelInput,
    NotFound,
    SamplingParams,
    ServiceClient,
    TrainingClient,
)

PROMPT = ModelInput.from_ints([1, 2, 3])


def datum(tokens: list[int], **inputs: Any) -> list[Datum]:
    fields = {"target_tokens": np.array(tokens), "weights": np.ones(len(tokens), np.float32)}
    return [Datum(ModelInput.from_ints(tokens), {**fields, **inputs})]


def policy(q: float, advantage: float = 1.0, size: int = 4) -> list[Datum]:
    return [
        Datum(
            ModelInput.from_ints([1] * size),
            {
                "target_tokens": np.ones(size, np.int64),
                "logprobs": np.full(size, q, np.float32),
                "advantages": np.full(size, advantage, np.float32),
            },
        )
    ]


@pytest.fixture(scope="module")
def run(engine: Any, model_path: str) -> TrainingClient:
    made: TrainingClient = engine.client().create_lora_training_client(model_path, rank=4)
    return made


PASSES: dict[str, tuple[Callable[[], list[Datum]], str, dict[str, float] | None, str]] = {
    "unknown loss": (lambda: make_data(1), "mse", None, "mse"),
    "unknown input": (lambda: datum([1], rewards=np.ones(1, np.float32)), "cross_entropy", None,
                      "rewards"),
    "unknown option": (lambda: policy(-1.0), "ppo", {"epsilon": 0.2}, "epsilon"),
    "missing input": (lambda: make_data(1), "ppo", None, "advantages|logprobs|weights"),
    "token too large": (lambda: datum([VOCAB_SIZE]), "cross_entropy", None, str(VOCAB_SIZE)),
    "token negative": (lambda: datum([-1]), "cross_entropy", None, "-1|0"),
    "lengths differ": (lambda: datum([1, 2], weights=np.ones(3, np.float32)), "cross_entropy",
                       None, "weights"),
    "empty datum": (lambda: datum([]), "cross_entropy", None, "empty|no tokens"),
    "no data": (list, "cross_entropy", None, "data|datum"),
    "over the context": (lambda: datum([1] * 257), "cross_entropy", None, "257"),
    "nan weight": (lambda: datum([1], weights=np.array([np.nan], np.float32)), "cross_entropy",
                   None, "finite"),
    "infinite advantage": (lambda: policy(-1.0, np.inf), "ppo", None, "advantages is inf"),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_a_bad_call_is_refused_by_name_before_anything_is_sent(
    run: TrainingClient, name: str
) -> None:
    make, loss_fn, config, message = PASSES[name]
    with pytest.raises((BadRequest, ValueError), match=message):
        run.forward_backward(make(), loss_fn, config).result(60)
    assert np.isfinite(train(run, 1, 1)).all()


def test_an_absurd_sampler_probability_is_clipped_by_ppo(run: TrainingClient) -> None:
    output = run.forward_backward(policy(-1e4), "ppo").result(60)
    assert output.metrics["loss:sum"] == pytest.approx(-1.2 * 4)
    assert np.isfinite(train(run, 1, 1)).all()


def test_an_absurd_sampler_probability_overflows_importance_sampling_alone(
    run: TrainingClient,
) -> None:
    with pytest.raises(BadRequest) as caught:
        run.forward_backward(policy(-1e4), "importance_sampling").result(60)
    assert caught.value.code == "non_finite"
    assert np.isfinite(train(run, 1, 1)).all()


@pytest.mark.parametrize("rank", [0, -1, 257, 4096])
def test_a_rank_out_of_range_is_refused(service: ServiceClient, model_path: str, rank: int) -> None:
    with pytest.raises(BadRequest, match="rank"):
        service.create_lora_training_client(model_path, rank=rank)


def test_an_unknown_model_lists_what_is_served(service: ServiceClient, model_path: str) -> None:
    with pytest.raises(NotFound, match="no-such/model") as caught:
        service.create_lora_training_client("no-such/model")
    assert model_path in str(caught.value)


def test_an_adapter_without_any_target_is_refused(service: ServiceClient, model_path: str) -> None:
    with pytest.raises(BadRequest, match="train_"):
        service.create_lora_training_client(
            model_path, train_attn=False, train_mlp=False, train_unembed=False
        )


@pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden", "x" * 200, "a\x00b"])
def test_a_name_that_is_no_name_is_refused(run: TrainingClient, name: str) -> None:
    with pytest.raises(BadRequest):
        run.save_state(name).result(60)


def test_a_path_of_nobody_and_a_foreign_path_answer_alike(
    service: ServiceClient, run: TrainingClient
) -> None:
    with pytest.raises(NotFound):
        service.create_training_client_from_state(f"weft://{'0' * 32}:train:0/weights/none")
    with pytest.raises(NotFound):
        service.create_sampling_client(model_path=f"weft://{run.model_id}/sampler_weights/none")


def test_a_taken_checkpoint_name_is_a_conflict(run: TrainingClient) -> None:
    run.save_state("taken").result(60)
    with pytest.raises(Conflict):
        run.save_state("taken").result(60)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(max_tokens=0), "max_tokens"),
        (SamplingParams(max_tokens=254), "context"),
        (SamplingParams(max_tokens=4, temperature=-1.0), "temperature"),
        (SamplingParams(max_tokens=4, top_p=0.0), "top_p"),
        (SamplingParams(max_tokens=4, top_k=-7), "top_k"),
    ],
)
def test_bad_sampling_parameters_are_refused_by_name(
    service: ServiceClient, model_path: str, params: SamplingParams, message: str
) -> None:
    sampler = service.create_sampling_client(base_model=model_path)
    with pytest.raises(BadRequest, match=message):
        sampler.sample(PROMPT, 1, params).result(60)
    assert len(sampler.sample(PROMPT, 1, SamplingParams(max_tokens=2)).result(60).sequences) == 1


def test_an_optimizer_setting_out_of_range_is_refused(run: TrainingClient) -> None:
    run.forward_backward(make_data(1), "cross_entropy").result(60)
    with pytest.raises(BadRequest, match="beta1"):
        run.optim_step(AdamParams(beta1=1.5)).result(60)
    assert (run.optim_step(AdamParams()).result(60).metrics or {})["applied_calls:sum"] == 1
