"""Weft engine: broker, worker, model and adapters. `Engine` loads when it is first asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedded import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from .embedded import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
