"""Arrays come from lists, numpy and torch, and nothing is lost on the way."""

import numpy as np
import pytest
import torch

from weft.client.errors import BadRequest
from weft.client.tensor_data import TensorData, to_array


@pytest.mark.parametrize(
    ("data", "dtype", "kind"),
    [
        pytest.param([1, 2, 3], "int64", np.int32, id="list of ints"),
        pytest.param([1, 2, 2**40], "int64", np.int64, id="wide ints"),
        pytest.param([1, 2, 3], "float32", np.float32, id="ints as floats"),
        pytest.param([0.5, 2, 3], "float32", np.float32, id="list of floats"),
        pytest.param([], "int64", np.int32, id="empty ints"),
        pytest.param([], "float32", np.float32, id="empty floats"),
        pytest.param([1.0, 2.0], None, np.float32, id="floats by themselves"),
        pytest.param([1, 2], None, np.int64, id="ints by themselves"),
        pytest.param([[1, 2], [3, 4]], "int64", np.int64, id="nested"),
        pytest.param(np.array([1, 2], np.int32), None, np.int32, id="int32"),
        pytest.param(np.array([1, 2], np.uint8), None, np.int64, id="uint8"),
        pytest.param(np.array([1.5]), None, np.float32, id="float64"),
        pytest.param(np.array([1.0, 2.0]), "int64", np.int64, id="whole floats"),
        pytest.param(np.array([True, False]), None, np.int64, id="bools"),
        pytest.param(torch.tensor([1, 2]), None, np.int64, id="torch ints"),
        pytest.param(torch.tensor([1.5], dtype=torch.bfloat16), None, np.float32, id="bfloat16"),
        pytest.param(torch.tensor([1.5], requires_grad=True), None, np.float32, id="with grad"),
    ],
)
def test_values_and_kind_are_kept(data: object, dtype: str | None, kind: type) -> None:
    array = to_array(data, dtype)
    assert array.dtype == kind
    expected = data.detach().float().numpy() if isinstance(data, torch.Tensor) else data
    assert array.tolist() == np.asarray(expected).astype(kind).tolist()


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        pytest.param([1, 2.5], "int64", id="fraction in a list of ints"),
        pytest.param(np.array([1.5]), "int64", id="fraction in an array"),
        pytest.param(["a"], "int64", id="string"),
        pytest.param([None], "float32", id="none"),
        pytest.param([[1], [1, 2]], "int64", id="ragged"),
        pytest.param([2**70], "int64", id="70 bits"),
        pytest.param(np.array([2**63], np.uint64), None, id="unsigned"),
        pytest.param(np.array(["a"]), None, id="array of strings"),
        pytest.param(np.array([1j]), None, id="complex"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(data: object, dtype: str | None) -> None:
    with pytest.raises(BadRequest):
        to_array(data, dtype)


def test_arrays_are_not_copied() -> None:
    array = np.arange(3, dtype=np.int32)
    assert TensorData.from_numpy(array).to_numpy() is array


def test_a_torch_tensor_comes_back() -> None:
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    data = TensorData.from_torch(tensor)
    assert (data.shape, data.dtype, data.data) == ([2, 2], "float32", [1, 2, 3, 4])
    assert torch.equal(data.to_torch(), tensor)
    assert data.tolist() == [[1, 2], [3, 4]]


def test_a_shape_is_applied_and_checked() -> None:
    assert TensorData([1, 2, 3, 4], "int64", [2, 2]).tolist() == [[1, 2], [3, 4]]
    with pytest.raises(BadRequest, match=r"4 values do not have shape \[3\]"):
        TensorData([1, 2, 3, 4], "int64", [3])


def test_other_dtypes_are_refused_by_name() -> None:
    with pytest.raises(BadRequest, match="'float16'"):
        TensorData([1.0], "float16")


def test_equal_data_are_equal() -> None:
    assert TensorData([1, 2], "int64") == TensorData(np.array([1, 2]))
    assert TensorData([1.0], "float32") != TensorData([1], "int64")
