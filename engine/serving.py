"""An engine and, where asked for, an HTTP gateway in a process beside it."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..client.errors import BadRequest, WeftError
from .broker.key_store import KeyStore
from .embedded import Engine, socket_folder
from .gateway.config import GatewayConfig
from .gateway.launch import GatewayProcess


class Server:
    """What `weft serve` runs: an isolated engine, and a gateway if `http` is given.

        with Server("weft/tiny", http="127.0.0.1:0") as server:
            print(server.url)

    Args:
        model: see `Engine`.
        http: host and port of the gateway, port 0 takes any; "" runs none.
        tls_cert, tls_key, public_url: see `GatewayConfig`.
        listen, insecure, state_dir, on_progress: see `Engine`.
        log_format, log_level: of the processes beside this one.
        worker_settings: fields of `WorkerConfig`.

    Raises:
        WeftError: the model cannot be loaded, or an address is taken or not allowed.
    """

    def __init__(
        self,
        model: str = "weft/tiny",
        *,
        http: str = "",
        tls_cert: str = "",
        tls_key: str = "",
        public_url: str = "",
        listen: Sequence[str] = (),
        insecure: bool = False,
        state_dir: str = "",
        on_progress: Callable[[str, float], None] | None = None,
        log_format: str = "text",
        log_level: str = "warning",
        **worker_settings: Any,
    ) -> None:
        self._gateway: GatewayProcess | None = None
        self._sockets = socket_folder() if http else None
        operator_key = f"tml-{secrets.token_urlsafe(32)}"
        if not http and (tls_cert or tls_key or public_url):
            raise BadRequest("a certificate or a public URL is of HTTP, which is not asked for")
        with ExitStack() as undo:
            if self._sockets is not None:
                undo.callback(self._sockets.cleanup)
                config = GatewayConfig(
                    broker=f"ipc://{self._sockets.name}/front",
                    listen=http,
                    api_key=operator_key,
                    tls_cert=tls_cert,
                    tls_key=tls_key,
                    insecure=insecure,
                    public_url=public_url,
                )
                config = replace(config, has_keys=_check_keys(config, state_dir))
                # Before the engine: it tells how far the model is loaded, and a port that is taken
                # or a certificate that is none is known at once.
                self._gateway = GatewayProcess(config, log_format=log_format, log_level=log_level)
                undo.callback(self._gateway.close)
                listen = [*listen, config.broker]
            self.engine = Engine(
                model,
                isolate=True,
                listen=listen,
                insecure=insecure,
                state_dir=state_dir,
                operator_key=operator_key,
                on_progress=on_progress,
                log_format=log_format,
                log_level=log_level,
                **worker_settings,
            )
            undo.pop_all()

    @property
    def addresses(self) -> list[str]:
        """Where native clients connect."""
        addresses = self.engine.addresses
        return addresses if self._sockets is None else addresses[:-1]

    @property
    def url(self) -> str:
        """Where the official SDK connects; "" without a gateway."""
        return "" if self._gateway is None else self._gateway.url

    @property
    def gateway_pid(self) -> int | None:
        """Process id of the gateway that runs now."""
        return None if self._gateway is None else self._gateway.pid

    @property
    def failure(self) -> WeftError | None:
        """Why nothing is served any more, once that is so."""
        if self._gateway is not None and self._gateway.failure is not None:
            return self._gateway.failure
        return self.engine.failure

    @property
    def is_healthy(self) -> bool:
        """Whether everything runs, or is being started again."""
        return self.engine.is_healthy and self.failure is None

    def close(self) -> None:
        """End the gateway, then the engine. Safe to repeat."""
        if self._gateway is not None:
            self._gateway.close()
        self.engine.close()
        if self._sockets is not None:
            self._sockets.cleanup()

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_keys(config: GatewayConfig, state_dir: str) -> bool:
    """Without keys everybody is the same tenant, so nobody from outside may come in.

    Returns:
        Whether keys are needed, which they are for good once there is one.

    Raises:
        BadRequest: there are none, and others can reach it.
    """
    has_keys = bool(state_dir) and KeyStore(Path(state_dir)).secrets() is not None
    if not (has_keys or config.insecure or config.is_near):
        raise BadRequest(
            f"{config.public_url or config.listen} can be reached from other machines, and there are no API keys; "
            "make one with `weft key create`, or pass --insecure"
        )
    return has_keys
