"""What is kept on the server: asked for page by page, and changed."""

from typing import Any

import pytest
from fake_broker import FakeBroker, reply

from weft.client import (
    BadRequest,
    Cursor,
    GetSamplerResponse,
    GetSessionResponse,
    RestClient,
    ServiceClient,
    WeightsInfoResponse,
)
from weft.client.file_messages import CopyCheckpoint, PublishCheckpoint

SESSION = "0" * 32
RUN = f"{SESSION}:train:0"
STATE = f"weft://{RUN}/weights/a"
KINDS = ("sampler_weights", "weights", "external_weights")


def saved(number: int, **fields: Any) -> dict[str, Any]:
    """A checkpoint as the broker tells it."""
    given = {
        "path": f"weft://{number:032x}:train:0/{KINDS[number % 3]}/a",
        "time": float(number),
        "size_bytes": 10 * number,
        "public": number == 1,
        "user_metadata": {},
        "expires": 9.0 * (number == 1),
        "has_optimizer": number == 1,
        "base_model": "tiny",
        "rank": 8,
        "alpha": 32.0,
        "train_attn": True,
        "train_mlp": False,
        "train_unembed": True,
    }
    return given | fields


def entry(number: int) -> dict[str, Any]:
    """A run as the broker tells it."""
    return {
        "run_id": f"{number:032x}:train:0",
        "owner": "somebody",
        "base_model": "tiny",
        "rank": 8,
        "alpha": 32.0,
        "is_lost": number == 1,
        "last_request_time": float(number),
        "last_checkpoint": saved(1) if number == 1 else None,
        "last_sampler_checkpoint": saved(0) if number == 1 else None,
        "forked_from": RUN if number == 1 else "",
        "user_metadata": {"n": str(number)},
    }


SESSION_FIELDS = {
    "opened": 5.0,
    "is_ended": True,
    "ending": "done",
    "display_name": "Mine",
    "tags": ["x"],
    "user_metadata": {"a": "b"},
}


def pages(header: Any, arrays: Any) -> Any:
    """Five entries of each list, at most two a page."""
    match header.what:
        case "run":
            return [reply(header, entry(1))]
        case "sampler":
            fields = {"base_model": "tiny", "model_path": "" if header.subject == "base" else STATE}
            return [reply(header, {"sampler_id": header.subject, **fields})]
        case "checkpoints" if header.subject.startswith("weft://"):
            return [reply(header, {"checkpoints": [saved(1)], "next": -1, "total": 1})]
    make: Any = {
        "runs": entry,
        "checkpoints": saved,
        "sessions": lambda number: {"session_id": f"{number:032x}", **SESSION_FIELDS},
        "session": lambda number: f"{RUN[:-1]}{number}",
    }[header.what]
    last = min(header.offset + (min(header.limit, 2) or 2), 5)
    found = [make(number) for number in range(header.offset, last)]
    rest = {"next": last if last < 5 else -1, "total": 5}
    if header.what == "session":
        runs = {"run_ids": [f"{SESSION}:train:0"] if not header.offset else []}
        return [reply(header, {**SESSION_FIELDS, **runs, "sampler_ids": found, **rest})]
    return [reply(header, {header.what: found, **rest})]


@pytest.fixture
def rest(broker: FakeBroker, service: ServiceClient) -> RestClient:
    broker.answers["query"] = pages
    return service.create_rest_client()


def asked(broker: FakeBroker) -> list[tuple[int, int]]:
    return [(header.offset, header.limit) for header in broker.wait_for("query")]


def test_runs_are_asked_for_until_there_are_enough(broker: FakeBroker, rest: RestClient) -> None:
    answer = rest.list_training_runs(limit=3, offset=1).result(20)
    assert [run.user_metadata["n"] for run in answer.training_runs] == ["1", "2", "3"]
    assert answer.cursor == Cursor(offset=1, limit=3, total_count=5)
    assert asked(broker) == [(1, 3), (3, 1)]


def test_a_list_that_ends_early_is_all_there_is(broker: FakeBroker, rest: RestClient) -> None:
    assert len(rest.list_training_runs(limit=100, offset=3).result(20).training_runs) == 2
    assert asked(broker) == [(3, 100)]


def test_a_run_is_told_with_its_last_checkpoints(broker: FakeBroker, rest: RestClient) -> None:
    run = rest.get_training_run_by_tinker_path(STATE).result(20)
    assert broker.wait_for("query")[0].subject == RUN
    assert (run.model_owner, run.is_lora, run.lora_rank) == ("somebody", True, 8)
    assert (run.corrupted, run.forked_from, run.last_request_time) == (True, RUN, 1.0)
    assert run.last_checkpoint is not None
    assert run.last_sampler_checkpoint is not None
    assert run.last_checkpoint.tinker_path == saved(1)["path"]
    assert run.last_sampler_checkpoint.checkpoint_type == "sampler"


def test_a_run_that_has_nothing_says_so(rest: RestClient) -> None:
    run = rest.list_training_runs(limit=1).result(20).training_runs[0]
    found = (run.last_request_time, run.last_checkpoint, run.last_sampler_checkpoint)
    assert (found, run.forked_from, run.corrupted) == ((None, None, None), None, False)


def test_checkpoints_are_told_with_their_kind_and_who_may_read_them(rest: RestClient) -> None:
    answer = rest.list_user_checkpoints().result(20)
    types = [checkpoint.checkpoint_type for checkpoint in answer.checkpoints]
    assert types == ["sampler", "training", "external", "sampler", "training"]
    assert answer.cursor == Cursor(offset=0, limit=100, total_count=5)
    first, second = answer.checkpoints[:2]
    assert (first.checkpoint_id, first.public, first.expires_at) == (
        "sampler_weights/a",
        False,
        None,
    )
    assert (second.public, second.expires_at, second.has_optimizer) == (True, 9.0, True)
    assert (second.size_bytes, second.tinker_path) == (10, saved(1)["path"])


def test_the_checkpoints_of_a_run_are_all_of_them(broker: FakeBroker, rest: RestClient) -> None:
    answer = rest.list_checkpoints(RUN).result(20)
    assert (len(answer.checkpoints), answer.cursor) == (5, None)
    assert asked(broker) == [(0, 0), (2, 0), (4, 0)]


def test_a_checkpoint_says_what_it_was_trained_on(rest: RestClient) -> None:
    assert rest.get_weights_info_by_tinker_path(STATE).result(20) == WeightsInfoResponse(
        base_model="tiny",
        lora_rank=8,
        lora_alpha=32.0,
        train_unembed=True,
        train_mlp=False,
        train_attn=True,
        has_optimizer=True,
    )


def test_sessions_are_listed_by_id(broker: FakeBroker, rest: RestClient) -> None:
    found = rest.list_sessions(limit=3, offset=2).result(20).sessions
    assert found == [f"{number:032x}" for number in (2, 3, 4)]
    assert asked(broker) == [(2, 3), (4, 1)]


def test_a_session_is_told_whole(rest: RestClient) -> None:
    assert rest.get_session(SESSION).result(20) == GetSessionResponse(
        training_run_ids=[f"{SESSION}:train:0"],
        sampler_ids=[f"{RUN[:-1]}{number}" for number in range(5)],
        user_metadata={"a": "b"},
        display_name="Mine",
        tags=["x"],
        opened=5.0,
        is_ended=True,
        ending="done",
    )


@pytest.mark.parametrize(("sampler_id", "path"), [("base", None), ("saved", STATE)])
def test_a_sampler_is_told(rest: RestClient, sampler_id: str, path: str | None) -> None:
    found = rest.get_sampler(sampler_id).result(20)
    expected = GetSamplerResponse(sampler_id=sampler_id, base_model="tiny", model_path=path)
    assert found == expected


def test_a_checkpoint_is_published_and_taken_back(broker: FakeBroker, rest: RestClient) -> None:
    broker.answers["publish_checkpoint"] = lambda header, _: [reply(header, {})]
    assert rest.publish_checkpoint_from_tinker_path(STATE).result(20) is None
    assert rest.unpublish_checkpoint_from_tinker_path(STATE).result(20) is None
    sent = [header for header in broker.seen if isinstance(header, PublishCheckpoint)]
    assert [(header.path, header.public) for header in sent] == [(STATE, True), (STATE, False)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_kind_and_name_of_its_source(
    broker: FakeBroker, rest: RestClient, service: ServiceClient, kind: str
) -> None:
    broker.answers["copy_checkpoint"] = lambda header, _: [reply(header, {"path": header.target})]
    source = f"weft://{'f' * 32}:train:5/{kind}/a"
    copy = rest.copy_weights(source, ttl_seconds=60, user_metadata={"a": "b"}).result(20)
    again = service.copy_weights(source).result(20)
    session_id = service.connection.session_id
    assert [copy, again] == [f"weft://{session_id}:train:{n}/{kind}/a" for n in range(2)]
    first, second = (header for header in broker.seen if isinstance(header, CopyCheckpoint))
    assert (first.path, first.ttl_s, first.user_metadata) == (source, 60, {"a": "b"})
    assert (second.ttl_s, second.user_metadata) == (0, {})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda r: r.list_training_runs(limit=0), "limit is 0", id="limit"),
        pytest.param(lambda r: r.list_user_checkpoints(offset=-1), "offset is -1", id="offset"),
        pytest.param(lambda r: r.list_sessions(limit=True), "limit is True", id="bool"),
        pytest.param(lambda r: r.list_sessions(offset=2**63), "offset is 9223", id="large"),
        pytest.param(lambda r: r.publish_checkpoint_from_tinker_path("a"), "no path", id="publish"),
        pytest.param(lambda r: r.copy_weights("a"), "is no path", id="copy"),
        pytest.param(lambda r: r.copy_weights(STATE, "p"), "destination_project_id", id="project"),
        pytest.param(
            lambda r: r.copy_weights(STATE, weights_access_token="t"), "access_token", id="token"
        ),
        pytest.param(lambda r: r.copy_weights(STATE, ttl_seconds=0), "ttl_seconds", id="ttl"),
    ],
)
def test_bad_arguments_are_refused(rest: RestClient, call: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        call(rest)
