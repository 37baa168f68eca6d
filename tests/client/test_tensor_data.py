"""Arrays come from lists, numpy and torch, and nothing is lost on the way."""

from typing import Any

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


def sparse(data: Any = (5, 6), **fields: Any) -> TensorData:
    given: dict[str, Any] = {
        "dtype": "int64",
        "shape": [2, 3],
        "sparse_crow_indices": [0, 1, 2],
        "sparse_col_indices": [2, 0],
        **fields,
    }
    return TensorData(list(data), **given)


def test_a_sparse_matrix_is_made_dense_with_its_padding() -> None:
    data = sparse()
    assert (data.shape, data.dtype, data.data, len(data)) == ([2, 3], "int64", [5, 6], 2)
    assert (data.sparse_crow_indices, data.sparse_col_indices) == ([0, 1, 2], [2, 0])
    assert data.tolist() == data.to_torch().tolist() == [[0, 0, 5], [6, 0, 0]]
    assert data.to_numpy(-1).tolist() == [[-1, -1, 5], [6, -1, -1]]
    assert data == sparse()
    assert data != sparse(sparse_col_indices=[1, 0])
    assert data != TensorData([5, 6], "int64")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"sparse_col_indices": None}, "go together", id="no columns"),
        pytest.param({"sparse_crow_indices": None}, "go together", id="no rows"),
        pytest.param({"shape": None}, r"needs the shape \[N, K\]", id="no shape"),
        pytest.param({"shape": [6]}, r"needs the shape \[N, K\]", id="one dimension"),
        pytest.param({"shape": [3, 3]}, "3 row pointers do not make 3 rows", id="rows"),
        pytest.param({"data": [5]}, r"1 values do not have shape \[2\]", id="values"),
        pytest.param({"sparse_col_indices": [2, 3]}, "outside 0 .. 2", id="column"),
    ],
)
def test_a_sparse_matrix_that_contradicts_itself_is_refused(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        sparse(**fields)


def test_a_mostly_padded_torch_matrix_is_listed() -> None:
    tensor = torch.full((4, 5), -1)
    tensor[1, 2], tensor[3, 0] = 7, 0
    data = TensorData.from_torch_sparse(tensor, pad_value=-1)
    assert (data.data, data.sparse_crow_indices) == ([7, 0], [0, 0, 1, 1, 2])
    assert torch.equal(data.to_torch(-1), tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.ones(2, 3), id="full"),
        pytest.param(torch.tensor([[0, 1], [1, 0]]), id="no smaller"),
        pytest.param(torch.zeros(9), id="one dimension"),
    ],
)
def test_what_would_be_no_smaller_stays_dense(tensor: torch.Tensor) -> None:
    data = TensorData.from_torch_sparse(tensor)
    assert data.sparse_crow_indices is data.sparse_col_indices is None
    assert torch.equal(data.to_torch(), tensor)


@pytest.mark.parametrize("pad_value", [0.5, True, None])
def test_padding_is_an_integer(pad_value: object) -> None:
    with pytest.raises(BadRequest, match="not an integer"):
        TensorData.from_torch_sparse(torch.zeros(9, 9), pad_value)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")  # of torch, that they are in beta
def test_a_sparse_torch_tensor_is_refused_by_its_layout() -> None:
    with pytest.raises(BadRequest, match=r"torch\.sparse_csr; give it dense"):
        TensorData(torch.eye(3).to_sparse_csr())
