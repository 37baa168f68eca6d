"""Arrays on the device."""

import numpy as np
import pytest
import torch

from weft.engine.model.uploads import upload


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32, np.float64, np.bool_])
def test_on_a_cpu_they_are_the_same_memory(dtype: type) -> None:
    values: np.ndarray = np.arange(6).astype(dtype)
    found = upload(values, "cpu")
    assert found.data_ptr() == values.ctypes.data
    np.testing.assert_array_equal(found.numpy(), values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_does_not_wait_for_the_device() -> None:
    device = torch.device("cuda")
    expected = torch.arange(1000, device=device)
    upload(np.arange(1000), device)  # pins memory that the next one takes
    torch.cuda._sleep(1 << 30)  # type: ignore[no-untyped-call]
    found = upload(np.arange(1000), device)
    assert not torch.cuda.current_stream().query()
    assert torch.equal(found, expected)
