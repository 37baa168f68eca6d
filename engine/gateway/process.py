"""A gateway as a process of its own.

python -P -m weft.engine.gateway.process   reads its settings as one line of JSON from stdin, says
                                           its address in one line of JSON, and ends when stdin is
                                           closed, that is, when its parent ends
"""

import asyncio
import json
import resource
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version

from ...client.errors import WeftError
from ..logs import set_up_logs
from .config import START_FAILED, GatewayConfig
from .server import GatewayServer

MAX_FILES = 16_384


async def run_gateway(
    config: GatewayConfig, stopped: asyncio.Event, on_ready: Callable[[str], None]
) -> None:
    """Serve until `stopped`; `on_ready` is told the address.

    Raises:
        WeftError: it cannot listen there.
    """
    _raise_file_limit()
    server = GatewayServer(config, version("weft"))
    try:
        await server.start()
        on_ready(server.url)
        await stopped.wait()
    finally:
        await server.stop()


def main() -> int:
    """Entry of a spawned gateway; returns its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the terminal's signals are for the parent
    settings = json.loads(sys.stdin.readline())
    set_up_logs(settings.pop("log_format"), settings.pop("log_level"), who="gateway")
    try:
        asyncio.run(_run(GatewayConfig(**settings)))
    except WeftError as error:
        _say({"code": error.code, "detail": str(error)})
        return START_FAILED
    return 0


async def _run(config: GatewayConfig) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    def watch() -> None:
        sys.stdin.read()  # returns when the parent closes the pipe or dies
        with suppress(RuntimeError):  # the loop has ended before the parent has
            loop.call_soon_threadsafe(stopped.set)

    threading.Thread(target=watch, name="weft-parent", daemon=True).start()
    await run_gateway(config, stopped, lambda url: _say({"url": url}))


def _raise_file_limit() -> None:
    """Allow as many open files as connections and lines may need, as far as that is up to us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _say(fields: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
