from concurrent import futures
from typing import Any

import pytest

from weft.client import custom_loss
from weft.client.errors import Disconnected, EngineFailed
from weft.client.futures import APIFuture


def test_what_failed_first_is_told_even_when_its_number_cannot_be_voided() -> None:
    source: futures.Future[Any] = futures.Future()
    source.set_exception(EngineFailed("the worker is gone", "run_lost"))

    def void() -> None:
        raise Disconnected("closed")

    result = custom_loss.start(
        APIFuture(source), lambda output: (0.0, {}, []), lambda gradients: APIFuture(source), void
    )
    with pytest.raises(EngineFailed) as caught:
        result.result(20)
    assert caught.value.code == "run_lost"
