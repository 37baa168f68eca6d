"""Fields of the requests that train, save and load."""

import dataclasses
from typing import Any

import numpy as np
from fields import WORDS, Bench, Check, changes, refused, scored, tells
from internals import forward_backward
from talking import datum, logprobs_of, policy_datum, prompt, step
from tinker import types

NOBODY = "0" * 32
ADAM = types.AdamParams(learning_rate=1e-2)


def _create(bench: Bench, **changed: Any) -> Any:
    fields = {
        "session_id": bench.session_id,
        "model_seq_id": bench.holder.get_training_client_id(),
        "base_model": "weft/tiny",
        "lora_config": types.LoraConfig(rank=4),
        **changed,
    }
    request = types.CreateModelRequest(**fields)
    return bench.run("models.create", request, types.CreateModelResponse, "CreateModel").model_id


def _trained(bench: Bench, config: dict[str, Any]) -> np.ndarray:
    """A run after two steps; the adapter's B begins at zero."""
    trainer = bench.trainer(**config)
    step(trainer, eps=1e-8)
    step(trainer, eps=1e-8)
    return scored(trainer)


def _stepped(bench: Bench, params: dict[str, float]) -> np.ndarray:
    """A run after three steps with some AdamParams."""
    trainer = bench.trainer()
    for words in (WORDS, "an owl by night", "so it is"):
        step(trainer, words, **{"eps": 1e-8, **params})
    return scored(trainer)


def _passed(bench: Bench, **changed: Any) -> Any:
    trainer = bench.trainer()
    fields = {
        "model_id": trainer.get_info().model_id,
        "seq_id": 1,
        "data": [datum(WORDS)],
        **changed,
    }
    return forward_backward(bench.holder, **fields)


def _loss(bench: Bench, options: dict[str, Any]) -> float:
    n = len(WORDS) - 1
    data = [policy_datum(WORDS, np.linspace(-1, 1, n), np.full(n, -2.0))]
    given = {"data": data, "loss_fn": "ppo", **options}
    return float(_passed(bench, **given).metrics["loss:sum"])


def _with_inputs(inputs: dict[str, Any]) -> types.Datum:
    n = len(WORDS) - 1
    return types.Datum(
        model_input=prompt(WORDS[:-1]),
        loss_fn_inputs={"target_tokens": np.arange(n), "weights": np.ones(n, np.float32), **inputs},
    )


def _weighted(weights: types.TensorData) -> Any:
    """The loss of a datum whose weights come as a tensor of some form."""
    targets = types.TensorData.from_numpy(np.tile(np.arange(8)[:, None], (1, 2)))
    data = types.Datum(
        model_input=prompt("the red "),
        loss_fn_inputs={"target_tokens": targets, "weights": weights},
    )
    return lambda bench: float(_passed(bench, data=[data]).metrics["loss:sum"])


def _csr(columns: list[int], rows: list[int], values: tuple[float, ...] = (1.0, 2.0)) -> Any:
    return _weighted(
        types.TensorData(
            data=list(values),
            dtype="float32",
            shape=[8, 2],
            sparse_crow_indices=rows,
            sparse_col_indices=columns,
        )
    )


def _call(bench: Bench, form: Any) -> Any:
    return form(bench)


ROWS = [0, 1, 2, 2, 2, 2, 2, 2, 2]
LATER = [0, 0, 0, 0, 0, 0, 0, 1, 2]


def _spanned(field: str, kind: type, **span: Any) -> Any:
    """A pass whose datum says where its tokens come from, in one of two fields otherwise."""
    usual = [types.PromptProvenanceSpan(sequence_id="somebody", length=len(WORDS) - 1)]
    other = [kind(**{"sequence_id": "somebody", "length": len(WORDS) - 1, **span})]
    spans = {"model_input_spans": usual, "loss_fn_input_spans": usual, field: other}

    def call(bench: Bench, **options: Any) -> Any:
        data = [dataclasses.replace(datum(WORDS), **spans)]
        return _passed(bench, data=data, **options)

    return call


def _only_for_stable_reinforce(kind: type, **span: Any) -> Check:
    """It is taken, for programs send it with every loss; the loss that reads it is not served."""
    call = _spanned("model_input_spans", kind, **span)

    def check(bench: Bench) -> None:
        assert len(call(bench).loss_fn_outputs) == 1
        refused(lambda b: call(b, loss_fn="stable_reinforce"), "stable_reinforce")(bench)

    return check


def _command(kind: type, method: str, result: type, name: str, **defaults: Any) -> Any:
    """A way to post a command of a new run, with some fields changed."""

    def send(bench: Bench, **changed: Any) -> Any:
        fields = {**defaults, **changed}
        if "model_id" not in fields:
            fields["model_id"] = bench.trainer().get_info().model_id
        request = kind(**{"seq_id": 1, **fields})
        return bench.run(method, request, result, name)

    return send


_step = _command(
    types.OptimStepRequest, "training.optim_step", types.OptimStepResponse, "OptimStep"
)
_save = _command(
    types.SaveWeightsRequest, "weights.save", types.SaveWeightsResponse, "SaveWeights", path="kept"
)
_freeze = _command(
    types.SaveWeightsForSamplerRequest,
    "weights.save_for_sampler",
    types.SaveWeightsForSamplerResponse,
    "SaveWeightsForSampler",
    path="kept",
)
_export = _command(
    types.SaveWeightsExternalRequest,
    "weights.save_external",
    types.SaveWeightsExternalResponse,
    "SaveWeightsExternal",
    path="kept",
)
_load = _command(
    types.LoadWeightsRequest,
    "weights.load",
    types.LoadWeightsResponse,
    "LoadWeights",
    path=f"tinker://{NOBODY}:train:0/weights/kept",
    optimizer=False,
)


def _frozen_for(bench: Bench) -> str:
    """The id of a sampler under a number of the caller's."""
    request = types.SaveWeightsForSamplerRequest(
        model_id=bench.trainer().get_info().model_id, sampling_session_seq_id=55, seq_id=1
    )
    result = types.SaveWeightsForSamplerResponseInternal
    kind = "SaveWeightsForSampler"
    return str(bench.run("weights.save_for_sampler", request, result, kind).sampling_session_id)


def _twice(send: Any, **changed: Any) -> Any:
    """The same number with other content."""

    def call(bench: Bench) -> Any:
        model_id = bench.trainer().get_info().model_id
        _save(bench, model_id=model_id, path="first")
        return send(bench, model_id=model_id, **changed)

    return call


def _lifetime(send: Any, ttl_seconds: int | None) -> Any:
    def outcome(bench: Bench) -> Any:
        found = bench.checkpoint(send(bench, ttl_seconds=ttl_seconds).path)
        return found.expires_at and round((found.expires_at - found.time).total_seconds(), -2)

    return outcome


def _noted(send: Any) -> Any:
    return lambda bench: bench.checkpoint(send(bench, user_metadata={"a": "b"}).path).user_metadata


def _name(send: Any) -> Any:
    return lambda bench: send(bench, path="other").path.rsplit("/", 1)[1]


def _overwritten(bench: Bench, overwrite: bool) -> bool:
    trainer = bench.trainer()
    trainer.save_state("kept").result()
    try:
        trainer.save_state("kept", overwrite=overwrite).result()
    except Exception:
        return False
    return True


def _saved(bench: Bench) -> str:
    trainer = bench.trainer()
    for _ in range(3):
        step(trainer, eps=1e-8)
    return str(trainer.save_state("kept").result().path)


def _made(bench: Bench, path: str, **changed: Any) -> str:
    fields = {
        "session_id": bench.session_id,
        "model_seq_id": bench.holder.get_training_client_id(),
        "path": path,
        "optimizer": False,
        **changed,
    }
    request = types.LoadWeightsRequest(**fields)
    answer = bench.run("weights.load", request, types.LoadWeightsResponse, "LoadWeights")
    return str(answer.model_id)


def _resumed(bench: Bench, with_optimizer: bool) -> np.ndarray:
    model_id = _made(bench, _saved(bench), optimizer=with_optimizer)
    forward_backward(bench.holder, model_id, 1, [datum(WORDS)])
    _step(bench, model_id=model_id, seq_id=2, optim_params=types.AdamParams(eps=1e-8))
    output = forward_backward(bench.holder, model_id, 3, [datum(WORDS)])
    return logprobs_of(output)[0]


def _loaded(bench: Bench, is_other: bool) -> np.ndarray:
    """A run that goes back to one of two states."""
    trainer = bench.trainer()
    first = trainer.save_state("first").result().path
    step(trainer, learning_rate=0.1)
    second = trainer.save_state("second").result().path
    trainer.load_state(second if is_other else first).result()
    return scored(trainer)


DIMUON = types.DimuonOptimizerConfig()


def _dimuon(**changed: Any) -> Any:
    params = types.DimuonParams(**{"learning_rate": 0.1, **changed})
    return lambda bench: _step(bench, optim_params=params)


CASES: dict[str, Check] = {
    "CreateModelRequest.session_id": refused(lambda b: _create(b, session_id=NOBODY), NOBODY),
    "CreateModelRequest.model_seq_id": tells(
        lambda b: _create(b, model_seq_id=77), lambda b: f"{b.session_id}:train:77"
    ),
    "CreateModelRequest.base_model": refused(lambda b: _create(b, base_model="a/b"), "a/b"),
    "CreateModelRequest.user_metadata": tells(
        lambda b: (
            b.rest.get_training_run(_create(b, user_metadata={"a": "b"})).result().user_metadata
        ),
        {"a": "b"},
    ),
    "CreateModelRequest.lora_config": refused(
        lambda b: _create(b, lora_config=None), "lora_config"
    ),
    "CreateModelRequest.optimizer_config": refused(
        lambda b: _create(b, optimizer_config=DIMUON), "optimizer_config"
    ),
    "LoraConfig.rank": tells(lambda b: b.trainer(rank=8).get_info().lora_rank, 8),
    "LoraConfig.seed": changes(_trained, {}, {"seed": 2}),
    "LoraConfig.train_attn": changes(_trained, {}, {"train_attn": False}),
    "LoraConfig.train_mlp": changes(_trained, {}, {"train_mlp": False}),
    "LoraConfig.train_unembed": changes(_trained, {}, {"train_unembed": False}),
    "GetInfoRequest.model_id": refused(
        lambda b: b.run("models.get_info", types.GetInfoRequest(model_id=f"{NOBODY}:train:0")),
        NOBODY,
    ),
    "OptimStepRequest.optim_params": changes(_stepped, {}, {"learning_rate": 5e-3}),
    "OptimStepRequest.model_id": refused(
        lambda b: _step(b, model_id=f"{NOBODY}:train:0", optim_params=ADAM), NOBODY
    ),
    "OptimStepRequest.seq_id": refused(_twice(_step, optim_params=ADAM), "number|seq"),
    "AdamParams.learning_rate": changes(_stepped, {}, {"learning_rate": 3e-2}),
    "AdamParams.beta1": changes(_stepped, {}, {"beta1": 0.5}),
    "AdamParams.beta2": changes(_stepped, {}, {"beta2": 0.5}),
    "AdamParams.eps": changes(_stepped, {}, {"eps": 1e-2}),
    "AdamParams.weight_decay": changes(_stepped, {}, {"weight_decay": 0.5}),
    # Adam undoes the size of gradients, but for a large eps.
    "AdamParams.grad_clip_norm": changes(
        _stepped, {"eps": 1.0}, {"eps": 1.0, "grad_clip_norm": 1e-3}
    ),
    "DimuonParams.learning_rate": refused(_dimuon(), "optimizer_params"),
    "DimuonParams.beta1": refused(_dimuon(beta1=0.5), "optimizer_params"),
    "DimuonParams.grad_clip_norm": refused(_dimuon(grad_clip_norm=1.0), "optimizer_params"),
    "ForwardBackwardRequest.model_id": refused(
        lambda b: _passed(b, model_id=f"{NOBODY}:train:0"), NOBODY
    ),
    "ForwardBackwardRequest.seq_id": refused(
        _twice(lambda b, model_id: _passed(b, model_id=model_id)), "number|seq"
    ),
    "ForwardBackwardRequest.forward_backward_input": changes(_loss, {}, {"loss_fn": "cispo"}),
    "ForwardBackwardInput.data": tells(
        lambda b: len(_passed(b, data=[datum(WORDS)] * 3).loss_fn_outputs), 3
    ),
    "ForwardBackwardInput.loss_fn": refused(
        lambda b: _passed(b, loss_fn="stable_reinforce"), "stable_reinforce"
    ),
    "ForwardBackwardInput.loss_fn_config": changes(
        _loss, {}, {"loss_fn_config": {"clip_low_threshold": 0.1, "clip_high_threshold": 9.0}}
    ),
    "Datum.model_input": changes(
        lambda b, words: scored(b.trainer(), [datum(words)]), WORDS, "the red owl says"
    ),
    "Datum.loss_fn_inputs": refused(
        lambda b: _passed(b, data=[_with_inputs({"novelty": np.ones(15, np.float32)})]), "novelty"
    ),
    "Datum.model_input_spans": refused(
        _spanned("model_input_spans", types.SampledProvenanceSpan, length=3), "model_input_spans"
    ),
    "Datum.loss_fn_input_spans": refused(
        _spanned("loss_fn_input_spans", types.SampledProvenanceSpan, length=3),
        "loss_fn_input_spans",
    ),
    "TensorData.data": changes(_call, _csr([0, 1], ROWS), _csr([0, 1], ROWS, (1.0, -2.0))),
    # The same numbers in wider words.
    "TensorData.dtype": tells(
        _weighted(types.TensorData(data=[1] * 16, dtype="int64", shape=[8, 2])),
        _weighted(types.TensorData(data=[1.0] * 16, dtype="float32", shape=[8, 2])),
    ),
    "TensorData.shape": refused(
        _weighted(types.TensorData(data=[1.0] * 16, dtype="float32", shape=[4, 4])), "weights"
    ),
    "TensorData.sparse_crow_indices": changes(_call, _csr([0, 1], ROWS), _csr([0, 1], LATER)),
    "TensorData.sparse_col_indices": refused(_csr([0, 7], ROWS), "7|column"),
    "SaveWeightsRequest.model_id": refused(
        lambda b: _save(b, model_id=f"{NOBODY}:train:0"), NOBODY
    ),
    "SaveWeightsRequest.path": tells(_name(_save), "other"),
    "SaveWeightsRequest.seq_id": refused(_twice(_save), "number|seq"),
    "SaveWeightsRequest.ttl_seconds": tells(_lifetime(_save, 7200), 7200),
    "SaveWeightsRequest.overwrite": changes(_overwritten, False, True),
    "SaveWeightsRequest.user_metadata": tells(_noted(_save), {"a": "b"}),
    "SaveWeightsForSamplerRequest.model_id": refused(
        lambda b: _freeze(b, model_id=f"{NOBODY}:train:0"), NOBODY
    ),
    "SaveWeightsForSamplerRequest.path": tells(_name(_freeze), "other"),
    "SaveWeightsForSamplerRequest.sampling_session_seq_id": tells(
        _frozen_for,
        lambda b: f"{b.session_id}:sample:55",
    ),
    "SaveWeightsForSamplerRequest.kind": refused(lambda b: _freeze(b, kind="inflight"), "inflight"),
    "SaveWeightsForSamplerRequest.seq_id": refused(_twice(_freeze), "number|seq"),
    "SaveWeightsForSamplerRequest.ttl_seconds": tells(_lifetime(_freeze, 7200), 7200),
    "SaveWeightsForSamplerRequest.user_metadata": tells(_noted(_freeze), {"a": "b"}),
    "SaveWeightsExternalRequest.model_id": refused(
        lambda b: _export(b, model_id=f"{NOBODY}:train:0"), NOBODY
    ),
    "SaveWeightsExternalRequest.path": tells(_name(_export), "other"),
    "SaveWeightsExternalRequest.seq_id": refused(_twice(_export), "number|seq"),
    "SaveWeightsExternalRequest.ttl_seconds": tells(_lifetime(_export, 7200), 7200),
    "SaveWeightsExternalRequest.age_encryption_recipients": refused(
        lambda b: _export(b, age_encryption_recipients=["age1x"]), "age_encryption_recipients"
    ),
    "LoadWeightsRequest.model_id": refused(
        lambda b: _load(b, model_id=f"{NOBODY}:train:0"), NOBODY
    ),
    "LoadWeightsRequest.seq_id": refused(_twice(_load), "number|seq"),
    "LoadWeightsRequest.session_id": refused(
        lambda b: _made(b, _saved(b), session_id=NOBODY), NOBODY
    ),
    "LoadWeightsRequest.model_seq_id": tells(
        lambda b: _made(b, _saved(b), model_seq_id=78), lambda b: f"{b.session_id}:train:78"
    ),
    "LoadWeightsRequest.base_model": refused(
        lambda b: _made(b, _saved(b), base_model="a/b"), "a/b"
    ),
    "LoadWeightsRequest.user_metadata": tells(
        lambda b: (
            b.rest.get_training_run(_made(b, _saved(b), user_metadata={"a": "b"}))
            .result()
            .user_metadata
        ),
        {"a": "b"},
    ),
    "LoadWeightsRequest.path": changes(_loaded, False, True),
    "LoadWeightsRequest.optimizer": changes(_resumed, False, True),
    "LoadWeightsRequest.optimizer_config": refused(
        lambda b: _made(b, _saved(b), optimizer_config=DIMUON), "optimizer_config"
    ),
    "LoadWeightsRequest.weights_access_token": refused(
        lambda b: _made(b, _saved(b), weights_access_token="secret"), "weights_access_token"
    ),
    **{
        f"{kind.__name__}.{field}": check
        for kind in (types.PromptProvenanceSpan, types.SampledProvenanceSpan)
        for field, check in (
            ("sequence_id", _only_for_stable_reinforce(kind, sequence_id="another")),
            ("offset", _only_for_stable_reinforce(kind, offset=3)),
            ("length", refused(_spanned("model_input_spans", kind, length=9), "model_input_spans")),
        )
    },
}
