"""The gateway's own figures, read from its counters, and those of a scrape itself."""

from collections.abc import Iterator

from .figures import Figure, Point, Source, at, counter, each, gauge, histogram, keyed, spreads


def _version(source: Source) -> Iterator[Point]:
    yield Point((source["version"],), 1)


SCRAPE: tuple[Figure, ...] = (
    gauge("weft_build_info", "The version that serves, as a label; always 1.", _version, "version"),
    gauge(
        "weft_broker_up",
        "1 when the broker told its figures for this scrape; when 0 only the gateway's are there.",
        at("broker_up"),
    ),
)

GATEWAY: tuple[Figure, ...] = (
    counter(
        "weft_gateway_requests",
        "HTTP requests that were answered; route is the pattern that matched, never a path.",
        keyed("requests"),
        "route",
        "method",
        "status",
    ),
    histogram(
        "weft_gateway_request_duration_seconds",
        "Time from the begin of an HTTP request to the end of its answer, parked polls included.",
        spreads("seconds", "durations"),
        "route",
    ),
    gauge(
        "weft_gateway_parked_polls",
        "Long polls that wait for a result.",
        at("parked_polls"),
    ),
    counter("weft_gateway_received_bytes", "Bodies received, as they came.", at("received_bytes")),
    counter("weft_gateway_sent_bytes", "Bodies sent, as they went.", at("sent_bytes")),
    counter(
        "weft_gateway_refused_bodies",
        "Bodies that were not taken, by the code of the error: too_large, malformed, busy, timeout.",
        each("refused_bodies"),
        "reason",
    ),
    gauge(
        "weft_gateway_futures",
        "Results that are pending, or kept for clients that ask again.",
        at("futures"),
    ),
    gauge("weft_gateway_future_bytes", "What the kept results take.", at("future_bytes")),
    gauge("weft_gateway_lines", "Connections to the broker.", at("lines")),
)
