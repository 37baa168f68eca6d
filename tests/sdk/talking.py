"""What the tests say often: datums of weft/tiny, whose tokens are bytes, and results as numpy."""

import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
from tinker import types

EOS = 256
VERSION = tuple(int(number) for number in version("tinker").split("."))
SAME = 1e-4  # rounding only: the same tokens may be cut into other batches
SERVED_ALONE = 1e-3  # sampling and training round differently


def since(*needed: int) -> pytest.MarkDecorator:
    """Skip a test whose call the older SDK does not have."""
    dotted = ".".join(str(number) for number in needed)
    return pytest.mark.skipif(needed > VERSION, reason=f"needs tinker {dotted}")


def until(*last: int) -> pytest.MarkDecorator:
    """Skip a test whose call the newer SDK no longer has."""
    dotted = ".".join(str(number) for number in last)
    return pytest.mark.skipif(
        last < VERSION[: len(last)], reason=f"went away after tinker {dotted}"
    )


def settled(made: Any) -> Any:
    """A client; SDKs since 0.38 give a future of it."""
    return made.result() if hasattr(made, "result") else made


def rest_of(service: Any) -> Any:
    """The REST client, by the call that every version has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return service.create_rest_client()


def text(words: str) -> list[int]:
    """Tokens of ASCII words."""
    return list(words.encode())


def prompt(words: str) -> types.ModelInput:
    """The same as an input."""
    return types.ModelInput.from_ints(text(words))


def datum(words: str, weights: Any = None) -> types.Datum:
    """Learn to continue words; a weight for each target."""
    tokens = text(words)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": np.array(tokens[1:]),
            "weights": np.array(
                [1.0] * (len(tokens) - 1) if weights is None else weights, np.float32
            ),
        },
    )


def policy_datum(words: str, advantages: Any, logprobs: Any, **more: Any) -> types.Datum:
    """Reinforce words that were sampled with some log-probabilities."""
    tokens = text(words)
    inputs = {"advantages": advantages, "logprobs": logprobs, **more}
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": np.array(tokens[1:]),
            **{name: np.array(values, np.float32) for name, values in inputs.items()},
        },
    )


def logprobs_of(output: types.ForwardBackwardOutput) -> list[np.ndarray]:
    """Per datum the log-probabilities of its targets."""
    return [entry["logprobs"].to_numpy() for entry in output.loss_fn_outputs]


def scores(trainer: Any, words: str = "the red fox sees") -> np.ndarray:
    """What an adapter makes of some words: its weights, seen from outside."""
    return logprobs_of(trainer.forward([datum(words)], "cross_entropy").result())[0]


def step(trainer: Any, words: str = "the red fox sees", **params: Any) -> Any:
    """One forward_backward and optim_step; gives what the latter says."""
    trainer.forward_backward([datum(words)], "cross_entropy")
    defaults = {"learning_rate": 1e-2, **params}
    return trainer.optim_step(types.AdamParams(**defaults)).result()


def assert_close(left: Any, right: Any, tolerance: float = SAME) -> None:
    """Log-probabilities agree."""
    np.testing.assert_allclose(np.array(left), np.array(right), rtol=tolerance, atol=tolerance)


def refusal(call: Callable[[], Any]) -> str:
    """The sentence with which the server refuses, at the post or in the future."""
    import tinker

    with pytest.raises((tinker.APIStatusError, tinker.RequestFailedError)) as refused:
        call()
    return str(refused.value)
