"""Stands of a gateway, a broker and a fake worker: one for a whole module, or one for a test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateways import Caller, Stand, standing

from weft.engine.broker import shell

POLL_S = 0.5  # what a poll is held at most; long enough for a fake worker, short enough for a test


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Without keys, for tests that change nothing for others."""
    with standing(tmp_path_factory.mktemp("stand"), poll_s=POLL_S) as made:
        yield made


@pytest.fixture
def caller(stand: Stand) -> Caller:
    return stand.caller()


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Stand]]:
    """Makes a stand for one test."""
    monkeypatch.setattr(shell, "TICK_S", 0.02)  # what happens to keys is soon noticed
    made: list[Stand] = []

    def begin(**settings: Any) -> Stand:
        made.append(Stand(tmp_path, **{"poll_s": POLL_S, **settings}))
        return made[-1]

    yield begin
    for stand in made:
        stand.close()
