"""Lines of a log: their form, their fields, and what belongs to none of them."""

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from weft.engine.logs import MAX_VALUE, log_fields, set_up_logs, with_fields

log = logging.getLogger("weft.test")
ATTACHED = ("request_id", "route", "status")


class Lines:
    """A log of this test's own."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def begin(self, form: str = "json", level: str = "info", who: str = "") -> None:
        set_up_logs(form, level, who=who, stream=self.stream)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield Lines()
    logging.captureWarnings(False)
    root.setLevel(level)
    root.handlers[:] = handlers


def test_a_line_of_json_has_time_level_logger_message_and_fields(lines: Lines) -> None:
    lines.begin(who="worker")
    log.info("run %s ended", 3, extra=with_fields(run_id="r", seq=4, code=None, tenant=""))
    (line,) = lines.objects
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "weft.test",
        "message": "run 3 ended",
        "process": "worker",
        "run_id": "r",
        "seq": 4,
    }


def test_attached_fields_nest_and_end_with_their_block(lines: Lines) -> None:
    lines.begin()
    with log_fields(request_id=1, route="/a"):
        with log_fields(route="/b"):
            log.info("in", extra=with_fields(status=200))
        log.info("out")
    log.info("after")
    found = [{k: v for k, v in line.items() if k in ATTACHED} for line in lines.objects]
    assert found == [
        {"request_id": 1, "route": "/b", "status": 200},
        {"request_id": 1, "route": "/a"},
        {},
    ]


def test_tasks_do_not_see_each_others_fields(lines: Lines) -> None:
    lines.begin()

    async def work(number: int, barrier: asyncio.Barrier) -> None:
        with log_fields(request_id=number):
            await barrier.wait()
            log.info("task %d", number)

    async def both() -> None:
        barrier = asyncio.Barrier(2)
        await asyncio.gather(work(1, barrier), work(2, barrier))

    asyncio.run(both())
    assert {(line["message"], line["request_id"]) for line in lines.objects} == {
        ("task 1", 1),
        ("task 2", 2),
    }


def test_a_traceback_stays_inside_its_line(lines: Lines) -> None:
    lines.begin()
    try:
        raise RuntimeError("a fault\nof two lines")
    except RuntimeError:
        log.exception("it failed")
    (line,) = lines.objects
    assert "test_a_traceback_stays" in line["exception"]
    assert "of two lines" in line["exception"]


@pytest.mark.parametrize(
    "value", ["a\nERROR weft: forged", "a\r\nb", "a\x1b[2Jb", "a\x9b2Jb", "a\u2028b"]
)
def test_a_name_with_a_line_break_does_not_begin_a_line(lines: Lines, value: str) -> None:
    lines.begin("text")
    log.info("run %s", value, extra=with_fields(run_id=value))
    assert len(lines.text.splitlines()) == 1
    assert not {"\x1b", "\x9b"} & set(lines.text)


def test_a_line_of_text_has_its_fields_behind_the_message(lines: Lines) -> None:
    lines.begin("text", who="worker")
    log.warning("lost", extra=with_fields(run_id="r", number=2))
    assert lines.text.startswith("worker: ")
    assert lines.text.endswith(" WARNING weft.test: lost run_id=r number=2\n")


def test_only_what_is_ours_is_written_below_warning(lines: Lines) -> None:
    lines.begin(level="debug")
    log.debug("ours")
    logging.getLogger("aiohttp.client").info("headers: Authorization")
    logging.getLogger("weftless").info("not ours")
    logging.getLogger("aiohttp.client").warning("theirs")
    assert [line["message"] for line in lines.objects] == ["ours", "theirs"]


def test_a_level_leaves_out_what_is_less(lines: Lines) -> None:
    lines.begin(level="warning")
    log.info("less")
    log.warning("enough")
    assert [line["message"] for line in lines.objects] == ["enough"]


def test_setting_up_again_replaces_the_lines_before(lines: Lines) -> None:
    lines.begin()
    other = io.StringIO()
    set_up_logs("json", "info", stream=other)
    log.info("once")
    assert lines.text == ""
    assert len(other.getvalue().splitlines()) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"x", {1: 2}, object()])
def test_any_value_becomes_json(lines: Lines, value: Any) -> None:
    lines.begin()
    log.info("odd", extra=with_fields(value=value))
    (line,) = lines.objects
    assert line["value"] == str(value)


def test_a_warning_of_python_is_a_line_too(lines: Lines) -> None:
    lines.begin()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("it is deprecated", stacklevel=1)
    (line,) = lines.objects
    assert (line["logger"], line["level"]) == ("py.warnings", "WARNING")
    assert "it is deprecated" in line["message"]


def test_a_long_value_is_cut(lines: Lines) -> None:
    lines.begin()
    log.info("long", extra=with_fields(value="x" * 10_000))
    (line,) = lines.objects
    assert len(line["value"]) == MAX_VALUE


@pytest.mark.parametrize("name", ["time", "level", "logger", "message", "process", "exception"])
def test_a_field_cannot_take_a_name_of_the_line(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        with_fields(**{name: 1})
    with pytest.raises(ValueError, match=name), log_fields(**{name: 1}):
        pass
