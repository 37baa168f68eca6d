import pytest

from weft.client.errors import BadRequest, EngineFailed
from weft.engine.worker.launch import _explain
from weft.engine.worker.process import LOAD_FAILED


def test_a_regular_end_needs_no_explanation() -> None:
    assert _explain(0, "whatever\n") is None


def test_the_reason_of_a_failed_load_keeps_its_code() -> None:
    error = _explain(LOAD_FAILED, '{"code": "too_large", "detail": "16.4 GB"}\n')
    assert isinstance(error, BadRequest)
    assert (error.code, str(error)) == ("too_large", "16.4 GB")


@pytest.mark.parametrize("line", ["", "bye\n", "3\n", "{}\n"])
def test_a_failed_load_without_a_reason_is_explained_all_the_same(line: str) -> None:
    assert isinstance(_explain(LOAD_FAILED, line), EngineFailed)


def test_a_signal_is_named() -> None:
    assert "signal 9" in str(_explain(-9, ""))
