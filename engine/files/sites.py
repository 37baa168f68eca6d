"""The places of a model where an adapter can sit, in a form short enough for a message header."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from ...client.messages import SiteSpan


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


def module_names(span: SiteSpan) -> list[str]:
    """The full names of a span's modules."""
    return [span.name.replace("{}", str(layer)) for layer in span.layers] or [span.name]


def to_modules(spans: Sequence[SiteSpan]) -> dict[str, SiteSpan]:
    """Every module by its full name, with the span it belongs to."""
    return {name: span for span in spans for name in module_names(span)}
