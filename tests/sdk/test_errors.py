"""How refusals and failures reach a user of the SDK: by type, by category, at once, with names."""

import time
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import tinker
from internals import forward_backward
from serving import Server
from talking import datum, prompt, settled, since, step
from tinker import ServiceClient, types

NOBODY = "0" * 32


def test_an_unknown_model_is_refused_by_name(service: ServiceClient) -> None:
    with pytest.raises(tinker.NotFoundError, match="no/such"):
        settled(service.create_sampling_client(base_model="no/such"))


def test_an_unknown_path_is_not_found(service: ServiceClient) -> None:
    path = f"tinker://{NOBODY}:train:0/weights/kept"
    with pytest.raises((tinker.NotFoundError, tinker.RequestFailedError), match=NOBODY):
        settled(service.create_training_client_from_state(path))


def test_a_wrong_request_is_a_bad_request(trainer: Any) -> None:
    with pytest.raises(tinker.BadRequestError, match="no_such_loss"):
        trainer.forward_backward([datum("the red fox")], "no_such_loss").result()


def test_a_loss_that_is_not_finite_fails_its_future(trainer: Any) -> None:
    words = "the red fox"
    huge = datum(words, [3e38] * (len(words) - 1))
    with pytest.raises(tinker.RequestFailedError, match="finite") as failed:
        trainer.forward_backward([huge], "cross_entropy").result()
    assert failed.value.category.value == "user"
    step(trainer)


def test_a_prompt_over_the_context_is_refused_with_the_numbers(service: ServiceClient) -> None:
    sampler = settled(service.create_sampling_client(base_model="weft/tiny"))
    with pytest.raises(tinker.BadRequestError, match="4096"):
        sampler.sample(prompt("x" * 4090), 1, types.SamplingParams(max_tokens=10)).result()


def test_refusals_come_at_once(trainer: Any) -> None:
    """The SDK repeats some statuses for five minutes before it tells of them."""
    trainer.save_state("kept").result()
    begun = time.monotonic()
    with pytest.raises(tinker.TinkerError, match="kept"):
        trainer.save_state("kept").result()
    with pytest.raises(tinker.TinkerError, match="gradient"):
        trainer.optim_step(types.AdamParams()).result()
    assert time.monotonic() - begun < 5


def test_a_failed_call_leaves_the_client_usable(trainer: Any) -> None:
    for _ in range(3):
        with pytest.raises(tinker.TinkerError):
            trainer.forward_backward([datum("the red fox")], "no_such_loss").result()
    step(trainer)


def test_a_finished_session_takes_no_more_work(server: Server, service: ServiceClient) -> None:
    finished = ServiceClient(base_url=server.url, api_key=server.key)
    model_id = settled(finished.create_lora_training_client("weft/tiny")).get_info().model_id
    finished.close("success").result(timeout=30)
    with pytest.raises(tinker.NotFoundError, match=model_id.split(":")[0]):
        forward_backward(service.holder, model_id, 1, [datum("the red fox")])


@since(0, 30)
def test_an_error_in_the_block_finishes_the_session_too(server: Server) -> None:
    def program() -> None:
        with ServiceClient(base_url=server.url, api_key=server.key) as service:
            settled(service.create_sampling_client(base_model="weft/tiny"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        program()


@pytest.mark.parametrize("path", ["/api/v1/no_such_route", "/api/v1/training_runs/..%2f..%2fetc"])
def test_an_unknown_route_is_refused(server: Server, path: str) -> None:
    asked = Request(server.url + path, headers={"X-API-Key": server.key})
    with pytest.raises(HTTPError) as refused:
        urlopen(asked, timeout=10)
    assert 400 <= refused.value.code < 500
