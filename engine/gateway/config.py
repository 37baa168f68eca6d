"""Settings of a gateway."""

import ipaddress
import json
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

from ...client.errors import BadRequest
from ...client.limits import LIMITS

START_FAILED = 3  # exit status of a process; the reason is the last line of its stdout


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """Where a gateway listens and whom it serves.

    Raises:
        BadRequest: a listen address that is none, or that other machines reach unencrypted.
    """

    broker: str  # address of the broker
    listen: str  # "host:port"; port 0 takes any
    api_key: str = field(
        default="", repr=False
    )  # of the gateway's own questions, such as those for metrics
    tls_cert: str = ""  # PEM files; "" speaks plain HTTP
    tls_key: str = ""
    insecure: bool = False  # plain HTTP beyond loopback
    public_url: str = ""  # where clients reach it, behind a proxy
    has_keys: bool = False  # whoever starts it, before the broker, has seen that keys are needed
    poll_s: float = LIMITS["poll_s"].default

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise BadRequest("TLS needs both a certificate and its key")
        public = urlsplit(self.public_url)
        if self.public_url and (public.scheme not in ("http", "https") or not public.hostname):
            raise BadRequest(f"{self.public_url!r} is no address such as https://weft.example.org")
        host, port = self.address
        if not 0 <= port < 65_536:
            raise BadRequest(f"port {port} of {self.listen!r} is none")
        if not self.tls_cert and not self.insecure and not is_loopback(host):
            raise BadRequest(
                f"http://{self.listen} can be reached from other machines and is not encrypted; "
                "listen on 127.0.0.1, give --tls-cert and --tls-key, or pass --insecure"
            )

    def to_line(self, log_format: str, log_level: str) -> str:
        """What a process of its own reads."""
        return json.dumps({"log_format": log_format, "log_level": log_level, **asdict(self)})

    @property
    def is_near(self) -> bool:
        """Whether this machine alone can reach it, as far as can be said."""
        public = urlsplit(self.public_url).hostname or "localhost"
        return is_loopback(self.address[0]) and is_loopback(public)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, separator, port = self.listen.rpartition(":")
        if not separator or not host or not port.isdecimal():
            raise BadRequest(f"{self.listen!r} is no address for HTTP, such as 127.0.0.1:8080")
        return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name or an interface
        return False
