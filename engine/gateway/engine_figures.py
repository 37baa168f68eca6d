"""The figures of broker and workers, read from the answer to a query of "metrics"."""

from collections.abc import Iterator

from .figures import (
    Figure,
    Point,
    Source,
    at,
    counter,
    each,
    each_of_each,
    gauge,
    histogram,
    some,
    spreads,
)


def _is_ready(source: Source) -> Iterator[Point]:
    yield Point((), float(source["state"] == "ready"))


def _memory(name: str, unit: str, key: str, what: str) -> tuple[Figure, Figure]:
    """Use and capacity of one kind of memory; without values where no worker has that kind."""
    used, capacity = (f"weft_{name}_{word}{unit}" for word in ("used", "capacity"))
    return (
        gauge(used, f"{what}: in use.", at("memory", "used", key)),
        gauge(capacity, f"{what}: all that the workers have.", at("memory", "total", key)),
    )


_REQUESTS = (
    counter(
        "weft_requests",
        "Requests that were answered, by kind; code is ok, or the error's code.",
        each_of_each("requests"),
        "kind",
        "code",
    ),
    counter(
        "weft_refused_messages",
        "Messages refused before they were anybody's request, such as a hello with a wrong key.",
        each("refused"),
        "code",
    ),
    histogram(
        "weft_request_duration_seconds",
        "Time from the arrival of a whole request at the broker to its answer.",
        spreads("seconds", "latency_s"),
        "kind",
    ),
    histogram(
        "weft_request_queue_seconds",
        "Time from the arrival of a whole request to the worker: its order, its turn, credit.",
        spreads("seconds", "queue_s"),
        "kind",
    ),
    gauge(
        "weft_pending_requests",
        "Requests without an answer: held (parts or earlier numbers are missing), queued, "
        "dispatched (a worker has it), storing (jobs of the checkpoint store).",
        some({name: name for name in ("held", "queued", "dispatched", "storing")}, "levels"),
        "state",
    ),
    gauge(
        "weft_waiting_bytes",
        "Payload of requests that no worker has yet.",
        at("levels", "waiting_bytes"),
    ),
    gauge(
        "weft_kept_answer_bytes",
        "Answers that are kept until their clients confirm them.",
        at("levels", "kept_bytes"),
    ),
)

_CLIENTS = (
    gauge("weft_sessions", "Sessions of clients, connected or not.", at("levels", "sessions")),
    gauge(
        "weft_connected_sessions",
        "Sessions whose client is connected.",
        at("levels", "connected_sessions"),
    ),
    counter("weft_sessions_opened", "Sessions that were opened.", at("sessions_opened")),
    gauge("weft_runs", "Open training runs.", at("levels", "runs")),
    counter("weft_runs_lost", "Runs that were lost with their worker.", at("runs_lost")),
    gauge("weft_samplers", "Open samplers.", at("levels", "samplers")),
    gauge("weft_watchers", "Clients that watch events.", at("levels", "watchers")),
    gauge("weft_checkpoints", "Checkpoints that are kept.", at("levels", "checkpoints")),
)

_WORKERS = (
    gauge(
        "weft_workers",
        "Connected workers: loading their model, or ready.",
        some({"loading_workers": "loading", "ready_workers": "ready"}, "levels"),
        "state",
    ),
    counter(
        "weft_workers_lost",
        "Workers that died, fell silent or connected anew.",
        at("workers_lost"),
    ),
    counter(
        "weft_steps",
        "Steps of the compute threads: train, forward, sample, optimizer, control (create, save, "
        "load, freeze).",
        each("work", "steps"),
        "kind",
    ),
    counter(
        "weft_step_failures",
        "Steps that raised an error; they are repeated smaller before a request fails.",
        each("work", "failures"),
        "kind",
    ),
    counter(
        "weft_busy_seconds",
        "Time that compute threads spent in steps; the rate over the number of ready workers is "
        "their utilisation.",
        each("work", "busy_s"),
        "kind",
    ),
    counter(
        "weft_tokens",
        "Tokens in steps that succeeded: trained (forward and backward), forward, prefill (of "
        "prompts), decoded (drawn).",
        each("work", "tokens"),
        "kind",
    ),
    histogram(
        "weft_batch_tenants",
        "Sessions that shared one fused batch, of train and of sample batches.",
        spreads("tenants", "work", "tenants"),
        "kind",
    ),
    gauge(
        "weft_adapters",
        "What workers hold: run (an adapter in training), sampler (frozen weights or the base).",
        some({"runs": "run", "samplers": "sampler"}, "memory", "used"),
        "kind",
    ),
    *_memory("adapter_state", "_bytes", "adapter_state_bytes", "Training states of adapters"),
    *_memory("adapter_weights", "_bytes", "adapter_weights_bytes", "Weights of adapters"),
    *_memory("kv_pages", "", "kv_pages", "Pages of the KV caches"),
    *_memory(
        "sequence_state",
        "_bytes",
        "sequence_state_bytes",
        "States of sequences, where a model has no paged cache",
    ),
)

ENGINE: tuple[Figure, ...] = (
    gauge("weft_ready", "1 when a worker has its model loaded and warm, else 0.", _is_ready),
    gauge(
        "weft_start_time_seconds",
        "When the broker was started, in seconds since 1970; counters began at 0 then.",
        at("started"),
    ),
    *_REQUESTS,
    *_CLIENTS,
    *_WORKERS,
)
