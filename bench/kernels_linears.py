"""The rows of `kernels.py` on all linears of a layer, forward and backward."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import product
from typing import Any

import torch
from gpu_timing import Deadline, Machine, Stopwatch, num_sets
from harness import Table
from layer_baselines import Grouped, Peft, Sequential, floor_seconds
from layer_case import Groups, LayerCase, LayerWeights, Mix, beta, frozen, frozen_triton, fused
from layer_check import check
from rounds import median_ratio

CHECKED_TOKENS = 2048  # at most, when results are compared with float64
BASELINE_TOKENS = 8192  # the size at which slow baselines run
DRY_MIX = Mix(32, 2, "4", "equal")
FORMS = {"beta": beta, "fused": fused}
TIMED = {"frozen": frozen, "triton": frozen_triton, **FORMS}  # in turn


def mixes() -> list[Mix]:
    """What is measured, in the order of what it tells."""
    first = [
        Mix(8192, 16, "16", "equal"),
        Mix(8192, 16, "64", "equal"),
        Mix(8192, 16, "mixed", "equal"),
        Mix(8192, 1, "16", "equal"),
        Mix(8192, 4, "16", "equal"),
        Mix(8192, 64, "16", "equal"),
        Mix(8192, 16, "16", "zipf"),
        Mix(8192, 16, "16", "one"),
        Mix(8192, 16, "16", "bare"),
        Mix(16384, 16, "16", "equal"),
        Mix(16384, 16, "64", "equal"),
        Mix(32768, 16, "16", "equal"),
        Mix(4096, 16, "16", "equal"),
        Mix(8192, 64, "mixed", "zipf"),
    ]
    grid = product(
        (8192, 16384, 4096, 32768), (16, 64, 1, 4), ("16", "64", "mixed"), ("equal", "zipf")
    )
    every = [Mix(*fields) for fields in grid]
    return first + [mix for mix in every if mix not in first]


class Linears:
    """One layer's shapes, and the baselines that several rows share."""

    def __init__(self, groups: Groups, stopwatch: Stopwatch, machine: Machine) -> None:
        dtype = torch.float32 if stopwatch.is_dry else torch.bfloat16
        macs = sum(width * sum(outs) for width, outs in groups)
        layers = num_sets(macs * dtype.itemsize, stopwatch.device)
        self.base = LayerWeights(groups, layers, stopwatch.device, dtype)
        self._stopwatch, self._machine = stopwatch, machine
        self._frozen_graph = lru_cache(self._time_frozen_graph)
        self._single = lru_cache(self._time_single)

    def row(self, mix: Mix) -> dict[str, Any]:
        """Check both forms, then time them and what they are compared with."""
        smaller = Mix(min(mix.num_tokens, CHECKED_TOKENS), mix.num_adapters, mix.ranks, mix.lengths)
        checked = LayerCase(self.base, smaller)
        row: dict[str, Any] = {name: getattr(mix, name) for name in Mix.__slots__}
        row["errors"] = {name: check(name, form, checked) for name, form in FORMS.items()}
        del checked
        case, watch = LayerCase(self.base, mix), self._stopwatch
        forms = {name: partial(form, case) for name, form in TIMED.items()}
        timings = watch.alternate(forms)
        frozen_s = timings["frozen"].repeats
        row |= {name: timing.as_dict() for name, timing in timings.items()}
        row["of_frozen"] = {
            name: median_ratio(timing.repeats, frozen_s) for name, timing in timings.items()
        }
        row["frozen_graph"] = self._frozen_graph(mix.num_tokens)
        if not watch.is_dry:
            row |= {f"{name}_graph": watch.graph(forms[name]).as_dict() for name in FORMS}
        row["single"] = self._single(mix.num_tokens, mix.mean_rank)
        is_due = watch.is_dry or mix.num_tokens == BASELINE_TOKENS
        if is_due and mix.num_adapters > 1 and mix.lengths != "bare":  # all rows are somebody's
            for name, baseline in (
                ("sequential", Sequential),
                ("grouped", Grouped),
                ("peft", Peft),
            ):
                row[name] = self._baseline(baseline, case)
        rates = self._machine.matmul_flops_per_s, self._machine.copy_bytes_per_s
        base_s, adapters_s = floor_seconds(case, *rates)
        row["floor"] = {"base_s": base_s, "adapters_s": adapters_s}
        return row

    def _time_frozen_graph(self, num_tokens: int) -> dict[str, object]:
        case = LayerCase(self.base, Mix(num_tokens, 1, "1", "equal"))
        return self._stopwatch.graph(partial(frozen, case)).as_dict()

    def _time_single(self, num_tokens: int, rank: int) -> dict[str, object]:
        case = LayerCase(self.base, Mix(num_tokens, 1, str(rank), "equal"))
        return self._stopwatch.events(partial(Sequential(case), case)).as_dict()

    def _baseline(
        self, baseline: Callable[[LayerCase], Callable[[LayerCase, int], None]], case: LayerCase
    ) -> dict[str, object]:
        """A timing, or why there is none: what others cannot do must not end the bench."""
        if baseline is Peft and importlib.util.find_spec("peft") is None:
            return {"missing": "peft is not installed"}
        try:
            return self._stopwatch.events(partial(baseline(case), case)).as_dict()
        except (ValueError, RuntimeError, AttributeError) as error:
            return {"missing": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def measure_linears(
    groups: Groups, stopwatch: Stopwatch, machine: Machine, deadline: Deadline, left_out: list[str]
) -> Iterator[dict[str, Any]]:
    """One row after the other; ratios are to the frozen linears of as many rows."""
    linears = Linears(groups, stopwatch, machine)
    names = ("beta", "fused", "triton", "single", "sequential", "grouped", "peft")
    table = Table("tokens", "adapters", "ranks", "lengths", "frozen ms", *names, "floor")
    for mix in [DRY_MIX] if stopwatch.is_dry else mixes():
        if deadline.is_over:
            left_out.append(str(mix))
            continue
        row = linears.row(mix)
        base = row["frozen"]["median"]
        others = {
            name: row[name]["median"] / base for name in names if "median" in row.get(name, {})
        }
        found = others | row["of_frozen"]
        ratios = [f"{found[name]:.3f}" if name in found else "-" for name in names]
        floor = 1 + row["floor"]["adapters_s"] / base
        mix_cells = (mix.num_tokens, mix.num_adapters, mix.ranks, mix.lengths)
        table.row(*mix_cells, f"{base * 1e3:.3f}", *ratios, f"{floor:.3f}")
        yield row
