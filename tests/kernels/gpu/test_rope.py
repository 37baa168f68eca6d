"""Norm of heads and rotation: values, gradients, views, bits, and lone NaN."""

from dataclasses import dataclass

import pytest
import torch
from kernel_errors import check_errors
from torch import Tensor

from weft.engine.model.pieces import TorchPieces
from weft.kernels import reference
from weft.kernels.gpu import rope
from weft.kernels.gpu.shapes import PUBLISHED, ModelShape
from weft.kernels.gpu.variants import UnknownVariant, Variant

EPS = 1e-5
TYPES = [torch.float32, torch.bfloat16]
SHAPES = [  # tokens, query heads, key heads, head width
    pytest.param((3, 4, 2, 64), id="64"),
    pytest.param((2, 9, 1, 128), id="128, two blocks of queries"),
    pytest.param((2, 3, 3, 96), id="96"),
    pytest.param((1, 6, 2, 256), id="one token, 256, two blocks of queries"),
    pytest.param((3, 5, 1, 22), id="odd half"),
    pytest.param((2, 2, 1, 2), id="one pair"),
    pytest.param((0, 4, 2, 64), id="empty"),
]

pytestmark = pytest.mark.usefixtures("fresh_memory_is_nan")


@dataclass
class Case:
    qk: rope.Heads  # views of columns of one tensor
    dqk: rope.Heads
    angles: tuple[Tensor, Tensor]
    norm: rope.HeadNorm | None

    def found(self) -> list[Tensor]:
        """Results and gradients of the kernel."""
        dqk = rope.rotate_backward(self.dqk, self.angles, self.norm, self.qk if self.norm else None)
        return [*rope.rotate(self.qk, self.angles, self.norm), *dqk]

    def plain(self) -> list[Tensor]:
        """The same by PyTorch."""
        leaves = self.qk[0].clone().requires_grad_(), self.qk[1].clone().requires_grad_()
        q_norm = self.norm.q_weight_K if self.norm else None
        k_norm = self.norm.k_weight_K if self.norm else None
        outs = list(TorchPieces().rotated(*leaves, q_norm, k_norm, EPS, self.angles))
        return outs + list(torch.autograd.grad(outs, leaves, self.dqk))

    def exact(self) -> list[Tensor]:
        """The same by the oracle."""
        leaves = [x.double().requires_grad_() for x in self.qk]
        outs = leaves
        if self.norm:
            weights = self.norm.q_weight_K, self.norm.k_weight_K
            pairs = zip(leaves, weights, strict=True)
            outs = [reference.rms_norm(x, weight, EPS) for x, weight in pairs]
        tables = [table.squeeze(1) for table in self.angles]
        outs = [reference.rope(x, *tables) for x in outs]
        return outs + list(torch.autograd.grad(outs, leaves, [x.double() for x in self.dqk]))


def make_case(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, has_norm: bool
) -> Case:
    num_tokens, num_q, num_k, width = shape
    generator = torch.Generator().manual_seed(width)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(dtype).to(device)

    def heads() -> rope.Heads:
        wide = random(num_tokens, (num_q + 2 * num_k) * width)
        q, k, _ = torch.split(wide, [num_q * width, num_k * width, num_k * width], dim=1)
        return q.view(num_tokens, num_q, width), k.view(num_tokens, num_k, width)

    turns = 3 * torch.randn(num_tokens, 1, width // 2, generator=generator)
    angles = turns.cos().to(dtype).to(device), turns.sin().to(dtype).to(device)
    norm = rope.HeadNorm(random(width), random(width), EPS) if has_norm else None
    return Case(heads(), heads(), angles, norm)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_heads_and_their_gradients_equal_the_oracle(
    shape: tuple[int, int, int, int], dtype: torch.dtype, has_norm: bool, device: torch.device
) -> None:
    case = make_case(shape, dtype, device, has_norm)
    found = case.found()
    assert all(x.is_contiguous() for x in found)
    check_errors(found, case.plain(), case.exact())


@pytest.mark.parametrize("dtype", TYPES)
def test_views_of_wider_rows_change_no_bit(dtype: torch.dtype, device: torch.device) -> None:
    case = make_case((2, 4, 2, 64), dtype, device, has_norm=True)
    q, k = (x.contiguous() for x in case.qk)
    dq, dk = (x.contiguous() for x in case.dqk)
    own = Case((q, k), (dq, dk), case.angles, case.norm)
    assert all(torch.equal(a, b) for a, b in zip(case.found(), own.found(), strict=True))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("place", [0, 2])
def test_a_token_among_nan_has_the_bits_that_it_has_alone(
    place: int, dtype: torch.dtype, device: torch.device
) -> None:
    case = make_case((3, 4, 2, 32), dtype, device, has_norm=True)
    own = slice(place, place + 1)
    alone = Case(
        (case.qk[0][own], case.qk[1][own]),
        (case.dqk[0][own], case.dqk[1][own]),
        (case.angles[0][own], case.angles[1][own]),
        case.norm,
    ).found()
    others = [token for token in range(3) if token != place]
    for x in (*case.qk, *case.dqk):
        x[others] = float("nan")

    for found, expected in zip(case.found(), alone, strict=True):
        assert torch.equal(found[own], expected)
        assert found[others].isnan().all()


def test_a_head_of_nan_leaves_the_others_alone(device: torch.device) -> None:
    case = make_case((1, 4, 2, 32), torch.float32, device, has_norm=True)
    before = case.found()
    case.qk[0][:, 1] = float("nan")
    q, k, dq, dk = case.found()
    others = [0, 2, 3]
    assert torch.equal(q[:, others], before[0][:, others])
    assert torch.equal(k, before[1])
    assert torch.equal(dq[:, others], before[2][:, others])
    assert torch.equal(dk, before[3])


@pytest.mark.parametrize(
    ("width", "dtype", "message"),
    [
        pytest.param(258, torch.bfloat16, "rotate bf16 2.1 heads of 258", id="too wide"),
        pytest.param(64, torch.float16, "float16", id="another type"),
    ],
)
def test_what_was_not_compiled_is_named(
    width: int, dtype: torch.dtype, message: str, device: torch.device
) -> None:
    case = make_case((1, 2, 1, width), dtype, device, has_norm=False)
    with pytest.raises(UnknownVariant, match=message):
        rope.rotate(case.qk, case.angles)


def test_heads_with_gaps_are_refused(device: torch.device) -> None:
    case = make_case((2, 4, 4, 32), torch.float32, device, has_norm=False)
    q, k = case.qk
    with pytest.raises(ValueError, match="strides"):
        rope.rotate((q[:, ::2], k), case.angles)


def test_keys_of_another_type_or_number_are_refused(device: torch.device) -> None:
    case = make_case((2, 4, 4, 32), torch.float32, device, has_norm=False)
    q, k = case.qk
    for keys in (k.bfloat16(), k[:1]):
        with pytest.raises(ValueError, match="heads"):
            rope.rotate((q, keys), case.angles)


def test_angles_of_other_tokens_are_refused(device: torch.device) -> None:
    case = make_case((2, 4, 4, 32), torch.float32, device, has_norm=False)
    cos, sin = case.angles
    with pytest.raises(ValueError, match="angles"):
        rope.rotate(case.qk, (cos, sin[:1]))


def test_a_norm_without_its_arguments_has_no_gradient(device: torch.device) -> None:
    case = make_case((1, 2, 1, 32), torch.float32, device, has_norm=True)
    with pytest.raises(ValueError, match="needs what was normed"):
        rope.rotate_backward(case.dqk, case.angles, case.norm)


@pytest.mark.parametrize("shape", PUBLISHED, ids=lambda shape: shape.name)
def test_what_published_models_launch_is_enumerated(
    shape: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Variant] = []
    monkeypatch.setattr(Variant, "launch", lambda self, grid, **_: launched.append(self))
    sizes = 2, shape.num_heads, shape.num_kv_heads, shape.head_dim
    make_case(sizes, torch.bfloat16, torch.device("cpu"), shape.has_qk_norm).found()
    assert set(launched) <= set(rope.all_variants(shape))
    assert len(set(launched)) == 2
