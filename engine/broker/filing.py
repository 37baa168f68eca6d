"""Everything about files at the broker, as one part of its core."""

from collections.abc import Callable
from typing import Any

from ...client.file_messages import (
    CloseTransfer,
    CopyCheckpoint,
    DeleteCheckpoint,
    ExpireCheckpoint,
    FinishUpload,
    OpenDownload,
    OpenUpload,
    PublishCheckpoint,
    ReadPart,
    RenameCheckpoint,
    WritePart,
)
from .answers import Answers
from .books import Books
from .events import ClientMessage, StoreDone
from .keeping import Keeping
from .sessions import Session
from .storing import Storing
from .transfers import Transfers


class Filing:
    """Routes requests about files, and what the store says."""

    def __init__(self, books: Books, answers: Answers) -> None:
        self._storing = Storing(books, answers)
        self._keeping = Keeping(books, self._storing)
        self._transfers = Transfers(books, self._storing)
        self.on_client: dict[type, Callable[[Session, ClientMessage, Any], None]] = {
            DeleteCheckpoint: self._keeping.delete,
            RenameCheckpoint: self._keeping.rename,
            ExpireCheckpoint: self._keeping.expire,
            PublishCheckpoint: self._keeping.publish,
            CopyCheckpoint: self._keeping.copy,
            OpenDownload: self._transfers.open_download,
            ReadPart: self._transfers.read_part,
            OpenUpload: self._transfers.open_upload,
            WritePart: self._transfers.write_part,
            FinishUpload: self._transfers.finish_upload,
            CloseTransfer: self._transfers.close,
        }

    def done(self, event: StoreDone) -> None:
        """The store has done a job."""
        self._storing.done(event)

    def tick(self) -> None:
        """Delete what is due, and forget transfers that nobody goes on with."""
        self._keeping.delete_expired()
        self._transfers.expire()

    def end_session(self, session: Session) -> None:
        """A session has ended."""
        self._transfers.end_session(session)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other."""
        self._transfers.check_integrity()
