"""The decoder: equal to transformers, packed or not, checkpointed or not, whatever stands beside."""

from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import LLAMA3_ROPE, save_random_model
from rope_examples import LINEAR, ROPES, YARN
from torch import Tensor

from weft.client.errors import NotFound
from weft.engine.model.attention import PackedAttention
from weft.engine.model.decoder import Decoder
from weft.engine.model.linear import BaseLinear, FrozenLinears

LENGTHS = [5, 1, 200, 64, 7]


def random_tokens(lengths: list[int], vocab_size: int = 97, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab_size, (length,), generator=generator) for length in lengths]


def hidden(decoder: Decoder, sequences: list[Tensor], **options: Any) -> Tensor:
    """Pack sequences into rows padded to a multiple of 16, and run them."""
    lengths = [len(sequence) for sequence in sequences]
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    padding = torch.zeros(-bounds[-1] % 16, dtype=torch.int64)
    positions = torch.cat([*(torch.arange(length) for length in lengths), padding])
    linears = options.pop("linears", FrozenLinears())
    tokens = torch.cat([*sequences, padding])
    return decoder.forward(tokens, positions, PackedAttention(bounds), linears, **options)


def logits(decoder: Decoder, sequences: list[Tensor]) -> Tensor:
    num_rows = sum(len(sequence) for sequence in sequences)
    return decoder.head.forward(hidden(decoder, sequences)[:num_rows])


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param("qwen3", {"is_tied": True}, id="qwen3 tied"),
        pytest.param("qwen3", {"max_shard_size": "20KB", "num_kv_heads": 1}, id="qwen3 sharded"),
        pytest.param("qwen3", {"vocab_size": 151936, "width": 16}, id="qwen3 vocabulary"),
        pytest.param("qwen3", {"attention_bias": True}, id="qwen3 biases"),
        pytest.param("llama", {"rope_parameters": LLAMA3_ROPE, "is_tied": True}, id="llama3 tied"),
        pytest.param("llama", {"num_kv_heads": 4, "head_dim": 6}, id="llama own head width"),
        pytest.param("llama", {"attention_bias": True, "mlp_bias": True}, id="llama biases"),
        pytest.param("qwen2", {}, id="qwen2"),
        pytest.param("mistral", {}, id="mistral"),
    ],
)
def test_logits_equal_transformers(tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    model = save_random_model(tmp_path, kind, **fields)
    sequences = random_tokens(LENGTHS, fields.get("vocab_size", 97))

    with torch.no_grad():
        found = logits(Decoder.load(tmp_path), sequences)
        expected = torch.cat([model(tokens[None]).logits[0] for tokens in sequences])

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *(
            pytest.param("llama", {"rope_parameters": rope}, id=name)
            for name, rope in ROPES.items()
        ),
        pytest.param("qwen3", {"rope_parameters": YARN, "max_context": 64}, id="qwen3 yarn"),
        pytest.param("qwen2", {"rope_parameters": YARN, "max_context": 64}, id="qwen2 yarn"),
        pytest.param("mistral", {"rope_parameters": LINEAR}, id="mistral linear"),
        pytest.param("llama", {"width": 36, "num_heads": 6, "num_kv_heads": 1}, id="6 to 1"),
        pytest.param("llama", {"num_kv_heads": 2, "head_dim": 22}, id="2 to 1, odd half"),
        pytest.param("qwen3", {"num_kv_heads": 4, "head_dim": 2}, id="1 to 1, one pair"),
    ],
)
def test_every_scaling_and_head_shape_equals_transformers_beyond_the_original_context(
    tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    model = save_random_model(tmp_path, kind, **fields)
    (tokens,) = random_tokens([250])

    with torch.no_grad():
        found = logits(Decoder.load(tmp_path), [tokens])
        expected = model(tokens[None]).logits[0]

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param("mistral", {}, id="mistral"),
        pytest.param("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, id="qwen2"),
        pytest.param("qwen3", {"use_sliding_window": True, "max_window_layers": 0}, id="qwen3"),
    ],
)
def test_a_sequence_as_long_as_the_window_equals_transformers(
    tmp_path: Path, kind: str, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = save_random_model(tmp_path, kind, sliding_window=40, **fields)
    decoder, (tokens,) = Decoder.load(tmp_path), random_tokens([40])

    with torch.no_grad():
        found, expected = logits(decoder, [tokens]), model(tokens[None]).logits[0]

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert decoder.config.max_context == 40
    assert "40 of 256 tokens of context" in caplog.text


def test_packed_equals_one_by_one(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    decoder, sequences = Decoder.load(tmp_path), random_tokens(LENGTHS)

    packed = logits(decoder, sequences)

    alone = torch.cat([logits(decoder, [sequence]) for sequence in sequences])
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    sequences = random_tokens(LENGTHS)

    exact = hidden(Decoder.load(tmp_path), sequences)
    rounded = hidden(Decoder.load(tmp_path, dtype=torch.bfloat16), sequences)

    assert rounded.dtype == torch.bfloat16
    # 8 bits a rounding, some tens of roundings in two layers.
    assert float((rounded.float() - exact).norm() / exact.norm()) < 0.03


class OuterGradient(FrozenLinears):
    """Adds a trainable shift to the input of every group, to see gradients deep inside."""

    def __init__(self, num_groups: int) -> None:
        self.shifts = [torch.zeros(()).requires_grad_() for _ in range(num_groups)]
        self.calls = 0

    def group(
        self, x_TD: Tensor, bases: tuple[BaseLinear, ...], sites: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        self.calls += 1
        shift = self.shifts[sites[0] // 7 * 4 + (0, 3, 4, 6).index(sites[0] % 7)]
        return super().group(x_TD + shift, bases, sites)


def gradients(decoder: Decoder, layers: set[int]) -> tuple[list[Tensor], int]:
    linears = OuterGradient(4 * decoder.config.num_layers)
    out = hidden(decoder, random_tokens(LENGTHS), linears=linears, checkpoint_layers=layers)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = list(torch.autograd.grad(out, linears.shifts, weights))
    return [out.detach(), *found], linears.calls


@pytest.mark.parametrize("layers", [{0}, {1, 2}, {0, 1, 2}])
def test_checkpointed_layers_run_again_and_change_no_bit(tmp_path: Path, layers: set[int]) -> None:
    save_random_model(tmp_path, num_layers=3)
    decoder = Decoder.load(tmp_path)

    plain, plain_calls = gradients(decoder, set())
    saved, saved_calls = gradients(decoder, layers)

    assert plain_calls == 12
    assert saved_calls == 12 + 3 * len(layers)  # the last group keeps nothing for backward
    assert all(torch.equal(a, b) for a, b in zip(plain, saved, strict=True))
    assert all(gradient.abs() > 0 for gradient in plain[1:])


def test_the_gradient_of_the_embedding_equals_transformers(tmp_path: Path) -> None:
    model = save_random_model(tmp_path, "llama", rope_parameters=LLAMA3_ROPE)
    decoder, sequences = Decoder.load(tmp_path), random_tokens(LENGTHS)
    decoder.embed.requires_grad_()
    weights = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(1))

    out = hidden(decoder, sequences)[: sum(LENGTHS)]
    expected = torch.cat([model.model(tokens[None]).last_hidden_state[0] for tokens in sequences])

    (found,) = torch.autograd.grad(out, decoder.embed, weights)
    (wanted,) = torch.autograd.grad(expected, model.model.embed_tokens.weight, weights)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 9, 40, 200])
def test_with_row_tiles_a_sequence_has_the_same_bits_among_others(
    tmp_path: Path, length: int, dtype: torch.dtype
) -> None:
    save_random_model(tmp_path, width=64, ffn_width=96)
    decoder = Decoder.load(tmp_path, dtype=dtype, row_tile=64)
    (own,) = random_tokens([length], seed=1)
    alone = bits(decoder, [own], 0)

    for others, place in [([3], 1), ([70, 5], 1), ([16] * 6, 3), ([length, length, 1, 130], 2)]:
        sequences = random_tokens(others, seed=2)
        crowd = [*sequences[:place], own, *sequences[place:]]

        for found, expected in zip(bits(decoder, crowd, place), alone, strict=True):
            assert torch.equal(found, expected)


def bits(decoder: Decoder, sequences: list[Tensor], place: int) -> tuple[Tensor, Tensor]:
    """Hidden states of one sequence, and the gradient that reaches its embedding."""
    rows = sum(len(sequence) for sequence in sequences[:place])
    own = slice(rows, rows + len(sequences[place]))
    seen: list[Tensor] = []

    class Watch(FrozenLinears):
        def group(
            self, x_TD: Tensor, bases: tuple[BaseLinear, ...], sites: tuple[int, ...]
        ) -> tuple[Tensor, ...]:
            if not seen:
                x_TD = x_TD.detach().requires_grad_()
                seen.append(x_TD)
            return super().group(x_TD, bases, sites)

    out = hidden(decoder, sequences, linears=Watch())
    (gradient,) = torch.autograd.grad(out, seen[0], torch.cos(out.detach()))
    return out.detach()[own], gradient[own]


def test_the_first_layer_computes_no_gradient_of_its_input(tmp_path: Path) -> None:
    save_random_model(tmp_path, num_layers=1)

    out = hidden(Decoder.load(tmp_path), random_tokens([16]))

    assert not out.requires_grad


def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        Decoder.load(tmp_path / "nowhere")
