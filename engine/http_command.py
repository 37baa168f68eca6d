"""`weft gateway`, and what `weft serve --http` shares with it."""

import argparse
import asyncio
import signal
from collections.abc import Callable

from ..client.environment import api_key, server_address
from .extras import require
from .gateway.config import GatewayConfig
from .logs import add_log_options

DEFAULT_LISTEN = "127.0.0.1:8080"


def add_http_options(parser: argparse.ArgumentParser) -> None:
    """Options of whatever speaks HTTP."""
    parser.add_argument("--tls-cert", metavar="FILE", default="", help="speak HTTPS with this")
    parser.add_argument("--tls-key", metavar="FILE", default="", help="the certificate's key")
    parser.add_argument(
        "--public-url", metavar="URL", default="", help="where clients reach it, behind a proxy"
    )


def add_gateway_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    run: Callable[[argparse.Namespace], int],
) -> None:
    """Add the command `gateway`."""
    gateway = commands.add_parser("gateway", help="serve the official tinker SDK over HTTP")
    gateway.add_argument("--broker", default="", help="the server; WEFT_ADDRESS, else the default")
    gateway.add_argument(
        "--http", metavar="HOST:PORT", default=DEFAULT_LISTEN, help=f"{DEFAULT_LISTEN} unless given"
    )
    gateway.add_argument(
        "--insecure", action="store_true", help="allow plain HTTP that other machines reach"
    )
    add_http_options(gateway)
    add_log_options(gateway)
    gateway.set_defaults(run=run)


def serve_gateway(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Serve HTTP for a broker that runs elsewhere, until SIGINT or SIGTERM."""
    require("gateway", "HTTP")
    from .gateway.process import run_gateway

    config = GatewayConfig(
        broker=arguments.broker or server_address(),
        listen=arguments.http,
        api_key=api_key(),
        tls_cert=arguments.tls_cert,
        tls_key=arguments.tls_key,
        insecure=arguments.insecure,
        public_url=arguments.public_url,
    )

    async def run() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await run_gateway(config, stopped, lambda url: say(f"weft serves HTTP on {url}"))

    asyncio.run(run())
    return 0
