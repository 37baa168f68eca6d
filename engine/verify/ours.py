"""What our side computes for the probes: logits, greedy continuations, adapters side by side."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...client.errors import EngineFailed
from ..adapters.binding import Binder
from ..adapters.store import AdapterStore, WeightsVersion
from ..model.attention import PackedAttention
from ..model.base import BaseModel
from ..model.layers import capped
from ..model.linear import FrozenLinears, Linears
from ..sampling.base_generator import BaseGenerator
from ..sampling.requests import SampleFailed, SampleRequest
from .probes import Probe


@torch.no_grad()
def logits_of(model: BaseModel, probes: Sequence[Probe]) -> list[Tensor]:
    """Logits of every probe, [tokens, V] float32 on the host; packed where the model packs."""
    return _in_batches(model, probes, [None] * len(probes), None)


@torch.no_grad()
def adapted_logits_of(
    model: BaseModel,
    store: AdapterStore,
    units: Sequence[tuple[Probe, WeightsVersion | None]],
) -> list[Tensor]:
    """The same for probes with adapters, all in one batch where the model packs."""
    return _in_batches(
        model, [probe for probe, _ in units], [version for _, version in units], store
    )


def greedy_of(
    generator: BaseGenerator, prompts: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """The likeliest continuations of all prompts at once, without an end.

    Raises:
        EngineFailed: a request failed; says why.
    """
    for key, prompt in enumerate(prompts):
        generator.submit(
            SampleRequest(
                key=key,
                tokens=np.array(prompt),
                num_samples=1,
                max_tokens=count,
                temperature=0.0,
                seed=0,
            )
        )
    answers: dict[object, list[int]] = {}
    while generator.has_work:
        for outcome in generator.step():
            if isinstance(outcome, SampleFailed):
                raise EngineFailed(f"sampling failed: {outcome.detail}")
            answers[outcome.key] = outcome.sequences[0].tokens.tolist()
    return [answers[key] for key in range(len(prompts))]


def _in_batches(
    model: BaseModel,
    probes: Sequence[Probe],
    versions: Sequence[WeightsVersion | None],
    store: AdapterStore | None,
) -> list[Tensor]:
    if model.runs_on == "sequential" and len(probes) > 1:
        pairs = zip(probes, versions, strict=True)
        return [_one_batch(model, [probe], [version], store)[0] for probe, version in pairs]
    return _one_batch(model, probes, versions, store)


def _one_batch(
    model: BaseModel,
    probes: Sequence[Probe],
    versions: Sequence[WeightsVersion | None],
    store: AdapterStore | None,
) -> list[Tensor]:
    lengths = [len(probe.tokens) for probe in probes]
    positions = [np.arange(probe.start, probe.start + len(probe.tokens)) for probe in probes]
    linears: Linears = FrozenLinears()
    if store is not None:
        linears = Binder(store).bind(versions, [None] * len(probes), lengths)
    hidden_TD = model.forward(
        torch.tensor([token for probe in probes for token in probe.tokens], device=model.device),
        torch.from_numpy(np.concatenate(positions)).to(model.device),
        PackedAttention(np.cumsum([0, *lengths]), model.device),
        linears,
    )
    (logits_TV,) = linears.group(hidden_TD, (model.head,), (len(model.sites) - 1,))
    logits_TV = capped(logits_TV.float(), model.logit_softcap)
    return list(torch.split(logits_TV.cpu(), lengths))
