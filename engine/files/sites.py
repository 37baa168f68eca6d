"""The places of a model where an adapter can sit, in a form short enough for a message header."""

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

from ...client.limits import limit
from ...client.worker_messages import SiteSpan

log = logging.getLogger(__name__)

OVERHEAD_BYTES = 100  # of a span, at most: the names of its fields, and its numbers
MAX_BYTES = limit("header_bytes") // 2


class Site(Protocol):
    """What is needed of a `model.config.Site`."""

    @property
    def layer(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...


def to_spans(sites: Iterable[Site]) -> list[SiteSpan]:
    """Put together the sites that differ in their layer alone."""
    found: dict[tuple[str, str, int, int], list[int]] = {}
    for site in sites:
        name = site.name.replace(f".{site.layer}.", ".{}.", 1)
        layers = found.setdefault((name, site.family, site.in_features, site.out_features), [])
        if name != site.name:
            layers.append(site.layer)
    return [
        SiteSpan(name=name, layers=layers, family=family, in_features=width, out_features=out)
        for (name, family, width, out), layers in found.items()
    ]


def limit_spans(spans: list[SiteSpan]) -> list[SiteSpan]:
    """The spans if they fit into a header, otherwise none: then no adapter can be imported."""
    num_bytes = sum(len(span.name) + 5 * len(span.layers) + OVERHEAD_BYTES for span in spans)
    if num_bytes > MAX_BYTES:
        log.warning("the model has too many kinds of sites to import adapters: %d", len(spans))
        return []
    return spans


def module_names(span: SiteSpan) -> list[str]:
    """The full names of a span's modules."""
    return [span.name.replace("{}", str(layer)) for layer in span.layers] or [span.name]


def to_modules(spans: Sequence[SiteSpan]) -> dict[str, SiteSpan]:
    """Every module by its full name, with the span it belongs to."""
    return {name: span for span in spans for name in module_names(span)}
