"""Losses computed by the caller: the gradient goes to the server as signed weights.

With g = dC/dlp the gradient of the caller's loss C with respect to the log-probabilities, a
cross_entropy with weights -g has the same gradient with respect to the adapter.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from .errors import BadRequest, WeftError
from .futures import APIFuture
from .tensor_data import NumpyArray, TensorData
from .types import Datum, ForwardBackwardOutput

if TYPE_CHECKING:
    import torch

TorchLoss = Callable[
    [list[Datum], "list[torch.Tensor]"], "tuple[torch.Tensor, Mapping[str, float]]"
]
NumpyLoss = Callable[[list[Datum], list[NumpyArray]], tuple[float, Sequence[NumpyArray]]]


Evaluate = Callable[
    [list[Datum], ForwardBackwardOutput], tuple[float, dict[str, float], list[NumpyArray]]
]


def evaluator(torch_fn: TorchLoss | None, numpy_fn: NumpyLoss | None) -> Evaluate:
    """What calls the caller's function; exactly one of the two is given."""
    if torch_fn is not None and numpy_fn is None:
        return partial(evaluate_torch, torch_fn)
    if numpy_fn is not None and torch_fn is None:
        return partial(evaluate_numpy, numpy_fn)
    raise BadRequest("exactly one of loss_fn and numpy_fn must be given")


def start(
    forward: APIFuture[ForwardBackwardOutput],
    evaluate: Callable[[ForwardBackwardOutput], tuple[float, dict[str, float], list[NumpyArray]]],
    send: Callable[[Sequence[NumpyArray]], APIFuture[ForwardBackwardOutput]],
    void: Callable[[], None],
) -> APIFuture[ForwardBackwardOutput]:
    """Run the caller's function in a thread of its own once the first pass is back.

    Args:
        forward: the first pass.
        evaluate: gives loss, metrics and gradients.
        send: sends the second pass.
        void: gives up the number reserved for the second pass, which was not sent.
    """
    source: futures.Future[ForwardBackwardOutput] = futures.Future()
    source.set_running_or_notify_cancel()

    def run() -> None:
        try:
            try:
                loss, metrics, gradients = evaluate(forward.result())
                backward = send(gradients)
            except BaseException:
                with suppress(WeftError):  # what failed first is what the caller is told
                    void()
                raise
            source.set_result(finish(backward.result(), loss, metrics))
        except BaseException as error:
            source.set_exception(error)

    threading.Thread(target=run, name="weft-custom-loss", daemon=True).start()
    computing = "the custom loss is being computed"
    return forward.derived(source, lambda: forward.waiting_for or computing)


def forward_data(data: Sequence[Datum]) -> list[Datum]:
    """What the first pass sends: the inputs and their targets."""
    for index, datum in enumerate(data):
        if "target_tokens" not in datum.loss_fn_inputs:
            raise BadRequest(f"datum {index}: a custom loss needs the input 'target_tokens'")
    return [_with_weights(datum, None) for datum in data]


def backward_data(data: Sequence[Datum], gradients: Sequence[NumpyArray]) -> list[Datum]:
    """What the second pass sends: the same with weights -gradient, of what the targets list."""
    weighted: list[Datum] = []
    for datum, gradient in zip(data, gradients, strict=True):
        csr = datum.loss_fn_inputs["target_tokens"].csr
        if csr is None:
            weights = TensorData(-gradient)
        else:
            weights = TensorData.listed(-csr.collect(gradient), csr)
        weighted.append(_with_weights(datum, weights))
    return weighted


def evaluate_torch(
    fn: TorchLoss, data: list[Datum], output: ForwardBackwardOutput
) -> tuple[float, dict[str, float], list[NumpyArray]]:
    """Call a torch function, and differentiate it.

    Returns:
        Loss, the function's metrics, and the gradient of each datum's log-probabilities.

    Raises:
        BadRequest: the function does not return (scalar tensor, metrics).
    """
    import torch

    with torch.enable_grad():
        logprobs = [
            outputs["logprobs"].to_torch().requires_grad_() for outputs in output.loss_fn_outputs
        ]
        loss, metrics = _pair(fn(data, logprobs), "(loss, metrics)")
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise BadRequest("the custom loss is not a tensor of one element")
        found: Sequence[torch.Tensor | None] = [None] * len(logprobs)
        if loss.requires_grad:
            found = torch.autograd.grad(loss.sum(), logprobs, allow_unused=True)
    gradients = [
        np.zeros(lp.shape, np.float32) if gradient is None else gradient.float().numpy()
        for lp, gradient in zip(logprobs, found, strict=True)
    ]
    numbers = {
        key: float(value.detach() if isinstance(value, torch.Tensor) else value)
        for key, value in dict(metrics).items()
    }
    return float(loss.detach()), numbers, gradients


def evaluate_numpy(
    fn: NumpyLoss, data: list[Datum], output: ForwardBackwardOutput
) -> tuple[float, dict[str, float], list[NumpyArray]]:
    """Call a numpy function that differentiates by itself.

    Raises:
        BadRequest: the function does not return (loss, one gradient a datum, in the shape of its
            log-probabilities).
    """
    logprobs = [outputs["logprobs"].to_numpy() for outputs in output.loss_fn_outputs]
    loss, found = _pair(fn(data, logprobs), "(loss, gradients)")
    gradients = [np.asarray(gradient, np.float32) for gradient in found]
    if [g.shape for g in gradients] != [lp.shape for lp in logprobs]:
        raise BadRequest(
            f"the custom loss gave gradients of shapes {[g.shape for g in gradients]}, "
            f"the log-probabilities have {[lp.shape for lp in logprobs]}"
        )
    return float(loss), {}, gradients


def finish(
    output: ForwardBackwardOutput, loss: float, metrics: Mapping[str, float]
) -> ForwardBackwardOutput:
    """The output of the second pass, with the caller's loss and metrics in it."""
    merged = dict(output.metrics)
    if "loss:sum" in merged:
        merged["surrogate_loss:sum"] = merged["loss:sum"]
    merged |= metrics
    merged["loss:sum"] = loss
    return ForwardBackwardOutput(loss_fn_outputs=output.loss_fn_outputs, metrics=merged)


def _with_weights(datum: Datum, weights: TensorData | None) -> Datum:
    inputs = {"target_tokens": datum.loss_fn_inputs["target_tokens"]}
    if weights is not None:
        inputs["weights"] = weights
    return Datum(model_input=datum.model_input, loss_fn_inputs=inputs)


def _pair(result: Any, form: str) -> tuple[Any, Any]:
    if _is_tuple(result) and len(result) == 2:
        return result[0], result[1]
    raise BadRequest(f"the custom loss must return {form}, not {type(result).__name__}")


def _is_tuple(value: object) -> TypeGuard[tuple[Any, ...]]:
    return isinstance(value, tuple)
