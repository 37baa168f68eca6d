"""What is not served: refused at once, by name, and written to the log."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from serving import Server
from talking import datum, prompt, refusal, settled, since, text
from tinker import ServiceClient, types


def test_images_in_a_prompt(service: ServiceClient) -> None:
    sampler = settled(service.create_sampling_client(base_model="weft/tiny"))
    image = types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=4)
    pictured = types.ModelInput(chunks=[types.EncodedTextChunk(tokens=text("a ")), image])
    params = types.SamplingParams(max_tokens=1)
    assert "image" in refusal(lambda: sampler.sample(pictured, 1, params).result())


def test_images_in_a_datum(trainer: Any) -> None:
    image = types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=1)
    pictured = types.Datum(
        model_input=types.ModelInput(chunks=[image]),
        loss_fn_inputs={"target_tokens": np.array([1]), "weights": np.ones(1, np.float32)},
    )
    assert "image" in refusal(lambda: trainer.forward([pictured], "cross_entropy").result())


@since(0, 36)
def test_stable_reinforce(service: ServiceClient, trainer: Any) -> None:
    sampler = settled(trainer.save_weights_and_get_sampling_client(record_stability_info=True))
    params = types.SamplingParams(max_tokens=1)
    said = refusal(lambda: sampler.sample(prompt("the "), 1, params).result())
    assert "record_stability_info" in said
    data = [datum("the red fox")]
    said = refusal(lambda: trainer.forward_backward(data, "stable_reinforce").result())
    assert "stable_reinforce" in said


@since(0, 36)
def test_dimuon(service: ServiceClient, trainer: Any) -> None:
    def create() -> Any:
        optimizer = types.DimuonOptimizerConfig()
        return settled(
            service.create_lora_training_client("weft/tiny", rank=4, optimizer=optimizer)
        )

    assert "dimuon" in refusal(create)
    params = types.DimuonParams(learning_rate=0.1)
    assert "dimuon" in refusal(lambda: trainer.optim_step(params).result())


@since(0, 36)
def test_custom_losses_are_not_kept_by_the_server_but_run_all_the_same(
    service: ServiceClient, trainer: Any
) -> None:
    """A handle works: the client/config makes the SDK run it itself."""

    def likelihood(logprobs: Any) -> Any:
        return -logprobs.sum(), {}

    handle = service.create_custom_loss(likelihood, {"logprobs": 1}).result()
    data = [datum("the red fox")]
    own = trainer.forward_backward_custom(data, handle).result().metrics["loss:sum"]
    usual = trainer.forward(data, "cross_entropy").result().metrics["loss:sum"]
    assert own == pytest.approx(usual, rel=1e-4)


@since(0, 38)
def test_samplers_that_follow_the_training(trainer: Any) -> None:
    said = refusal(lambda: settled(trainer.save_weights_and_get_sampling_client(kind="inflight")))
    assert "inflight" in said


def test_projects(server: Server, trainer: Any, rest: Any) -> None:
    session_id = trainer.get_info().model_id.split(":")[0]
    assert "project" in refusal(lambda: rest.assign_session_project(session_id, "mine").result())
    assert "project" in refusal(lambda: rest.list_training_runs(project_id="mine").result())
    service = ServiceClient(project_id="mine", base_url=server.url, api_key=server.key)
    assert "project_id" in refusal(
        lambda: settled(service.create_sampling_client(base_model="weft/tiny"))
    )


@since(0, 33)
def test_encrypted_exports(trainer: Any) -> None:
    said = refusal(
        lambda: trainer.save_weights_external("x", age_encryption_recipients=["age1"]).result()
    )
    assert "age_encryption_recipients" in said


def test_audits_bills_and_traces(trainer: Any, rest: Any) -> None:
    session_id = trainer.get_info().model_id.split(":")[0]
    day = datetime(2026, 1, 1, tzinfo=UTC)
    calls = {
        "audit": lambda: rest.get_audit_log().result(),
        "billing": lambda: rest.get_billing_usage(day, day).result(),
        "trace_export": lambda: rest.export_session_trace(session_id).result(),
    }
    for name, call in calls.items():
        assert name in refusal(call)


def test_it_is_logged(server: Server, trainer: Any, rest: Any) -> None:
    refusal(lambda: rest.assign_session_project("0" * 32, "a-project").result())
    assert "code=not_served" in server.log
