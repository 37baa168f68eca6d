"""Hellos: versions, keys, sessions that are opened, found again or refused."""

from dataclasses import replace
from typing import Any

import pytest
from core_bench import (
    CARD,
    CLIENT,
    OTHER,
    SESSION,
    CoreBench,
    checkpoint,
    create_run,
    optim_step,
    told,
)

from weft.client.messages import Failure, Goodbye, Hello, Query, Reply, Watch, Welcome
from weft.engine.broker.config import BrokerConfig
from weft.engine.broker.events import CatalogLoaded, KeysChanged, ToClient
from weft.engine.broker.key_book import Insiders, KeyBook, Secret, digest_of


def refusal(code: str, detail: str) -> ToClient:
    return ToClient(CLIENT, Failure(request_id=0, code=code, detail=detail))


def hello(session_id: str = SESSION, **fields: Any) -> Hello:
    return Hello(versions=[1], session_id=session_id, **fields)


def test_hello_is_answered_with_models_and_limits() -> None:
    bench = CoreBench()
    bench.add_worker()
    assert bench.say(Hello(versions=[1, 2], session_id=SESSION)) == [
        ToClient(
            CLIENT,
            Welcome(
                version=1,
                session_id=SESSION,
                server="weft test",
                models=[CARD],
                limits=BrokerConfig().limits(),
                tenant="local",
            ),
        )
    ]


def test_a_client_of_another_version_is_told_what_is_spoken() -> None:
    bench = CoreBench()
    assert bench.say(Hello(versions=[7], session_id=SESSION)) == [
        refusal("unsupported_version", "the server speaks protocol 1, the client [7]")
    ]


@pytest.mark.parametrize("session_id", ["", "x" * 32, "A" * 32, "a" * 33])
def test_a_session_id_is_32_hex_digits(session_id: str) -> None:
    bench = CoreBench()
    assert told(bench.say(hello(session_id))) == [(0, "bad_request")]


def test_a_wrong_key_is_unauthorized() -> None:
    bench = CoreBench(tenant_of=lambda key: "local" if key == "right" else None)
    assert told(bench.say(hello(api_key="wrong"))) == [(0, "unauthorized")]


def test_the_session_of_another_tenant_cannot_be_taken_over() -> None:
    bench = CoreBench(tenant_of=lambda key: key)
    bench.hello(api_key="a")
    assert told(bench.say(hello(api_key="b"), peer=b"thief"), b"thief") == [(0, "conflict")]
    assert told(bench.say(Query(request_id=1, what="runs"))) == [(1, "")]


def test_sessions_are_bounded() -> None:
    bench = CoreBench(sessions=1)
    bench.hello()
    assert told(bench.say(hello(OTHER), peer=b"second"), b"second") == [(0, "busy")]


def test_the_sessions_of_one_tenant_leave_room_for_others() -> None:
    bench = CoreBench(tenant_of=lambda key: key, tenant_sessions=1)
    bench.hello(api_key="a")
    another = hello(OTHER, api_key="a")
    assert told(bench.say(another, peer=b"second"), b"second") == [(0, "busy")]
    (answer,) = bench.say(replace(another, api_key="b"), peer=b"third")
    assert isinstance(answer, ToClient)
    assert isinstance(answer.header, Welcome)


def test_the_operator_gets_in_when_nobody_else_does() -> None:
    bench = CoreBench(keys=KeyBook([ALICE], Insiders("sesame")), sessions=1)
    bench.hello(OTHER, b"alice", api_key="a")
    bench.hello(api_key="sesame")
    assert told(bench.say(Query(request_id=1, what="status"))) == [(1, "")]


def test_a_session_that_must_exist_is_found_again() -> None:
    bench = CoreBench()
    bench.hello()
    (found,) = bench.say(hello(must_exist=True), peer=b"new")
    assert isinstance(found, ToClient)
    assert isinstance(found.header, Welcome)


def test_a_session_that_must_exist_is_not_opened() -> None:
    bench = CoreBench()
    refused = [refusal("session_expired", f"no session {SESSION}")]
    assert bench.say(hello(must_exist=True)) == refused
    bench.hello()
    bench.say(Goodbye())
    assert bench.say(hello(must_exist=True)) == refused


def test_the_session_of_another_tenant_does_not_exist() -> None:
    bench = CoreBench(tenant_of=lambda key: key)
    bench.hello(OTHER, b"owner", api_key="a")
    refused = [refusal("session_expired", f"no session {OTHER}")]
    assert bench.say(hello(OTHER, must_exist=True, api_key="b")) == refused


def test_the_welcome_names_the_tenant() -> None:
    bench = CoreBench(tenant_of=lambda key: f"tenant of {key}")
    (welcome,) = bench.say(hello(api_key="k"))
    assert isinstance(welcome, ToClient)
    assert isinstance(welcome.header, Welcome)
    assert welcome.header.tenant == "tenant of k"


def test_what_a_client_says_of_itself_is_taken_at_its_first_hello() -> None:
    bench = CoreBench()
    bench.say(hello(display_name="mine", tags=["a"]))
    bench.say(hello(display_name="other"))
    session = bench.core._books.sessions.by_id[SESSION]
    assert (session.display_name, session.tags) == ("mine", ("a",))


@pytest.mark.parametrize(
    "fields",
    [
        {"display_name": "x" * 1025},
        {"tags": ["x" * 129]},
        {"client": "x" * 1025},
        {"tags": ["x"] * 65},
        {"user_metadata": {"a": "x" * 1025}},
        {"user_metadata": {str(i): "" for i in range(65)}},
    ],
    ids=["long name", "long tag", "long client", "many tags", "long value", "many entries"],
)
def test_what_a_client_says_of_itself_is_bounded(fields: dict[str, Any]) -> None:
    assert told(CoreBench().say(hello(**fields))) == [(0, "bad_request")]


def test_the_id_of_a_session_stays_its_tenants_while_a_run_is_left() -> None:
    bench = CoreBench(tenant_of=lambda key: key, past_sessions=1)
    bench.hello(api_key="a")
    bench.add_worker()
    bench.open_run()
    bench.say(Goodbye())
    bench.hello(OTHER, api_key="a")
    bench.say(Goodbye())  # the first is not among the past ones any more
    assert told(bench.say(hello(api_key="b"))) == [(0, "conflict")]
    bench.hello(api_key="a")
    assert SESSION in bench.core._books.sessions.by_id


def test_the_id_of_a_session_stays_its_tenants_while_it_is_remembered() -> None:
    bench = CoreBench(tenant_of=lambda key: key)
    bench.hello(api_key="a")
    bench.say(Goodbye())
    assert told(bench.say(hello(api_key="b"))) == [(0, "conflict")]


def test_the_id_of_a_session_stays_its_tenants_while_a_file_is_left() -> None:
    bench = CoreBench(tenant_of=lambda key: key)
    mine = replace(checkpoint("mine"), tenant="a")
    bench.handle(CatalogLoaded((mine,)))
    assert told(bench.say(hello(api_key="b"))) == [(0, "conflict")]
    assert bench.say(hello(api_key="b", must_exist=True)) == [
        refusal("session_expired", f"no session {SESSION}")
    ]
    bench.core._books.catalog.remove(mine.path)
    bench.hello(api_key="b")
    assert SESSION in bench.core._books.sessions.by_id


def test_a_key_is_not_part_of_what_a_hello_prints() -> None:
    assert "sesame" not in repr(hello(api_key="sesame"))


# Keys that change.

ALICE = Secret(digest_of("a"), "k1", "alice")
SECOND_OF_ALICE = Secret(digest_of("b"), "k2", "alice")
ENDED = refusal("unauthorized", "the API key was revoked or replaced")


def test_the_peer_of_a_revoked_key_is_told_and_heard_no_more() -> None:
    bench = CoreBench(keys=KeyBook([ALICE, SECOND_OF_ALICE]))
    bench.hello(api_key="a")
    bench.hello(OTHER, b"second", api_key="b")
    assert bench.handle(KeysChanged(KeyBook([SECOND_OF_ALICE]))) == [ENDED]
    assert told(bench.say(Query(request_id=1, what="runs"))) == [(1, "unknown_session")]
    assert told(bench.say(hello(api_key="a"))) == [(0, "unauthorized")]
    assert told(bench.say(Query(request_id=1, what="runs"), peer=b"second"), b"second") == [(1, "")]


def test_another_key_of_the_tenant_goes_on_with_the_session_and_its_runs() -> None:
    bench = CoreBench(keys=KeyBook([ALICE, SECOND_OF_ALICE]))
    bench.hello(api_key="a")
    bench.add_worker()
    bench.open_run()
    bench.handle(KeysChanged(KeyBook([SECOND_OF_ALICE])))
    bench.say(hello(must_exist=True, api_key="b"))
    bench.say(optim_step(1))
    assert told(bench.finish()) == [(11, "")]


def test_a_replaced_secret_ends_at_its_time() -> None:
    ending = replace(ALICE, ends=1010.0)
    bench = CoreBench(keys=KeyBook([ending]))
    bench.hello(api_key="a")
    assert bench.tick(1) == []
    assert bench.tick(9) == [ENDED]
    assert told(bench.say(hello(api_key="a"))) == [(0, "unauthorized")]


def test_the_first_key_ends_those_who_came_without_one() -> None:
    bench = CoreBench()
    bench.hello(api_key="anything")
    assert bench.handle(KeysChanged(KeyBook([ALICE]))) == [ENDED]


@pytest.mark.parametrize(("api_key", "words"), [("", "missing"), ("x", "wrong")])
def test_who_is_refused_is_told_what_is_amiss_with_the_key(api_key: str, words: str) -> None:
    (refused,) = CoreBench(keys=KeyBook([ALICE])).say(hello(api_key=api_key))
    assert isinstance(refused, ToClient)
    assert isinstance(refused.header, Failure)
    assert (refused.header.code, words in refused.header.detail) == ("unauthorized", True)


# The operator.


def operator_bench() -> CoreBench:
    bench = CoreBench(keys=KeyBook([ALICE], Insiders("sesame")))
    bench.hello(OTHER, b"alice", api_key="a")
    bench.hello(api_key="sesame")
    bench.add_worker()
    return bench


@pytest.mark.parametrize("what", ["capabilities", "status", "metrics"])
def test_the_operator_asks_how_the_server_does(what: str) -> None:
    assert told(operator_bench().say(Query(request_id=1, what=what))) == [(1, "")]


@pytest.mark.parametrize(
    "header",
    [
        create_run(),
        optim_step(1),
        Watch(request_id=1, enabled=True),
        Query(request_id=1, what="runs"),
    ],
    ids=lambda header: header.kind,
)
def test_the_operator_may_do_nothing_else(header: Any) -> None:
    (refused,) = told(operator_bench().say(header))
    assert refused == (header.request_id, "unauthorized")


def test_the_operator_sees_sums_of_tenants_and_no_session() -> None:
    bench = operator_bench()
    bench.open_run(OTHER, b"alice")
    (answer,) = bench.say(Query(request_id=1, what="status"))
    assert isinstance(answer, ToClient)
    assert isinstance(answer.header, Reply)
    (row,) = answer.header.result["tenants"]
    assert (row["tenant"], row["sessions"], row["runs"]) == ("alice", 1, 1)
    assert row["usage"] == {"create_run": 1}
    assert OTHER not in repr(answer)


def test_metrics_are_for_the_operator_where_keys_part_the_tenants() -> None:
    asked = Query(request_id=1, what="metrics")
    assert told(operator_bench().say(asked, peer=b"alice"), b"alice") == [(1, "unauthorized")]
    bench = CoreBench()
    bench.hello()
    assert told(bench.say(asked)) == [(1, "")]
