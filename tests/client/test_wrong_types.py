"""Arguments of another type are refused by every call, by name, before anything is sent."""

from typing import Any

import pytest

from weft.client import (
    BadRequest,
    Datum,
    ModelInput,
    SamplingParams,
    ServiceClient,
    lora_learning_rate,
)

TOKENS = ModelInput.from_ints([1, 2, 3])
DATUM = Datum(TOKENS, {"target_tokens": [2, 3, 4]})


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("forward_backward", (DATUM, "cross_entropy"), "data is Datum.*, not a list of datums"),
        ("forward_backward", (None, "cross_entropy"), "data is None, not a list of datums"),
        ("forward_backward", ([DATUM], "dro", [1]), r"loss_fn_config is \[1\], not a mapping"),
        ("forward_backward", ([DATUM], "dro", {"beta": 10**400}), "beta is 1000.*, not a finite"),
        ("optim_step", ({"learning_rate": 1},), "optim_params is {'learning_rate': 1}, not Adam"),
        ("save_state", (None,), "name is None, not a string"),
        ("save_state", ("a", None, "yes"), "overwrite is 'yes', not a bool"),
        ("load_state", (3,), "path is 3, not a string"),
        ("load_state", ("x" * 10_000,), r"^'x{199}\.\.\. is no path"),
        ("fork", ([1],), r"user_metadata is \[1\], not a mapping"),
    ],
)
def test_a_run_refuses_them(
    service: ServiceClient, method: str, arguments: Any, message: str
) -> None:
    run = service.create_lora_training_client("tiny", rank=4)
    with pytest.raises(BadRequest, match=message):
        getattr(run, method)(*arguments)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([1, 2], SamplingParams(), r"prompt is \[1, 2\], not a ModelInput"),
        (TOKENS, {"max_tokens": 2}, "sampling_params is {'max_tokens': 2}, not SamplingParams"),
    ],
)
def test_a_sampler_refuses_them(
    service: ServiceClient, prompt: Any, params: Any, message: str
) -> None:
    sampler = service.create_sampling_client(base_model="tiny")
    with pytest.raises(BadRequest, match=message):
        sampler.sample(prompt, 1, params)


PATH = f"weft://{'0' * 32}:train:0/weights/a"
FILES: Any = {"adapter_config.json": "{}", "adapter_model.safetensors": "x"}


@pytest.mark.parametrize(
    ("method", "arguments", "fields", "message"),
    [
        ("list_user_checkpoints", (-1,), {}, "limit is -1, not an integer from 1"),
        ("list_training_runs", (1, "a"), {}, "offset is 'a', not an integer from 0"),
        ("rename_checkpoint", (PATH, 3), {}, "name is 3, not a string"),
        ("upload_peft", (FILES, "tiny"), {}, "adapter_config.json is '{}', not bytes"),
        (
            "download_checkpoint",
            (PATH, "a.tar"),
            {"form": "state", "unembed": "omit"},
            "unembed is 'omit', and a state always holds everything",
        ),
    ],
)
def test_a_rest_client_refuses_them(
    service: ServiceClient, method: str, arguments: Any, fields: Any, message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        getattr(service.create_rest_client(), method)(*arguments, **fields)


def test_a_learning_rate_is_not_that_of_a_name() -> None:
    name: Any = "tiny"
    with pytest.raises(BadRequest, match="model is 'tiny', not ModelData or a SupportedModel"):
        lora_learning_rate(name)
