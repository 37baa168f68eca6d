"""Cut a command into units: whole sequences, at most U tokens together, decided by the command alone."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Unit:
    """Datums first_datum..last_datum - 1 of one command; the scheduler's and the reduction's atom."""

    first_datum: int
    last_datum: int
    num_tokens: int


def cut_units(lengths: Sequence[int], unit_tokens: int) -> tuple[Unit, ...]:
    """Group consecutive datums greedily into units of at most `unit_tokens` tokens.

    A datum longer than `unit_tokens` is a unit of its own. The result depends on nothing but this
    command's lengths and the constant, so that sums over units never depend on the neighbours.
    """
    units: list[Unit] = []
    first, tokens = 0, 0
    for datum, length in enumerate(lengths):
        if datum > first and tokens + length > unit_tokens:
            units.append(Unit(first, datum, tokens))
            first, tokens = datum, 0
        tokens += length
    if len(lengths) > first:
        units.append(Unit(first, len(lengths), tokens))
    return tuple(units)
