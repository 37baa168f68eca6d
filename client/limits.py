"""Every bound of the system in one table: its default, and what happens when it is reached."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """One row of the table of limits."""

    default: float
    unit: str  # "bytes", "tokens", "count", "s"
    code: str  # the error of `errors.CODES` it gives, "" when it only sets a pace
    meaning: str


LIMITS: dict[str, Limit] = {
    # A message.
    "header_bytes": Limit(65_536, "bytes", "too_large", "one encoded message header"),
    "header_items": Limit(16_384, "count", "malformed", "elements of one list or map of a header"),
    "header_depth": Limit(8, "count", "malformed", "lists and maps inside each other in a header"),
    "frames": Limit(64, "count", "malformed", "raw frames of one message"),
    "part_bytes": Limit(1_000_000, "bytes", "too_large", "raw frames of one message together"),
    "parts": Limit(4096, "count", "too_large", "parts of one call or answer"),
    "array_elements": Limit(4_194_304, "count", "malformed", "elements of one decoded array"),
    "array_dims": Limit(4, "count", "malformed", "dimensions of one array"),
    "request_ids": Limit(4096, "count", "malformed", "ids of one resume, known or ack"),
    "explained_ids": Limit(64, "count", "too_large", "requests of one explain"),
    "stops": Limit(256, "count", "too_large", "stop tokens or stop strings of one request"),
    "name_length": Limit(128, "count", "bad_request", "characters of a name, or of a tag"),
    "metadata_items": Limit(64, "count", "bad_request", "entries of a user_metadata"),
    "metadata_length": Limit(1024, "count", "bad_request", "characters of one metadata value"),
    # A call.
    "rank": Limit(256, "count", "bad_request", "rank of an adapter"),
    "num_samples": Limit(4096, "count", "too_large", "samples of one request"),
    "soft_targets": Limit(1024, "count", "too_large", "target tokens of one position"),
    "topk_logprobs": Limit(
        128, "count", "bad_request", "likeliest tokens, or alternatives, at one position"
    ),
    "target_cells": Limit(200_000, "count", "too_large", "tokens to score in place of a prompt's"),
    "answer_bytes": Limit(
        128 << 20,
        "bytes",
        "too_large",
        "top-k tokens and alternatives of one answer at its longest",
    ),
    # A client.
    "unanswered_bytes": Limit(1 << 30, "bytes", "busy", "a client's calls without an answer"),
    "connect_s": Limit(8, "s", "disconnected", "a client's wait for the first answer of a server"),
    "kept_events": Limit(4096, "count", "", "events that a client keeps for a slow reader"),
    "heartbeat_s": Limit(3, "s", "", "silence after which a peer sends a heartbeat"),
    "liveness_s": Limit(20, "s", "", "silence after which a client connects anew"),
    "reconnect_s": Limit(3600, "s", "disconnected", "a client's wait for a server that went away"),
    "busy_pause_s": Limit(30, "s", "", "a client's longest pause before it tries a busy one again"),
    "explain_s": Limit(2, "s", "", "a wait after which a client asks for its reason, and again"),
    "room_s": Limit(60, "s", "busy", "a client's wait for room for a new run, sampler or watcher"),
    "admission_s": Limit(3600, "s", "busy", "a client's wait for a full queue to take a call"),
    # A broker.
    "held_commands": Limit(1024, "count", "busy", "commands of one run that wait for a number"),
    "lane_requests": Limit(8192, "count", "busy", "requests of one lane that wait for a worker"),
    "lane_bytes": Limit(
        256 << 20, "bytes", "busy", "payload of one lane that waits; a call may have half"
    ),
    "sessions": Limit(1024, "count", "busy", "sessions at a time"),
    "tenant_sessions": Limit(768, "count", "busy", "sessions of one tenant at a time"),
    "result_ttl_s": Limit(600, "s", "result_expired", "an answer that is not acknowledged"),
    "session_ttl_s": Limit(3600, "s", "session_expired", "silence that ends a session"),
    "worker_expiry_s": Limit(15, "s", "run_lost", "silence after which a worker counts as dead"),
    "loading_expiry_s": Limit(120, "s", "run_lost", "the same while a worker loads its model"),
    "worker_restarts": Limit(5, "count", "no_worker", "restarts of a worker within the window"),
    "restart_window_s": Limit(600, "s", "", "after which a worker's death is forgotten"),
    "stop_s": Limit(30, "s", "stopping", "wait for dispatched work when the broker stops"),
    "stop_samples_s": Limit(3, "s", "stopping", "the same wait for samples, which change nothing"),
    "retry_after_s": Limit(0.25, "s", "", "pause that `busy` asks for"),
    "total_bytes": Limit(1 << 30, "bytes", "busy", "payload of all lanes that waits for a worker"),
    "result_bytes": Limit(256 << 20, "bytes", "result_expired", "kept answers of one session"),
    "total_result_bytes": Limit(1 << 30, "bytes", "result_expired", "kept answers of all sessions"),
    "runs": Limit(64, "count", "busy", "open runs of one session"),
    "total_runs": Limit(1024, "count", "busy", "open runs of all sessions"),
    "tenant_runs": Limit(768, "count", "busy", "open runs of one tenant"),
    "expired_runs": Limit(64, "count", "run_lost", "runs on workers whose session has ended"),
    "samplers": Limit(1024, "count", "busy", "open samplers of one session"),
    "past_sessions": Limit(256, "count", "not_found", "ended sessions of one tenant still told of"),
    "past_samplers": Limit(
        1024, "count", "not_found", "closed samplers of one tenant still told of"
    ),
    "watchers": Limit(64, "count", "busy", "clients that watch events"),
    "void_ranges": Limit(1024, "count", "busy", "ranges of one run that are voided ahead of time"),
    "keys": Limit(4096, "count", "too_large", "active API keys of one server"),
    "checkpoints": Limit(65_536, "count", "too_large", "checkpoints of one tenant"),
    # Files.
    "ttl_s": Limit(315_360_000, "s", "bad_request", "time until a checkpoint is deleted"),
    "config_bytes": Limit(1 << 20, "bytes", "too_large", "an uploaded adapter_config.json"),
    "upload_bytes": Limit(4 << 30, "bytes", "too_large", "an uploaded adapter_model.safetensors"),
    "total_upload_bytes": Limit(16 << 30, "bytes", "busy", "open uploads of all sessions"),
    "transfers": Limit(8, "count", "busy", "open uploads and downloads of one session"),
    "total_transfers": Limit(64, "count", "busy", "open uploads and downloads of all sessions"),
    "parts_in_flight": Limit(4, "count", "busy", "parts of one transfer on their way"),
    "store_jobs": Limit(256, "count", "busy", "requests of one session that the store works on"),
    "transfer_expiry_s": Limit(300, "s", "not_found", "silence that ends an upload or download"),
    # A gateway.
    "body_bytes": Limit(64 << 20, "bytes", "too_large", "the body of one HTTP request, unpacked"),
    "bodies_bytes": Limit(512 << 20, "bytes", "busy", "bodies of requests without an answer"),
    "body_s": Limit(60, "s", "timeout", "until the body of an HTTP request has come"),
    "unanswered": Limit(8192, "count", "busy", "requests of one SDK session without an answer"),
    "connections": Limit(4096, "count", "busy", "HTTP connections of a gateway"),
    "idle_s": Limit(
        75, "s", "", "until the next request of an HTTP connection has begun, or it ends"
    ),
    "stall_s": Limit(
        60, "s", "", "until the reader of a response has taken some, or it is cut off"
    ),
    "poll_s": Limit(30, "s", "", "how long a poll for a result is held"),
    "fetched_ttl_s": Limit(300, "s", "result_expired", "a result that was fetched over HTTP"),
    "unfetched_ttl_s": Limit(3600, "s", "result_expired", "a result that nobody has fetched"),
    "unnamed_samplers": Limit(
        8, "count", "not_found", "samplers without a name of a run, over HTTP"
    ),
    "doors": Limit(256, "count", "", "API keys that a gateway remembers"),
    "door_s": Limit(600, "s", "", "silence after which it forgets one"),
    # What a gateway reads.
    "json_bytes": Limit(8 << 20, "bytes", "too_large", "a JSON body"),
    "protobuf_fields": Limit(131_072, "count", "too_large", "fields of one protobuf body"),
    "pass_datums": Limit(4096, "count", "too_large", "datums of one pass"),
    "pass_inputs": Limit(64, "count", "too_large", "loss inputs of a datum, options of a loss"),
    "pass_outputs": Limit(
        1 << 25,
        "count",
        "too_large",
        "places of the sparse targets of one pass, which come back dense",
    ),
    # Weighted tokens, the currency of lanes and of a worker's credit.
    "forward_weight": Limit(1, "tokens", "", "a token of a forward call, or of a prompt"),
    "backward_weight": Limit(3, "tokens", "", "a token of a forward_backward call"),
    "decode_weight": Limit(4, "tokens", "", "a token to be sampled"),
    "request_weight": Limit(64, "tokens", "", "any other request that a worker serves"),
    "quantum": Limit(4096, "tokens", "", "what a lane is granted when its turn comes"),
}


def limit(name: str) -> int:
    """The default of a limit that is counted in whole units."""
    return int(LIMITS[name].default)
