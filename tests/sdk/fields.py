"""Every field of every request type of the SDK, and how a test sends it at another value.

A table of checks has an entry ``Type.field`` for each. A check sends the field through the SDK and
asserts either that the outcome changes as it should, or that a refusal names the field.
"""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pydantic
from internals import fetch, post
from serving import Server
from talking import datum, logprobs_of, refusal, rest_of, settled
from tinker import ServiceClient, types

WORDS = "the red fox sees"
# What requests hold, besides the types that end in _request themselves.
_HELD = (
    "datum", "dmel_chunk", "encoded_text_chunk", "forward_backward_input", "image_asset_pointer_chunk",
    "image_chunk", "lora_config", "model_input", "optimizer", "sampling_params",
)  # fmt: skip
# Types that no method of the SDK sends, or whose fields are those of its subclasses.
_UNSENT = {"ForwardRequest", "UnloadModelRequest", "OptimizerConfigBase", "OptimParamsBase"}


class Bench:
    """A session, and what checks make in it."""

    def __init__(self, server: Server, service: ServiceClient) -> None:
        self.server = server
        self.service = service
        self.holder = service.holder
        self.rest = rest_of(service)
        self.session_id = self.holder.get_session_id()

    def trainer(self, **config: Any) -> Any:
        """A new run; its public client has sent nothing yet."""
        given = {"base_model": "weft/tiny", "rank": 4, "seed": 1, **config}
        return settled(self.service.create_lora_training_client(**given))

    def sampler(self) -> Any:
        """A client of the base model."""
        return settled(self.service.create_sampling_client(base_model="weft/tiny"))

    def run(self, method: str, request: Any, result: type | None = None, kind: str = "") -> Any:
        """Post a request by the inner client's `resource.method`; follow its future."""
        resource, _, name = method.partition(".")
        answer = post(self.holder, resource, name, request)
        return answer if result is None else fetch(self.holder, answer, result, kind)

    def checkpoint(self, path: str) -> Any:
        """What the books say of a checkpoint."""
        run_id = types.ParsedCheckpointTinkerPath.from_tinker_path(path).training_run_id
        listed = self.rest.list_checkpoints(run_id).result().checkpoints
        (found,) = [each for each in listed if each.tinker_path == path]
        return found


Check = Callable[[Bench], None]


def changes(outcome: Callable[..., Any], usual: Any, other: Any) -> Check:
    """The outcome is another for another value."""

    def check(bench: Bench) -> None:
        left, right = outcome(bench, usual), outcome(bench, other)
        if isinstance(left, np.ndarray):
            assert left.shape != right.shape or np.abs(left - right).max() > 1e-4
        else:
            assert left != right

    return check


def refused(call: Callable[[Bench], Any], named: str) -> Check:
    """The server refuses, and its sentence matches."""

    def check(bench: Bench) -> None:
        sentence = refusal(lambda: call(bench))
        assert re.search(named, sentence), sentence

    return check


def tells(outcome: Callable[[Bench], Any], expected: Any) -> Check:
    """The value comes back where it should."""

    def check(bench: Bench) -> None:
        found = outcome(bench)
        wanted = expected(bench) if callable(expected) else expected
        assert found == wanted

    return check


def scored(trainer: Any, data: list[Any] | None = None) -> np.ndarray:
    """What a run makes of some words."""
    given = [datum(WORDS)] if data is None else data
    return logprobs_of(trainer.forward(given, "cross_entropy").result())[0]


def all_fields() -> set[str]:
    """``Type.field`` of everything that a request may hold, but for fields with one value."""
    names = [module.name for module in pkgutil.iter_modules(types.__path__)]
    modules = [
        importlib.import_module(f"tinker.types.{name}")
        for name in names
        if name.endswith("_request") or name in _HELD
    ]
    return {
        f"{kind.__name__}.{field}"
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__.split(".")[0] == "tinker"
        for field, annotation in _fields(kind).items()
        if not (_is_constant(annotation) or field.startswith("_") or kind.__name__ in _UNSENT)
        if not kind.__name__.endswith("Response")
    }


def _fields(kind: type) -> dict[str, Any]:
    if issubclass(kind, pydantic.BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind):
        return {field.name: field.type for field in dataclasses.fields(kind)}
    return {}


def _is_constant(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1
