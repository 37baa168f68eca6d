"""Do each kind of step once before anybody waits for it.

What is loaded and initialised at first use is paid here: kernels, thread pools, the 480 modules that
autograd imports. A first forward_backward of weft/tiny took 250 ms on a CPU, the next 20 ms. The run
is our own and gone afterwards; trainer and generator are the caller's and used for nothing else, so
no counter, page or state of the worker shows that it happened.
"""

import logging
import time

import numpy as np

from ...client.errors import EngineFailed, WeftError
from ...client.messages import OptimStep
from ..adapters.optimizer import step
from ..adapters.store import Run
from ..adapters.targets import Targets
from ..sampling.base_generator import BaseGenerator
from ..sampling.requests import SampleFailed, SampleRequest
from .commands import Origin, PassWork
from .runs import HeldRun, RunTable
from .scheduler import Passes, Slice
from .train import Trainer
from .units import Unit

log = logging.getLogger(__name__)

RUN_ID = "warming"
RANKS = (8, 32, 64)  # the first alone where nothing is compiled; kernels serve ranks up to theirs
NUM_TOKENS = 16
MANY_TOKENS = 320  # more than decode steps have: a forward pass of many has other kernels
NUM_NEW_TOKENS = 2
_FAULTS = ("internal", "out_of_memory")  # of a sample; logits that are not finite are the model's


def warm_up(
    trainer: Trainer,
    generator: BaseGenerator,
    runs: RunTable,
    max_tokens: int,
    *,
    compiles: bool = False,
) -> None:
    """Train and sample a little on a run of our own.

    Args:
        trainer, generator: as those of the worker, but others.
        runs: of the worker's store, without a run.
        max_tokens: the longest datum that fits.
        compiles: kernels are compiled where they are used first, so all common ones are used.

    Raises:
        EngineFailed: a step failed, so those of users would.
    """
    started = time.monotonic()
    num_tokens = min(NUM_TOKENS, max_tokens)
    try:
        for rank in RANKS if compiles else RANKS[:1]:
            run = _open(runs, rank)
            try:
                _train(trainer, runs, num_tokens)
                if compiles:
                    _pass(trainer, min(MANY_TOKENS, max_tokens), is_forward=True)
                _sample(generator, run, num_tokens)
            finally:
                runs.drop_run(RUN_ID)
    except EngineFailed:
        raise
    except WeftError as error:  # no room for a run, or a prompt: whoever asks for one is told
        log.warning("the worker is not wholly warm: %s", error)
    except Exception as error:  # the boundary to the device
        detail = f"the model was loaded, and its first step failed: {type(error).__name__}: {error}"
        if runs.store.uses_triton:
            detail += " (kernels torch computes without those of Triton)"
        raise EngineFailed(detail) from error
    log.info("warmed in %.2f s", time.monotonic() - started)


def _open(runs: RunTable, rank: int) -> Run:
    targets = runs.store.targets
    families = {
        "train_attn": Targets.ATTN in targets,
        "train_mlp": Targets.MLP in targets,
        "train_unembed": Targets.UNEMBED in targets,
    }
    run = runs.store.create(rank=rank, alpha=float(rank), seed=0, **families)
    runs.add_run(RUN_ID, HeldRun(run, "", "", **families))
    return run


def _pass(trainer: Trainer, num_tokens: int, *, is_forward: bool) -> None:
    work = PassWork(
        origin=Origin(0, 0, "", 0),
        run_id=RUN_ID,
        loss_fn="cross_entropy",
        loss_fn_config={},
        forward_only=is_forward,
        part_outputs=(num_tokens,),
        tokens=np.zeros(num_tokens, np.int32),
        lengths=np.array([num_tokens], np.int32),
        targets=np.zeros(num_tokens, np.int32),
        inputs={"weights": np.ones(num_tokens, np.float32)},
        units=(Unit(0, 1, num_tokens),),
    )
    passes = Passes(
        (Slice(0, 0, 1, ends_job=True),), backward=not is_forward, num_tokens=num_tokens
    )
    if not trainer.step(passes, [work]).failures:
        trainer.collect(work)


def _train(trainer: Trainer, runs: RunTable, num_tokens: int) -> None:
    _pass(trainer, num_tokens, is_forward=False)
    header = OptimStep(
        request_id=0,
        run_id=RUN_ID,
        seq=0,
        digest=b"",
        learning_rate=1e-4,
        beta1=0.9,
        beta2=0.95,
        eps=1e-12,
        weight_decay=0.0,
        grad_clip_norm=0.0,
    )
    step(runs.store, [(runs.run(RUN_ID).run, header)])


def _sample(generator: BaseGenerator, run: Run, num_tokens: int) -> None:
    request = SampleRequest(
        key=RUN_ID,
        tokens=np.zeros(num_tokens, np.int64),
        num_samples=1,
        max_tokens=NUM_NEW_TOKENS,
        temperature=1.0,
        seed=0,
        version=run.version,
    )
    generator.submit(request)
    while generator.has_work:
        for outcome in generator.step():
            if isinstance(outcome, SampleFailed) and outcome.code in _FAULTS:
                detail = f"the model was loaded, and it cannot be sampled: {outcome.detail}"
                raise EngineFailed(detail, outcome.code)
