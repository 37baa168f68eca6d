"""The broker's log: which of the core's notes are written, at which level, with which fields.

Only fields of this table are written. What a tenant sends never is: no metadata, no payload, and no
sentence of an error of the user's, since those quote the value that was wrong.
"""

import logging

from ..logs import with_fields
from .events import Noted

log = logging.getLogger(__name__)

_LEVELS = {
    "dispatched": logging.DEBUG,
    "done": logging.DEBUG,
    "failed": logging.DEBUG,
    "refused": logging.DEBUG,
    "worker_progress": logging.DEBUG,
    "failures": logging.WARNING,
    "run_lost": logging.WARNING,
    "worker_lost": logging.WARNING,
    "worker_awaited": logging.WARNING,
    "no_worker": logging.ERROR,
}  # INFO are all others
_FIELDS = (
    "kind",
    "code",
    "number",
    "request_id",
    "run_id",
    "seq",
    "sampler_id",
    "session_id",
    "worker_id",
    "model",
    "path",
    "client",
    "phase",
    "fraction",
)
_OWN_WORDS = ("session_ended", "worker_lost", "worker_awaited", "no_worker")  # their "detail" is


def logs_requests() -> bool:
    """Whether notes of single requests would be written."""
    return log.isEnabledFor(logging.DEBUG)


def tell(noted: Noted) -> None:
    """Write a note to the log."""
    level = _LEVELS.get(noted.name, logging.INFO)
    if not log.isEnabledFor(level):
        return
    known = {name: noted.fields[name] for name in _FIELDS if name in noted.fields}
    if noted.name in _OWN_WORDS:
        known["detail"] = noted.fields.get("detail")
    if "lane" in noted.fields:
        known["session_id"] = noted.fields["lane"].rpartition("/")[2]
    known["tenant"] = noted.tenant or None
    log.log(level, "%s", noted.name.replace("_", " "), extra=with_fields(**known))
