"""Adapters beside each other change nothing in each other, whatever they hold."""

import torch

from .compare import compare_isolated
from .comparisons import Side
from .ours import adapted_logits_of
from .probes import Probe, make_pool
from .record import Check
from .training import create_run, make_store

_LENGTH = 12


def check_isolation(side: Side) -> Check:
    """Logits of two adapters and of the base model, beside an adapter of NaN and alone."""
    model = side.model
    first, second, poisoned = side.tenants[0], side.tenants[-1], side.tenants[-1]
    store = make_store(model, [first, second, poisoned])
    versions = [create_run(store, tenant).version for tenant in (first, second, poisoned)]
    store.version_flat(versions[2]).fill_(torch.nan)
    length = min(_LENGTH, model.config.max_context)
    pool = make_pool(side.tokenizer, model.config.vocab_size, 4 * length)
    probes = [Probe(tuple(pool[place * length :][:length])) for place in range(4)]
    units = list(zip(probes, [versions[0], versions[2], None, versions[1]], strict=True))
    together = adapted_logits_of(model, store, units)
    kept = [place for place, (_, version) in enumerate(units) if version is not versions[2]]
    alone = [adapted_logits_of(model, store, [units[place]])[0] for place in kept]
    return compare_isolated([together[place] for place in kept], alone, side.limit, side.is_packed)
