"""Divide a device's memory. The only place that decides how much of it anything may use."""

from dataclasses import dataclass

from ...client.errors import BadRequest

STATE_BYTES_PER_PARAMETER = 20  # fp32 master, gradient, stage and two moments
KEPT_VERSIONS = 4  # weights versions a run may hold on average: live ones and snapshots


@dataclass(frozen=True, kw_only=True)
class MemoryRequest:
    """What is known about the model before anything is allocated. Sizes in bytes."""

    weights: int  # of the base model in its compute dtype
    adapter_parameter_bytes: int  # one adapter parameter in the compute dtype: 2 or 4
    activation_bytes_per_token: int  # kept between forward and backward without checkpointing
    checkpointed_bytes_per_token: int  # the same when every layer is recomputed
    workspace: int  # logits chunk and other buffers of fixed size
    page_bytes: int  # one page of keys and values over all layers
    batch_tokens: int  # wished size of a train batch
    max_context: int  # tokens of one sequence that must fit into the pages
    page_size: int  # tokens
    gathers_adapters: bool = True  # of a batch, with gradients; Triton reads both in place


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The shares of one device, in bytes; together at most what was free."""

    weights: int
    adapter_state: int
    adapter_weights: int
    adapter_workspace: int  # gathered weights and gradients of a batch
    activations: int
    kv: int
    reserve: int
    batch_tokens: int  # tokens of a train batch that fit
    recompute_above_tokens: int  # a batch with more tokens recomputes its activations in backward
    max_datum_tokens: int  # one sequence that fits, its activations recomputed
    num_pages: int


def plan_memory(free_bytes: int, request: MemoryRequest) -> MemoryPlan:
    """Divide `free_bytes` among weights, adapters, activations and the KV cache.

    A tenth stays in reserve. After the base weights and the fixed workspace, adapters take a half
    (a quarter of it as workspace of a batch, where they are gathered), activations and pages a
    quarter each. Batches whose activations would not fit recompute them in backward; the wished
    batch is made smaller when it does not fit even so.

    Raises:
        BadRequest: the base model, its workspace and one sequence do not fit; says by how much.
    """
    reserve = free_bytes // 10
    left = free_bytes - reserve - request.weights - request.workspace
    pages_for_one = -(-request.max_context // request.page_size)
    needed = pages_for_one * request.page_bytes + request.checkpointed_bytes_per_token
    if left < needed:
        total = request.weights + request.workspace + needed
        wanted = total * 10 / 9 / 1e9
        raise BadRequest(
            f"model needs {wanted:.1f} GB and {free_bytes / 1e9:.1f} are free", "out_of_memory"
        )
    kv = max(left // 4, pages_for_one * request.page_bytes)
    activations = (left - kv) // 3
    adapters = left - kv - activations
    plain = activations // max(1, request.activation_bytes_per_token)
    recomputed = activations // max(1, request.checkpointed_bytes_per_token)
    per_parameter = STATE_BYTES_PER_PARAMETER + KEPT_VERSIONS * request.adapter_parameter_bytes
    workspace = adapters // 4 if request.gathers_adapters else 0
    state = (adapters - workspace) * STATE_BYTES_PER_PARAMETER // per_parameter
    return MemoryPlan(
        weights=request.weights + request.workspace,
        adapter_state=state,
        adapter_weights=adapters - workspace - state,
        adapter_workspace=workspace,
        activations=activations,
        kv=kv,
        reserve=reserve,
        batch_tokens=max(1, min(request.batch_tokens, recomputed)),
        recompute_above_tokens=plain,
        max_datum_tokens=max(1, recomputed),
        num_pages=kv // request.page_bytes,
    )
