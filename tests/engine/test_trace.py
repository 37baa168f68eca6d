from pathlib import Path

import pytest

from weft.client.errors import BadRequest
from weft.engine.trace import EngineStats, Trace, read_stats, read_trace


def test_an_unfinished_trace_can_be_read(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    with trace.span("train_step", tenants=3) as arguments:
        arguments["tokens"] = 7
    (span,) = read_trace(tmp_path / "trace.json")
    assert span["args"] == {"tenants": 3, "tokens": 7}
    trace.close()
    assert len(read_trace(tmp_path / "trace.json")) == 1


def test_a_span_is_kept_when_its_block_raises(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    with pytest.raises(ZeroDivisionError), trace.span("sample"):
        raise ZeroDivisionError
    trace.close()
    assert [span["name"] for span in read_trace(tmp_path / "trace.json")] == ["sample"]


def test_without_a_path_nothing_is_recorded() -> None:
    trace = Trace()
    with trace.span("sample"):
        assert not trace.is_on


def test_the_stats_count_steps_and_tenants(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    for tenants in (1, 3, 3):
        with trace.span("train_step", tenants=tenants), trace.span("forward"):
            pass
    stats = read_stats(tmp_path / "trace.json")
    assert stats.batches_by_tenants == {1: 1, 3: 2}
    assert stats.mean_tenants == pytest.approx(7 / 3)
    assert 0 <= stats.busy_fraction <= 1
    earlier = EngineStats(wall_s=0.0, busy_s=0.0, batches_by_tenants={3: 1})
    assert stats.since(earlier).batches_by_tenants == {1: 1, 3: 1}
    trace.close()


def test_a_full_disk_ends_the_trace_and_not_the_work(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    trace.close()
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as full:
        trace._file = full
        with trace.span("train_step"):
            pass
        assert full.closed
    assert not trace.is_on


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadRequest, match="cannot write a trace to"):
        Trace(tmp_path / "file" / "trace.json")
