"""Fields of the requests that sample and wait for results."""

import time
from typing import Any

import numpy as np
from fields import WORDS, Bench, Check, changes, refused, tells
from internals import post
from talking import prompt, text
from tinker import types

NOBODY = "0" * 32
PIXEL = b"\x89PNG\r\n\x1a\n"


def _post(bench: Bench, **changed: Any) -> Any:
    """Post a sample of a new sampler by the inner client."""
    fields = {
        "sampling_session_id": _session(bench, base_model="weft/tiny"),
        "seq_id": 1,
        "prompt": prompt(WORDS),
        "sampling_params": types.SamplingParams(max_tokens=4, seed=1, stop=[]),
        **changed,
    }
    return post(bench.holder, "sampling", "asample", types.SampleRequest(**fields))


def _session(bench: Bench, **fields: Any) -> str:
    request = types.CreateSamplingSessionRequest(
        **{
            "session_id": bench.session_id,
            "sampling_session_seq_id": _next(bench),
            **fields,
        }
    )
    return str(bench.run("service.create_sampling_session", request).sampling_session_id)


def _next(bench: Bench) -> int:
    number = bench.holder._sampling_client_counter
    bench.holder._sampling_client_counter += 1
    return int(number)


def _drawn(bench: Bench, params: dict[str, Any]) -> list[list[int]]:
    """Samples of the base model with some SamplingParams."""
    asked = types.SamplingParams(**{"max_tokens": 12, "seed": 5, "stop": [], **params})
    answer = bench.sampler().sample(prompt(WORDS), 4, asked).result()
    return [list(sequence.tokens) for sequence in answer.sequences]


def _answer(bench: Bench, **options: Any) -> types.SampleResponse:
    params = types.SamplingParams(max_tokens=2, seed=5, stop=[])
    given = {"num_samples": 1, "prompt": prompt(WORDS), **options}
    return bench.sampler().sample(sampling_params=params, **given).result()


def _conflict(bench: Bench) -> Any:
    """The same number with another prompt."""
    sampler_id = _session(bench, base_model="weft/tiny")
    _post(bench, sampling_session_id=sampler_id)
    return _post(bench, sampling_session_id=sampler_id, prompt=prompt("an owl"))


def _chunk(chunk: Any) -> Any:
    return lambda bench: _post(bench, prompt=types.ModelInput(chunks=[chunk]))


def _image(**changed: Any) -> Any:
    fields = {"data": PIXEL, "format": "png", **changed}
    return refused(_chunk(types.ImageChunk(**fields)), "image")


def _pointer(**changed: Any) -> Any:
    fields = {"location": "here", "format": "png", **changed}
    return refused(_chunk(types.ImageAssetPointerChunk(**fields)), "image_asset_pointer")


def _weights_sampled(bench: Bench) -> str:
    path = bench.trainer().save_weights_for_sampler("kept").result().path
    sampler_id = _session(bench, model_path=path)
    told = bench.rest.get_sampler(sampler_id).result()
    return "path" if told.model_path == path else str(told)


def _retrieved(bench: Bench, allow_metadata_only: bool) -> bool:
    """Whether a large result is told by its size first."""
    params = types.SamplingParams(max_tokens=1, seed=1)
    words = prompt("the red fox sees " * 60)
    future = _post(bench, prompt=words, sampling_params=params, topk_prompt_logprobs=20)
    request = types.FutureRetrieveRequest(
        request_id=future.request_id, allow_metadata_only=allow_metadata_only
    )

    async def ask() -> Any:
        with _client(bench) as client:
            return await client.futures.with_raw_response.retrieve(
                request=request, extra_headers={"Accept": "application/x-protobuf"}
            )

    answer = bench.holder.run_coroutine_threadsafe(ask()).result(timeout=60)
    return b"complete_metadata" in answer.http_response.content


def _client(bench: Bench) -> Any:
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

    return bench.holder.aclient(ClientConnectionPoolType.RETRIEVE_PROMISE)


def _unknown_future(bench: Bench) -> Any:
    request = types.FutureRetrieveRequest(request_id=f"{NOBODY}:1")
    return bench.run("futures.retrieve", request)


def _completions(bench: Bench, **changed: Any) -> Any:
    """Poll for the samples of one client, of which one is done."""
    sampler_id = _session(bench, base_model="weft/tiny")
    future = _post(bench, sampling_session_id=sampler_id, seq_id=1)
    target = types.SamplingSessionFuturesTarget(sampling_session_id=sampler_id)
    first = bench.run("futures.retrieve_multi", types.FuturesRetrieveRequest(target=target))
    assert [done.request_id for done in first.completions] == [future.request_id]
    if changed.get("retrieved_request_ids"):
        changed["retrieved_request_ids"] = [future.request_id]
    if "cloned_sampler_id" in changed:
        target = types.SamplingSessionFuturesTarget(
            sampling_session_id=sampler_id, cloned_sampler_id=changed.pop("cloned_sampler_id")
        )
    if changed.get("prev_cursor"):
        changed["prev_cursor"] = first.cursor
    request = types.FuturesRetrieveRequest(**{"target": target, "timeout": 0, **changed})
    return [done.request_id for done in bench.run("futures.retrieve_multi", request).completions]


def _poll_s(bench: Bench) -> str:
    """How long a poll is held that nothing ends."""
    sampler_id = _session(bench, base_model="weft/tiny")
    long = types.SamplingParams(max_tokens=4000, stop=[])
    _post(bench, sampling_session_id=sampler_id, sampling_params=long)
    target = types.SamplingSessionFuturesTarget(sampling_session_id=sampler_id)
    begun = time.monotonic()
    bench.run("futures.retrieve_multi", types.FuturesRetrieveRequest(target=target, timeout=1.0))
    return "as asked" if 0.9 < time.monotonic() - begun < 10 else "otherwise"


TARGETS = types.TensorData.from_numpy(np.array(text(WORDS)[1:])[:, None])

CASES: dict[str, Check] = {
    "CreateSamplingSessionRequest.session_id": refused(
        lambda b: _session(b, session_id=NOBODY, base_model="weft/tiny"), NOBODY
    ),
    "CreateSamplingSessionRequest.sampling_session_seq_id": tells(
        lambda b: _session(b, sampling_session_seq_id=66, base_model="weft/tiny"),
        lambda b: f"{b.session_id}:sample:66",
    ),
    "CreateSamplingSessionRequest.base_model": refused(
        lambda b: _session(b, base_model="a/b"), "a/b"
    ),
    "CreateSamplingSessionRequest.model_path": tells(_weights_sampled, "path"),
    "JoinSamplingSessionRequest.sampling_session_id": refused(
        lambda b: b.run(
            "service.join_sampling_session",
            types.JoinSamplingSessionRequest(sampling_session_id=f"{NOBODY}:sample:0"),
        ),
        NOBODY,
    ),
    "SampleRequest.num_samples": tells(lambda b: len(_answer(b, num_samples=3).sequences), 3),
    "SampleRequest.prompt": changes(
        lambda b, words: list(_answer(b, prompt=prompt(words)).sequences[0].logprobs),
        WORDS,
        "an owl",
    ),
    "SampleRequest.sampling_params": changes(_drawn, {}, {"temperature": 0.5}),
    "SampleRequest.base_model": refused(lambda b: _post(b, base_model="weft/tiny"), "base_model"),
    "SampleRequest.model_path": refused(lambda b: _post(b, model_path="tinker://a"), "model_path"),
    "SampleRequest.sampling_session_id": refused(
        lambda b: _post(b, sampling_session_id=f"{NOBODY}:sample:0"), NOBODY
    ),
    "SampleRequest.seq_id": refused(_conflict, "number|seq"),
    "SampleRequest.prompt_logprobs": tells(
        lambda b: len(_answer(b, include_prompt_logprobs=True).prompt_logprobs), len(WORDS)
    ),
    "SampleRequest.topk_prompt_logprobs": tells(
        lambda b: len(_answer(b, topk_prompt_logprobs=3).topk_prompt_logprobs[1]), 3
    ),
    "SampleRequest.topk_sample_logprobs": tells(
        lambda b: len(_answer(b, topk_sample_logprobs=3).sequences[0].topk_logprobs[0]), 3
    ),
    "SampleRequest.target_prompt_logprobs": tells(
        lambda b: list(_answer(b, target_prompt_logprobs=TARGETS).target_prompt_logprobs.shape),
        [len(WORDS) - 1, 1],
    ),
    "SampleRequest.prompt_alt_tokens_k": tells(
        lambda b: _answer(b, prompt_alt_tokens_k=3).prompt_alt_tokens.tokens.to_numpy().shape[1], 3
    ),
    "SampleRequest.prompt_logprobs_last_n": tells(
        lambda b: [
            each is None
            for each in _answer(
                b, include_prompt_logprobs=True, prompt_logprobs_last_n=2
            ).prompt_logprobs[-4:]
        ],
        [True, True, False, False],
    ),
    "SampleRequest.record_stability_info": refused(
        lambda b: _post(b, record_stability_info=True), "record_stability_info"
    ),
    "SamplingParams.max_tokens": changes(_drawn, {}, {"max_tokens": 5}),
    "SamplingParams.seed": changes(_drawn, {}, {"seed": 6}),
    "SamplingParams.stop": changes(_drawn, {}, {"stop": ["e"]}),
    "SamplingParams.temperature": changes(_drawn, {}, {"temperature": 3.0}),
    "SamplingParams.top_k": changes(_drawn, {}, {"top_k": 1}),
    "SamplingParams.top_p": changes(_drawn, {}, {"top_p": 0.1}),
    "ModelInput.chunks": changes(
        lambda b, chunks: list(
            _answer(b, prompt=types.ModelInput(chunks=chunks)).sequences[0].logprobs
        ),
        [types.EncodedTextChunk(tokens=text("the "))],
        [types.EncodedTextChunk(tokens=text("the ")), types.EncodedTextChunk(tokens=text("red "))],
    ),
    "EncodedTextChunk.tokens": refused(_chunk(types.EncodedTextChunk(tokens=[70_000])), "70000"),
    "ImageChunk.data": _image(),
    "ImageChunk.format": _image(format="jpeg"),
    "ImageChunk.expected_tokens": _image(expected_tokens=3),
    "ImageAssetPointerChunk.location": _pointer(),
    "ImageAssetPointerChunk.format": _pointer(format="jpeg"),
    "ImageAssetPointerChunk.expected_tokens": _pointer(expected_tokens=3),
    "DmelChunk.dmel": refused(_chunk(types.DmelChunk(dmel=b"1234")), "dmel"),
    "FutureRetrieveRequest.request_id": refused(_unknown_future, "request_id"),
    "FutureRetrieveRequest.allow_metadata_only": changes(_retrieved, False, True),
    "FuturesRetrieveRequest.target": refused(
        lambda b: b.run(
            "futures.retrieve_multi",
            types.FuturesRetrieveRequest(
                target=types.SamplingSessionFuturesTarget(sampling_session_id=f"{NOBODY}:sample:0")
            ),
        ),
        NOBODY,
    ),
    "SamplingSessionFuturesTarget.sampling_session_id": refused(
        lambda b: b.run(
            "futures.retrieve_multi",
            types.FuturesRetrieveRequest(
                target=types.SamplingSessionFuturesTarget(sampling_session_id="nonsense")
            ),
        ),
        "nonsense",
    ),
    "SamplingSessionFuturesTarget.cloned_sampler_id": changes(
        lambda b, clone: len(_completions(b, cloned_sampler_id=clone)), 0, 9
    ),
    "FuturesRetrieveRequest.prev_cursor": changes(
        lambda b, cursor: len(_completions(b, prev_cursor=cursor)), 0, 1
    ),
    "FuturesRetrieveRequest.timeout": tells(_poll_s, "as asked"),
    "FuturesRetrieveRequest.retrieved_request_ids": changes(
        lambda b, ids: len(_completions(b, retrieved_request_ids=ids)), [], ["it"]
    ),
}
