"""`weft gateway` as a user runs it."""

import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gateways import Caller, Stand, standing
from processes import HANG_GUARD_S

from weft.engine.__main__ import main

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("stand"), hold=True) as made:
        yield made


@pytest.fixture
def start(stand: Stand) -> Iterator[Start]:
    """Run the command with options, and end it in any case."""
    started = []

    def begin(*options: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-P", "-m", "weft.engine", "gateway"]
        command += ["--broker", stand.address, "--http", "127.0.0.1:0", *options]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def said(process: "subprocess.Popen[str]") -> str:
    """The address that it tells."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("weft serves HTTP on http"), line
    return line.split()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(start: Start, number: int) -> None:
    process = start()
    caller = Caller(said(process), "tml-any")
    assert caller.session()
    process.send_signal(number)
    _, err = process.communicate(timeout=HANG_GUARD_S)
    assert (process.returncode, err) == (0, "")


def test_it_loads_no_torch(start: Start) -> None:
    process = start()
    said(process)
    maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
    assert "libzmq" in maps
    assert "libtorch" not in maps


def test_what_it_cannot_do_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "--http", "0.0.0.0:8080"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("weft: http://0.0.0.0:8080 can be reached from other machines")
    assert captured.err.count("\n") == 1


def test_it_speaks_https_with_a_certificate(start: Start, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=HANG_GUARD_S)
    except FileNotFoundError:
        pytest.skip("openssl makes the certificate, and is not installed")
    url = said(start("--tls-cert", str(cert), "--tls-key", str(key)))
    assert url.startswith("https://127.0.0.1:")
    trust = ssl.create_default_context(cafile=str(cert))
    with urllib.request.urlopen(f"{url}/healthz", context=trust, timeout=HANG_GUARD_S) as answer:
        assert answer.status == 200
