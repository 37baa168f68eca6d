"""Checkpoints that leave their run: for programs elsewhere, other tenants, later servers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tenants import logprobs, train

from weft.client import ModelInput, SamplingParams, ServiceClient, TrainingClient
from weft.client.errors import NotFound
from weft.engine.embedded import Engine

PROMPT = ModelInput.from_ints([5, 17, 3])
GREEDY = SamplingParams(max_tokens=4, temperature=0.0, stop=[])


@pytest.fixture
def other(engine: Engine) -> Iterator[ServiceClient]:
    with engine.client(tenant="other") as client:
        yield client


@pytest.fixture
def run(service: ServiceClient, model_path: str) -> TrainingClient:
    run = service.create_lora_training_client(model_path, rank=4, seed=3)
    train(run, 0, 2)
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_everything(client: ServiceClient, path: str, folder: Path) -> str:
    """All that can be done with a checkpoint that one may read; returns the path of a copy."""
    rest = client.create_rest_client()
    assert rest.get_weights_info_by_tinker_path(path).result(60).lora_rank == 4
    rest.export_peft(path, folder)
    client.create_sampling_client(path).sample(PROMPT, 1, GREEDY).result(60)
    client.create_training_client_from_state(path)
    return client.copy_weights(path).result(60)


def test_weights_of_any_kind_are_trained_from_with_a_fresh_optimizer(
    service: ServiceClient, run: TrainingClient
) -> None:
    frozen = run.save_weights_for_sampler("w").result(60).path or ""
    external = run.save_weights_external("w").result(60).path
    before = logprobs(run).tobytes()
    for path in (frozen, external):
        begun = service.create_training_client_from_state(path)
        assert logprobs(begun).tobytes() == before
        train(begun, 3, 1)
        begun.load_state(path).result(60)
        assert logprobs(begun).tobytes() == before
        with pytest.raises(NotFound, match="holds no optimizer state"):
            service.create_training_client_from_state_with_optimizer(path)


def test_external_weights_are_the_adapter_that_an_export_writes(
    service: ServiceClient, run: TrainingClient, tmp_path: Path
) -> None:
    saved = run.save_weights_external("e", ttl_seconds=3600).result(60)
    rest = service.create_rest_client()
    (found,) = rest.list_checkpoints(run.model_id).result(60).checkpoints
    assert (found.checkpoint_type, found.checkpoint_id) == ("external", "external_weights/e")
    assert round((found.expires_at or 0) - found.time) == 3600
    exported = files(rest.export_peft(saved.path, tmp_path / "e"))
    assert sum(map(len, exported.values())) == saved.size_bytes == found.size_bytes
    assert exported == files(run.export_peft(tmp_path / "again"))


def test_a_public_checkpoint_is_everybodys_to_read_and_its_owners_to_change(
    service: ServiceClient, run: TrainingClient, other: ServiceClient, tmp_path: Path
) -> None:
    path = run.save_state("s", user_metadata={"a": "b"}).result(60).path
    mine, theirs = service.create_rest_client(), other.create_rest_client()
    with pytest.raises(NotFound):
        theirs.get_weights_info_by_tinker_path(path).result(60)
    mine.publish_checkpoint_from_tinker_path(path).result(60)
    assert mine.list_checkpoints(run.model_id).result(60).checkpoints[0].public
    copy = read_everything(other, path, tmp_path / "theirs")
    begun = other.create_training_client_from_state_with_optimizer(path)
    assert logprobs(begun).tobytes() == logprobs(run).tobytes()
    (listed,) = theirs.list_user_checkpoints().result(60).checkpoints
    assert (listed.tinker_path, listed.public) == (copy, False)
    for change in (
        theirs.delete_checkpoint_from_tinker_path(path),
        theirs.unpublish_checkpoint_from_tinker_path(path),
        theirs.set_checkpoint_ttl_from_tinker_path(path, 60),
        theirs.rename_checkpoint(path, "mine"),
        theirs.get_training_run(run.model_id),
    ):
        with pytest.raises(NotFound):
            change.result(60)
    mine.unpublish_checkpoint_from_tinker_path(path).result(60)
    assert [_outcome(client, path) for client in (other, service)] == ["not_found", ""]
    assert [_outcome(client, copy) for client in (other, service)] == ["", "not_found"]


def _outcome(client: ServiceClient, path: str) -> str:
    """The error that training from a checkpoint gives, "" for none."""
    try:
        client.create_training_client_from_state(path).close()
    except NotFound as error:
        return error.code
    return ""


def test_runs_and_sessions_of_before_a_restart_are_told_by_what_was_saved(
    model_path: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"memory_bytes": 1 << 30, "state_dir": str(tmp_path)}
    with Engine(model_path, **settings) as engine, engine.client() as client:
        run = client.create_lora_training_client(model_path, rank=4, train_mlp=False)
        state = run.save_state("s").result(60).path
        copy = client.copy_weights(state, ttl_seconds=3600).result(60)
        client.create_rest_client().publish_checkpoint_from_tinker_path(state).result(60)
        run.save_weights_external("e").result(60)
        session_id = client.connection.session_id
    with Engine(model_path, **settings) as engine, engine.client() as client:
        rest = client.create_rest_client()
        told = rest.get_training_run(run.model_id).result(60)
        assert (told.base_model, told.lora_rank, told.corrupted) == (model_path, 4, False)
        assert told.last_checkpoint is not None
        assert (told.last_checkpoint.tinker_path, told.last_checkpoint.public) == (state, True)
        found = rest.get_session(session_id).result(60)
        assert (found.is_ended, found.training_run_ids[0]) == (True, run.model_id)
        ids = [one.training_run_id for one in rest.list_training_runs().result(60).training_runs]
        assert ids == [run.model_id, copy.split("/")[2]]
        assert rest.list_sessions().result(60).sessions[-1] == session_id
        again = client.create_training_client_from_state_with_optimizer(copy)
        assert again.get_info().lora_rank == 4
        with engine.client(tenant="other") as other:
            assert _outcome(other, state) == ""
            assert _outcome(other, copy) == "not_found"
