"""The settings that come from the environment; nothing else of the client reads it."""

import os

DEFAULT_ADDRESS = "tcp://127.0.0.1:5757"


def server_address() -> str:
    """WEFT_ADDRESS, or where `weft serve` listens when it is told nothing."""
    return os.environ.get("WEFT_ADDRESS") or DEFAULT_ADDRESS


def api_key() -> str:
    """WEFT_API_KEY, or "" for a server that asks for none."""
    return os.environ.get("WEFT_API_KEY", "")


def is_quiet() -> bool:
    """Whether WEFT_QUIET asks to say nothing in a terminal."""
    return os.environ.get("WEFT_QUIET", "") not in ("", "0")
