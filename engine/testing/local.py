"""Start a local twin as a child process, and say how programs find it."""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

START_S = 60.0
STOP_S = 40.0  # from the request to stop until it is killed; it gives what is under way 30 s
API_KEY = "tml-local-twin"  # there are no keys, so any will do that begins as the SDK wants
TAIL = 2000  # characters of the log in an error


@dataclass(frozen=True, kw_only=True)
class LocalServer:
    """A running local twin."""

    url: str  # where the official SDK connects
    address: str  # where `weft.client` connects
    model: str  # the name by which it is asked for
    tokenizer_dir: Path  # the model's files, tokenizer among them
    api_key: str = API_KEY
    _log: IO[bytes] = field(repr=False)

    @property
    def log(self) -> str:
        """What the server has warned of, while it runs."""
        return _read(self._log)

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Environment variables with which programs find this server, and no other.

            subprocess.run([sys.executable, "loop.py"], env=server.environment(os.environ))

        Args:
            base: everything else, such as `os.environ`; a project and a server's address in it are
                for the real service, and go.
        """
        direct = {
            name: ",".join(filter(None, ["127.0.0.1", base.get(name, "")]))
            for name in ("no_proxy", "NO_PROXY")
        }
        return {
            **{name: value for name, value in base.items() if name != "TINKER_PROJECT_ID"},
            **direct,
            "TINKER_BASE_URL": self.url,
            "TINKER_API_KEY": self.api_key,
            "TINKER_TELEMETRY": "0",
            "WEFT_ADDRESS": self.address,
            "WEFT_API_KEY": "",
        }

    def link_tokenizer(self, folder: Path) -> None:
        """Make the model's name a path below `folder`.

        Programs that run in `folder` can then call `AutoTokenizer.from_pretrained` with the name of
        the model, as recipes do, and no hub is asked. A model that is a directory needs no link.
        """
        link = folder / self.model
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.tokenizer_dir, target_is_directory=True)


@contextmanager
def local_server(
    model: str | Path = "weft/tiny", *, start_timeout_s: float = START_S
) -> Iterator[LocalServer]:
    """A server on this machine's CPU, with ports and a state of its own, gone after the block.

        with local_server() as server:
            service = tinker.ServiceClient(base_url=server.url, api_key=server.api_key)

    It computes in deterministic mode: the same calls, with seeds, give the same bits. It runs in a
    process of its own, which ends with this one, however that ends.

    Args:
        model: weft/tiny, or a directory in Hugging Face layout; nothing is downloaded.
        start_timeout_s: how long loading may take.

    Raises:
        WeftError: something is not installed, or the model cannot be loaded, in a sentence.
    """
    from ..extras import require

    require("testing", "the local twin")
    with tempfile.TemporaryFile() as log:
        process = _launch(str(model), log)
        try:
            yield LocalServer(_log=log, **_wait(process, log, start_timeout_s))
        finally:
            _end(process)


def _launch(model: str, log: IO[bytes]) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "weft.engine.testing.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died; its log says why
        process.stdin.write(json.dumps({"model": model, "parent": os.getpid()}) + "\n")
        process.stdin.flush()
    return process


def _wait(process: "subprocess.Popen[str]", log: IO[bytes], timeout_s: float) -> dict[str, Any]:
    """The fields of a server that is ready."""
    from ...client.errors import EngineFailed, from_code

    assert process.stdout is not None
    if not select.select([process.stdout], [], [], timeout_s)[0]:
        raise EngineFailed(f"the local twin was not ready after {timeout_s:g} s{_tail(log)}")
    line = process.stdout.readline()
    said: dict[str, Any] = json.loads(line) if line else {}
    if "url" in said:
        return {**said, "tokenizer_dir": Path(said["tokenizer_dir"])}
    if "code" in said:
        raise from_code(said["code"], said["detail"])
    raise EngineFailed(f"the local twin ended with status {process.wait()}{_tail(log)}")


def _end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _read(log: IO[bytes]) -> str:
    """All of a file that somebody else appends to, whose position is left alone."""
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), size, 0).decode(errors="replace")


def _tail(log: IO[bytes]) -> str:
    text = _read(log)[-TAIL:].strip()
    return f"; it said:\n{text}" if text else ""
