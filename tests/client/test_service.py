"""Making clients: what is sent, and what is refused."""

import asyncio
import pickle
from typing import Any

import pytest
import zmq
from fake_broker import FakeBroker, failure, query, reply

from weft.client import (
    BadRequest,
    Busy,
    NotFound,
    SamplingClient,
    ServiceClient,
    TrainingClient,
    lora_learning_rate,
)
from weft.client.environment import DEFAULT_ADDRESS
from weft.client.limits import LIMITS, Limit
from weft.client.messages import Hello

RUN = "0" * 32 + ":train:0"
STATE = f"weft://{RUN}/weights/a"


@pytest.mark.parametrize(
    ("asked", "quiet", "is_shown"),
    [
        pytest.param(None, "", True, id="default"),
        pytest.param(None, "0", True, id="not quiet"),
        pytest.param(None, "1", False, id="quiet"),
        pytest.param(True, "1", True, id="asked for"),
        pytest.param(False, "", False, id="not wanted"),
    ],
)
def test_what_a_wait_is_for_is_shown_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, asked: bool | None, quiet: str, is_shown: bool
) -> None:
    monkeypatch.setenv("WEFT_QUIET", quiet)
    with ServiceClient(base_url="tcp://127.0.0.1:1", show_waiting=asked) as service:
        assert service.connection.shows_waiting is is_shown
        with pickle.loads(pickle.dumps(service)) as copy:
            assert copy.connection.shows_waiting is is_shown


def test_capabilities_name_the_models(service: ServiceClient) -> None:
    (model,) = service.get_server_capabilities().supported_models
    assert (model.model_name, model.max_context_length, model.aliases) == ("tiny", 64, ["org/tiny"])


def test_capabilities_and_a_run_tell_the_type_and_width_of_the_model(
    service: ServiceClient,
) -> None:
    (model,) = service.get_server_capabilities().supported_models
    data = service.create_lora_training_client("tiny").get_info().model_data
    assert (data.model_type, data.width) == (model.model_type, model.width) == ("qwen3", 2000)
    assert (model.runs_on, model.targets) == ("native", ["attn", "mlp", "unembed"])
    assert lora_learning_rate(data) == lora_learning_rate(model) == 5e-4


def test_a_tokenizer_is_that_of_the_model_or_said_to_be_missing(service: ServiceClient) -> None:
    with pytest.raises(NotFound, match="no tokenizer for tiny"):
        service.get_tokenizer("org/tiny")


def test_a_run_is_created_as_asked(broker: FakeBroker, service: ServiceClient) -> None:
    run = service.create_lora_training_client(
        "org/tiny", 8, 7, False, True, False, {"a": "b"}, alpha=16
    )
    (header,) = broker.wait_for("create_run")
    assert (header.base_model, header.rank, header.seed, header.alpha) == ("org/tiny", 8, 7, 16.0)
    assert (header.train_mlp, header.train_attn, header.train_unembed) == (False, True, False)
    assert (header.run_id, header.seq, header.user_metadata) == (run.model_id, 0, {"a": "b"})


def test_runs_of_a_session_are_numbered_and_seeds_are_drawn(
    broker: FakeBroker, service: ServiceClient
) -> None:
    first, second = (service.create_lora_training_client("tiny") for _ in range(2))
    assert (first.model_id[-8:], second.model_id[-8:]) == (":train:0", ":train:1")
    seeds = {header.seed for header in broker.wait_for("create_run", 2)}
    assert len(seeds) == 2


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_a_run_starts_from_a_saved_state(
    broker: FakeBroker, service: ServiceClient, with_optimizer: bool
) -> None:
    if with_optimizer:
        service.create_training_client_from_state_with_optimizer(STATE)
    else:
        service.create_training_client_from_state(STATE)
    (header,) = broker.wait_for("create_run")
    assert (header.from_path, header.with_optimizer, header.base_model) == (
        STATE,
        with_optimizer,
        "",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"base_model": ""}, "base_model is required", id="no model"),
        pytest.param({"rank": 0}, "rank is 0, not an integer from 1 to 256", id="rank 0"),
        pytest.param({"rank": 4096}, "rank is 4096", id="rank 4096"),
        pytest.param({"rank": 8.0}, "rank is 8.0", id="float rank"),
        pytest.param({"seed": "x"}, "seed is 'x'", id="seed"),
        pytest.param({"alpha": 0}, "alpha is 0", id="alpha"),
        pytest.param({"alpha": float("nan")}, "alpha is nan", id="nan alpha"),
        pytest.param({"train_mlp": 1}, "train_mlp is 1", id="no bool"),
        pytest.param(
            {"train_mlp": False, "train_attn": False, "train_unembed": False},
            "at least one of",
            id="nothing to train",
        ),
        pytest.param({"user_metadata": {"a": "b" * 2000}}, "2000 characters", id="metadata"),
    ],
)
def test_a_bad_configuration_is_refused(
    broker: FakeBroker, service: ServiceClient, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        service.create_lora_training_client(**{"base_model": "tiny", **arguments})
    assert "create_run" not in [header.kind for header in broker.seen]


def test_a_run_that_finds_no_room_is_given_up(
    monkeypatch: pytest.MonkeyPatch, broker: FakeBroker, service: ServiceClient
) -> None:
    monkeypatch.setitem(LIMITS, "room_s", Limit(0, "s", "busy", ""))
    broker.answers["create_run"] = lambda header, _: [failure(header, "busy", "no room", 0.001)]
    with pytest.raises(Busy, match="no room"):
        service.create_lora_training_client("tiny")
    (void,) = broker.wait_for("void")
    assert (void.run_id, void.first_seq) == (broker.wait_for("create_run")[0].run_id, 0)


def test_an_unknown_model_is_the_brokers_answer(broker: FakeBroker, service: ServiceClient) -> None:
    broker.answers["create_run"] = lambda header, _: [
        failure(header, "not_found", "unknown model 'x'; there are tiny")
    ]
    with pytest.raises(NotFound, match="there are tiny"):
        service.create_lora_training_client("x")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda s: s.create_sampling_client(), "exactly one", id="neither"),
        pytest.param(lambda s: s.create_sampling_client(STATE, "tiny"), "exactly one", id="both"),
        pytest.param(lambda s: s.create_sampling_client("/etc"), "is no path", id="path"),
        pytest.param(
            lambda s: s.create_sampling_client(base_model="tiny", retry_config=1),
            "retry_config",
            id="retry",
        ),
        pytest.param(
            lambda s: s.create_training_client_from_state("/etc"), "is no path", id="no state"
        ),
        pytest.param(
            lambda s: s.copy_weights(STATE, weights_access_token="x"),
            "weights_access_token is not served",
            id="token of a copy",
        ),
        pytest.param(
            lambda s: s.create_training_client_from_state(STATE, weights_access_token="x"),
            "weights_access_token is not served",
            id="token",
        ),
        pytest.param(lambda s: ServiceClient(project_id="p"), "project_id", id="project"),
    ],
)
def test_bad_arguments_are_refused(service: ServiceClient, call: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        call(service)


def test_a_sampler_of_saved_weights_learns_its_model(
    broker: FakeBroker, service: ServiceClient
) -> None:
    path = f"weft://{RUN}/sampler_weights/a"
    assert service.create_sampling_client(path).get_base_model() == "tiny"
    (header,) = broker.wait_for("create_sampler")
    assert (header.model_path, header.base_model) == (path, "")


def test_a_model_that_loads_after_the_welcome_is_found(
    broker: FakeBroker, service: ServiceClient
) -> None:
    asked: list[str] = []

    def answer(header: Any, arrays: Any) -> Any:
        asked.append(header.what)
        return query(header, arrays)

    broker.answers["query"] = answer
    service.create_lora_training_client("tiny")
    assert asked == []
    broker.answers["create_run"] = lambda header, _: [
        reply(header, {"rank": 1, "alpha": 1.0, "base_model": "other"})
    ]
    with pytest.raises(NotFound, match="unknown model 'other'; the server has tiny"):
        service.create_lora_training_client("tiny")
    assert asked == ["capabilities"]


def test_coroutines_get_finished_clients(service: ServiceClient) -> None:
    async def create() -> tuple[TrainingClient, SamplingClient]:
        run = await service.create_lora_training_client_async("tiny", rank=4)
        return await run, await service.create_sampling_client_async(base_model="tiny")

    run, sampler = asyncio.run(create())
    assert (run.get_info().lora_rank, sampler.get_base_model()) == (4, "tiny")


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEFT_ADDRESS", raising=False)
    assert repr(ServiceClient()) == f"ServiceClient(base_url={DEFAULT_ADDRESS!r})"
    monkeypatch.setenv("WEFT_ADDRESS", "ipc:///run/weft")
    monkeypatch.setenv("WEFT_API_KEY", "k")
    service = ServiceClient()
    assert repr(service) == "ServiceClient(base_url='ipc:///run/weft')"
    assert service._api_key == "k"


def test_a_service_client_travels_without_its_session() -> None:
    service = ServiceClient(
        {"a": "b"}, display_name="mine", base_url="tcp://127.0.0.1:1", api_key="k"
    )
    copy = pickle.loads(pickle.dumps(service))
    assert repr(copy) == repr(service)
    assert (copy._metadata, copy._display_name, copy._api_key) == ({"a": "b"}, "mine", "k")
    assert copy._session.connection.session_id != service._session.connection.session_id


def test_key_and_display_name_are_told_with_the_session(
    broker: FakeBroker, context: "zmq.Context[Any]"
) -> None:
    with ServiceClient(
        {"a": "b"}, display_name="mine", base_url=broker.address, api_key="k", context=context
    ) as service:
        service.get_server_capabilities()
    (hello,) = [header for header in broker.seen if isinstance(header, Hello)]
    assert (hello.api_key, hello.display_name, hello.user_metadata) == ("k", "mine", {"a": "b"})


@pytest.mark.parametrize(
    "key", [b"tml-secret", 5, "tml-secret\n", "tml-s\u00e9cret", "tml-\udcff", "tml-" + "s" * 1024]
)
def test_what_can_be_no_key_is_refused_without_being_shown(key: Any) -> None:
    with pytest.raises(BadRequest, match=r"^api_key is ") as caught:
        ServiceClient(base_url="tcp://127.0.0.1:1", api_key=key)
    assert "tml" not in str(caught.value)


@pytest.mark.parametrize("name", [5, "x" * 1025])
def test_a_display_name_that_cannot_be_sent_is_refused(name: Any) -> None:
    with pytest.raises(BadRequest, match="display_name"):
        ServiceClient(base_url="tcp://127.0.0.1:1", display_name=name)
