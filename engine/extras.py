"""Which packages the extras bring, and a plain sentence where one is missing."""

import importlib.util

from ..client.errors import BadRequest

_ENGINE = ("torch", "transformers", "safetensors")
_GATEWAY = ("aiohttp", "msgspec", "prometheus_client", "zstandard")
EXTRAS = {"engine": _ENGINE, "gateway": _GATEWAY, "testing": (*_ENGINE, *_GATEWAY)}


def require(extra: str, user: str) -> None:
    """Refuse to go on without what an extra brings; nothing is imported.

    Args:
        extra: its name in `EXTRAS`.
        user: what needs it, in words.

    Raises:
        BadRequest: says what to install.
    """
    missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise BadRequest(
            f"{', '.join(missing)} not installed: {user} needs pip install 'weft[{extra}]'"
        )
