"""Adapters to peft and back: the same numbers, and everything else refused by name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hosted_models import save_family
from random_models import save_random_model
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from tenants import VOCAB_SIZE, logprobs, make_data, train
from transformers import AutoModelForCausalLM

from weft.client import ModelInput, SamplingParams, ServiceClient, TrainingClient
from weft.client.errors import BadRequest, NotFound
from weft.engine.embedded import Engine

PROMPT = [5, 17, 3, 60, 2, 2, 91, 44]
NUM_NEW = 12
# Two implementations of one float32 model: the order of summation differs.
TOLERANCE = 2e-5


# Both are said of calls inside peft and transformers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]


@pytest.fixture(scope="module", params=["untied", "tied", "phi3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two of ours, and one in transformers' own code with fused modules."""
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "phi3":
        save_family(path, "phi3", vocab_size=VOCAB_SIZE)
    else:
        save_random_model(path, vocab_size=VOCAB_SIZE, is_tied=request.param == "tied")
    return str(path)


@pytest.fixture(scope="module")
def own_service(model: str) -> Iterator[ServiceClient]:
    with Engine(model, memory_bytes=1 << 30) as engine, engine.client() as client:
        yield client


@pytest.fixture
def trained(own_service: ServiceClient, model: str) -> TrainingClient:
    run = own_service.create_lora_training_client(model, rank=4, seed=3)
    train(run, 0, 3)
    return run


def load_peft(model: str, folder: Path) -> Any:
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(base, str(folder)).eval()


def peft_logprobs(adapted: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = adapted(torch.tensor([tokens])).logits[0].float()
    found: np.ndarray = torch.log_softmax(logits, -1).numpy()
    return found


def assert_same_model(run: TrainingClient, adapted: Any) -> None:
    """Same log-probabilities of a prompt, and the same greedy continuation."""
    sampler = run.save_weights_and_get_sampling_client()
    params = SamplingParams(max_tokens=NUM_NEW, temperature=0.0, stop=[])
    (sequence,) = sampler.sample(ModelInput.from_ints(PROMPT), 1, params).result(60).sequences
    tokens = PROMPT + sequence.tokens
    expected = peft_logprobs(adapted, tokens)
    greedy = expected[len(PROMPT) - 1 : -1].argmax(-1).tolist()
    assert sequence.tokens == greedy
    seen = sampler.compute_logprobs(ModelInput.from_ints(tokens)).result(60)
    wanted = expected[np.arange(len(tokens) - 1), tokens[1:]]
    np.testing.assert_allclose(seen[1:], wanted, atol=TOLERANCE)  # type: ignore[arg-type]


def test_peft_loads_an_export_and_computes_the_same(
    trained: TrainingClient, model: str, tmp_path: Path
) -> None:
    folder = trained.export_peft(tmp_path / "adapter", base_model_name_or_path=model)
    assert_same_model(trained, load_peft(model, folder))


def test_two_adapters_together_are_the_whole(
    trained: TrainingClient, model: str, tmp_path: Path
) -> None:
    folder = trained.export_peft(tmp_path / "adapter", unembed="separate")
    adapted = load_peft(model, folder)
    adapted.load_adapter(str(folder / "unembed"), "unembed")
    adapted.base_model.set_adapter(["default", "unembed"])
    assert_same_model(trained, adapted)


def test_an_adapter_of_peft_computes_the_same_here(
    own_service: ServiceClient, model: str, tmp_path: Path
) -> None:
    targets = ["o_proj", "down_proj"]
    folder = save_peft_adapter(model, tmp_path, target_modules=targets, use_rslora=True)
    run = own_service.create_training_client_from_peft(folder, model)
    assert_same_model(run, load_peft(model, folder))


def save_peft_adapter(model: str, folder: Path, **config: Any) -> Path:
    """A random adapter of two modules, saved by peft."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(0)
    fields = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **fields | config)
    )
    adapted.save_pretrained(folder)
    return folder


def test_an_export_comes_back_bit_by_bit(
    trained: TrainingClient, own_service: ServiceClient, model: str, tmp_path: Path
) -> None:
    first = trained.export_peft(tmp_path / "first")
    again = own_service.create_training_client_from_peft(first, model)
    second = again.export_peft(tmp_path / "second")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (again.get_info().lora_rank, again.get_info().lora_alpha) == (4, 32.0)
    assert train(again, 0, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_converted_exactly(
    service: ServiceClient, model_path: str, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = save_peft_adapter(model_path, tmp_path / "a")
    tensors = load_torch(folder / "adapter_model.safetensors")
    narrow = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_torch(narrow, folder / "adapter_model.safetensors")
    run = service.create_training_client_from_peft(folder, model_path)
    found = load_torch(run.export_peft(tmp_path / "b") / "adapter_model.safetensors")
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in narrow.items())


def test_modules_that_an_adapter_leaves_alone_stay_untouched(
    service: ServiceClient, model_path: str, tmp_path: Path
) -> None:
    folder = save_peft_adapter(model_path, tmp_path / "a")
    run = service.create_training_client_from_peft(folder, model_path)
    train(run, 0, 3)
    before = load_file(folder / "adapter_model.safetensors")
    after = load_file(run.export_peft(tmp_path / "b") / "adapter_model.safetensors")
    assert all((after[name] != values).any() for name, values in before.items())
    rest = [values for name, values in after.items() if name not in before]
    assert rest
    assert not any(values.any() for values in rest)


def test_bytes_do_as_well_as_a_folder(
    service: ServiceClient, model_path: str, tmp_path: Path
) -> None:
    folder = save_peft_adapter(model_path, tmp_path)
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = {name: (folder / name).read_bytes() for name in names}
    uploaded = service.create_rest_client().upload_peft(
        files, model_path, name="given", user_metadata={"from": "bytes"}
    )
    assert (uploaded.lora_rank, uploaded.lora_alpha) == (4, 16.0)
    assert (uploaded.train_attn, uploaded.train_mlp) == (True, False)
    run = service.create_training_client_from_state(uploaded.path)
    other = service.create_training_client_from_peft(folder, model_path)
    assert logprobs(run).tobytes() == logprobs(other).tobytes()
    with pytest.raises(NotFound, match="no optimizer state"):
        service.create_training_client_from_state_with_optimizer(uploaded.path)
    assert service.create_sampling_client(uploaded.path)


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "use_dora true: DoRA is not served"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"lora_dropout": 0.1}, "ignore_dropout=True"),
        ({"r": 8}, r"is \(4, 32\), not \(8, 32\)"),
        ({"target_modules": ["q_proj"]}, "is not among its target_modules"),
    ],
)
def test_what_is_not_served_is_refused_and_leaves_nothing(
    service: ServiceClient,
    model_path: str,
    tmp_path: Path,
    fields: dict[str, Any],
    message: str,
) -> None:
    folder = save_peft_adapter(model_path, tmp_path)
    edit_config(folder, **fields)
    with pytest.raises(BadRequest, match=message):
        service.create_training_client_from_peft(folder, model_path, "refused")
    kept = service.create_rest_client().list_user_checkpoints(1000).result(60).checkpoints
    assert "weights/refused" not in [one.checkpoint_id for one in kept]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_copies_of_base_weights_are_refused_with_the_remedy(
    service: ServiceClient, model_path: str, tmp_path: Path
) -> None:
    folder = save_peft_adapter(model_path, tmp_path, target_modules=["q_proj", "lm_head"])
    with pytest.raises(BadRequest, match="save_embedding_layers=False"):
        service.create_training_client_from_peft(folder, model_path)


def test_an_adapter_of_another_shape_is_refused_at_the_upload(
    service: ServiceClient, model_path: str, tmp_path: Path
) -> None:
    save_random_model(tmp_path / "wide", vocab_size=VOCAB_SIZE, width=64)
    folder = save_peft_adapter(str(tmp_path / "wide"), tmp_path / "a")
    with pytest.raises(BadRequest, match=r"is \(4, 64\), not \(4, 32\)"):
        service.create_rest_client().upload_peft(folder, model_path)
    save_random_model(tmp_path / "deep", vocab_size=VOCAB_SIZE, num_layers=3)
    folder = save_peft_adapter(str(tmp_path / "deep"), tmp_path / "b")
    with pytest.raises(BadRequest, match=r"the adapter has 'model.layers.2"):
        service.create_rest_client().upload_peft(folder, model_path)


def test_the_unembedding_can_be_left_behind(
    service: ServiceClient, model_path: str, tmp_path: Path
) -> None:
    run = service.create_lora_training_client(model_path, rank=4)
    run.forward_backward(make_data(0), "cross_entropy").result(60)
    folder = run.export_peft(tmp_path, unembed="omit", base_model_name_or_path="org/base")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    assert "lm_head" not in config["target_modules"]
    assert len(load_file(folder / "adapter_model.safetensors")) == 2 * 2 * 7
