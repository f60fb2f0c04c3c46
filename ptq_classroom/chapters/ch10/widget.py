"""Widget of chapter 10: a byte budget, the layers that it keeps in FP16, and what mAP is left."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ptq_classroom.chapters.ch10 import widths
from ptq_classroom.chapters.ch10.exercises import greedy, one_at_a_time
from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import COLORS, GREY, figure, ink
from ptq_classroom.pictures.detection import load_scenes

SCENES = 100  # of the test set: enough to see the shape, quick enough for a slider
STEP = 2  # kB
MOST = 60  # kB beyond 4 bits everywhere


class Plan(NamedTuple):
    """What a budget buys: the layers in FP16, bytes of all weights, mAP at 0.5."""

    wide: tuple[str, ...]
    bytes: int
    score: float


@cache
def plans() -> tuple[dict[int, Plan], float]:
    """Budget in kB -> plan; and mAP in FP32. Each set of layers is measured once."""
    model, scenes = widths.folded(), load_scenes("scenes_test")[:SCENES]

    def score(net: object) -> float:
        return float(widths.matches(net, scenes).mean()[0])  # type: ignore[arg-type]

    layers = widths.layers(model)
    losses = one_at_a_time(model, score)
    extra = {n: widths.layer_bytes(x, 16) - widths.layer_bytes(x, 4) for n, x in layers.items()}
    found: dict[int, Plan] = {}
    measured: dict[tuple[str, ...], float] = {}
    for budget in range(0, MOST + 1, STEP):
        wide = tuple(greedy(losses, extra, 1000 * budget))
        bits = {name: 16 if name in wide else 4 for name in layers}
        if wide not in measured:
            measured[wide] = score(widths.with_widths(model, bits))
        found[budget] = Plan(wide, widths.file_bytes(model, bits), measured[wide])
    return found, score(model)


class Budget:
    """The figure and its pure `frame`; the artists are made once and then moved."""

    def __init__(self) -> None:
        self.plans, self.fp32 = plans()
        self.layers = list(widths.layers(widths.folded()))
        self.fig, (left, right) = figure(8.0, 3.4, 1, 2, width_ratios=(2, 3))
        self.bars = left.barh(range(len(self.layers)), [4] * len(self.layers), color=COLORS[0])
        left.set_yticks(range(len(self.layers)), self.layers)
        left.invert_yaxis()
        left.set(xlim=(0, 18), xlabel="bits of the weights")
        left.set_xticks([4, 16], ["4", "16 (FP16)"])
        budgets = list(self.plans)
        self.curve = right.step(
            budgets, [100 * self.plans[b].score for b in budgets], where="post", color=COLORS[0]
        )[0]
        right.axhline(100 * self.fp32, color=GREY, linestyle="--", linewidth=1.2)
        right.text(MOST, 100 * self.fp32 + 1, f"FP32 {100 * self.fp32:.1f}", ha="right",
                   va="bottom", fontsize=9, color=ink(GREY))  # fmt: skip
        self.dot = right.plot([], [], "ko", markersize=8)[0]
        right.set(
            xlabel="budget beyond 4 bits everywhere (kB)", ylabel="mAP at 0.5 (%)", ylim=(35, 103)
        )

    def frame(self, budget: int) -> tuple[str, str]:
        """Show the plan that this budget (kB) buys."""
        budget = min(self.plans, key=lambda known: abs(known - budget))
        plan = self.plans[budget]
        for bar, name in zip(self.bars, self.layers, strict=True):
            bar.set_width(16 if name in plan.wide else 4)
            bar.set_color(COLORS[1] if name in plan.wide else COLORS[0])
        self.dot.set_data([budget], [100 * plan.score])
        wide = ", ".join(plan.wide) or "no layer"
        readout = (
            f"{budget} kB: FP16 for {wide}; {plan.bytes / 1000:.1f} kB in all, "
            f"mAP {100 * plan.score:.1f} % on {SCENES} scenes"
        )
        alt = (
            f"With {budget} kB beyond 4 bits everywhere, {wide} in FP16 and mAP "
            f"{100 * plan.score:.1f} % of {100 * self.fp32:.1f} %."
        )
        return readout, alt


def explorer() -> Explorer:
    """The widget: a budget in kB."""
    picture = Budget()
    controls: list[Slider | Choice] = [Slider("budget", 0, MOST, 2, STEP, label="budget (kB)")]
    return Explorer(picture.fig, controls, picture.frame, "Bytes where they count")
