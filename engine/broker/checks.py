"""What the broker refuses by looking at a request and its books; workers check the rest."""

import re

from ...client.adam import check_adam
from ...client.errors import BadRequest, Busy, Conflict, NotFound
from ...client.limits import limit
from ...client.losses import find_loss
from ...client.messages import (
    Command,
    CreateRun,
    CreateSampler,
    ForkRun,
    ForwardBackward,
    LoadState,
    ModelCard,
    OptimStep,
    Sample,
    SaveForSampler,
    SaveState,
)
from ...client.model_cards import find_card
from ...client.paths import check_name, format_run_id
from ...client.ttl import check_ttl
from ..files.checkpoint import Checkpoint, saved_path
from .books import Books
from .leases import Run
from .sessions import Session
from .work import State

MAX_RANK = limit("rank")
MAX_SAMPLES = limit("num_samples")


def check_command(books: Books, session: Session, run: Run, header: Command) -> None:
    """Raise the BadRequest that a command deserves, if any."""
    if header.seq == 0 and type(header) is not CreateRun:
        raise BadRequest("number 0 of a run is its create_run")
    match header:
        case OptimStep():
            check_adam(header)
        case ForwardBackward():
            _check_pass(header)
        case CreateRun():
            _check_create(books, session, header)
        case ForkRun():
            check_run_id(session, header.new_run_id)
            if header.new_run_id in books.runs:
                raise Conflict(f"run {header.new_run_id} exists")
        case SaveState():
            check_name(header.name)
            check_ttl(header.ttl_s or None)
            check_free(books, session, saved_path(header), header.overwrite)
        case SaveForSampler():
            _check_freeze(books, session, header)
        case LoadState():
            if not _is_being_saved(run, header):
                find_state(books, session, header.path, header.with_optimizer)


def check_run_id(session: Session, run_id: str) -> None:
    """Raise unless the id is of this session's form."""
    number = run_id.rpartition(":")[2]
    is_number = number.isascii() and number.isdecimal() and len(number) < 10
    if not is_number or run_id != format_run_id(session.session_id, int(number)):
        raise BadRequest(f"run id {run_id[:80]!r} is not <session_id>:train:<n>")


def check_sampler(books: Books, session: Session, header: CreateSampler) -> str:
    """Return the base model that a new sampler needs, or raise the BadRequest it deserves."""
    if bool(header.base_model) == bool(header.model_path):
        raise BadRequest("create_sampler needs either base_model or model_path")
    check_sampler_id(books, session, header.sampler_id)
    if header.model_path:
        found = books.catalog.find(header.model_path, session.tenant)
        return found.base_model
    return header.base_model


def find_state(books: Books, session: Session, path: str, with_optimizer: bool) -> Checkpoint:
    """A checkpoint to train from; raises NotFound when what is asked is not there."""
    found = books.catalog.find(path, session.tenant)
    if with_optimizer and not found.has_optimizer:
        raise NotFound(f"{path} holds no optimizer state")
    return found


def check_sampler_id(books: Books, session: Session, sampler_id: str) -> None:
    """Raise unless the id is of this session's form, free, and within its limit."""
    if not re.fullmatch(re.escape(session.session_id) + r":sample:[0-9]{1,9}", sampler_id):
        raise BadRequest(f"sampler id {sampler_id[:80]!r} is not <session_id>:sample:<n>")
    if sampler_id in books.samplers:
        raise Conflict(f"sampler {sampler_id} exists")
    if len(session.samplers) >= books.config.samplers:
        raise Busy(f"{books.config.samplers} samplers of this session are open")


def check_sample(header: Sample) -> None:
    """Raise the BadRequest that a sample request deserves, if any."""
    if header.num_tokens < 1:
        raise BadRequest(f"a prompt of {header.num_tokens} tokens")
    if not 1 <= header.num_samples <= MAX_SAMPLES:
        raise BadRequest(f"num_samples is {header.num_samples}, not 1 to {MAX_SAMPLES}")
    if header.max_tokens < -1:
        raise BadRequest(f"max_tokens is {header.max_tokens}")


def create_model(books: Books, session: Session, header: CreateRun) -> str:
    """The base model that a new run needs."""
    if header.from_path:
        return find_state(books, session, header.from_path, header.with_optimizer).base_model
    return header.base_model


def check_base(header: CreateRun, model: str, card: ModelCard) -> None:
    """Raise BadRequest when a run is to begin from a state and names another base model.

    Args:
        header: of the run.
        model: what the run needs.
        card: a model that either may be a name of.
    """
    is_same = {header.base_model, model} <= {card.name, *card.aliases}
    if header.from_path and header.base_model not in ("", model) and not is_same:
        raise BadRequest(f"{header.from_path} belongs to {model!r}, not {header.base_model!r}")


def _check_pass(header: ForwardBackward) -> None:
    find_loss(header.loss_fn)
    if not 0 <= header.part < header.num_parts:
        raise BadRequest(f"part {header.part} of {header.num_parts}", "malformed")
    has_more_targets = header.part > 0 and header.num_datums == header.num_tokens == 0
    if not has_more_targets and not 1 <= header.num_datums <= header.num_tokens:
        counts = f"{header.num_datums} datums of {header.num_tokens} tokens"
        raise BadRequest(f"a part with {counts}")


def _check_freeze(books: Books, session: Session, header: SaveForSampler) -> None:
    if header.is_external and (header.sampler_id or not header.name):
        raise BadRequest("external weights have a name, and no sampler_id")
    if not header.name and not header.sampler_id:
        raise BadRequest("save_for_sampler needs a name, a sampler_id, or both")
    if header.name:
        check_name(header.name)
        check_ttl(header.ttl_s or None)
        check_free(books, session, saved_path(header), overwrite=False)
    elif header.ttl_s or header.user_metadata:
        raise BadRequest("ttl_s and user_metadata are of a file, which has a name")
    if header.sampler_id:
        check_sampler_id(books, session, header.sampler_id)


def _check_create(books: Books, session: Session, header: CreateRun) -> None:
    if header.seq != 0:
        raise BadRequest(f"create_run has number {header.seq}, not 0")
    model = create_model(books, session, header)
    card = find_card(books.workers.models(), model)
    if header.from_path:
        card = card or find_card(books.workers.models(), header.base_model)
        if card is not None:  # otherwise when a worker has loaded
            check_base(header, model, card)
        return
    if header.with_optimizer:
        raise BadRequest("with_optimizer needs from_path, the state that has it")
    max_rank = card.max_rank if card is not None else MAX_RANK
    if not 1 <= header.rank <= max_rank:
        raise BadRequest(f"rank is {header.rank}, not 1 to {max_rank}")
    if not (header.train_attn or header.train_mlp or header.train_unembed):
        raise BadRequest("a run needs at least one of train_attn, train_mlp, train_unembed")
    for family in ("attn", "mlp", "unembed"):
        if card and getattr(header, f"train_{family}") and family not in card.targets:
            raise BadRequest(
                f"{card.name!r} has no {family} linears that can be adapted (train_{family}); "
                f"it has {', '.join(card.targets)}"
            )


def check_free(books: Books, session: Session, path: str, overwrite: bool) -> None:
    """Raise unless a checkpoint may be written under this path."""
    if path in books.catalog.locked:
        raise Busy(f"{path} is being changed")
    if path in books.catalog:
        if not overwrite:
            raise Conflict(f"{path} exists")
    elif books.catalog.count(session.tenant) >= books.config.checkpoints:
        most = books.config.checkpoints
        raise BadRequest(f"{most} checkpoints exist, which is the most", "too_large")


def _is_being_saved(run: Run, header: LoadState) -> bool:
    """Whether an earlier, unfinished command of the same run writes what is to be loaded."""
    unfinished = (State.HELD, State.QUEUED, State.DISPATCHED, State.SETTLED)
    return any(
        isinstance(work.header, SaveState | SaveForSampler)
        and work.seq < header.seq
        and work.state in unfinished
        and header.path == saved_path(work.header)
        for work in run.log.commands.values()
    )


def find_run(books: Books, session: Session, run_id: str) -> Run:
    """A run of the session's tenant; raises NotFound for unknown and foreign ones alike."""
    run = books.runs.get(run_id)
    if run is None or run.tenant != session.tenant:
        raise NotFound(f"no run {run_id[:80]!r}")
    return run
