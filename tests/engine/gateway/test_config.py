"""Settings of a gateway: who may reach it, and how."""

import json

import pytest

from weft.client.errors import BadRequest
from weft.engine.gateway.config import GatewayConfig, is_loopback

BROKER = "tcp://127.0.0.1:5757"


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses_of_this_machine_are_taken(listen: str, address: tuple[str, int]) -> None:
    assert GatewayConfig(broker=BROKER, listen=listen).address == address


@pytest.mark.parametrize(
    "listen",
    ["", "8080", "127.0.0.1", "127.0.0.1:", ":8080", "127.0.0.1:-1", "127.0.0.1:65536", "a:b"],
)
def test_what_is_no_address_is_refused_with_it(listen: str) -> None:
    with pytest.raises(BadRequest):
        GatewayConfig(broker=BROKER, listen=listen)


@pytest.mark.parametrize("public_url", ["weft.example.org", "ftp://weft.example.org", "https://"])
def test_a_public_address_is_one_of_the_web(public_url: str) -> None:
    with pytest.raises(BadRequest, match=r"is no address such as https://weft\.example\.org"):
        GatewayConfig(broker=BROKER, listen="127.0.0.1:0", public_url=public_url)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "192.168.0.1", "[::]", "weft.example", "[2001:db8::1]"]
)
def test_plain_http_beyond_this_machine_needs_a_word(host: str) -> None:
    listen = f"{host}:8080"
    with pytest.raises(BadRequest, match="not encrypted"):
        GatewayConfig(broker=BROKER, listen=listen)
    GatewayConfig(broker=BROKER, listen=listen, insecure=True)
    GatewayConfig(broker=BROKER, listen=listen, tls_cert="a.pem", tls_key="b.pem")


@pytest.mark.parametrize("half", [{"tls_cert": "a.pem"}, {"tls_key": "a.pem"}])
def test_half_of_a_certificate_is_refused(half: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match="both"):
        GatewayConfig(broker=BROKER, listen="127.0.0.1:0", **half)  # type: ignore[arg-type]


def test_a_process_of_its_own_reads_what_was_written() -> None:
    config = GatewayConfig(broker=BROKER, listen="127.0.0.1:1", api_key="tml-a", poll_s=1.5)
    line = config.to_line("json", "info")
    fields = json.loads(line)
    assert (fields.pop("log_format"), fields.pop("log_level")) == ("json", "info")
    assert "\n" not in line
    assert GatewayConfig(**fields) == config


def test_the_key_is_in_no_words_about_the_settings() -> None:
    config = GatewayConfig(broker=BROKER, listen="127.0.0.1:1", api_key="tml-secret")
    assert "secret" not in repr(config)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("localhost.example", False),
        ("", False),
        ("0.0.0.0", False),
    ],
)
def test_loopback_is_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
