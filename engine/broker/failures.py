"""Failures that are the server's own making, gathered so that a log tells them without end."""

from typing import Any

from ...client.errors import CODES


class Failures:
    """How many requests failed by no fault of their sender since they were last told, by code."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._firsts: dict[str, tuple[str, dict[str, Any]]] = {}  # tenant and ids

    def add(self, code: str, tenant: str, ids: dict[str, Any]) -> None:
        """Note a failure, unless its code is the fault of the user or of a limit."""
        row = CODES.get(code)
        if row is not None and row.fault != "server":
            return
        self._firsts.setdefault(code, (tenant, ids))
        self._numbers[code] = self._numbers.get(code, 0) + 1

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """For each code the tenant and ids of the first, with the code and the number of all."""
        taken = [
            (tenant, {**ids, "code": code, "number": self._numbers[code]})
            for code, (tenant, ids) in self._firsts.items()
        ]
        self._numbers, self._firsts = {}, {}
        return taken
