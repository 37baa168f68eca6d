"""Draw what `pictures.py` measured: a lane per tenant, one for the device, and the curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pictures import Outcome

WAIT = {"sample": "#cfe3f5", "train": "#fbe3c8"}
WORK = "#1b6ca8"
DEVICE = "#2e7d32"
SHOWN_S = 8.0  # seconds of the window drawn


def draw(
    remote: "Mapping[int, Outcome]",
    sft: "Outcome",
    unfused: "Mapping[int, Outcome]",
    saturated: "Outcome",
    folder: Path,
) -> None:
    """Write `lanes` and `curve` as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    many = remote[8]
    heights = [2, 2, 9]
    figure, axes = pyplot.subplots(
        3, 1, figsize=(10, 7.5), height_ratios=heights, layout="constrained"
    )
    for axis, outcome, title in zip(
        axes,
        (remote[1], sft, many),
        (
            "One user, online RL: every call waits for the one before",
            "One user, supervised, several batches under way",
            "Eight users, online RL, one fused engine",
        ),
        strict=True,
    ):
        _lanes(axis, outcome)
        axis.set_title(
            f"{title}:  busy {outcome.busy:.0%}, {outcome.goodput:.0f} tokens/s",
            loc="left",
            fontsize=10,
        )
    axes[-1].set_xlabel("seconds; links of 200 ms round trip")
    _save(figure, folder / "lanes")
    pyplot.close(figure)
    figure, axis = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    axis.axhline(saturated.goodput, color="#999999", linestyle=":", label="no link, 16 tenants")
    for outcomes, label, colour in (
        (remote, "fused", WORK),
        (unfused, "one run a step", "#c05020"),
    ):
        axis.plot(
            list(outcomes),
            [outcome.goodput for outcome in outcomes.values()],
            marker="o",
            color=colour,
            label=label,
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(remote), [str(number) for number in remote])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("synchronous RL tenants behind 200 ms links")
    axis.set_ylabel("tokens/s")
    axis.legend(frameon=False)
    _save(figure, folder / "curve")
    pyplot.close(figure)


def _lanes(axis: Any, outcome: "Outcome") -> None:
    """Tenants from the top, the device at the bottom."""
    start = outcome.start
    names = [f"user {place + 1}" for place in range(len(outcome.tenants))] + ["device"]
    for place, tenant in enumerate(outcome.tenants):
        for phase in tenant.phases:
            bar = [(phase.start - start, phase.end - phase.start)]
            axis.broken_barh(bar, (place + 0.1, 0.8), color=WAIT[phase.name])
        work = [(first - start, last - first) for first, last in outcome.steps(tenant.lane)]
        axis.broken_barh(work, (place + 0.25, 0.5), color=WORK)
    steps = [(first - start, last - first) for first, last in outcome.steps()]
    axis.broken_barh(steps, (len(names) - 1 + 0.1, 0.8), color=DEVICE)
    axis.set_yticks([place + 0.5 for place in range(len(names))], names, fontsize=8)
    axis.set_ylim(len(names), 0)
    axis.set_xlim(0, min(SHOWN_S, outcome.seconds))
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".svg"))
