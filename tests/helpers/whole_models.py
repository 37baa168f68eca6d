"""Random checkpoints with all that a download has: weights, tokenizer, chat template, ends."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_models import save_random_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

TINY = Path(__file__).resolve().parents[2] / "engine" / "tiny"
VOCABULARY = 320
END_OF_TEXT, END_OF_TURN = 256, 258
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SHARD_SIZE, SHARD = "40KB", "model-00002-of-00005.safetensors"


def save_whole_model(path: Path, kind: str = "qwen3", **fields: Any) -> Any:
    """A random model of the size of `weft/tiny`'s vocabulary, with its tokenizer."""
    model = save_random_model(path, kind, vocab_size=VOCABULARY, eos_token_id=END_OF_TEXT, **fields)
    add_tokenizer(path)
    return model


def add_tokenizer(path: Path) -> None:
    """Put `weft/tiny`'s tokenizer beside a checkpoint, and stop at the ends of text and turn."""
    for name in TOKENIZER_FILES:
        shutil.copy(TINY / name, path / name)
    ends = {"eos_token_id": [END_OF_TEXT, END_OF_TURN]}
    (path / "generation_config.json").write_text(json.dumps(ends))


def edit_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file, or take them out where None."""
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_tensor(path: Path, name: str, change: Callable[[Tensor], Tensor | None]) -> None:
    """Replace a tensor in whatever file of a checkpoint holds it, or take it out where None."""
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            changed = change(tensors.pop(name))
            save_file(tensors | ({} if changed is None else {name: changed}), file)
            return
    raise KeyError(name)


def save_whole_hosted(path: Path, config: Any) -> None:
    """A random model of any architecture of transformers with this vocabulary, and a tokenizer."""
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(path)
    add_tokenizer(path)
