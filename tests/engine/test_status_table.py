"""The tables of `weft status`."""

from typing import Any

from weft.engine.status_table import status_lines

CARD = {
    "name": "weft/tiny",
    "model_type": "qwen3",
    "runs_on": "native",
    "max_context": 4096,
    "vocab_size": 512,
}
WORKER = {
    "worker_id": "0123456789abcdef",
    "pid": 4242,
    "state": "ready",
    "progress": "",
    "runs": 2,
    "samplers": 1,
    "dispatched": 3,
    "queued": 14,
    "train_outstanding": 500,
    "train_credit": 2000,
    "sample_outstanding": 0,
    "sample_credit": 100,
}
LANE = {
    "lane": "local/aa",
    "runs": 2,
    "waiting": 14,
    "waiting_bytes": 12345,
    "usage": {"train_tokens": 1000, "create_run": 2},
}


def lines(**changes: Any) -> list[str]:
    status = {
        "state": "ready",
        "detail": "",
        "sessions": 1,
        "models": [CARD],
        "workers": [WORKER],
        "lanes": [LANE],
        "next": -1,
    }
    return status_lines("tcp://there:1", {**status, **changes})


def test_models_workers_and_lanes_are_told_in_columns() -> None:
    assert lines() == [
        "tcp://there:1 is ready, with 1 session",
        "",
        "model      type   runs on  context  vocabulary",
        "weft/tiny  qwen3  native     4,096         512",
        "",
        "worker    pid   state  runs  samplers  under way  queued  train  sample",
        "01234567  4242  ready     2         1          3      14  25 %   0 %",
        "",
        "lane      runs  waiting   bytes  usage",
        "local/aa     2       14  12,345  create_run 2, train_tokens 1,000",
    ]


def test_a_server_that_loads_says_how_far_it_is() -> None:
    loading = {**WORKER, "state": "loading", "progress": "reading weights, 40 %"}
    loading |= {"train_credit": 0, "sample_credit": 0}
    told = lines(state="loading", detail="it was killed", models=[], workers=[loading], lanes=[])
    assert told[:3] == ["tcp://there:1 is loading, with 1 session", "it was killed", ""]
    assert "loading: reading weights, 40 %" in told[4]
    assert told[4].split()[-2:] == ["-", "-"]


def test_a_page_that_is_not_the_last_says_so() -> None:
    assert lines(next=40)[-1] == "more follow"
    assert lines(lanes=[{**LANE, "usage": {}}])[-1].endswith("  -")


def test_the_operator_is_told_sums_of_tenants() -> None:
    blue = {"tenant": "blue", "sessions": 2, "runs": 3, "waiting": 4, "waiting_bytes": 5}
    sums = [{**blue, "usage": {"backward": 6}}]
    told = lines(lanes=[], tenants=sums)
    assert told[-2:] == [
        "tenant  sessions  runs  waiting  bytes  usage",
        "blue           2     3        4      5  backward 6",
    ]
