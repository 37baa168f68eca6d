"""The line of a terminal: drawn, rewritten, cleared, and absent where there is none."""

import asyncio
import io
import os
import pty
import select
import subprocess
import sys
import threading
from concurrent import futures
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from weft.client.futures import in_thread
from weft.client.waiting_line import WaitingLine, is_main_wait

HELPERS = Path(__file__).parents[1] / "helpers"
HANG_GUARD_S = 60.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "40")
    return Terminal()


def line_on(terminal: Terminal, clock: Clock) -> WaitingLine:
    return WaitingLine(True, clock, lambda: terminal)


def taken(terminal: Terminal) -> str:
    """What was written since the last look."""
    text = terminal.getvalue()
    terminal.seek(0)
    terminal.truncate()
    return text


def test_a_line_is_rewritten_in_place_and_cleared(terminal: Terminal) -> None:
    clock = Clock()
    line = line_on(terminal, clock)
    texts = ["3rd in your lane", "2nd"]
    key = line.begin(-2.0, lambda: texts[0])
    line.refresh()
    assert taken(terminal) == "\rweft: 3rd in your lane (2 s)"
    del texts[0]
    clock.now = 1.0
    line.refresh()
    assert taken(terminal) == "\rweft: 2nd (3 s)" + " " * 13
    line.end(key)
    assert taken(terminal) == "\r" + " " * 15 + "\r"


def test_several_waits_share_the_line_of_the_first(terminal: Terminal) -> None:
    clock = Clock()
    line = line_on(terminal, clock)
    first, second = line.begin(0.0, lambda: "a"), line.begin(0.0, lambda: "b")
    line.refresh()
    clock.now = 1.0
    line.end(first)
    line.refresh()
    line.end(second)
    drawn = taken(terminal).split("\r")[1:]
    assert [text.rstrip() for text in drawn] == [
        "weft: a and 1 more (0 s)",
        "weft: b (1 s)",
        "",
        "",
    ]


def test_a_line_is_not_drawn_for_every_wait_that_asks(terminal: Terminal) -> None:
    line = line_on(terminal, Clock())
    line.begin(0.0, lambda: "a")
    for _ in range(100):
        line.refresh()
    assert taken(terminal) == "\rweft: a (0 s)"


def test_a_line_never_wraps(terminal: Terminal) -> None:
    line = line_on(terminal, Clock())
    line.begin(0.0, lambda: "x" * 100)
    line.refresh()
    text = taken(terminal)
    assert (len(text), text[-4:]) == (1 + 39, "x...")


def test_only_a_wanted_line_of_a_terminal_is_shown(terminal: Terminal) -> None:
    assert WaitingLine(False, terminal=lambda: terminal).begin(0.0, str) is None
    with redirect_stderr(io.StringIO()):
        assert WaitingLine(True).begin(0.0, str) is None
    with redirect_stderr(terminal):
        assert WaitingLine(True).begin(0.0, str) == 1


def test_only_waits_of_the_main_thread_are_shown_or_those_made_for_it() -> None:
    with futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(is_main_wait).result(HANG_GUARD_S) is False

    class Client:
        def wait(self) -> tuple[bool, bool]:
            is_main = threading.current_thread() is threading.main_thread()
            return is_main, is_main_wait()

        wait_async = in_thread(wait)

    assert asyncio.run(Client().wait_async()) == (False, True)


PROGRAM = """
import asyncio, sys
import zmq
from fake_broker import FakeBroker, reply, silent
from weft.client import AdamParams, ServiceClient
from weft.client.limits import LIMITS, Limit

LIMITS["explain_s"] = Limit(0.01, "s", "", "")
context = zmq.Context()
broker = FakeBroker(context, "inproc://b")
service = ServiceClient(base_url=broker.address, api_key="", context=context)
run = service.create_lora_training_client("tiny")
reason = {"code": "queued", "detail": "3rd in your lane"}
broker.answers["explain"] = lambda header, _: [reply(header, {"reasons": [reason]})]
broker.answers["optim_step"] = silent
pending = run.optim_step(AdamParams())
(header,) = broker.wait_for("optim_step")

def answer() -> None:
    sys.stdin.readline()
    broker.push(reply(header, {"metrics": {}}))

import threading
threading.Thread(target=answer, daemon=True).start()

async def wait() -> object:
    return await pending

print(asyncio.run(wait()) if sys.argv[1] == "async" else pending.result(60))
service.close()
broker.close()
"""


@pytest.mark.parametrize("form", ["sync", "async"])
def test_a_real_terminal_sees_the_reason_and_then_nothing(form: str) -> None:
    """Stderr is a terminal of its own: what was drawn is cleared when the result is there."""
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(HELPERS), "COLUMNS": "80", "WEFT_QUIET": ""}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, form],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
        env=environment,
    )
    os.close(slave)
    seen = ""
    while "optim_step: 3rd in your lane" not in seen:
        assert select.select([master], [], [], HANG_GUARD_S)[0], seen
        seen += os.read(master, 4096).decode()
    out, _ = process.communicate("\n", timeout=HANG_GUARD_S)
    while select.select([master], [], [], 0)[0]:
        try:
            seen += os.read(master, 4096).decode()
        except OSError:  # the other side is closed
            break
    os.close(master)
    assert process.returncode == 0, seen
    assert "metrics" in out
    assert seen.split("\r")[-2:] == [" " * len(seen.split("\r")[-3].rstrip(" ")), ""]
