"""What a figure for Prometheus is, and how its values are found in plain data. Pure."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

Source = Mapping[str, Any]


class Point(NamedTuple):
    """One value of a figure, under these labels."""

    labels: tuple[str, ...]
    value: float


class Spread(NamedTuple):
    """One histogram under these labels. There is one more count than bounds, none cumulative."""

    labels: tuple[str, ...]
    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


Read = Callable[[Source], Iterator[Point | Spread]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of a table of figures."""

    name: str  # without the _total of a counter
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str
    read: Read

    @property
    def shown(self) -> str:
        """The name under which it is asked for."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


def counter(name: str, meaning: str, read: Read, *labels: str) -> Figure:
    """A figure that only grows until a restart."""
    return Figure(name, "counter", labels, meaning, read)


def gauge(name: str, meaning: str, read: Read, *labels: str) -> Figure:
    """A figure of now."""
    return Figure(name, "gauge", labels, meaning, read)


def histogram(name: str, meaning: str, read: Read, *labels: str) -> Figure:
    """A figure that says how often values of which size occurred."""
    return Figure(name, "histogram", labels, meaning, read)


# Readers. What a path does not lead to has no value: the broker may be older than the table.


def at(*path: str) -> Read:
    """The number at a path."""

    def read(source: Source) -> Iterator[Point]:
        value = _map_at(source, path[:-1]).get(path[-1])
        if value is not None:
            yield Point((), value)

    return read


def each(*path: str) -> Read:
    """The numbers of a map, each under its key."""

    def read(source: Source) -> Iterator[Point]:
        for name, value in sorted(_map_at(source, path).items()):
            yield Point((name,), value)

    return read


def each_of_each(*path: str) -> Read:
    """The numbers of a map of maps, each under both keys."""

    def read(source: Source) -> Iterator[Point]:
        for outer, values in sorted(_map_at(source, path).items()):
            for inner, value in sorted(values.items()):
                yield Point((outer, inner), value)

    return read


def keyed(*path: str) -> Read:
    """The numbers of a map, each under the labels that its key is a tuple of."""

    def read(source: Source) -> Iterator[Point]:
        for labels, value in sorted(_map_at(source, path).items()):
            yield Point(tuple(map(str, labels)), value)

    return read


def some(labels: Mapping[str, str], *path: str) -> Read:
    """Some numbers of a map: `labels` names their keys, and the label of each."""

    def read(source: Source) -> Iterator[Point]:
        found = _map_at(source, path)
        for name, label in labels.items():
            if name in found:
                yield Point((label,), found[name])

    return read


def spreads(bounds: str, *path: str) -> Read:
    """The histograms of a map, each under its key; `bounds` is the name of theirs."""

    def read(source: Source) -> Iterator[Spread]:
        ends = tuple(_map_at(source, ("bounds",)).get(bounds, ()))
        for name, found in sorted(_map_at(source, path).items()):
            if len(found["counts"]) == len(ends) + 1:
                yield Spread((name,), ends, tuple(found["counts"]), found["sum"])

    return read


def _map_at(source: Source, path: tuple[str, ...]) -> Source:
    for name in path:
        source = cast(Source, source.get(name, {}))
    return source
