"""One row of the table, and running a check so that it always ends in one."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ...client.errors import WeftError

log = logging.getLogger(__name__)

Status = Literal["PASS", "FAIL", "SKIP"]


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found."""

    name: str
    status: Status
    figure: str = ""  # the measured number, with its limit where there is one
    detail: str = ""  # a sentence: what was compared, or what is wrong


def passed(name: str, figure: str = "", detail: str = "") -> Check:
    """A row that found nothing wrong."""
    return Check(name, "PASS", figure, detail)


def failed(name: str, detail: str, figure: str = "") -> Check:
    """A row that found something wrong, in a sentence."""
    return Check(name, "FAIL", figure, detail)


def skipped(name: str, detail: str) -> Check:
    """A row that could not be checked, and why."""
    return Check(name, "SKIP", "", detail)


def judged(name: str, is_good: bool, figure: str, detail: str) -> Check:
    """A row decided by a comparison."""
    return Check(name, "PASS" if is_good else "FAIL", figure, detail)


def guarded(name: str, check: Callable[[], Check]) -> Check:
    """Run a check; whatever it raises is a row that failed."""
    try:
        return check()
    except Exception as error:
        return failure(name, error)


def failure(name: str, error: Exception) -> Check:
    """The row of a check that raised: our own sentence, or a library's first line."""
    if isinstance(error, WeftError):
        return failed(name, str(error))
    log.info("check %r raised", name, exc_info=error)
    lines = str(error).strip().splitlines() or ["no message"]
    return failed(name, f"{type(error).__name__}: {lines[0]}")
