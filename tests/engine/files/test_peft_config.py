"""adapter_config.json: what is written, taken and refused."""

import json
from typing import Any

import peft
import pytest
from adapter_files import CONFIG
from core_bench import checkpoint

from weft.client.errors import BadRequest
from weft.engine.files.peft_config import PeftConfig, read_config, write_config


def raw(**fields: Any) -> bytes:
    return json.dumps({**CONFIG, **fields}).encode()


def test_a_plain_config_is_read() -> None:
    assert read_config(raw()) == PeftConfig(2, 8.0, ("q_proj", "v_proj"))


def test_what_peft_writes_is_read(tmp_path: Any) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["up_proj"], task_type="CAUSAL_LM")
    config.save_pretrained(tmp_path)
    assert read_config((tmp_path / "adapter_config.json").read_bytes()) == PeftConfig(
        4, 16.0, ("up_proj",)
    )


def test_what_is_written_is_read_by_peft(tmp_path: Any) -> None:
    record = checkpoint("a", rank=4, alpha=32.0)
    (tmp_path / "adapter_config.json").write_bytes(write_config(record, ["v_proj", "q_proj"], ""))
    config = peft.LoraConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 32, {"q_proj", "v_proj"})
    assert (config.base_model_name_or_path, config.task_type) == ("tiny", "CAUSAL_LM")
    assert (config.bias, config.use_rslora, config.inference_mode) == ("none", False, True)
    assert read_config(write_config(record, ["q_proj"], "x")) == PeftConfig(4, 32.0, ("q_proj",))


def test_a_rank_stabilised_scale_is_kept() -> None:
    config = read_config(raw(use_rslora=True, r=16, lora_alpha=8))
    assert config.alpha / config.rank == 8 / 16**0.5


def test_patterns_that_say_the_same_of_all_are_taken() -> None:
    assert read_config(raw(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 8})).rank == 2


def test_an_expression_over_names_leaves_it_to_the_tensors() -> None:
    assert read_config(raw(target_modules=".*_proj")).targets is None


def test_a_dropout_is_taken_when_the_caller_says_so() -> None:
    with pytest.raises(BadRequest, match="ignore_dropout"):
        read_config(raw(lora_dropout=0.05))
    assert read_config(raw(lora_dropout=0.05), ignore_dropout=True).rank == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 16}),
        ("rank_pattern", [2]),
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("layers_to_transform", [0]),
        ("layers_to_transform", 1),
        ("layer_replication", [[0, 1]]),
        ("fan_in_fan_out", True),
        ("exclude_modules", ["q_proj"]),
        ("target_modules", ["embed_tokens"]),
        ("target_modules", [1]),
        ("target_modules", {"q_proj": 1}),
        ("target_parameters", ["experts.w"]),
        ("trainable_token_indices", [1]),
        ("ensure_weight_tying", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "eva"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("loftq_config", {"loftq_bits": 4}),
        ("eva_config", {"rho": 2}),
        ("use_qalora", True),
        ("use_bdlora", True),
        ("megatron_config", {"a": 1}),
        ("alora_invocation_tokens", [1]),
        ("arrow_config", {"a": 1}),
        ("peft_type", "IA3"),
        ("task_type", "SEQ_CLS"),
        ("use_rslora", "yes"),
        ("r", 0),
        ("r", 257),
        ("r", True),
        ("r", 2.0),
        ("r", None),
        ("lora_alpha", 0),
        ("lora_alpha", -1),
        ("lora_alpha", "8"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", 10**400),
        ("a_feature_of_tomorrow", True),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=f"adapter_config.json has {key} "):
        read_config(raw(**{key: value}))


def test_a_feature_that_is_off_is_taken_whatever_its_name() -> None:
    off: dict[str, Any] = {
        "a_feature_of_tomorrow": False,
        "use_dora": False,
        "eva_config": None,
        "loftq_config": {},
    }
    assert read_config(raw(**off)).rank == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(b"\x80\x02}q\x00.", "not JSON", id="pickle"),
        pytest.param(b"[]", "not a map", id="list"),
        pytest.param(b'{"r": 1, "r": 2}', "repeats a key", id="repeated"),
        pytest.param(b"[" * 100_000, "not JSON", id="deep"),
    ],
)
def test_what_is_no_config_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        read_config(text)
