"""The whole of the rest client."""

from typing import Any
from urllib.request import urlopen

import pytest
from talking import VERSION, settled, since, step, until
from tinker import NotFoundError, ServiceClient

SESSION = {"recipe": "test"}


@pytest.fixture
def service(server: Any) -> Any:
    """A session with metadata, and a name where the SDK can give one."""
    name = {"display_name": "a name"} if VERSION >= (0, 36) else {}
    client = ServiceClient(user_metadata=SESSION, base_url=server.url, api_key=server.key, **name)
    yield client
    client.close("success")


@pytest.fixture
def trainer(service: ServiceClient) -> Any:
    """A run with metadata, a state and weights to sample from."""
    made = settled(
        service.create_lora_training_client(
            "weft/tiny", rank=4, train_mlp=False, user_metadata={"kind": "first"}
        )
    )
    made.save_state("one").result()
    made.save_weights_for_sampler("two").result()
    return made


def test_a_run_is_described(trainer: Any, rest: Any) -> None:
    run_id = trainer.get_info().model_id
    run = rest.get_training_run(run_id).result()
    assert (run.training_run_id, run.base_model, run.is_lora) == (run_id, "weft/tiny", True)
    assert (run.lora_rank, run.corrupted, run.user_metadata) == (4, False, {"kind": "first"})
    assert run.last_checkpoint.tinker_path == f"tinker://{run_id}/weights/one"
    assert run.last_sampler_checkpoint.tinker_path == f"tinker://{run_id}/sampler_weights/two"
    by_path = rest.get_training_run_by_tinker_path(f"tinker://{run_id}/weights/one").result()
    assert by_path.training_run_id == run_id


def test_runs_are_listed_newest_first_page_by_page(service: Any, trainer: Any, rest: Any) -> None:
    second = settled(service.create_lora_training_client("weft/tiny", rank=4))
    second.save_state("one").result()
    ids = [second.get_info().model_id, trainer.get_info().model_id]
    first_page = rest.list_training_runs(limit=1).result()
    second_page = rest.list_training_runs(limit=1, offset=1).result()
    pages = [first_page.training_runs, second_page.training_runs]
    assert [[run.training_run_id for run in page] for page in pages] == [[ids[0]], [ids[1]]]
    assert (first_page.cursor.limit, second_page.cursor.offset) == (1, 1)
    assert first_page.cursor.total_count >= 2


def test_checkpoints_are_listed_per_run_and_per_user(trainer: Any, rest: Any) -> None:
    run_id = trainer.get_info().model_id
    of_run = rest.list_checkpoints(run_id).result().checkpoints
    assert {(each.checkpoint_id, each.checkpoint_type) for each in of_run} == {
        ("weights/one", "training"),
        ("sampler_weights/two", "sampler"),
    }
    assert all(each.size_bytes > 0 and not each.public for each in of_run)
    of_user = rest.list_user_checkpoints(limit=2).result()
    assert {each.tinker_path for each in of_user.checkpoints} == {
        each.tinker_path for each in of_run
    }
    assert of_user.cursor.total_count >= 2


def test_the_weights_of_a_path_are_described(trainer: Any, rest: Any) -> None:
    run_id = trainer.get_info().model_id
    info = rest.get_weights_info_by_tinker_path(f"tinker://{run_id}/weights/one").result()
    assert (info.base_model, info.is_lora, info.lora_rank) == ("weft/tiny", True, 4)
    assert (info.train_attn, info.train_mlp, info.train_unembed) == (True, False, True)


def test_a_session_is_described_and_listed(service: Any, trainer: Any, rest: Any) -> None:
    run_id = trainer.get_info().model_id
    session_id = run_id.split(":")[0]
    session = rest.get_session(session_id).result()
    assert session.training_run_ids == [run_id]
    if VERSION >= (0, 36):
        assert session.user_metadata == SESSION
        assert session.display_name == "a name"
    assert session_id in rest.list_sessions(limit=50).result().sessions
    assert len(rest.list_sessions(limit=1).result().sessions) == 1


def test_a_deleted_checkpoint_is_gone(trainer: Any, rest: Any) -> None:
    run_id = trainer.get_info().model_id
    rest.delete_checkpoint(run_id, "weights/one").result()
    rest.delete_checkpoint_from_tinker_path(f"tinker://{run_id}/sampler_weights/two").result()
    assert rest.list_checkpoints(run_id).result().checkpoints == []
    with pytest.raises(NotFoundError):
        rest.delete_checkpoint(run_id, "weights/one").result()


def test_a_checkpoint_is_public_while_it_is_published(trainer: Any, rest: Any) -> None:
    run_id = trainer.get_info().model_id
    path = f"tinker://{run_id}/weights/one"

    def is_public() -> bool:
        (found,) = [
            each
            for each in rest.list_checkpoints(run_id).result().checkpoints
            if each.tinker_path == path
        ]
        return bool(found.public)

    rest.publish_checkpoint_from_tinker_path(path).result()
    assert is_public()
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not is_public()


def test_a_lifetime_is_set_and_taken_away(trainer: Any, rest: Any) -> None:
    run_id = trainer.get_info().model_id
    path = f"tinker://{run_id}/weights/one"

    def expiry() -> Any:
        (found,) = [
            each
            for each in rest.list_checkpoints(run_id).result().checkpoints
            if each.tinker_path == path
        ]
        return found.expires_at

    rest.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    assert expiry() is not None
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert expiry() is None


def test_the_server_says_what_it_serves(server: Any, rest: Any) -> None:
    with_session = ServiceClient(base_url=server.url, api_key=server.key)
    served = with_session.get_server_capabilities().supported_models
    assert [model.model_name for model in served] == ["weft/tiny"]
    assert served[0].max_context_length == 4096


def test_external_weights_are_fetched_without_a_key(trainer: Any, rest: Any) -> None:
    step(trainer)
    saved = trainer.save_weights_external("out", ttl_seconds=3600).result()
    signed = rest.get_external_weights_urls(saved.path).result()
    assert set(signed.urls) == {"adapter_config.json", "adapter_model.safetensors"}
    assert signed.expires.tzinfo is not None
    sizes = []
    for url in signed.urls.values():
        with urlopen(url, timeout=30) as answer:
            sizes.append(int(answer.headers["Content-Length"]))
            assert len(answer.read()) == sizes[-1]
    assert all(size > 0 for size in sizes)


@until(0, 33)
def test_older_sdks_get_an_archive(trainer: Any, rest: Any) -> None:
    run_id = trainer.get_info().model_id
    signed = rest.get_checkpoint_archive_url(run_id, "weights/one").result()
    with urlopen(signed.url, timeout=30) as answer:
        assert len(answer.read()) > 1000


@since(0, 36)
def test_sessions_are_searched(service: Any, trainer: Any, rest: Any) -> None:
    """Not served: refused by name, at once."""
    from tinker.types import SessionSearchRequest

    with pytest.raises(Exception, match="search"):
        rest.search_sessions(SessionSearchRequest(display_name="a name")).result(timeout=20)


@since(0, 38)
def test_a_rest_client_needs_no_session(server: Any) -> None:
    from tinker import RestClient

    alone = RestClient(base_url=server.url, api_key=server.key)
    assert alone.get_server_capabilities().result().supported_models
