"""Reading safetensors: everything there is read once, anything else is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from random_models import save_random_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from weft.client.errors import BadRequest, NotFound
from weft.engine.model.checkpoint_files import checkpoint_bytes, read_weights
from weft.engine.model.config import ModelConfig

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return read_weights(path, ModelConfig.from_directory(path), device="cpu", dtype=dtype)


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_every_tensor_is_read_from_one_file_or_many(
    tmp_path: Path, max_shard_size: str, is_tied: bool
) -> None:
    model = save_random_model(tmp_path, is_tied=is_tied, max_shard_size=max_shard_size)

    weights = read(tmp_path)

    expected = dict(model.named_parameters())
    assert (tmp_path / INDEX).exists() == (max_shard_size == "20KB")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_reading_tells_how_much_is_done(tmp_path: Path, max_shard_size: str) -> None:
    model = save_random_model(tmp_path, max_shard_size=max_shard_size)
    told: list[float] = []
    config = ModelConfig.from_directory(tmp_path)
    read_weights(tmp_path, config, device="cpu", dtype=torch.bfloat16, on_progress=told.append)
    assert len(told) == 1 + len(dict(model.named_parameters()))
    assert told == sorted(told)
    assert told[0] == 0
    assert 0.8 < told[-1] <= 1  # a small file has a header of some weight


def test_weights_are_copied_in_the_dtype_asked_for(tmp_path: Path) -> None:
    model = save_random_model(tmp_path)

    norm = read(tmp_path, torch.bfloat16)["model.norm.weight"]
    (tmp_path / SINGLE).write_bytes(b"")

    assert torch.equal(norm, model.model.norm.weight.to(torch.bfloat16))


def test_the_bytes_are_known_from_the_config_alone(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    held = sum(tensor.nbytes for tensor in read(tmp_path, torch.bfloat16).values())
    held += 256 * 16 * 2  # cosines and sines of every position, 8 pairs each
    (tmp_path / SINGLE).unlink()

    assert checkpoint_bytes(tmp_path, torch.bfloat16) == held


def change(path: Path, **tensors: Tensor | None) -> None:
    """Rewrite the single file with tensors replaced, added, or removed where None."""
    weights = load_file(path / SINGLE) | {name.replace("__", "."): t for name, t in tensors.items()}
    save_file({name: t for name, t in weights.items() if t is not None}, path / SINGLE)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    change(tmp_path, model__norm__weight=None)

    with pytest.raises(BadRequest, match=r"lacks 1 tensors: model\.norm\.weight"):
        read(tmp_path)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    change(tmp_path, model__norm__bias=torch.zeros(32))

    with pytest.raises(BadRequest, match=r"1 unknown tensors: model\.norm\.bias"):
        read(tmp_path)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    change(tmp_path, model__norm__weight=torch.zeros(31))

    with pytest.raises(BadRequest, match=r"model\.norm\.weight .* \[31\], not \[32\]"):
        read(tmp_path)


def test_a_quantised_tensor_is_refused(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    change(tmp_path, model__norm__weight=torch.zeros(32, dtype=torch.int8))

    with pytest.raises(BadRequest, match=r"model\.norm\.weight .* is I8"):
        read(tmp_path)


def test_old_rotary_buffers_are_left_out(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(tmp_path, **{name.replace(".", "__"): torch.zeros(8)})

    assert name not in read(tmp_path)


def test_a_tied_checkpoint_may_repeat_the_embedding_but_not_contradict_it(tmp_path: Path) -> None:
    model = save_random_model(tmp_path, is_tied=True)
    embedding = model.model.embed_tokens.weight.detach()

    change(tmp_path, lm_head__weight=embedding.clone())
    assert "lm_head.weight" not in read(tmp_path)
    change(tmp_path, lm_head__weight=embedding + 1)
    with pytest.raises(BadRequest, match=r"lm_head\.weight differs"):
        read(tmp_path)


def test_files_that_are_not_there_are_not_found(tmp_path: Path) -> None:
    save_random_model(tmp_path, max_shard_size="20KB")

    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(NotFound, match=shard.name):
        read(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(NotFound, match=SINGLE):
        read(tmp_path)


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": ["a"]}'])
def test_a_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    save_random_model(tmp_path)
    (tmp_path / INDEX).write_text(index)

    with pytest.raises(BadRequest, match="not an index"):
        read(tmp_path)


@pytest.mark.parametrize("file", ["../other.safetensors", "/other.safetensors", 1])
def test_an_index_cannot_lead_elsewhere(tmp_path: Path, file: object) -> None:
    save_random_model(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))

    with pytest.raises(BadRequest, match="not a file beside it"):
        read(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, -1])
def test_a_damaged_file_is_refused(tmp_path: Path, keep: int) -> None:
    save_random_model(tmp_path)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:keep])

    with pytest.raises(BadRequest, match=SINGLE):
        read(tmp_path)
