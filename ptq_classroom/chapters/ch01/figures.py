"""Figures of chapter 01: the ruler, saturation against wrap-around, padding, codes used, bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ptq_classroom.kit.pieces import number_line
from ptq_classroom.kit.show import COLORS, GREY, LINES, figure, ink, text_number
from ptq_course.grids.affine import IntGrid, QParams, dequantize, quantize

Shown = tuple[Figure, str]
BLUE, ORANGE, RED = COLORS[0], COLORS[1], COLORS[2]
TINTS = (BLUE, ORANGE, RED, COLORS[4], COLORS[5])


def levels(qparams: QParams) -> Tensor:
    """Every real number that some code stands for, [levels] in rising order."""
    codes = torch.arange(qparams.grid.qmin, qparams.grid.qmax + 1)
    return dequantize(codes, qparams)


def ruler(values: Tensor, qparams: QParams) -> Shown:
    """The marks of a small grid with their codes, and where each of `values` [N] goes."""
    marks = levels(qparams)
    codes = range(qparams.grid.qmin, qparams.grid.qmax + 1)
    fig, ax = figure(7.2, 2.3)
    _, nearest = number_line(ax, marks, values, name="real value")
    for code, mark in zip(codes, marks.tolist(), strict=True):
        zero = code == int(qparams.zero_point)
        style = {"color": ink(RED), "fontweight": "bold"} if zero else {"color": ink(BLUE)}
        ax.text(mark, -0.32, str(code), ha="center", va="top", fontsize=9, **style)
    ax.text(-0.005, 0.19, "code", transform=ax.transAxes, ha="right", color=ink(BLUE), fontsize=9)
    ax.text(-0.005, 0.79, "data", transform=ax.transAxes, ha="right", color=ink(RED), fontsize=9)
    ax.set_title("The bold code is the zero point: its mark is exactly 0")
    moved = float(np.abs(np.asarray(values, dtype=np.float64) - nearest).max())
    n = text_number
    return fig, (
        f"{len(values)} values move to their nearest mark, the farthest by {n(moved)}; code "
        f"{int(qparams.zero_point)} stands at 0 exactly. Number line with {len(marks)} marks from "
        f"{n(float(marks[0]))} to {n(float(marks[-1]))}, {n(float(qparams.scale))} apart."
    )


def saturation(scale: float, grid: IntGrid, at: float) -> Shown:
    """What comes back for inputs beyond the grid: saturated (left) and wrapped around (right)."""
    x = torch.linspace(-2.2 * at, 2.2 * at, 881, dtype=torch.float64)
    codes = torch.round(x / scale).long()
    kept = codes.clamp(grid.qmin, grid.qmax) * scale
    wrapped = ((codes - grid.qmin) % grid.levels + grid.qmin) * scale
    here = int((x - at).abs().argmin())
    fig, axes = figure(7.2, 2.9, 1, 2, sharey=True)
    panels = (("saturate, then cast", kept), ("cast at once", wrapped))
    for ax, (title, y) in zip(axes, panels, strict=True):
        y = y.clone()
        jump = torch.zeros(len(y), dtype=torch.bool)
        jump[1:] = (y[1:] - y[:-1]).abs() > 10 * scale
        ax.plot(x, torch.where(jump, torch.nan, y), color=BLUE)
        ax.plot(x, x, color=GREY, linestyle=":", linewidth=1)
        ax.plot(x[here], y[here], "o", color=RED, markersize=7, zorder=5)
        label = f"{at:g} comes back\nas {float(y[here]):.3f}"
        below = (14, -44) if float(y[here]) > 0 else (0, -32)
        ax.annotate(label, (x[here], y[here]), xytext=below, textcoords="offset points",
                    ha="center", fontsize=9, color=ink(RED))  # fmt: skip
        ax.set(title=title, xlabel="value put in")
    axes[0].set_ylabel("value that comes back")
    n = text_number
    return fig, (
        f"{n(at)} comes back as {n(float(kept[here]))} where codes saturate, as "
        f"{n(float(wrapped[here]))} where "
        f"they are cast at once. Two curves of the value that comes back over the value put in, "
        f"codes {grid.qmin} to {grid.qmax}: the left one is flat beyond the ends, the right one a "
        f"sawtooth."
    )


def padding(off_grid: Tensor, exact_zero: Tensor, prediction: Any = None) -> Shown:
    """Errors [H, W] of a zero-padded convolution: without a code for 0, and with one."""
    off, fine = (e.detach().abs().double().numpy() for e in (off_grid, exact_zero))
    fig, axes = figure(7.6, 2.8, 1, 3, width_ratios=[1, 1, 1.35])
    for ax, error, title in zip(axes, (off, fine), ("no code for 0", "0 is a code"), strict=False):
        shown = ax.imshow(error, vmin=0, vmax=off.max(), cmap="cividis")
        ax.set(title=title, xlabel="column", ylabel="row", xticks=[0, 12, 23], yticks=[0, 12, 23])
    fig.colorbar(shown, ax=axes[:2], label="error (absolute)", shrink=0.8)
    middle, ax = off.shape[0] // 2, axes[2]
    inside = rms(off[1:-1, 1:-1])
    for i, (error, name) in enumerate(((off, "no code for 0"), (fine, "0 is a code"))):
        ax.plot(error[middle], color=COLORS[(2, 0)[i]], linestyle=LINES[i], label=name)
    ax.axhline(inside, color=GREY, linestyle=":", linewidth=1.2, label="typical error inside")
    if prediction is not None and isinstance(prediction.guess, int | float):
        type(prediction)(prediction.id, prediction.guess * inside).draw(ax, "y")
    ax.set(title="along the middle row", yscale="log", xlabel="column", ylim=(2e-5, 30))
    ax.legend(loc="upper center", fontsize=8)
    ratio = rms(border(off)) / inside
    n = text_number
    return fig, (
        f"Without a code for 0 the border is wrong by {n(rms(border(off)))}, {n(ratio)} times the "
        f"{n(inside)} inside; with 0 a code the border is wrong by {n(rms(border(fine)))} and the "
        f"inside by {n(rms(fine[1:-1, 1:-1]))}. Two error maps of a padded convolution, and their "
        f"middle rows as curves."
    )


def border(error: Any) -> Any:
    """The outermost rows and columns of [H, W], flat."""
    return np.concatenate([error[0], error[-1], error[1:-1, 0], error[1:-1, -1]])


def rms(error: Any) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(np.asarray(error, dtype=np.float64)))))


def codes_used(x: Tensor, choices: dict[str, QParams]) -> Shown:
    """How often each code occurs when x is quantized in several ways; one panel each."""
    fig, axes = figure(7.4, 2.7, 1, len(choices), sharey=True, squeeze=False)
    used = {}
    for ax, (name, qparams) in zip(axes.flat, choices.items(), strict=True):
        grid = qparams.grid
        codes = quantize(x, qparams).long() - grid.qmin
        counts = torch.bincount(codes.flatten(), minlength=grid.levels)
        edges = np.arange(grid.qmin, grid.qmax + 2) - 0.5
        ax.stairs(counts.numpy(), edges, fill=True, color=BLUE)
        used[name] = int((counts > 0).sum())
        empty = counts.nonzero()[0].item()
        if empty > grid.levels // 4:
            ax.axvspan(grid.qmin, grid.qmin + empty, color=ORANGE, alpha=0.25, linewidth=0)
            ax.text(grid.qmin + empty / 2, 0.4, "never used", ha="center", fontsize=9,
                    transform=ax.get_xaxis_transform())  # fmt: skip
        title = f"{name}: {used[name]} of {grid.levels} codes"
        ax.set(title=title, xlabel="code", yscale="log", ylim=(0.8, None))
    axes[0, 0].set_ylabel("values")
    listed = "; ".join(f"{name} uses {count} codes" for name, count in used.items())
    return fig, f"{listed}. Histograms of the codes of {x.numel()} values."


def decibels(bits: Sequence[int], curves: dict[str, Sequence[float]]) -> Shown:
    """Signal-to-noise ratio over bits for several kinds of data, and what each bit added."""
    fig, (left, right) = figure(7.8, 3.6, 1, 2, width_ratios=[1.25, 1])
    ends = []
    for i, (name, values) in enumerate(curves.items()):
        style = {"color": TINTS[i], "linestyle": LINES[i]}
        left.plot(bits, values, **style)
        right.plot(bits[1:], np.diff(values), label=name, **style)
        ends.append((values[-1], name))
    _end_labels(left, bits[-1], ends)
    left.set(xlabel="bits", ylabel="signal-to-noise ratio (dB)", xlim=(bits[0], bits[-1] * 1.75))
    left.set_xticks(list(bits)[::2])
    right.axhline(20 * np.log10(2), color=GREY, linestyle=":", linewidth=1.2)
    right.text(bits[-1], 6.25, "6.02", color=ink(GREY), ha="right", va="bottom", fontsize=9)
    right.set(xlabel="bits", ylabel="added by the last bit (dB)", ylim=(-0.5, 8.5))
    right.set_xticks(list(bits)[::2])
    listed = "; ".join(
        f"{name} {v[0]:.1f} dB at {bits[0]} bits, {v[-1]:.1f} at {bits[-1]}, "
        f"last bit {v[-1] - v[-2]:.1f}"
        for name, v in ((k, list(c)) for k, c in curves.items())
    )
    return fig, f"{listed}. Lines of the signal-to-noise ratio over bits, and of each bit's gain."


def _end_labels(ax: Any, x: float, ends: list[tuple[float, str]]) -> None:
    """Names at the right ends of curves, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    gap, last = (high - low) * 0.075, -np.inf
    for y, name in sorted(ends):
        last = max(y, last + gap)
        ax.annotate(name, (x, last), xytext=(5, 0), textcoords="offset points", va="center",
                    fontsize=9)  # fmt: skip


def weights(w: Tensor, choices: dict[str, QParams], ratios: dict[str, float]) -> Shown:
    """Histogram of a weight tensor with the marks of each grid under it; ratios are in dB.

    Marks too close to be told apart are drawn as a band, and a few of them in a window of their
    own.
    """
    values = w.detach().flatten().numpy()
    fig, axes = figure(7.8, 3.0, 1, len(choices), sharey=True, squeeze=False)
    counts, edges = np.histogram(values, bins=121)
    low = -0.13 * counts.max()
    for ax, (name, qparams) in zip(axes.flat, choices.items(), strict=True):
        marks = levels(qparams).numpy()
        ax.stairs(counts, edges, fill=True, color=COLORS[3], alpha=0.8)
        title = f"{name}: {len(marks)} marks, {ratios[name]:.1f} dB"
        ax.set(title=title, xlabel="weight", yticks=[t for t in ax.get_yticks() if t >= 0])
        if len(marks) < 40:
            ax.vlines(marks, low, 0, color=BLUE, linewidth=1.5)
        else:
            ax.fill_between([marks[0], marks[-1]], low, 0, color=BLUE, alpha=0.6, linewidth=0)
            _window(ax, values, marks, float(qparams.scale))
    axes[0, 0].set_ylabel("count")
    listed = "; ".join(
        f"{name} keep {ratios[name]:.1f} dB with marks {text_number(float(q.scale))} apart"
        for name, q in choices.items()
    )
    n = text_number
    return fig, (
        f"{listed}. Histogram of {values.size} weights from {n(values.min())} to "
        f"{n(values.max())}, with the marks of each grid underneath."
    )


def _window(ax: Any, values: np.ndarray, marks: np.ndarray, scale: float, gaps: int = 5) -> None:
    """The marks around 0 and the weights between them, in a frame at the upper right."""
    reach = (gaps + 0.5) * scale
    inset = ax.inset_axes((0.665, 0.48, 0.325, 0.36))
    counts, edges = np.histogram(values, bins=44, range=(-reach, reach))
    inset.stairs(counts, edges, fill=True, color=COLORS[3], alpha=0.8)
    near = marks[np.abs(marks) < reach]
    inset.vlines(near, -0.5 * counts.max(), 0, color=BLUE, linewidth=1.5)
    inset.set(xlim=(-reach, reach), yticks=[])
    inset.set_xticks([-gaps * scale, 0, gaps * scale], [f"{-gaps * scale:.3f}", "0",
                     f"{gaps * scale:.3f}"], fontsize=8)  # fmt: skip
    inset.set_title(f"{len(near)} of the marks", fontsize=8, loc="center", pad=3)
    for side in ("top", "right"):
        inset.spines[side].set_visible(True)
