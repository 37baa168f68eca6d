"""The vocabulary of the wire: one frozen record for each kind of message header.

A message is multipart: one header (`wire.py` turns it into bytes) and zero or more raw frames,
which the header's `arrays` describe. Headers are closed: an unknown key, a missing one or a wrong
type is refused by name. This file says what exists; it neither packs nor sends.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

PROTOCOL_VERSION = 1
SPOKEN_VERSIONS = (1,)  # N and N-1, once there is an N-1


@dataclass(frozen=True, slots=True)
class Array:
    """Where one named array of a message lies and how it is encoded.

    In a header it is a list of its fields, in this order.

    encoding:
        "raw"        frame holds the values, little-endian, C order
        "constant"   every element of `shape` is `value`; no frame
        "per_datum"  frame holds one value a datum, to be repeated by the call's `lengths`
        "runs"       frame holds m values, then m int32 counts: each value repeated so often
        "shifted"    int32 only: element i is the next input token of the same datum; frame holds
                     the last element of each datum
    """

    name: str
    dtype: str  # "int32", "float32", or "uint8", which is always "raw"
    shape: list[int]  # of the decoded array
    encoding: str = "raw"
    frame: int = -1  # index among the message's raw frames, -1 for "constant"
    value: float = 0.0  # of "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One base model that can be trained and sampled."""

    name: str  # what `weft serve` was given
    aliases: list[str] = field(default_factory=list[str])  # other names clients may use
    vocab_size: int
    max_context: int  # tokens
    max_rank: int
    tokenizer: str = ""  # directory or hub name, "" when there is none
    width: int = 0  # of the hidden states
    model_type: str = ""  # of config.json, such as "qwen3"
    runs_on: str = "native"  # the modelling code: ours, or "packed" or "sequential" transformers
    targets: list[str] = field(default_factory=lambda: ["attn", "mlp", "unembed"])  # trainable
    notes: list[str] = field(default_factory=list[str])  # what is less than one may expect, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Base of all headers."""

    kind: ClassVar[str]


# --- a connection ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Header):
    """First message of a client; also sent again after a reconnect, with the same session.

    The answer is `Welcome`, or a `Failure` of request 0. A session belongs to the tenant of the key
    that opened it, and any key of that tenant may go on with it. What the client says of itself
    (name, tags, metadata) is taken when it opens the session.
    """

    kind: ClassVar[str] = "hello"
    versions: list[int]
    session_id: str  # 32 hex digits, chosen by the client
    api_key: str = field(default="", repr=False)
    client: str = ""  # name and version, for the log
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])
    must_exist: bool = False  # `session_expired` instead of a new session
    display_name: str = ""  # for people
    tags: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(Header):
    kind: ClassVar[str] = "welcome"
    version: int
    session_id: str
    server: str  # name and version
    models: list[ModelCard]
    limits: dict[str, float]
    tenant: str = ""  # the id of the one whose key it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Header):
    """Sent by both sides when they have been silent; answered with nothing but traffic."""

    kind: ClassVar[str] = "heartbeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye(Header):
    """Ends a session: unstarted commands fail, its runs stay the tenant's."""

    kind: ClassVar[str] = "goodbye"
    ending: str = ""  # why, in the words of whoever ends it; kept with the session


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Header):
    """Asks after a reconnect which of these requests the broker knows."""

    kind: ClassVar[str] = "resume"
    request_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known(Header):
    """The subset of a `Resume` that need not be sent again; finished ones are answered anew."""

    kind: ClassVar[str] = "known"
    request_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack(Header):
    """The client has these answers; the broker may forget them."""

    kind: ClassVar[str] = "ack"
    request_ids: list[int]


# --- requests; each is answered by Reply parts or one Failure -------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Header):
    request_id: int  # unique in the session, from 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Request):
    """An ordered request of one run. `seq` 0 creates the run; later numbers have no gaps."""

    run_id: str  # "<session_id>:train:<n>"
    seq: int
    digest: bytes  # 16 bytes, blake2b over the header without request_id and digest, and the frames


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRun(Command):
    kind: ClassVar[str] = "create_run"
    base_model: str  # "" with from_path: that of the saved state
    rank: int
    alpha: float
    seed: int
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    from_path: str = ""  # start from this saved state; rank, alpha and targets then come from it
    with_optimizer: bool = False
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBackward(Command):
    """One part of one call. Arrays: tokens, lengths, and the loss function's inputs.

    All parts of a call carry the same request_id, seq, loss and config; `digest` covers the part.
    Where tokens have any number of targets, `target_counts` (int32) says how many each has, and
    target_tokens and weights hold those of all tokens end to end. A later part may then have no
    datum and no token, but further targets of those before.
    """

    kind: ClassVar[str] = "forward_backward"
    part: int
    num_parts: int
    num_datums: int  # in this part
    num_tokens: int  # in this part
    loss_fn: str
    loss_fn_config: dict[str, float]
    forward_only: bool
    arrays: list[Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimStep(Command):
    """AdamW with the fields of the official AdamParams."""

    kind: ClassVar[str] = "optim_step"
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float  # decoupled
    grad_clip_norm: float  # 0 means no clipping


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveState(Command):
    kind: ClassVar[str] = "save_state"
    name: str
    overwrite: bool = False
    include_optimizer: bool = True
    ttl_s: int = 0  # seconds until it is deleted, 0 never
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState(Command):
    kind: ClassVar[str] = "load_state"
    path: str  # "weft://<run_id>/weights/<name>"
    with_optimizer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveForSampler(Command):
    """Freezes the current weights: under a name (a file), or as an ephemeral sampler, or both.

    An external file is for programs elsewhere: `size_bytes` of the answer is that of its adapter.
    """

    kind: ClassVar[str] = "save_for_sampler"
    name: str = ""  # "" keeps no file
    is_external: bool = False  # of the file: external_weights, not sampler_weights; then no sampler
    sampler_id: str = ""  # "<session_id>:sample:<n>", "" opens no sampler
    ttl_s: int = 0  # of the file: seconds until it is deleted, 0 never
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])  # of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRun(Command):
    """Makes a new run with the state that this one has at this point of its order.

    It uses up number 0 of the new run. Answered like `create_run`.
    """

    kind: ClassVar[str] = "fork_run"
    new_run_id: str  # of the session that sends this
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])  # of the new run


@dataclass(frozen=True, slots=True, kw_only=True)
class Void(Request):
    """Uses up the sequence numbers first..last of a run that were reserved and will not be sent."""

    kind: ClassVar[str] = "void"
    run_id: str
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSampler(Request):
    """Opens a sampler on a base model or on saved sampler weights; exactly one is given."""

    kind: ClassVar[str] = "create_sampler"
    sampler_id: str
    base_model: str = ""
    model_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Request):
    """Draws continuations of one prompt. Arrays: tokens.

    To score other tokens in place of the prompt's, `target_counts` (int32, one for each token after
    the first) says how many at each position, and `target_tokens` (int32) which, end to end.
    """

    kind: ClassVar[str] = "sample"
    sampler_id: str
    digest: bytes
    num_tokens: int  # of the prompt
    num_samples: int
    max_tokens: int  # -1: up to the context
    temperature: float
    top_k: int  # -1: off
    top_p: float
    seed: int
    stop_tokens: list[int]  # as given; the end-of-sequence token is added when default_stop
    stop_strings: list[str]
    default_stop: bool
    prompt_logprobs: bool
    topk_prompt_logprobs: int = 0  # likeliest tokens in place of each prompt token after the first
    topk_sample_logprobs: int = 0  # likeliest tokens in place of each token that is drawn
    prompt_alt_tokens_k: int = 0  # draws in place of each prompt token after the first
    prompt_logprobs_last_n: int = 0  # prompt_logprobs and the likeliest of the last n alone; 0: all
    arrays: list[Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseSampler(Request):
    kind: ClassVar[str] = "close_sampler"
    sampler_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseRun(Request):
    """Gives up a run's device state; its saved checkpoints stay."""

    kind: ClassVar[str] = "close_run"
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel(Request):
    """Withdraws a request that has not started; `too_late` when it has."""

    kind: ClassVar[str] = "cancel"
    target_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Query(Request):
    """Reads the broker's books; the reply's result is plain data.

    capabilities  {"models": [the fields of each ModelCard], "state": "loading", "ready", "failed"
                  or "stopping", "loading": [{"phase", "fraction"} of each worker that loads]}
    run           subject a run id: {"run_id", "session_id", "owner", "base_model", "rank", "alpha",
                  "train_attn", "train_mlp", "train_unembed", "state", "is_lost",
                  "last_request_time", "user_metadata", "forked_from", "last_checkpoint",
                  "last_sampler_checkpoint"}; the last two as of `checkpoints`, or None. State is
                  "opening", "open", "lost", "closed", or "saved": only checkpoints are left
    runs          the tenant's: {"runs": [as above]}, latest request first
    checkpoints   subject a run id, a path or "": {"checkpoints": [{"path", "run_id", "kind",
                  "name", "time", "size_bytes", "public", "user_metadata", "expires",
                  "has_optimizer", "base_model", "rank", "alpha", "train_attn", "train_mlp",
                  "train_unembed", "step"}]}, newest first. Public ones of others by path alone
    sessions      the tenant's: {"sessions": [{"session_id", "opened", "is_ended", "ending",
                  "display_name", "tags", "user_metadata"}]}, latest first
    session       subject a session id: as above, and {"run_ids", "sampler_ids"}, latest first;
                  it is a list of both, runs before samplers
    sampler       subject a sampler id: {"sampler_id", "base_model", "model_path", "run_id",
                  "state"}
    status        whatever a person wants to know
    metrics       counters and levels of all tenants together, as in docs/operations.md:
                  {"state", "started", "bounds": {"seconds", "tenants"}: upper ends of the buckets,
                  "requests": {kind: {code: n}}, "refused": {code: n}, "latency_s" and "queue_s":
                  {kind: {"counts", "sum"}}, "sessions_opened", "runs_lost", "workers_lost",
                  "work": {"steps", "failures", "busy_s", "tokens", "tenants"} of all workers since
                  the broker's start, "memory": {"used", "total"}, "levels": {name: n}}

    The answer to a list is a page from `offset` on, of at most `limit` entries and as many as fit.
    It holds "total", the length of the list, and "next", the offset of the page after it, -1 after
    the last. Metadata that is too long for a list is left out, and the entry has "omitted":
    "user_metadata". Times are seconds since 1970, and 0 where there is none.
    """

    kind: ClassVar[str] = "query"
    what: str
    subject: str = ""  # an id or path, where `what` needs one
    offset: int = 0  # of the first entry of a list
    limit: int = 0  # most entries of a page, 0: as many as fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Explain(Request):
    """Asks why these requests of the same session are not answered yet.

    The reply's result is {"reasons": [the fields of a `waiting.Reason` that are not its defaults]},
    one for each id, in their order. Of other sessions it tells counts alone.
    """

    kind: ClassVar[str] = "explain"
    request_ids: list[int]  # at most `explained_ids`


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch(Request):
    """Turns the stream of `Event`s for this client on or off."""

    kind: ClassVar[str] = "watch"
    enabled: bool


# --- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Header):
    """One part of a success. Part 0 carries `result`; array names depend on the request.

    create_run, fork_run  {"run_id", "rank", "alpha", "base_model", "tokenizer", ...}
    forward_backward  {"metrics": {"loss:sum": ...}} and logprobs [targets of the part]
    optim_step        {"metrics": {"unclipped_grad_l2:mean": ..., ...}}
    save_state, save_for_sampler  {"path", "size_bytes"} as far as they apply
    sample            {"stop_reasons": [...]}, arrays tokens, lengths, logprobs and, when asked
                      for, prompt_logprobs [prompt], NaN where not scored;
                      topk_prompt_tokens and topk_prompt_logprobs [prompt - 1 or last n, k];
                      topk_sample_tokens and topk_sample_logprobs [tokens, k];
                      target_prompt_logprobs [target_tokens];
                      prompt_alt_tokens and prompt_alt_logprobs [prompt - 1, k]
    """

    kind: ClassVar[str] = "reply"
    request_id: int
    part: int = 0
    num_parts: int = 1
    result: dict[str, Any] = field(default_factory=dict[str, Any])
    arrays: list[Array] = field(default_factory=list[Array])


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure(Header):
    """The request failed; `code` is one of `errors.CODES`. request_id 0: the connection's fault."""

    kind: ClassVar[str] = "failure"
    request_id: int
    code: str
    detail: str
    retry_after_s: float = 0.0  # of `busy`: send the same again then; 0 is final


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Header):
    """Something a watcher may want to know; `name` says what, `fields` the particulars."""

    kind: ClassVar[str] = "event"
    name: str
    fields: dict[str, Any]
