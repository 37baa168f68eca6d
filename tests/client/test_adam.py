import pytest

from weft.client.adam import check_adam
from weft.client.errors import BadRequest
from weft.client.types import AdamParams


def test_the_defaults_and_zeros_are_taken() -> None:
    check_adam(AdamParams())
    check_adam(AdamParams(learning_rate=0.0, beta1=0.0, beta2=0.0, eps=0.0))


def test_a_field_out_of_range_is_named() -> None:
    with pytest.raises(BadRequest, match=r"beta1 is 1\.0, not a number in \[0, 1\)"):
        check_adam(AdamParams(beta1=1.0))
