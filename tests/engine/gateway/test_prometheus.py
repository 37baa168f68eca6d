"""The text of /metrics, read back by Prometheus' own parser."""

from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from weft.engine.gateway.counters import GatewayCounters
from weft.engine.gateway.engine_figures import ENGINE
from weft.engine.gateway.gateway_figures import GATEWAY
from weft.engine.gateway.prometheus import CONTENT_TYPE, exposition
from weft.engine.histogram import SECONDS, TENANTS


def metrics() -> dict[str, Any]:
    """An answer of a broker in which everything has happened."""
    spread = {"counts": [2, *[0] * (len(SECONDS) - 1), 1], "sum": 400.5}
    memory = ("adapter_state_bytes", "adapter_weights_bytes", "kv_pages", "sequence_state_bytes")
    levels = "held queued dispatched storing sessions connected_sessions runs samplers watchers"
    levels += " checkpoints waiting_bytes kept_bytes ready_workers loading_workers"
    return {
        "state": "ready",
        "started": 1.5e9,
        "bounds": {"seconds": list(SECONDS), "tenants": list(TENANTS)},
        "requests": {"sample": {"ok": 7, "busy": 2}},
        "refused": {"unauthorized": 3},
        "latency_s": {"sample": spread},
        "queue_s": {"sample": spread},
        "sessions_opened": 4,
        "runs_lost": 1,
        "workers_lost": 1,
        "work": {
            "steps": {"train": 5},
            "failures": {"train": 0},
            "busy_s": {"train": 1.25},
            "tokens": {"trained": 640},
            "tenants": {"train": {"counts": [0, 5, *[0] * (len(TENANTS) - 1)], "sum": 10}},
        },
        "memory": {
            "used": {**dict.fromkeys(memory, 3), "runs": 2, "samplers": 1},
            "total": dict.fromkeys(memory, 9),
        },
        "levels": dict.fromkeys(levels.split(), 6),
    }


def counted() -> GatewayCounters:
    counters = GatewayCounters()
    counters.answered('/a/"{id}"\n', "POST", 200, 0.02, received=10, sent=20)
    counters.refused_body("too_large")
    return counters


def read(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition by its name and labels."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def value(text: bytes, name: str, **labels: str) -> float:
    return read(text)[name, frozenset(labels.items())]


@pytest.fixture
def text() -> bytes:
    return exposition(metrics(), counted(), "1.2.3")


def test_every_figure_of_the_tables_is_there_with_its_kind_and_meaning(text: bytes) -> None:
    found = {family.name: family for family in text_string_to_metric_families(text.decode())}
    for figure in (*ENGINE, *GATEWAY):
        family = found[figure.name]
        assert (family.type, family.documentation) == (figure.kind, figure.meaning)
        assert family.samples


def test_values_are_those_that_were_told(text: bytes) -> None:
    assert value(text, "weft_build_info", version="1.2.3") == 1
    assert value(text, "weft_broker_up") == 1
    assert value(text, "weft_ready") == 1
    assert value(text, "weft_requests_total", kind="sample", code="busy") == 2
    assert value(text, "weft_refused_messages_total", code="unauthorized") == 3
    assert value(text, "weft_tokens_total", kind="trained") == 640
    assert value(text, "weft_busy_seconds_total", kind="train") == 1.25
    assert value(text, "weft_kv_pages_used") == 3
    assert value(text, "weft_kv_pages_capacity") == 9
    assert value(text, "weft_adapters", kind="run") == 2
    assert value(text, "weft_workers", state="loading") == 6


def test_buckets_are_cumulative_and_end_with_all(text: bytes) -> None:
    name, labels = "weft_request_duration_seconds", {"kind": "sample"}
    ends = [*(f"{bound:g}" for bound in SECONDS), "+Inf"]
    counts = [value(text, f"{name}_bucket", le=end, **labels) for end in ends]
    assert counts == [2.0] * len(SECONDS) + [3.0]
    assert value(text, f"{name}_count", **labels) == 3
    assert value(text, f"{name}_sum", **labels) == 400.5
    tenants = "weft_batch_tenants_bucket"
    assert [value(text, tenants, kind="train", le=end) for end in ("1", "2")] == [0, 5]


def test_a_label_of_any_letters_is_read_back(text: bytes) -> None:
    labels = {"route": '/a/"{id}"\n', "method": "POST", "status": "200"}
    assert value(text, "weft_gateway_requests_total", **labels) == 1


def test_without_a_broker_the_gateways_figures_remain() -> None:
    text = exposition(None, counted(), "1")
    assert value(text, "weft_broker_up") == 0
    names = {name for name, _ in read(text)}
    assert "weft_gateway_sent_bytes_total" in names
    assert not [name for name in names if name.startswith(("weft_re", "weft_kv", "weft_worker"))]


def test_a_server_that_loads_is_not_ready() -> None:
    assert value(exposition(metrics() | {"state": "loading"}, None, "1"), "weft_ready") == 0


def test_an_older_broker_may_tell_less() -> None:
    told = {"state": "ready", "bounds": {}, "requests": {}}
    assert value(exposition(told, None, "1"), "weft_ready") == 1


def test_two_scrapes_do_not_disturb_each_other_or_the_process() -> None:
    counters = counted()
    assert exposition(metrics(), counters, "1") == exposition(metrics(), counters, "1")
    assert not [family for family in REGISTRY.collect() if family.name.startswith("weft")]
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
