"""How the SDK waits: polls that end without an answer, large answers, a gateway that is killed."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from internals import forward_backward
from serving import WEFT, Server
from talking import datum, logprobs_of, prompt, settled, step
from tinker import ServiceClient, types

WORDS = "the red fox sees"
LONG = WORDS * 64  # of which 24 have an answer of more than 64 kB, which is told by its size first


@contextmanager
def _gateway(server: Server, listen: str = "127.0.0.1:0") -> Iterator[tuple[str, Any]]:
    """One more gateway of the same broker, which holds a poll for a fifth of a second."""
    settings = {"broker": f"ipc://{server.folder}/broker", "listen": listen, "poll_s": 0.2}
    process = subprocess.Popen(
        [str(WEFT.with_name("python")), "-P", "-m", "weft.engine.gateway.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            process.stdin.write(
                json.dumps({**settings, "log_format": "text", "log_level": "error"})
            )
            process.stdin.write("\n")
            process.stdin.flush()
            yield json.loads(process.stdout.readline())["url"], process
        finally:
            process.kill()


@pytest.fixture
def impatient(server: Server) -> Iterator[ServiceClient]:
    """A session at such a gateway."""
    with _gateway(server) as (url, _):
        client = ServiceClient(base_url=url, api_key=server.key)
        yield client
        client.close("success").result(timeout=30)


def test_a_result_that_takes_many_polls_comes(impatient: ServiceClient) -> None:
    trainer = settled(impatient.create_lora_training_client("weft/tiny", rank=4, seed=1))
    holder, model_id = trainer.holder, trainer.get_info().model_id
    with ThreadPoolExecutor() as pool:
        early = pool.submit(forward_backward, holder, model_id, 2, [datum(WORDS)])
        with pytest.raises(TimeoutError):
            early.result(timeout=1.0)  # five polls
        forward_backward(holder, model_id, 1, [datum(WORDS)])
        assert len(logprobs_of(early.result(timeout=60))[0]) == len(WORDS) - 1


def test_samples_that_take_many_polls_come(impatient: ServiceClient) -> None:
    sampler = settled(impatient.create_sampling_client(base_model="weft/tiny"))
    params = types.SamplingParams(max_tokens=300, stop=[], seed=1)
    asked = [sampler.sample(prompt(WORDS), 1, params) for _ in range(3)]
    assert [len(each.result().sequences[0].tokens) for each in asked] == [300] * 3


def test_an_answer_of_many_bytes_comes_whole(trainer: Any) -> None:
    data = [datum(LONG[: len(LONG) - index]) for index in range(24)]
    logprobs = logprobs_of(trainer.forward(data, "cross_entropy").result())
    assert [len(each) for each in logprobs] == [len(LONG) - 1 - index for index in range(24)]


def test_a_program_goes_on_when_its_gateway_is_killed_between_two_calls(server: Server) -> None:
    params = types.SamplingParams(max_tokens=4, stop=[])
    with _gateway(server) as (url, first):
        client = ServiceClient(base_url=url, api_key=server.key)
        trainer = settled(client.create_lora_training_client("weft/tiny", rank=4, seed=1))
        step(trainer)
        sampler = settled(trainer.save_weights_and_get_sampling_client())
        sampler.sample(prompt(WORDS), 1, params).result()
        first.kill()
        first.wait()
        with _gateway(server, urlsplit(url).netloc):
            assert step(trainer).metrics["step:max"] == 2
            drawn = sampler.sample(prompt(WORDS), 1, params).result()
            assert len(drawn.sequences[0].tokens) == 4
            client.close("success").result(timeout=30)
