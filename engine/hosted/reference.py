"""What the modelling code computes before anything is swapped: the truth the checks compare with.

T rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...client.errors import BadRequest
from .rounding import Rounding, measure_rounding

CACHE_FIELDS = ("past_key_values", "cache_params", "state")  # of an output, and of arguments


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The module's own answers to the probes."""

    logits: tuple[Tensor, ...]  # [T, V] of each probe alone
    scale: float  # of the unembedding's outputs
    softcap: float  # that bends them after that; 0 for none
    rounding: Rounding  # how far other logits may be from these
    clean: frozenset[str]  # linears called once a pass, with exactly the rows of the pass
    clean_cached: frozenset[str]  # those of them that are so when a cache is used, too


@torch.no_grad()
def observe(module: Any, probes: Sequence[Tensor], names: Sequence[str]) -> Reference:
    """Run the probes through the module's own code.

    Args:
        names: the linears to watch.

    Raises:
        BadRequest: the code raises, or does something to its logits that is not built here.
    """
    name = type(module).__name__
    try:
        with _Calls(module, names) as calls:
            logits = []
            for tokens in probes:
                calls.begin(len(tokens))
                logits.append(module(input_ids=tokens[None], use_cache=False).logits[0])
            clean = calls.clean()
            _run_cached(module, probes[0], calls)
        scale, softcap = _logit_form(module, probes[0])
        rounding = measure_rounding(module, probes, names)
    except BadRequest:
        raise
    except Exception as error:  # the modelling code raises what it likes
        raise BadRequest(f"{name} cannot be run: {type(error).__name__}: {error}") from error
    return Reference(tuple(logits), scale, softcap, rounding, clean, calls.clean())


def _run_cached(module: Any, tokens_T: Tensor, calls: "_Calls") -> None:
    """A prompt and one token more, by the module's cache where it has one."""
    calls.begin(len(tokens_T) - 1)
    output = module(input_ids=tokens_T[None, :-1], use_cache=True)
    cache = {key: output[key] for key in CACHE_FIELDS if output.get(key) is not None}
    if cache:
        calls.begin(1)
        module(input_ids=tokens_T[None, -1:], use_cache=True, **cache)


class _Calls:
    """Watches linears: how often, with how many rows, and whether they are plain."""

    def __init__(self, module: Any, names: Sequence[str]) -> None:
        self._module, self._names = module, names
        self._handles: list[Any] = []
        self._passes: list[tuple[int, dict[str, list[int]]]] = []

    def __enter__(self) -> "_Calls":
        for name in self._names:
            hook = partial(self._note, name)
            self._handles.append(self._module.get_submodule(name).register_forward_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def begin(self, num_rows: int) -> None:
        """A pass of so many rows follows."""
        self._passes.append((num_rows, {}))

    def clean(self) -> frozenset[str]:
        """The linears that every pass so far called once, with its rows."""
        return frozenset(
            name
            for name in self._names
            if all(seen.get(name) == [num_rows] for num_rows, seen in self._passes)
        )

    def _note(self, name: str, linear: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = inputs[0].numel() // inputs[0].shape[-1]
        if type(linear) is not nn.Linear and isinstance(linear, nn.Linear):
            plain = functional.linear(inputs[0], linear.weight, linear.bias)
            if not torch.allclose(plain, output, rtol=1e-2, atol=1e-5):
                rows = -1  # a subclass with a computation of its own
        self._passes[-1][1].setdefault(name, []).append(rows)


def _logit_form(module: Any, tokens_T: Tensor) -> tuple[float, float]:
    """(scale, softcap) of what happens after the unembedding, seen on outputs of our choice."""
    random = torch.Generator().manual_seed(0)
    fed: list[Tensor] = []

    def replace(_: Any, inputs: Any, output: Tensor) -> Tensor:
        noise = 40 * torch.randn(output.shape, generator=random)
        fed.append(noise.to(output.device, output.dtype))
        return fed[-1]

    handle = module.get_output_embeddings().register_forward_hook(replace)
    try:
        answer_TV = module(input_ids=tokens_T[None], use_cache=False).logits[0].double()
    finally:
        handle.remove()
    if len(fed) != 1 or fed[0][0].shape != answer_TV.shape:
        raise BadRequest(f"{type(module).__name__} does not call its output layer once")
    fed_TV, dtype = fed[0][0].double(), fed[0].dtype
    scale = float((fed_TV * answer_TV).sum() / fed_TV.square().sum())
    scale = 1.0 if abs(scale - 1) < 1e-6 else scale
    if _is_close(fed_TV * scale, answer_TV, dtype):
        return scale, 0.0
    for cap in _softcaps(module.config.get_text_config(decoder=True)):
        if _is_close(torch.tanh(fed_TV / cap) * cap, answer_TV, dtype):
            return 1.0, cap
    raise BadRequest(f"{type(module).__name__} changes its logits in a way that is not built here")


def _is_close(found_TV: Tensor, expected_TV: Tensor, dtype: torch.dtype) -> bool:
    """Within rounding of elementwise operations in `dtype`."""
    error = (found_TV - expected_TV).norm() / expected_TV.norm()
    return bool(error <= 4 * torch.finfo(dtype).eps)


def _softcaps(config: Any) -> list[float]:
    """Numbers of a config that may bend its logits."""
    return [
        float(value)
        for key, value in config.to_dict().items()
        if "cap" in key and "logit" in key and "att" not in key and isinstance(value, int | float)
    ]
