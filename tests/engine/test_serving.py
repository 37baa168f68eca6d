"""What a server with a gateway refuses before it loads anything."""

import socket
from pathlib import Path
from typing import Any

import pytest

from weft.client.errors import BadRequest
from weft.engine import serving
from weft.engine.broker.key_store import KeyStore
from weft.engine.gateway.launch import GatewayProcess
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
def test_what_may_be_reached_goes_on_to_its_certificate(
    tmp_path: Path, http: str, insecure: bool, has_keys: bool
) -> None:
    if has_keys:
        KeyStore(tmp_path).create("alice")
    with pytest.raises(BadRequest, match=r"certificate cert\.pem"):
        Server(NO_MODEL, http=http, insecure=insecure, state_dir=str(tmp_path), **TLS)


def test_a_port_that_is_taken_is_known_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadRequest, match=f"cannot listen on 127.0.0.1:{port}"):
            Server(NO_MODEL, http=f"127.0.0.1:{port}")


def test_a_model_that_is_none_ends_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[GatewayProcess] = []

    def record(*arguments: Any, **settings: Any) -> GatewayProcess:
        started.append(GatewayProcess(*arguments, **settings))
        return started[0]

    monkeypatch.setattr(serving, "GatewayProcess", record)
    with pytest.raises(BadRequest, match=NO_MODEL):
        Server(NO_MODEL, http="127.0.0.1:0")
    (gateway,) = started
    assert not Path(f"/proc/{gateway.pid}").exists()


@pytest.mark.parametrize("given", [TLS, {"public_url": "https://weft.example"}])
def test_settings_of_http_need_http(given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="HTTP, which is not asked for"):
        Server(NO_MODEL, **given)
