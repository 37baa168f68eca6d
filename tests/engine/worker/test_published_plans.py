"""What a device makes of the largest published models, from their config.json alone."""

import json
from pathlib import Path

import pytest
import torch
from published_models import PUBLISHED, Published

from weft.client.errors import BadRequest
from weft.engine.worker.memory import MemoryPlan
from weft.engine.worker.planning import Wishes, plan_native

GB = 10**9
BY_NAME = {published.name: published for published in PUBLISHED}
LLAMA_70B = BY_NAME["meta-llama/Llama-3.3-70B-Instruct"]


def plan(path: Path, published: Published, num_bytes: int) -> MemoryPlan:
    (path / "config.json").write_text(json.dumps(published.fields))
    return plan_native(Wishes(num_bytes, torch.bfloat16, 4096), path)


def test_seventy_billion_parameters_are_planned_to_the_byte(tmp_path: Path) -> None:
    got = plan(tmp_path, LLAMA_70B, 192 * GB)

    weights = 2 * LLAMA_70B.num_parameters
    positions = 2 * 131072 * 128  # cosines and sines of 64 pairs each
    logits = 2 * 256 * 128256 * 4
    assert got.weights == weights + positions + logits
    page = 16 * 80 * 2 * 8 * 128 * 2  # tokens, layers, keys and values, heads, width, bytes
    assert got.num_pages == got.kv // page
    assert got.num_pages * 16 >= 4096
    parts = got.weights + got.adapter_state + got.adapter_weights + got.adapter_workspace
    assert parts + got.activations + got.kv + got.reserve <= 192 * GB


def test_a_model_that_does_not_fit_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"needs 158\.6 GB and 80\.0 are free") as refusal:
        plan(tmp_path, LLAMA_70B, 80 * GB)

    assert refusal.value.code == "out_of_memory"


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        ("Qwen/Qwen3-0.6B", 8 * GB),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 24 * GB),
        ("meta-llama/Llama-3.1-8B", 24 * GB),
        ("mistralai/Mistral-Nemo-Instruct-2407", 40 * GB),
        ("Qwen/Qwen3-32B", 80 * GB),
        ("Qwen/Qwen2.5-72B", 192 * GB),
    ],
)
def test_models_fit_where_people_run_them_and_train_whole_units(
    tmp_path: Path, name: str, num_bytes: int
) -> None:
    got = plan(tmp_path, BY_NAME[name], num_bytes)

    assert got.batch_tokens >= 1024
    assert got.max_datum_tokens >= 1024
