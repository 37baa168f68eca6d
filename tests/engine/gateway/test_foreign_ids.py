"""Every route with another tenant's ids answers as it does with ids of nothing.

A route that is not in the table makes a test fail.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from gateways import (
    Answer,
    Caller,
    Stand,
    model_fields,
    pass_body,
    sample_fields,
    standing,
    step_fields,
)

from weft.engine.gateway.routes import ROUTES


@dataclass(frozen=True)
class Ids:
    """What a caller may name."""

    session: str
    future: str  # the number of a future
    sample: str
    name: str = "a"  # of the checkpoints

    @property
    def run(self) -> str:
        return f"{self.session}:train:0"

    @property
    def sampler(self) -> str:
        return f"{self.session}:sample:0"

    def path(self, kind: str = "weights") -> str:
        return f"tinker://{self.run}/{kind}/{self.name}"

    def hide(self, answer: Answer) -> tuple[int, str]:
        """Status and body without the ids."""
        text = answer.body.decode().replace("weft://", "tinker://")
        for part in (self.session, self.future, self.sample):
            text = text.replace(part, "*")
        return answer.status, text


UNKNOWN = Ids("0" * 32, str((1 << 61) + 1), str((1 << 61) + 2))
_RUN = "/api/v1/training_runs/{run_id}"
_CHECKPOINT = f"{_RUN}/checkpoints/{{kind}}/{{name}}"

# Bodies of posts, and queries: what a route is asked, given ids.
BODIES: dict[str, Any] = {
    "POST /api/v1/session_heartbeat": lambda ids: {"session_id": ids.session},
    "POST /api/v1/sessions/{session_id}/finish": lambda ids: {"reason": {"type": "success"}},
    "POST /api/v1/create_model": lambda ids: model_fields(ids.session, 1),
    "POST /api/v1/load_weights": lambda ids: [
        {"session_id": ids.session, "model_seq_id": 2, "path": ids.path(), "optimizer": True},
        {"model_id": ids.run, "seq_id": 50, "path": ids.path(), "optimizer": True},
    ],
    "POST /api/v1/get_info": lambda ids: {"model_id": ids.run},
    "POST /api/v1/forward_backward": lambda ids: [pass_body(ids.run, 50), pass_body(ids.run, 1)],
    "POST /api/v1/optim_step": lambda ids: [
        step_fields(ids.run, 50),
        step_fields(ids.run, 1),
        {**step_fields(ids.run, 51), "other": 1},
    ],
    "POST /api/v1/save_weights": lambda ids: {"model_id": ids.run, "seq_id": 50, "path": "b"},
    "POST /api/v1/save_weights_for_sampler": lambda ids: [
        {"model_id": ids.run, "seq_id": 50, "path": "b"},
        {"model_id": ids.run, "seq_id": 50, "sampling_session_seq_id": 5},
    ],
    "POST /api/v1/save_weights_external": lambda ids: {
        "model_id": ids.run,
        "seq_id": 50,
        "path": "b",
    },
    "POST /api/v1/create_sampling_session": lambda ids: {
        "session_id": ids.session,
        "sampling_session_seq_id": 7,
        "base_model": "tiny",
    },
    "POST /api/v1/join_sampling_session": lambda ids: {"sampling_session_id": ids.sampler},
    "POST /api/v1/asample": lambda ids: [
        sample_fields(ids.sampler, 50),
        sample_fields(ids.sampler, 0),
    ],
    "POST /api/v1/retrieve_future": lambda ids: [
        {"request_id": f"{ids.session}:{ids.future}"},
        {"request_id": f"{ids.session}:{ids.sample}", "allow_metadata_only": True},
    ],
    "POST /api/v1/retrieve_futures": lambda ids: [
        {
            "target": {"sampling_session_id": ids.sampler},
            "timeout": timeout,
            "retrieved_request_ids": [f"{ids.session}:{ids.sample}"],
        }
        for timeout in (0, None)
    ],
    "POST /api/v1/cancel_future": lambda ids: {"request_id": f"{ids.session}:{ids.future}"},
    "POST /api/v1/weights_info": lambda ids: {"tinker_path": ids.path()},
    f"PUT {_CHECKPOINT}/ttl": lambda ids: [{"ttl_seconds": 5000}, {"ttl_seconds": None}],
    "POST /api/v1/copy_weights": lambda ids: {
        "source_path": ids.path(),
        "session_id": ids.session,
        "model_seq_id": 9,
    },
}
NO_BODY = {
    f"GET {_RUN}",
    f"GET {_RUN}/checkpoints",
    f"DELETE {_CHECKPOINT}",
    f"POST {_CHECKPOINT}/publish",
    f"DELETE {_CHECKPOINT}/publish",
    f"GET {_CHECKPOINT}/external_weights_urls",
    f"GET {_CHECKPOINT}/archive",
    "GET /api/v1/sessions/{session_id}",
    "GET /api/v1/samplers/{sampler_id}",
}
# Lists of the caller's own things, what names nothing, and what is not served at all.
WITHOUT_IDS = {
    "POST /api/v1/client/config",
    "POST /api/v1/client/dynamic_config",
    "POST /api/v1/create_session",
    "POST /api/v1/telemetry",
    "GET /api/v1/get_server_capabilities",
    "GET /api/v1/healthz",
    "GET /api/v1/training_runs",
    "GET /api/v1/checkpoints",
    "GET /api/v1/sessions",
    "POST /api/v1/auth/token",
    "GET /api/v1/auth/apikey/{key}",
    "DELETE /api/v1/auth/apikey/{key}",
    "POST /api/v1/create_custom_loss",
    "PUT /api/v1/sessions/{session_id}/project",
    "POST /api/v1/sessions/search",
    "GET /api/v1/sessions/{session_id}/trace_export",
    "GET /api/v1/audit",
    "GET /api/v1/billing/usage/events",
    "GET /api/v1/billing/usage/checkpoints/current",
}
NAMED = [f"{route.method} {route.path}" for route in ROUTES]


@dataclass(frozen=True)
class Scene:
    """Two tenants, and what the first has."""

    stand: Stand
    alice: Caller
    bob: Caller
    ids: Ids


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with standing(tmp_path_factory.mktemp("stand"), keyed=True, poll_s=0.05) as stand:
        alice, bob = stand.caller(tenant="alice"), stand.caller(tenant="bob")
        run_id = alice.run()
        session_id = run_id.partition(":")[0]
        stepped = alice.step(run_id, 1)
        alice.result(stepped)
        for seq, route in enumerate(("save_weights", "save_weights_for_sampler"), 2):
            fields = {"model_id": run_id, "seq_id": seq, "path": "a"}
            alice.result(alice.post(route, fields))
        sampled = alice.sample(alice.sampler(session_id), 0)
        alice.result(sampled)
        numbers = [one.json["request_id"].partition(":")[2] for one in (stepped, sampled)]
        yield Scene(stand, alice, bob, Ids(session_id, *numbers))


def ask(caller: Caller, route: str, ids: Ids) -> list[tuple[int, str]]:
    """What a route answers to each thing that it can be asked with these ids."""
    method, path = route.split()
    parts = {
        "session_id": ids.session,
        "run_id": ids.run,
        "sampler_id": ids.sampler,
        "name": ids.name,
    }
    bodies = BODIES[route](ids) if route in BODIES else b""
    told = []
    for kind in ("weights", "sampler_weights", "external_weights"):
        for body in bodies if isinstance(bodies, list) else [bodies]:
            route_path = path.format(kind=kind, **parts).removeprefix("/api/v1/")
            told.append(ids.hide(caller.send(method, route_path, body)))
        if "{kind}" not in path:
            break
    return told


def test_every_route_is_in_the_table() -> None:
    assert sorted(NAMED) == sorted({*BODIES, *NO_BODY, *WITHOUT_IDS})


@pytest.mark.parametrize("route", sorted({*BODIES, *NO_BODY}))
def test_ids_of_others_are_answered_like_ids_of_nothing(scene: Scene, route: str) -> None:
    assert ask(scene.bob, route, scene.ids) == ask(scene.bob, route, UNKNOWN)


def test_nothing_of_this_changed_what_the_owner_has(scene: Scene) -> None:
    alice, ids = scene.alice, scene.ids
    assert alice.poll(f"{ids.session}:{ids.future}").json["metrics"]["step:max"] == 1
    assert alice.poll(f"{ids.session}:{ids.sample}").status == 200
    assert alice.result(alice.step(ids.run, 4)).json["metrics"]["step:max"] == 2
    listed = alice.get(f"training_runs/{ids.run}/checkpoints").json["checkpoints"]
    assert sorted(one["checkpoint_id"] for one in listed) == ["sampler_weights/a", "weights/a"]
    assert not any(one["public"] or one.get("expires_at") for one in listed)


@pytest.mark.parametrize("what", ["training_runs", "checkpoints", "sessions"])
def test_a_list_holds_nothing_of_others(scene: Scene, what: str) -> None:
    assert scene.ids.session in scene.alice.get(what).body.decode()
    assert scene.ids.session not in scene.bob.get(what).body.decode()


def test_the_owner_is_answered_otherwise(scene: Scene) -> None:
    """So that the comparison above can fail."""
    own = {f"GET {_RUN}", "POST /api/v1/get_info", "POST /api/v1/weights_info"}
    own |= {"GET /api/v1/sessions/{session_id}", "GET /api/v1/samplers/{sampler_id}"}
    for route in own:
        assert ask(scene.alice, route, scene.ids)[0][0] == 200, route
        assert ask(scene.bob, route, scene.ids)[0][0] == 404, route


def test_weights_of_others_are_for_nobody_with_a_session_of_his_own(scene: Scene) -> None:
    bob, run_id = scene.bob, scene.bob.run()
    session_id = run_id.partition(":")[0]
    told = []
    for number, ids in enumerate((scene.ids, UNKNOWN)):
        path, own = ids.path(), {"session_id": session_id, "model_seq_id": 5 + number}
        sampler = {"session_id": session_id, "sampling_session_seq_id": number}
        answers = [
            bob.post(
                "create_sampling_session", {**sampler, "model_path": ids.path("sampler_weights")}
            ),
            bob.post("copy_weights", {"source_path": path, **own}),
            bob.result(bob.post("load_weights", {"path": path, "optimizer": True, **own})),
        ]
        load = {"path": path, "optimizer": False, "model_id": run_id, "seq_id": 1 + number}
        answers.append(bob.result(bob.post("load_weights", load)))
        told.append([ids.hide(answer) for answer in answers])
    assert told[0] == told[1]
    assert all(status == 404 or "not_found" in text for status, text in told[0])
