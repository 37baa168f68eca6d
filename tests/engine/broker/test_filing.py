"""What holds of files after any sequence of events."""

import random
from collections import Counter, deque
from typing import Any

import pytest
from adapter_files import SPANS
from core_bench import CARD, OTHER, SESSION, CoreBench, checkpoint, create_run, save_state

from weft.client.file_messages import (
    CloseTransfer,
    DeleteCheckpoint,
    ExpireCheckpoint,
    FinishUpload,
    OpenDownload,
    OpenUpload,
    ReadPart,
    RenameCheckpoint,
    WritePart,
)
from weft.client.messages import Array, Goodbye, Header
from weft.client.worker_messages import WorkerHello, WorkerReady
from weft.engine.broker.events import Action, CatalogLoaded, StoreDone, StoreJob, Tick
from weft.engine.files.jobs import ImportAdapter, JobResult, OpenState

PART = Array(name="data", dtype="uint8", shape=[5], frame=0)


def random_message(source: random.Random, session: str, last_id: int) -> Header:
    """Something about files that a client might send: right, repeated, foreign or absurd."""
    number, seq = source.randrange(1, 1000), source.randrange(1, 20)
    owner = source.choice([session, SESSION])
    run = f"{owner}:train:0"
    path = f"weft://{run}/weights/{source.choice('abc')}"
    transfer: dict[str, Any] = {
        "request_id": number,
        "transfer_id": source.randrange(max(last_id - 3, 0), last_id + 2),
    }
    part = source.randrange(2)
    sizes = {"adapter_model.safetensors": 5, "adapter_config.json": 5}
    return source.choice(
        [
            create_run(request_id=number, run_id=f"{session}:train:0"),
            save_state(seq, source.choice("abc"), run_id=run, request_id=number, overwrite=True),
            DeleteCheckpoint(request_id=number, path=path),
            RenameCheckpoint(request_id=number, path=path, name=source.choice("abc")),
            ExpireCheckpoint(request_id=number, path=path, ttl_s=source.randrange(3)),
            OpenDownload(request_id=number, path=path, form="state"),
            OpenUpload(request_id=number, path=path, base_model="tiny", sizes=sizes),
            ReadPart(part=part, **transfer),
            WritePart(part=part, digest=bytes(16), arrays=[PART], **transfer),
            WritePart(part=part, digest=bytes(16), arrays=[PART], **transfer),
            FinishUpload(**transfer),
            CloseTransfer(**transfer),
            Goodbye() if source.random() < 0.1 else FinishUpload(**transfer),
        ]
    )


def answer(source: random.Random, job: StoreJob) -> StoreDone:
    """What the store might say."""
    if source.random() < 0.1:
        return StoreDone(job.number, JobResult(code="internal", detail="the disk is full"))
    match job.job:
        case OpenState():
            return StoreDone(job.number, JobResult(result={"files": [["state.safetensors", 12]]}))
        case ImportAdapter():
            record = checkpoint("a", path=job.job.path, tenant=job.job.tenant)
            return StoreDone(job.number, JobResult(record=record))
        case _:
            return StoreDone(job.number, JobResult(result={"digest": b""}))


def add_worker(bench: CoreBench) -> None:
    bench.work(WorkerHello(versions=[1], worker_id="w0", secret="", pid=1))
    bench.work(WorkerReady(model=CARD, train_credit=10**6, sample_credit=10**6, sites=SPANS))


@pytest.mark.parametrize("seed", range(4))
def test_the_books_agree_and_nothing_stays_locked(seed: int) -> None:
    source = random.Random(seed)
    bench = CoreBench(
        part_bytes=5,
        transfers=2,
        total_transfers=3,
        parts_in_flight=2,
        store_jobs=3,
        transfer_expiry_s=10.0,
        session_ttl_s=40.0,
        worker_expiry_s=1e9,
        checkpoints=3,
    )
    waiting: deque[StoreJob] = deque()

    def note(actions: list[Action]) -> None:
        waiting.extend(action for action in actions if isinstance(action, StoreJob))

    add_worker(bench)
    books = bench.core._books
    done: Counter[str] = Counter()
    for _ in range(5000):
        session = source.choice([SESSION, OTHER])
        chance = source.random()
        if chance < 0.08:
            bench.hello(session, session[:1].encode())
        elif chance < 0.15:
            found = checkpoint(source.choice("abc"), expires=source.choice([0.0, bench.now + 5]))
            if found.path not in books.catalog.locked:
                bench.handle(CatalogLoaded((found,)))
        elif chance < 0.6:
            header = random_message(source, session, bench.core._filing._transfers._last_id)
            note(bench.say(header, bytes(5), peer=session[:1].encode()))
        elif chance < 0.8 and waiting:
            job = waiting.popleft()
            done[type(job.job).__name__] += 1
            note(bench.handle(answer(source, job)))
        elif chance < 0.95 and bench.dispatches:
            note(bench.finish(source.randrange(-3, 0) % len(bench.dispatches), base_model="tiny"))
        else:
            bench.now += source.choice([0.5, 1.0, 5.0])
            note(bench.handle(Tick()))
    assert len(done) == 9  # every kind of job
    while waiting:
        note(bench.handle(answer(source, waiting.popleft())))
    bench.now += 100.0
    note(bench.handle(Tick()))
    while waiting:
        note(bench.handle(StoreDone(waiting.popleft().number, JobResult())))
    assert (books.num_jobs, books.catalog.locked) == (0, set())
