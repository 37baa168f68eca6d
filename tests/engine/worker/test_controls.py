"""Commands that create, load and open: whose checkpoints they read."""

from pathlib import Path
from typing import Any

import pytest
from core_bench import OTHER, RUN, SESSION, create_run, create_sampler, digest, save_state
from lora_helpers import make_store

from weft.client.errors import NotFound
from weft.client.messages import LoadState, Request
from weft.engine.files.store import CheckpointFiles
from weft.engine.worker.commands import CommandWork, Origin
from weft.engine.worker.controls import Controls
from weft.engine.worker.runs import RunTable

MINE, THEIRS = f"local/{SESSION}", f"somebody/{OTHER}"
PATH = f"weft://{RUN}/weights/a"
THEIR_RUN = f"{OTHER}:train:0"
READS: dict[str, Any] = {
    "create": create_run(request_id=5, run_id=f"{OTHER}:train:1", from_path=PATH),
    "load": LoadState(
        request_id=5, run_id=THEIR_RUN, seq=1, digest=digest("l"), path=PATH, with_optimizer=False
    ),
    "sampler": create_sampler(5, sampler_id=f"{OTHER}:sample:0", model_path=PATH),
}


class Bench:
    """Runs of two tenants, and a checkpoint of the first."""

    def __init__(self, folder: Path) -> None:
        self.files = CheckpointFiles(folder)
        self.controls = Controls(RunTable(make_store(), ()), self.files, "tiny", "")
        self.do(create_run(request_id=1), MINE)
        self.do(create_run(request_id=1, run_id=THEIR_RUN), THEIRS)
        self.do(save_state(1, "a"), MINE)

    def do(self, header: Request, lane: str) -> dict[str, Any]:
        work = CommandWork(Origin(1, 0, lane, header.request_id), header)
        return self.controls.carry_out(work)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("name", READS)
def test_what_is_private_by_the_time_it_is_read_is_not_found(bench: Bench, name: str) -> None:
    bench.files.amend(PATH, public=True)
    bench.files.amend(PATH, public=False)  # the broker had let the request pass before
    with pytest.raises(NotFound, match=f"no checkpoint {PATH}"):
        bench.do(READS[name], THEIRS)


@pytest.mark.parametrize("name", READS)
def test_what_is_public_is_read_by_other_tenants(bench: Bench, name: str) -> None:
    bench.files.amend(PATH, public=True)
    assert bench.do(READS[name], THEIRS)
