"""What a server with a gateway refuses before it loads anything."""

from pathlib import Path
from typing import Any

import pytest

from weft.client.errors import BadRequest
from weft.engine.broker.key_store import KeyStore
from weft.engine.serving import Server

NO_MODEL = "no-such-model"  # looked for only after the addresses
TLS: dict[str, Any] = {"tls_cert": "cert.pem", "tls_key": "key.pem"}


@pytest.mark.parametrize("has_state", [False, True])
def test_other_machines_do_not_reach_a_server_without_keys(tmp_path: Path, has_state: bool) -> None:
    state = str(tmp_path / "state") if has_state else ""
    with pytest.raises(BadRequest, match=r"0\.0\.0\.0:0 can be .* there are no API keys"):
        Server(NO_MODEL, http="0.0.0.0:0", state_dir=state, **TLS)


def test_a_proxy_that_others_reach_needs_keys() -> None:
    with pytest.raises(BadRequest, match=r"https://weft\.example can be .* no API keys"):
        Server(NO_MODEL, http="127.0.0.1:0", public_url="https://weft.example", **TLS)


@pytest.mark.parametrize(
    ("http", "insecure", "has_keys"),
    [("127.0.0.1:0", False, False), ("0.0.0.0:0", True, False), ("0.0.0.0:0", False, True)],
    ids=["loopback", "told so", "keys"],
)
def test_what_may_be_reached_goes_on_to_the_model(
    tmp_path: Path, http: str, insecure: bool, has_keys: bool
) -> None:
    if has_keys:
        KeyStore(tmp_path).create("alice")
    with pytest.raises(BadRequest, match=NO_MODEL):
        Server(NO_MODEL, http=http, insecure=insecure, state_dir=str(tmp_path), **TLS)
