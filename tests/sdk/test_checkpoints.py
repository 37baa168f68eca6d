"""Save, load, fork and expire through the official SDK."""

from typing import Any

import numpy as np
import pytest
from talking import assert_close, datum, refusal, rest_of, scores, settled, since, step, until
from tinker import ServiceClient

PARAMS: dict[str, Any] = {"learning_rate": 1e-2, "eps": 1e-8}


def test_a_saved_state_makes_the_same_client_again(service: ServiceClient, trainer: Any) -> None:
    step(trainer)
    path = trainer.save_state("kept").result().path
    assert path == f"tinker://{trainer.get_info().model_id}/weights/kept"
    copy = settled(service.create_training_client_from_state(path))
    assert_close(scores(copy), scores(trainer))
    assert copy.get_info().model_data.model_name == "weft/tiny"
    assert copy.get_info().lora_rank == 4


def test_a_fork_and_its_origin_go_separate_ways(service: ServiceClient, trainer: Any) -> None:
    step(trainer)
    copy = settled(
        service.create_training_client_from_state(trainer.save_state("kept").result().path)
    )
    before = scores(trainer)
    step(copy)
    assert_close(scores(trainer), before)
    assert np.abs(scores(copy) - before).max() > 1e-2


def test_the_optimizer_comes_along_only_where_it_is_asked_for(
    service: ServiceClient, trainer: Any
) -> None:
    for _ in range(3):
        step(trainer, **PARAMS)
    path = trainer.save_state("kept").result().path
    whole = settled(service.create_training_client_from_state_with_optimizer(path))
    fresh = settled(service.create_training_client_from_state(path))
    for each in (trainer, whole, fresh):
        step(each, "an owl by night", **PARAMS)
    assert_close(scores(whole), scores(trainer))
    assert np.abs(scores(fresh) - scores(trainer)).max() > 1e-3


def test_a_client_goes_back_to_a_state(trainer: Any) -> None:
    step(trainer, **PARAMS)
    path = trainer.save_state("kept").result().path
    before = scores(trainer)
    step(trainer, **PARAMS)
    trainer.load_state(path).result()
    assert_close(scores(trainer), before)
    step(trainer, **PARAMS)
    trainer.load_state_with_optimizer(path).result()
    assert_close(scores(trainer), before)


def test_another_session_of_the_key_loads_it(server: Any, trainer: Any) -> None:
    step(trainer)
    path = trainer.save_state("kept").result().path
    other = ServiceClient(base_url=server.url, api_key=server.key)
    copy = settled(other.create_training_client_from_state(path))
    assert_close(scores(copy), scores(trainer))
    other.close("success").result()


def test_a_name_is_taken_until_it_may_be_overwritten(service: ServiceClient, trainer: Any) -> None:
    path = trainer.save_state("kept").result().path
    step(trainer)
    with pytest.raises(Exception, match="kept"):
        trainer.save_state("kept").result()
    assert trainer.save_state("kept", overwrite=True).result().path == path
    copy = settled(service.create_training_client_from_state(path))
    assert_close(scores(copy), scores(trainer))


def test_a_checkpoint_expires_when_it_is_told_to(trainer: Any, rest: Any) -> None:
    trainer.save_state("brief", ttl_seconds=3600).result()
    trainer.save_weights_for_sampler("brief", ttl_seconds=7200).result()
    trainer.save_state("kept").result()
    listed = rest.list_checkpoints(trainer.get_info().model_id).result().checkpoints
    lives = {
        each.checkpoint_id: each.expires_at and (each.expires_at - each.time).total_seconds()
        for each in listed
    }
    assert lives == {
        "weights/brief": pytest.approx(3600, abs=5),
        "sampler_weights/brief": pytest.approx(7200, abs=5),
        "weights/kept": None,
    }


def test_a_checkpoint_keeps_its_metadata(trainer: Any, rest: Any) -> None:
    trainer.save_state("kept", user_metadata={"note": "first"}).result()
    trainer.save_weights_for_sampler("kept", user_metadata={"note": "second"}).result()
    listed = rest.list_checkpoints(trainer.get_info().model_id).result().checkpoints
    notes = {each.checkpoint_id: each.user_metadata for each in listed}
    assert notes == {
        "weights/kept": {"note": "first"},
        "sampler_weights/kept": {"note": "second"},
    }


def test_a_session_that_disappears_leaves_its_checkpoints(server: Any, service: Any) -> None:
    """As a killed program does: without a finish."""
    gone = ServiceClient(base_url=server.url, api_key=server.key)
    trainer = settled(gone.create_lora_training_client("weft/tiny", rank=4, seed=1))
    trainer.forward_backward([datum("the red fox sees")], "cross_entropy")
    path = trainer.save_state("kept").result().path
    copy = settled(service.create_training_client_from_state_with_optimizer(path))
    assert_close(scores(copy), scores(trainer))


@until(0, 33)
def test_a_state_can_be_copied_and_outlives_its_origin(
    service: ServiceClient, trainer: Any
) -> None:
    step(trainer)
    path = trainer.save_state("kept").result().path
    copied = service.copy_weights(path, ttl_seconds=3600).result()
    assert copied != path
    rest_of(service).delete_checkpoint_from_tinker_path(path).result()
    copy = settled(service.create_training_client_from_state(copied))
    assert_close(scores(copy), scores(trainer))


@since(0, 36)
def test_copies_go_to_projects_which_are_not_served(trainer: Any, rest: Any) -> None:
    path = trainer.save_state("kept").result().path
    said = refusal(lambda: rest.copy_weights(path, "mine").result())
    assert "destination_project_id" in said
