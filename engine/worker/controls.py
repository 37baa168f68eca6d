"""Carry out the commands that are neither passes nor optimizer steps: create, save, load, freeze."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...client.errors import BadRequest, NotFound
from ...client.messages import (
    CreateRun,
    CreateSampler,
    ForkRun,
    LoadState,
    SaveForSampler,
    SaveState,
)
from ...client.paths import check_name
from ..adapters.store import AdapterStore, Run, WeightsVersion
from ..files.checkpoint import Checkpoint, saved_path
from ..files.outgoing import is_moment
from ..files.store import CheckpointFiles, now
from .checkpoints import load_tensors, save_tensors
from .commands import CommandWork
from .runs import HeldRun, RunTable


class Controls:
    """Executes one control command at a time on the compute thread."""

    def __init__(
        self, runs: RunTable, files: CheckpointFiles, model_name: str, tokenizer: str
    ) -> None:
        self._runs = runs
        self._store: AdapterStore = runs.store
        self._files = files
        self._model_name = model_name
        self._tokenizer = tokenizer

    def owner(self, work: CommandWork) -> str:
        """The queue a command belongs to: its run's, or its sampler's."""
        header = work.header
        match header:
            case CreateSampler():
                return header.sampler_id
            case _:
                return str(getattr(header, "run_id", ""))

    def carry_out(self, work: CommandWork) -> dict[str, Any]:
        """Do it and return the fields of the reply; a raised error means no effect."""
        header = work.header
        match header:
            case CreateRun():
                return self._create_run(work, header)
            case ForkRun():
                return self._fork_run(work, header)
            case SaveState():
                return self._save_state(work, header)
            case LoadState():
                return self._load_state(work, header)
            case SaveForSampler():
                return self._save_for_sampler(work, header)
            case CreateSampler():
                return self._create_sampler(work, header)
            case _:
                raise BadRequest(f"a worker does not serve {header.kind!r}")

    def _create_run(self, work: CommandWork, header: CreateRun) -> dict[str, Any]:
        if header.run_id in self._runs:
            raise BadRequest(f"run {header.run_id!r} exists")
        fields: dict[str, Any] = {
            "rank": header.rank,
            "alpha": header.alpha,
            "train_attn": header.train_attn,
            "train_mlp": header.train_mlp,
            "train_unembed": header.train_unembed,
        }
        if header.from_path:
            record, tensors = self._read(work, header.from_path)
            fields = {key: getattr(record, key) for key in fields}
        run = self._store.create(seed=header.seed, **fields)
        try:
            if header.from_path:
                self._import(run, header.from_path, record, tensors, header.with_optimizer)
            targets = {key: fields[key] for key in ("train_attn", "train_mlp", "train_unembed")}
            held = HeldRun(run, work.origin.lane, self._model_name, **targets)
            self._runs.add_run(header.run_id, held)
        except BaseException:
            self._store.drop(run)
            raise
        return self._describe(header.run_id, held)

    def _fork_run(self, work: CommandWork, header: ForkRun) -> dict[str, Any]:
        held = self._runs.healthy(header.run_id)
        fork = replace(held, run=self._store.fork(held.run), lane=work.origin.lane)
        try:
            self._runs.add_run(header.new_run_id, fork)
        except BaseException:
            self._store.drop(fork.run)
            raise
        return self._describe(header.new_run_id, fork)

    def _describe(self, run_id: str, held: HeldRun) -> dict[str, Any]:
        """What the owner of a new run is told."""
        return {
            "run_id": run_id,
            "base_model": self._model_name,
            "tokenizer": self._tokenizer,
            "step": held.run.step,
            "rank": held.run.rank,
            "alpha": held.run.alpha,
            "train_attn": held.train_attn,
            "train_mlp": held.train_mlp,
            "train_unembed": held.train_unembed,
        }

    def _save_state(self, work: CommandWork, header: SaveState) -> dict[str, Any]:
        held = self._runs.healthy(header.run_id)
        tensors, step = self._store.export_state(held.run, header.include_optimizer)
        record = self._record(work, held, header)
        record = replace(record, step=step, has_optimizer=header.include_optimizer)
        return self._save(record, tensors, header.overwrite)

    def _load_state(self, work: CommandWork, header: LoadState) -> dict[str, Any]:
        held = self._runs.run(header.run_id)
        record, tensors = self._read(work, header.path)
        shape = (held.run.rank, held.train_attn, held.train_mlp, held.train_unembed)
        saved = (record.rank, record.train_attn, record.train_mlp, record.train_unembed)
        if shape != saved or held.run.alpha != record.alpha:
            raise BadRequest(
                f"{header.path} has rank {record.rank}, alpha {record.alpha:g} and targets "
                f"{saved[1:]}; the run has {held.run.rank}, {held.run.alpha:g} and {shape[1:]}"
            )
        self._import(held.run, header.path, record, tensors, header.with_optimizer)
        held.is_broken = False
        held.clear_counts()
        return {"path": header.path, "step": held.run.step}

    def _save_for_sampler(self, work: CommandWork, header: SaveForSampler) -> dict[str, Any]:
        held = self._runs.healthy(header.run_id)
        result: dict[str, Any] = {}
        if header.name:
            if header.is_external:
                tensors, _ = self._store.export_state(held.run, with_optimizer=False)
            else:
                tensors = self._store.export_weights(held.run.version)
            record = replace(self._record(work, held, header), has_optimizer=False)
            result |= self._save(record, tensors)
        if header.sampler_id:
            version = self._store.retain(held.run.version)
            self._add_sampler(header.sampler_id, version)
            result["sampler_id"] = header.sampler_id
        return result

    def _create_sampler(self, work: CommandWork, header: CreateSampler) -> dict[str, Any]:
        if not header.model_path:
            self._add_sampler(header.sampler_id, None)
            return {"sampler_id": header.sampler_id, "base_model": self._model_name}
        record, tensors = self._read(work, header.model_path)
        self._check_model(header.model_path, record)
        weights = {name: tensor for name, tensor in tensors.items() if not is_moment(name)}
        version = self._store.import_weights(
            weights,
            rank=record.rank,
            alpha=record.alpha,
            train_attn=record.train_attn,
            train_mlp=record.train_mlp,
            train_unembed=record.train_unembed,
        )
        self._add_sampler(header.sampler_id, version)
        return {"sampler_id": header.sampler_id, "base_model": self._model_name}

    def _add_sampler(self, sampler_id: str, version: WeightsVersion | None) -> None:
        try:
            self._runs.add_sampler(sampler_id, version)
        except BaseException:
            if version is not None:
                self._store.release(version)
            raise

    def _read(self, work: CommandWork, path: str) -> tuple[Checkpoint, dict[str, Tensor]]:
        """A checkpoint as it is now: since the broker looked, its owner may have saved it anew."""
        record, tensors = load_tensors(self._files, path)
        if not record.is_readable_by(_tenant(work)):
            raise NotFound(f"no checkpoint {path}")
        return record, tensors

    def _import(
        self,
        run: Run,
        path: str,
        record: Checkpoint,
        tensors: dict[str, Any],
        with_optimizer: bool,
    ) -> None:
        self._check_model(path, record)
        if with_optimizer and not any(is_moment(name) for name in tensors):
            raise NotFound(f"{path} holds no optimizer state")
        self._store.import_state(run, tensors, step=record.step, with_optimizer=with_optimizer)

    def _check_model(self, path: str, record: Checkpoint) -> None:
        if record.base_model != self._model_name:
            raise BadRequest(
                f"{path} belongs to base model {record.base_model!r}, not {self._model_name!r}"
            )

    def _save(
        self, record: Checkpoint, tensors: Mapping[str, Tensor], overwrite: bool = False
    ) -> dict[str, Any]:
        """Write a state; returns what the broker and the client are told of it."""
        size = save_tensors(self._files, record, tensors, overwrite)
        told = {"path": record.path, "size_bytes": size, "step": record.step}
        return {**told, "created": record.created, "expires": record.expires}

    def _record(
        self, work: CommandWork, held: HeldRun, header: SaveState | SaveForSampler
    ) -> Checkpoint:
        check_name(header.name)
        created = now()
        unembed = next((s.name for s in self._store.sites if s.family == "unembed"), "")
        return Checkpoint(
            path=saved_path(header),
            tenant=_tenant(work),
            base_model=self._model_name,
            rank=held.run.rank,
            alpha=held.run.alpha,
            train_attn=held.train_attn,
            train_mlp=held.train_mlp,
            train_unembed=held.train_unembed,
            step=held.run.step,
            size_bytes=0,
            created=created,
            user_metadata=header.user_metadata,
            expires=created + header.ttl_s if header.ttl_s else 0.0,
            unembed_site=unembed if held.train_unembed else "",
        )


def _tenant(work: CommandWork) -> str:
    return work.origin.lane.rpartition("/")[0]
