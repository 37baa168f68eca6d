"""Fields of the requests about sessions, of what is kept, and of what is not served."""

from datetime import UTC, datetime, timedelta
from typing import Any

from fields import Bench, Check, refused, tells
from internals import post
from tinker import types
from tinker.lib.client_connection_pool_type import ClientConnectionPoolType
from tinker.types.generic_event import GenericEvent
from tinker.types.telemetry_send_request import TelemetrySendRequest

NOBODY = "0" * 32
SECRET = "tml-never-to-be-kept"


def _session(bench: Bench, **changed: Any) -> Any:
    fields = {"tags": [], "user_metadata": None, "sdk_version": "0.38.0", **changed}
    return bench.run("service.create_session", types.CreateSessionRequest(**fields)).session_id


def _told(bench: Bench, **changed: Any) -> Any:
    return bench.rest.get_session(_session(bench, **changed)).result()


def _logged(bench: Bench, words: str) -> bool:
    return words in bench.server.log


def _config(bench: Bench) -> bool:
    request = types.ClientConfigRequest(sdk_version="99.0.0")
    return bool(bench.run("service.client_config", request).sample_use_retrieve_futures)


def _heartbeat(bench: Bench) -> Any:
    async def send() -> Any:
        with bench.holder.aclient(ClientConnectionPoolType.SESSION) as client:
            return await client.service.session_heartbeat(session_id=NOBODY)

    return bench.holder.run_coroutine_threadsafe(send()).result(timeout=30)


def _copied(bench: Bench, **changed: Any) -> str:
    """Copy a state by the inner client."""
    path = changed.pop("source_path", None) or bench.trainer().save_state("kept").result().path
    fields = {
        "session_id": bench.session_id,
        "model_seq_id": bench.holder.get_training_client_id(),
        "source_path": path,
        **changed,
    }
    answer = post(bench.holder, "models", "copy_weights", types.CopyWeightsRequest(**fields))
    return str(answer.tinker_path)


def _run_of(path: str) -> str:
    return str(types.ParsedCheckpointTinkerPath.from_tinker_path(path).training_run_id)


def _lifetime(bench: Bench) -> float:
    found = bench.checkpoint(_copied(bench, ttl_seconds=7200))
    return float(round((found.expires_at - found.time).total_seconds(), -2))


def _search(**changed: Any) -> Check:
    request = types.SessionSearchRequest(**changed)
    return refused(lambda b: b.rest.search_sessions(request).result(), "sessions/search")


def _custom(bench: Bench) -> Any:
    node = types.CustomLossNode(op="output", name="out", target="output")
    request = types.CreateCustomLossRequest(
        session_id=bench.session_id,
        custom_loss_seq_id=0,
        name="mine",
        inputs=[types.CustomLossInput(name="logprobs", rank=1)],
        graph=types.CustomLossGraph(nodes=[node]),
    )
    return bench.run("service.create_custom_loss", request)


def _telemetry(bench: Bench) -> bool:
    """What is told is taken, and its words are found nowhere afterwards."""
    event = GenericEvent(
        event="GENERIC_EVENT",
        event_id="1",
        event_name="name",
        event_session_index=0,
        severity="ERROR",
        timestamp=datetime.now(UTC),
        event_data={"headers": {"x-api-key": SECRET}},
    )
    request = TelemetrySendRequest(
        events=[event],
        platform=SECRET,
        sdk_version=SECRET,
        session_id=SECRET,
        process_uuid=SECRET,
    )

    async def send() -> Any:
        with bench.holder.aclient(ClientConnectionPoolType.TELEMETRY) as client:
            return await client.telemetry.send(request=request)

    assert bench.holder.run_coroutine_threadsafe(send()).result(timeout=30).status == "accepted"
    kept = [path for path in bench.server.folder.rglob("*") if path.is_file()]
    return any(SECRET.encode() in path.read_bytes() for path in kept)


def _admin(bench: Bench) -> Any:
    from tinker import AdminClient

    return AdminClient(base_url=bench.server.url, api_key=bench.server.key)


def _billed(bench: Bench) -> Any:
    now = datetime.now(UTC)
    return _admin(bench).get_billing_usage(now - timedelta(days=1), now).result()


CUSTOM = refused(_custom, "create_custom_loss")
BILLING = refused(_billed, "billing/usage/events")
UNKEPT = tells(_telemetry, False)

CASES: dict[str, Check] = {
    # The version is only written down; a server may one day answer another otherwise.
    "ClientConfigRequest.sdk_version": tells(_config, True),
    "CreateSessionRequest.sdk_version": tells(
        lambda b: bool(_session(b, sdk_version="99.0.0")), True
    ),
    # Tags are kept for the operator; the SDK has no call that reads them.
    "CreateSessionRequest.tags": tells(lambda b: bool(_session(b, tags=["mine"])), True),
    "CreateSessionRequest.user_metadata": tells(
        lambda b: _told(b, user_metadata={"a": "b"}).user_metadata, {"a": "b"}
    ),
    "CreateSessionRequest.display_name": tells(
        lambda b: _told(b, display_name="a name").display_name, "a name"
    ),
    "CreateSessionRequest.project_id": refused(
        lambda b: _session(b, project_id="mine"), "project_id"
    ),
    "SessionHeartbeatRequest.session_id": refused(_heartbeat, NOBODY),
    "CopyWeightsRequest.session_id": refused(lambda b: _copied(b, session_id=NOBODY), NOBODY),
    "CopyWeightsRequest.model_seq_id": tells(
        lambda b: _run_of(_copied(b, model_seq_id=79)), lambda b: f"{b.session_id}:train:79"
    ),
    "CopyWeightsRequest.source_path": refused(
        lambda b: _copied(b, source_path=f"tinker://{NOBODY}:train:0/weights/kept"), NOBODY
    ),
    "CopyWeightsRequest.destination_project_id": refused(
        lambda b: _copied(b, destination_project_id="mine", session_id=None, model_seq_id=None),
        "destination_project_id",
    ),
    "CopyWeightsRequest.ttl_seconds": tells(_lifetime, 7200.0),
    "CopyWeightsRequest.weights_access_token": refused(
        lambda b: _copied(b, weights_access_token="secret"), "[tT]oken"
    ),
    "SessionSearchRequest.session_id": _search(session_id=NOBODY),
    "SessionSearchRequest.project_ids": _search(project_ids=["mine"]),
    "SessionSearchRequest.user_metadata": _search(user_metadata={"a": "b"}),
    "SessionSearchRequest.display_name": _search(display_name="a name"),
    "SessionSearchRequest.owner": _search(owner=types.AccessibleSearchOwner()),
    "SessionSearchRequest.statuses": _search(statuses=[types.ActiveSessionStatusQuery()]),
    "SessionSearchRequest.limit": _search(limit=3),
    "SessionSearchRequest.cursor": _search(
        cursor=types.SessionSearchCursor(
            last_created_at=datetime(2026, 1, 1, tzinfo=UTC), last_session_id=NOBODY
        )
    ),
    **{
        f"SessionSearchCursor.{field}": _search(limit=3)
        for field in ("last_created_at", "last_session_id")
    },
    **{
        f"CreateCustomLossRequest.{field}": CUSTOM
        for field in ("session_id", "custom_loss_seq_id", "name", "inputs", "graph")
    },
    **dict.fromkeys(
        ("CustomLossInput.name", "CustomLossInput.rank", "CustomLossGraph.nodes"), CUSTOM
    ),
    "GetBillingUsageRequest.starting_on": BILLING,
    "GetBillingUsageRequest.ending_before": BILLING,
    "GetCurrentCheckpointStorageUsageRequest.project_id": refused(
        lambda b: _admin(b).get_current_checkpoint_storage_usage("mine").result(),
        "billing/usage/checkpoints/current",
    ),
    **{
        f"TelemetrySendRequest.{field}": UNKEPT
        for field in ("events", "platform", "sdk_version", "session_id", "process_uuid")
    },
}
