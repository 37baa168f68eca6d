"""What has ended and is remembered."""

from weft.engine.broker.past import Past


def test_a_tenant_has_its_latest_and_pushes_out_nobody_elses() -> None:
    past: Past[int] = Past(2)
    past.add("quiet", "x", 0)
    for number, name in enumerate("abc"):
        past.add("busy", name, number)
    assert dict(past.of("busy")) == {"b": 1, "c": 2}
    assert dict(past.of("quiet")) == {"x": 0}
    assert dict(past.of("nobody")) == {}


def test_what_ends_again_counts_once_and_is_the_latest() -> None:
    past: Past[int] = Past(2)
    for number, name in enumerate("abac"):
        past.add("t", name, number)
    assert dict(past.of("t")) == {"a": 2, "c": 3}
