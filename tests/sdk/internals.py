"""Requests that no public method of the SDK makes, sent by the SDK's own inner client.

With it the tests reach fields of the SDK's request types that its public methods leave out.
"""

import time
from typing import Any

from tinker import types
from tinker.lib.api_future_impl import _APIFuture
from tinker.lib.client_connection_pool_type import ClientConnectionPoolType


def post(holder: Any, resource: str, method: str, request: Any, is_packed: bool = False) -> Any:
    """Send a request of the SDK's types; gives the answer to the post."""

    async def send() -> Any:
        with holder.aclient(ClientConnectionPoolType.TRAIN) as client:
            usual = client._client_config
            if is_packed:
                client._client_config = usual.model_copy(update={"proto_compress_fwdbwd": True})
            try:
                return await getattr(getattr(client, resource), method)(request=request)
            finally:
                client._client_config = usual

    return holder.run_coroutine_threadsafe(send()).result(timeout=60)


def fetch(holder: Any, future: Any, result: type, kind: str) -> Any:
    """What a post came to, polled for as the SDK does."""
    made = _APIFuture(result, holder, future, request_start_time=time.time(), request_type=kind)
    return made.result(timeout=60)


def forward_backward(
    holder: Any, model_id: str, seq_id: int, data: list[types.Datum], **options: Any
) -> types.ForwardBackwardOutput:
    """One post of forward_backward under a number of the caller's."""
    is_packed = options.pop("is_packed", False)
    asked = types.ForwardBackwardInput(
        data=data,
        loss_fn=options.get("loss_fn", "cross_entropy"),
        loss_fn_config=options.get("loss_fn_config"),
    )
    request = types.ForwardBackwardRequest(
        forward_backward_input=asked, model_id=model_id, seq_id=seq_id
    )
    future = post(holder, "training", "forward_backward", request, is_packed)
    return fetch(holder, future, types.ForwardBackwardOutput, "ForwardBackward")
