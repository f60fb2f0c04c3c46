"""Widget of chapter 06: step through the layers, the FP32 input of each against its codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import COLORS, figure, ink, text_number
from ptq_course.diagnosis.comparison import Comparison, compare
from ptq_course.diagnosis.parts import parts_of
from ptq_course.grids.affine import QParams, fake_quantize
from ptq_course.simulation.layers import ActivationQuantizer
from ptq_course.simulation.quantizer import PTQQuantizer

BINS = 100
SHOWN = (0.002, 0.98)  # quantiles of the values that are not 0 between which the picture ends
FLOOR = 1e-4  # smallest share that is drawn
KEPT = 200_000  # values of a layer's input that are kept for its histogram


@dataclass(frozen=True)
class Frame:
    """What one frame shows, computed before the widget opens."""

    name: str
    exact: np.ndarray  # [BINS], share of the values that are not 0 in each bin
    edges: np.ndarray  # [BINS + 1]
    levels: np.ndarray  # [codes used], what the codes in the picture stand for
    shares: np.ndarray  # [codes used], share of the same values that goes to each
    scale: float
    reach: tuple[float, float]  # what the lowest and the highest code of the grid stand for
    isolated: float
    cumulative: float


def frames(quantizer: PTQQuantizer, model: nn.Module, pictures: Tensor) -> list[Frame]:
    """One frame for each layer with integer weights; pictures are inputs of the model."""
    quantized = quantizer.convert()
    parts = parts_of(quantized)
    errors: Comparison = compare(model, quantized, [pictures], progress=False)
    by_name = {row.name: row for row in errors.layers}
    inputs = _inputs(quantizer.float_model, parts.layers, pictures)
    made = []
    for name in parts.layers:
        part = quantized.module.get_submodule(parts.feeding[name][-1])
        assert isinstance(part, ActivationQuantizer)
        qparams = part.qparams
        assert isinstance(qparams, QParams)
        row = by_name[name]
        made.append(_frame(name, inputs[name], qparams, row.isolated_db, row.cumulative_db))
    return made


def _inputs(model: nn.Module, names: list[str], pictures: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _module, x, name=name: seen.__setitem__(name, x[0].detach().flatten())
        )
        for name in names
    ]
    with torch.no_grad():
        model(pictures)
    for handle in handles:
        handle.remove()
    return {name: x[:: max(1, len(x) // KEPT)] for name, x in seen.items()}


def _frame(name: str, x: Tensor, qparams: QParams, isolated: float, cumulative: float) -> Frame:
    x = x[x != 0]  # a ReLU's zeros would hide the rest, and they are exact anyway
    low, high = (float(end) for end in np.quantile(x.numpy(), SHOWN))
    edges = np.linspace(min(low, 0.0), max(high, low + 1e-6), BINS + 1)
    exact = np.histogram(x.numpy(), bins=edges)[0] / len(x)
    levels, counts = np.unique(fake_quantize(x, qparams).numpy(), return_counts=True)
    half = float(qparams.scale) / 2
    shown = (levels > edges[0] - half) & (levels < edges[-1] + half)
    grid, scale, zero_point = qparams.grid, float(qparams.scale), float(qparams.zero_point)
    reach = (scale * (grid.qmin - zero_point), scale * (grid.qmax - zero_point))
    return Frame(
        name, exact, edges, levels[shown], counts[shown] / len(x), scale, reach, isolated,
        cumulative,
    )  # fmt: skip


class LayerStepper:
    """The figure and its pure `frame`; the artists are made once and then changed."""

    def __init__(self, by_rule: dict[str, list[Frame]]) -> None:
        self.by_rule = by_rule
        first = next(iter(by_rule.values()))
        self.fig, (self.left, right) = figure(7.4, 3.4, 1, 2, width_ratios=[1.35, 1])
        self.exact = self.left.stairs(
            first[0].exact, first[0].edges, baseline=FLOOR, fill=True, color=COLORS[3], alpha=0.6
        )
        self.stems = self.left.vlines([0.0], FLOOR, 1, color=COLORS[2], linewidth=1.5)
        self.left.set(yscale="log", ylim=(FLOOR, 2), xlabel="input of the layer, zeros left out")
        self.left.set_ylabel("share of the values")
        for text, y, hue in (
            ("grey: FP32, share in each bin", 0.97, COLORS[8]),
            ("red: share at each code", 0.90, COLORS[2]),
        ):
            self.left.text(
                0.99, y, text, color=ink(hue), transform=self.left.transAxes, ha="right", va="top",
                fontsize=8,
            )  # fmt: skip
        self.reach = self.left.text(
            0.99, 0.83, "", transform=self.left.transAxes, ha="right", va="top", fontsize=8
        )
        place = np.arange(len(first))
        highest = max(max(f.isolated, f.cumulative) for fs in by_rule.values() for f in fs)
        self.bars = right.barh(place, place, color=COLORS[3], height=0.65)
        (self.dots,) = right.plot(place, place, "o--", color=COLORS[2], markersize=4)
        right.set(xlim=(0, 1.05 * highest), xlabel="dB: isolated (bar),\ncumulative (dots)")
        right.set_yticks(place, [f.name for f in first], fontsize=8)
        right.invert_yaxis()

    def frame(self, layer: int, rule: str) -> tuple[str, str]:
        """Show layer number `layer` (from 1) as this range rule quantizes it."""
        made = self.by_rule[rule]
        shown = made[layer - 1]
        half = shown.scale / 2
        self.exact.set_data(np.maximum(shown.exact, FLOOR), shown.edges)
        tops = np.maximum(shown.shares, FLOOR)
        self.stems.set_segments(
            [[(x, FLOOR), (x, y)] for x, y in zip(shown.levels, tops, strict=True)]
        )
        self.left.set_xlim(shown.edges[0] - half, shown.edges[-1] + half)
        self.reach.set_text("the grid: {:.3g} to {:.3g}".format(*shown.reach))
        for number, (bar, other) in enumerate(zip(self.bars, made, strict=True)):
            bar.set_width(other.isolated)
            bar.set(facecolor=COLORS[0 if number == layer - 1 else 3], edgecolor="black")
            bar.set_linewidth(2.0 if number == layer - 1 else 0.0)  # not by colour alone
        self.dots.set_xdata([other.cumulative for other in made])
        readout = (
            f"{shown.name}, {rule}: step {shown.scale:.3g}, {len(shown.levels)} codes in the "
            f"picture · isolated {shown.isolated:.1f} dB · cumulative {shown.cumulative:.1f} dB"
        )
        n = text_number
        alt = (
            f"Input of {shown.name} with {rule}: step {n(shown.scale)}, {len(shown.levels)} codes "
            f"between {n(shown.edges[0])} and {n(shown.edges[-1])}, of a grid from "
            f"{n(shown.reach[0])} to {n(shown.reach[1])}; isolated {n(shown.isolated)} dB, "
            f"cumulative {n(shown.cumulative)} dB."
        )
        return readout, alt


def explorer(
    quantizer: PTQQuantizer, model: nn.Module, pictures: Tensor, rules: tuple[str, ...]
) -> Explorer:
    """The widget: layer and range rule. The quantizer keeps its own decisions."""
    by_rule = {
        rule: frames(quantizer.fork().compute_qparams(rule), model, pictures) for rule in rules
    }
    picture = LayerStepper(by_rule)
    controls = [
        Slider("layer", 1, len(by_rule[rules[0]]), 1),
        Choice("rule", rules, rules[0], "range rule"),
    ]
    return Explorer(picture.fig, controls, picture.frame, "Step through the layers")
