"""The command line: weft serve, weft demo, weft verify, weft status, weft key,
weft gateway."""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..client.environment import DEFAULT_ADDRESS, is_quiet, server_address
from ..client.errors import WeftError
from ..client.waiting import describe_phase
from ..client.waiting_line import WaitingLine
from .extras import require
from .http_command import add_gateway_command, add_http_options, serve_gateway
from .key_command import add_key_commands, add_state_option, answer, state_folder
from .logs import add_log_options, set_up_logs
from .status_table import status_lines
from .worker.config import DEVICES, DTYPES, KERNELS, MODELLING, WorkerConfig

WORKER_HELPS: dict[str, tuple[str, dict[str, Any]]] = {
    "device": ("cpu or cuda; cuda where there is one", {"choices": DEVICES}),
    "dtype": ("float32 on a CPU and bfloat16 on a GPU unless given", {"choices": DTYPES}),
    "modelling": ("Weft's decoder, transformers' code, or whichever fits", {"choices": MODELLING}),
    "kernels": ("Triton's, which a GPU takes unless given, or PyTorch's", {"choices": KERNELS}),
    "is_deterministic": ("results never depend on the neighbours, bit by bit", {}),
    "trace": ("write a Chrome trace of all steps to this file", {"metavar": "FILE"}),
    "memory_bytes": ("what the worker may use", {"metavar": "N"}),
    "batch_tokens": ("tokens of a train batch", {"metavar": "N"}),
    "unit_tokens": ("tokens of a unit, the atom of a batch", {"metavar": "N"}),
    "max_pages": ("pages of 16 tokens in the KV cache", {"metavar": "N"}),
    "is_fused": ("compute one run at a time, for comparison", {}),
    "num_threads": ("threads of a worker on a CPU", {"metavar": "N"}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors of the user are one sentence on stderr."""
    parsed = build_parser().parse_args(arguments)
    if not getattr(parsed, "log_level", ""):
        parsed.log_level = "info" if parsed.verbose else "warning"
    set_up_logs(getattr(parsed, "log_format", "text"), parsed.log_level)
    try:
        return int(parsed.run(parsed))
    except WeftError as error:
        print(f"weft: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="weft", description="Multi-tenant LoRA training and sampling on one warm base model."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve a base model to many tenants")
    serve.add_argument(
        "model",
        nargs="?",
        default="weft/tiny",
        help="a directory in Hugging Face layout, a name on the hub, or weft/tiny (the default)",
    )
    serve.add_argument(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help=f"where clients connect, may be repeated; {DEFAULT_ADDRESS} unless given",
    )
    serve.add_argument(
        "--insecure",
        action="store_true",
        help="allow addresses beyond loopback although there is no encryption yet",
    )
    serve.add_argument(
        "--http", metavar="HOST:PORT", default="", help="serve the official tinker SDK there, too"
    )
    add_http_options(serve)
    add_log_options(serve)
    add_state_option(serve)
    add_worker_arguments(serve)
    serve.set_defaults(run=run_serve)

    add_gateway_command(commands, run_gateway)

    demo = commands.add_parser("demo", help="several tenants train and sample at the same time")
    demo.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    demo.set_defaults(run=run_demo)

    verify = commands.add_parser("verify", help="check a model against independent code")
    verify.add_argument("model", help="a directory, a name on the hub, or weft/tiny")
    for name, default in (("device", ""), ("dtype", ""), ("modelling", "auto")):
        text, extra = WORKER_HELPS[name]
        verify.add_argument(f"--{name}", default=default, help=text, **extra)
    verify.add_argument("--json", metavar="FILE", default="", help="write the table there, too")
    verify.set_defaults(run=run_verify)

    status = commands.add_parser("status", help="what a running server does")
    status.add_argument("--address", default="", help="the server; WEFT_ADDRESS, else the default")
    status.set_defaults(run=run_status)

    add_key_commands(commands, run_key)
    return parser


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """One option for each field of WorkerConfig that a user may set."""
    for field in fields(WorkerConfig):
        if field.name not in WORKER_HELPS:
            continue
        text, extra = WORKER_HELPS[field.name]
        name = field.name.removeprefix("is_").replace("_", "-")
        if isinstance(field.default, bool):
            flag = f"--no-{name}" if field.default else f"--{name}"
            action = "store_false" if field.default else "store_true"
            parser.add_argument(flag, dest=field.name, action=action, help=text)
        else:
            options: dict[str, Any] = {"default": field.default, "help": text, **extra}
            kind = int if isinstance(field.default, int) else str
            parser.add_argument(f"--{name}", dest=field.name, type=kind, **options)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; work under way finishes, the rest is refused."""
    require("engine", "the engine")
    if arguments.http:
        require("gateway", "HTTP")
    from .serving import Server

    settings = {
        field.name: getattr(arguments, field.name)
        for field in fields(WorkerConfig)
        if hasattr(arguments, field.name) and field.name != "model"
    }
    listen = arguments.listen or [DEFAULT_ADDRESS]
    stop = threading.Event()
    is_serving = False
    loading = _LoadingLine(arguments.model)

    def end(*_: object) -> None:
        if not is_serving:
            raise _Ended
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        server = Server(
            arguments.model,
            http=arguments.http,
            tls_cert=arguments.tls_cert,
            tls_key=arguments.tls_key,
            public_url=arguments.public_url,
            listen=listen,
            insecure=arguments.insecure,
            state_dir=str(state_folder(arguments)),
            on_progress=loading.tell,
            **settings,
        )
        is_serving = True
    except _Ended:
        return 0
    finally:
        loading.end()
    with server:
        print(f"weft serves {arguments.model} on {', '.join(server.addresses)}")
        if server.url:
            print(f"weft serves HTTP on {server.url}")
        print(server.engine.describe_keys(), flush=True)
        while not stop.is_set() and server.is_healthy:
            stop.wait(0.5)
        if not stop.is_set():
            print(f"weft: {server.failure or 'the broker has ended'}", file=sys.stderr)
            return 1
    return 0


class _LoadingLine:
    """Says in a terminal how far a model is loaded."""

    def __init__(self, model: str) -> None:
        self._text = f"{model} is being loaded"
        self._phase = "starting"
        self._line = WaitingLine(not is_quiet())
        self._key = self._line.begin(time.monotonic(), lambda: f"{self._text}: {self._phase}")

    def tell(self, phase: str, fraction: float) -> None:
        """How far it is; from any thread."""
        self._phase = describe_phase(phase, fraction)
        self._line.refresh()

    def end(self) -> None:
        """It is loaded, or will not be."""
        self._line.end(self._key)


class _Ended(BaseException):
    """A signal to end came while the model was loading."""


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the demo on a worker of its own."""
    require("engine", "the engine")
    from .demo.run import main as demo_main

    return demo_main(is_quick=arguments.quick)


def run_verify(arguments: argparse.Namespace) -> int:
    """Print the table of a verification; 1 when a row has failed."""
    require("engine", "the engine")
    from .verify.report import lines_of, require_writable, summary_of, write_json
    from .verify.run import VerifyConfig, verify

    if arguments.json:
        require_writable(Path(arguments.json))
    config = VerifyConfig(
        model=arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        modelling=arguments.modelling,
    )
    checks = verify(config, lambda check: print("\n".join(lines_of(check)), flush=True))
    print(summary_of(checks))
    if arguments.json:
        write_json(Path(arguments.json), arguments.model, checks)
    return int(any(check.status == "FAIL" for check in checks))


def run_status(arguments: argparse.Namespace) -> int:
    """Print the books of a running server."""
    from ..client.service import ServiceClient

    address = arguments.address or server_address()
    with ServiceClient(base_url=address) as service:
        status = service.get_status().result()
    print("\n".join(status_lines(address, status)))
    return 0


def run_gateway(arguments: argparse.Namespace) -> int:
    """Serve HTTP for a server that runs already."""
    return serve_gateway(arguments, lambda text: print(text, flush=True))


def run_key(arguments: argparse.Namespace) -> int:
    """Make, list, rotate or revoke API keys."""
    print(answer(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
