"""Checkpoints that transformers is to read: damage and everything else refused by name."""

import json
from pathlib import Path

import pytest
import torch
from hosted_models import save_family, save_mxfp4
from safetensors.torch import load_file, save_file
from whole_models import edit_json, edit_tensor

from weft.client.errors import BadRequest, NotFound
from weft.engine.hosted.checkpoint import checkpoint_parameters, load_module, read_config
from weft.engine.hosted.load import load_hosted

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_family(tmp_path, "phi3")


def load(path: Path) -> object:
    return load_module(path, device=CPU, dtype=torch.float32)


def test_parameters_are_counted_from_the_headers(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    assert checkpoint_parameters(path) == sum(tensor.numel() for tensor in tensors.values())


def test_a_later_change_of_the_file_does_not_change_the_model(path: Path) -> None:
    module = load_module(path, device=CPU, dtype=torch.float32)
    before = [parameter.clone() for parameter in module.parameters()]
    file = path / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.seek(size // 2)
        handle.write(b"\x01" * (size - size // 2))
    pairs = zip(before, module.parameters(), strict=True)
    assert all(torch.equal(old, new) for old, new in pairs)


def test_a_damaged_file_is_named(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadRequest, match=r"model\.safetensors cannot be read"):
        load(path)


def test_a_pickle_is_not_read(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(tensors, path / "pytorch_model.bin")
    with pytest.raises(NotFound, match=r"holds neither model\.safetensors nor"):
        load(path)


def test_a_missing_tensor_is_named(path: Path) -> None:
    edit_tensor(path, "model.layers.1.mlp.down_proj.weight", lambda tensor: None)
    with pytest.raises(BadRequest, match=r"lacks tensors \(1\): model.layers.1.mlp.down_proj"):
        load(path)


def test_an_unknown_tensor_is_named(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    odd = {"model.layers.0.mlp.down_proj.weight_scale": torch.ones(3)}
    save_file(tensors | odd, path / "model.safetensors")
    with pytest.raises(BadRequest, match=r"holds unknown tensors \(1\): .*weight_scale"):
        load(path)


def test_a_tensor_of_another_shape_is_named(path: Path) -> None:
    edit_tensor(path, "model.norm.weight", lambda tensor: tensor[:-1].clone())
    with pytest.raises(BadRequest, match=r"of another shape \(1\): model\.norm\.weight"):
        load(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"model_type": None}, "names no model_type", id="none"),
        pytest.param({"model_type": 3}, "names no model_type", id="no string"),
        pytest.param({"model_type": "phi99"}, "transformers cannot read .*phi99", id="unknown"),
        pytest.param({"model_type": "t5"}, "'t5' is no causal language model", id="not causal"),
        pytest.param({"hidden_size": "wide"}, "transformers cannot read", id="damaged value"),
        pytest.param(
            {"quantization_config": {"quant_method": "gptq"}},
            r"quantised \(gptq\), which is not supported",
            id="quantised",
        ),
        pytest.param(
            {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}},
            r"'mine' needs code of its own \(auto_map\), which is never run",
            id="code of its own",
        ),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(
    path: Path, fields: dict[str, object], message: str
) -> None:
    edit_json(path / "config.json", **fields)
    (path / "code.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(BadRequest, match=message):
        read_config(path)


def test_mxfp4_weights_are_unpacked(tmp_path: Path) -> None:
    expected = save_mxfp4(tmp_path)
    module = load_module(tmp_path, device=CPU, dtype=torch.float32)
    found = dict(module.named_parameters())
    for name, weight in expected.items():
        assert torch.equal(found[name], weight)
    assert checkpoint_parameters(tmp_path) >= sum(each.numel() for each in found.values())


def test_a_model_says_how_packed_weights_are_held(tmp_path: Path) -> None:
    save_mxfp4(tmp_path)
    notes = load_hosted(tmp_path, dtype=torch.bfloat16).notes
    assert "its mxfp4 weights are held as bfloat16" in notes


def test_code_that_lies_beside_a_known_architecture_is_not_run(path: Path) -> None:
    edit_json(path / "config.json", auto_map={"AutoConfig": "code.Config"})
    (path / "code.py").write_text("raise SystemExit('this ran')")
    assert type(read_config(path)).__name__ == "Phi3Config"


def test_a_config_that_is_no_json_is_refused(path: Path) -> None:
    (path / "config.json").write_text(json.dumps({})[:-1])
    with pytest.raises(BadRequest, match=r"config\.json cannot be read"):
        read_config(path)
