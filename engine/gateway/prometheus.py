"""The answer of `/metrics`: figures as Prometheus' text. Pure, without a global registry."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from .counters import GatewayCounters
from .engine_figures import ENGINE
from .figures import Figure, Point, Source, Spread
from .gateway_figures import GATEWAY, SCRAPE

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def exposition(
    metrics: Mapping[str, Any] | None, counters: GatewayCounters | None, version: str
) -> bytes:
    """The text of a scrape, to be sent with `CONTENT_TYPE`.

    Args:
        metrics: the answer to a query of "metrics"; None when the broker did not answer.
        counters: the gateway's own.
        version: of Weft.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(_families(metrics, counters, version)))
    return generate_latest(registry)


class _Families(Collector):
    """What the registry asks for families that are there already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(
    metrics: Mapping[str, Any] | None, counters: GatewayCounters | None, version: str
) -> Iterator[Metric]:
    yield from _all(SCRAPE, {"version": version, "broker_up": metrics is not None})
    if metrics is not None:
        yield from _all(ENGINE, metrics)
    if counters is not None:
        yield from _all(GATEWAY, counters.to_fields())


def _all(figures: Sequence[Figure], source: Source) -> Iterator[Metric]:
    """The families of a table that have a value."""
    return (found for figure in figures if (found := family(figure, source)).samples)


def family(figure: Figure, source: Source) -> Metric:
    """One figure with its values."""
    found: Any = _FAMILIES[figure.kind](figure.name, figure.meaning, labels=figure.labels)
    for value in figure.read(source):
        match value:
            case Point(labels, number):
                found.add_metric(labels, number)
            case Spread(labels, bounds, counts, total):
                ends = [*(f"{bound:g}" for bound in bounds), "+Inf"]
                buckets = list(zip(ends, accumulate(counts), strict=True))
                found.add_metric(labels, buckets, total)
    return cast(Metric, found)


_FAMILIES: dict[str, Any] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}
