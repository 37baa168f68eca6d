"""The head in the form that a store's adapters have."""

from dataclasses import fields

from lora_helpers import SITES, make_bases
from torch import Tensor

from weft.engine.adapters.binding import Binder, BoundLinears
from weft.engine.adapters.gpu_head import TritonHead
from weft.engine.adapters.head import Head
from weft.engine.adapters.loss_head import HeadResult, LossHead
from weft.engine.adapters.store import AdapterStore, Run

UNEMBED = len(SITES) - 1


def make_head(
    store: AdapterStore,
    hidden_TD: Tensor,
    *,
    chunk_rows: int = 32,
    softcap: float = 0.0,
    is_deterministic: bool = False,
) -> LossHead:
    """A head whose frozen unembedding is as the hidden states are."""
    base = make_bases((UNEMBED,), 16 if is_deterministic else 0, hidden_TD)[0]
    form = TritonHead if store.uses_triton else Head
    return form(base, UNEMBED, chunk_rows=chunk_rows, softcap=softcap)


def bind_units(
    store: AdapterStore,
    owners: list[Run | None],
    counts: list[int],
    *,
    is_deterministic: bool = False,
    unit_order: list[int] | None = None,
) -> BoundLinears:
    """The linears of units of so many rows."""
    versions = [None if run is None else run.version for run in owners]
    binder = Binder(store, is_deterministic=is_deterministic)
    return binder.bind(versions, owners, counts, unit_order=unit_order)


def on_host(result: HeadResult) -> HeadResult:
    """The same on the CPU."""
    return HeadResult(*(getattr(result, field.name).cpu() for field in fields(HeadResult)))
