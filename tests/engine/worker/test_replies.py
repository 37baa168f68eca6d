import numpy as np
import pytest

from weft.engine.worker.replies import split_arrays


@pytest.mark.parametrize("max_bytes", [4, 12, 40, 1000])
def test_arrays_come_back_from_their_parts(max_bytes: int) -> None:
    named = {
        "tokens": np.arange(9, dtype=np.int32),
        "lengths": np.array([4, 5], np.int32),
        "logprobs": np.linspace(0, 1, 9, dtype=np.float32),
    }
    parts = split_arrays(named, max_bytes)
    assert all(sum(piece.nbytes for piece in part.values()) <= max_bytes for part in parts)
    for name, values in named.items():
        joined = np.concatenate([part[name] for part in parts if name in part])
        np.testing.assert_array_equal(joined, values)


def test_an_empty_array_is_still_there() -> None:
    (part,) = split_arrays({"tokens": np.zeros(0, np.int32)}, 100)
    assert part["tokens"].shape == (0,)
