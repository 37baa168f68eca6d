"""The gateway before a real engine: the same numbers as without it, and files as they are."""

import asyncio
import http.client
import io
import json
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from gateways import Caller, Loop, gateway_of, pass_body
from safetensors.numpy import load as load_safetensors
from sdk_protobuf import message_class
from tenants import VOCAB_SIZE

from weft.client import AdamParams, Datum, ModelInput, SamplingParams
from weft.client.limits import LIMITS
from weft.engine import Engine
from weft.engine.gateway import downloads
from weft.engine.gateway.downloads import LINK_TTL_S
from weft.engine.gateway.server import GatewayServer

TOKENS = [tuple(np.random.default_rng(seed).integers(0, VOCAB_SIZE, 20)) for seed in range(4)]


@dataclass(frozen=True)
class Site:
    """An engine and its gateway."""

    engine: Engine
    server: GatewayServer
    loop: Loop
    model: str

    @property
    def gateway(self) -> Any:
        return self.server._gateway

    def caller(self, key: str = "tml-any") -> Caller:
        return Caller(self.server.url, key)


@pytest.fixture(scope="module")
def site(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    address = f"ipc://{tmp_path_factory.mktemp('site')}/front"
    with (
        Engine(
            model_path,
            listen=[address],
            memory_bytes=1 << 30,
            is_deterministic=True,
            unit_tokens=64,
        ) as engine,
        gateway_of(address, poll_s=5.0) as (server, loop),
    ):
        yield Site(engine, server, loop, model_path)


def trained_over_http(site: Site, *, is_hostile: bool) -> tuple[list[bytes], str, Caller]:
    """Three steps of a new run; if hostile, all posts come twice and the passes in any order."""
    caller = site.caller()
    lora = {"rank": 4, "seed": 7}
    fields = {"session_id": caller.session(), "model_seq_id": 0, "base_model": site.model}
    made = caller.result(caller.post("create_model", {**fields, "lora_config": lora})).json
    run_id = made["model_id"]
    results = []
    for number in range(3):
        first = 1 + 3 * number
        bodies = {
            first: ("forward_backward", pass_body(run_id, first, TOKENS[number])),
            first + 1: ("forward_backward", pass_body(run_id, first + 1, TOKENS[number + 1])),
            first + 2: (
                "optim_step",
                {"model_id": run_id, "seq_id": first + 2, "adam_params": {"learning_rate": 0.01}},
            ),
        }
        order = (first + 1, first + 2, first) if is_hostile else tuple(bodies)
        posted = {seq: caller.post(*bodies[seq]) for seq in order}
        if is_hostile:
            assert all(caller.post(*bodies[seq]).body == posted[seq].body for seq in order)
        results += [caller.result(posted[seq]).body for seq in bodies]
    return results, run_id, caller


def numbers(body: bytes) -> tuple[bytes, float] | str:
    """What was computed, of the result of a pass or a step: no times, which are never the same."""
    if body.startswith(b"{"):
        return body.decode()
    told = message_class("ForwardBackwardOutput").FromString(body)
    return told.loss_fn_outputs[0].fields["logprobs"].data, told.metrics["loss:sum"]


def test_training_over_http_gives_the_numbers_of_the_native_client_however_posts_come(
    site: Site,
) -> None:
    calm, _, _ = trained_over_http(site, is_hostile=False)
    hostile, _, _ = trained_over_http(site, is_hostile=True)
    assert list(map(numbers, hostile)) == list(map(numbers, calm))
    native: list[Any] = []
    with site.engine.client() as service:
        run = service.create_lora_training_client(base_model=site.model, rank=4, seed=7)
        for number in range(3):
            for at in (number, number + 1):
                passed = run.forward_backward([datum(TOKENS[at])], "cross_entropy").result(60)
                logprobs = passed.loss_fn_outputs[0]["logprobs"].to_numpy().tobytes()
                native.append((logprobs, passed.metrics["loss:sum"]))
            native.append(run.optim_step(AdamParams(learning_rate=0.01)).result(60).metrics)
    told = [numbers(body) for body in calm]
    assert [json.loads(one)["metrics"] if isinstance(one, str) else one for one in told] == native


def datum(tokens: tuple[int, ...]) -> Datum:
    weights = np.ones(len(tokens), np.float32)
    inputs = {"target_tokens": np.array(tokens), "weights": weights}
    return Datum(ModelInput.from_ints([int(token) for token in tokens]), inputs)


def test_samples_over_http_are_those_of_the_native_client(site: Site) -> None:
    caller = site.caller()
    fields = {"session_id": caller.session(), "sampling_session_seq_id": 0}
    opened = caller.post("create_sampling_session", {**fields, "base_model": site.model}).json
    asked = {"num_samples": 3, "sampling_params": {"max_tokens": 8, "seed": 5}}
    posted = caller.sample(opened["sampling_session_id"], 0, **asked)
    told = message_class("SampleResponse").FromString(caller.result(posted).body)
    with site.engine.client() as service:
        sampler = service.create_sampling_client(base_model=site.model)
        params = SamplingParams(max_tokens=8, seed=5)
        drawn = sampler.sample(ModelInput.from_ints([1, 2, 3]), 3, params).result(60)
    for one, other in zip(told.sequences, drawn.sequences, strict=True):
        assert np.frombuffer(one.tokens, np.int32).tolist() == list(other.tokens)


@dataclass(frozen=True)
class Export:
    """External weights, and where their files are."""

    site: Site
    caller: Caller
    run_id: str
    urls: dict[str, str]

    @property
    def name(self) -> str:
        """The path of the largest file."""
        return urlsplit(self.urls["adapter_model.safetensors"]).path

    @property
    def token(self) -> str:
        return self.name.split("/")[2]


@pytest.fixture(scope="module")
def export(site: Site) -> Export:
    _, run_id, caller = trained_over_http(site, is_hostile=False)
    fields = {"model_id": run_id, "seq_id": 10, "path": "out"}
    assert "path" in caller.result(caller.post("save_weights_external", fields)).json
    place = f"training_runs/{run_id}/checkpoints/external_weights/out/external_weights_urls"
    return Export(site, caller, run_id, caller.get(place).json["urls"])


def test_files_are_fetched_without_a_key(export: Export) -> None:
    assert set(export.urls) == {"adapter_config.json", "adapter_model.safetensors"}
    whole = Caller(export.site.server.url, "").call("GET", export.name)
    assert whole.status == 200
    assert load_safetensors(whole.body)
    head = export.caller.call("HEAD", export.name)
    assert (head.status, int(head.headers["Content-Length"])) == (200, len(whole.body))


def test_an_archive_holds_the_same_files(export: Export) -> None:
    place = f"training_runs/{export.run_id}/checkpoints/external_weights/out/archive"
    moved = export.caller.get(place)
    assert moved.status == 302
    got = export.caller.call("GET", urlsplit(moved.headers["Location"]).path)
    with tarfile.open(fileobj=io.BytesIO(got.body)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
        assert set(files) == {*export.urls, "checkpoint_complete"}
        packed = files["adapter_model.safetensors"]
        assert packed is not None
        assert packed.read() == export.caller.call("GET", export.name).body


@pytest.mark.parametrize(
    "change",
    [
        lambda path, token: path.replace(token, "A" * len(token)),
        lambda path, token: path.replace(token, token[:-1]),
        lambda path, token: path.replace(token, token.swapcase()),
        lambda path, token: f"/files/{token}/..%2f..%2fkeys.sqlite",
        lambda path, token: f"/files/{token}/..%2fweights%2fout",
        lambda path, token: f"/files/{token}/%2fetc%2fpasswd",
        lambda path, token: f"/files/{token}/.",
        lambda path, token: f"/files/{token}/adapter_model.safetensors%00",
        lambda path, token: f"/files/{token}/",
        lambda path, token: f"/files/{token}",
        lambda path, token: "/files//adapter_model.safetensors",
    ],
)
def test_no_other_address_gives_a_file(export: Export, change: Any) -> None:
    answer = export.caller.call("GET", change(export.name, export.token))
    assert (answer.status, answer.json["code"]) == (404, "not_found")


def test_an_address_is_good_for_an_hour(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    assert export.caller.call("HEAD", export.name).status == 200
    later = time.time() + LINK_TTL_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert export.caller.call("HEAD", export.name).status == 404


def test_an_address_outlives_the_silence_of_its_key(export: Export) -> None:
    doors = export.site.gateway.doors
    later = time.monotonic() + 2 * LIMITS["door_s"].default
    export.site.loop.call(doors.sweep, later)
    assert len(doors) == 0
    assert export.caller.call("GET", export.name).status == 200


def test_a_download_that_breaks_off_ends_its_connection_and_says_nothing_else(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "digest_bytes", lambda data: b"damaged")
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        export.caller.call("GET", export.name)


def test_readers_who_leave_give_their_transfers_back(export: Export) -> None:
    host, port = urlsplit(export.site.server.url).netloc.split(":")

    async def leave() -> None:
        for _ in range(20):  # more than may be open at a time
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET {export.name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            writer.transport.abort()

    asyncio.run(leave())
    assert export.caller.call("GET", export.name).status == 200


def test_a_checkpoint_that_was_deleted_has_no_files(export: Export) -> None:
    fields = {"model_id": export.run_id, "seq_id": 11, "path": "brief"}
    export.caller.result(export.caller.post("save_weights_external", fields))
    place = f"training_runs/{export.run_id}/checkpoints/external_weights/brief"
    urls = export.caller.get(f"{place}/external_weights_urls").json["urls"]
    assert export.caller.send("DELETE", place, b"").status == 200
    path = urlsplit(urls["adapter_config.json"]).path
    assert export.caller.call("GET", path).status == 404
