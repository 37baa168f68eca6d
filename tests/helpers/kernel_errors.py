"""How far a kernel may be from float64: twice as far as the same thing done by PyTorch."""

from collections.abc import Sequence

from torch import Tensor

# float32: sums of some hundreds of numbers in another order, and another exp or square root.
FLOAT32_ERROR = 1e-6


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of the exact values."""
    exact = exact.detach().cpu().double()
    difference = found.detach().cpu().double() - exact
    return float(difference.norm()) / (float(exact.norm()) or 1.0)


def check_errors(found: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """Compare what a kernel found with float64 and, in 16 bits, with PyTorch's error."""
    for mine, theirs, oracle in zip(found, plain, exact, strict=True):
        assert mine.shape == oracle.shape
        error = relative_error(mine, oracle)
        if mine.itemsize == 4:
            assert error <= FLOAT32_ERROR
        else:
            assert error <= 2 * relative_error(theirs, oracle)
