"""The five steps of post-training quantization on one picture (chapter 00 and the README)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ptq_classroom.kit.show import COLORS, GREY, figure, ink

STEPS = (
    ("1 · Prepare", "a trained FP32 network,\nits layers put in order"),
    ("2 · Choose data", "a few hundred typical\npictures, no labels"),
    ("3 · Calibrate", "watch the activations,\nchoose their ranges"),
    ("4 · Quantize, convert", "real numbers become\nintegers of 8 bits"),
    ("5 · Validate", "on test pictures: what\nwas lost, what was won"),
)


CHOSEN = (
    0,
    3,
    22,
    28,
    5,
    41,
    31,
    40,
    23,
)  # of the calibration split: a flash and a night among them


def material(pictures: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Nine calibration pictures uint8 [9, 3, 48, 48], and the first activations of the network."""
    import torch

    from ptq_classroom.pictures.datasets import load_split, to_input
    from ptq_classroom.pictures.models import load_model

    images = load_split("calibration").images
    model = load_model("resnet")
    with torch.inference_mode():
        values = model.relu(model.bn(model.conv(to_input(images[:pictures]))))
    return images[list(CHOSEN)].numpy(), values.numpy().ravel()


def five_steps(images: np.ndarray, values: np.ndarray) -> tuple[Figure, str]:
    """Five panels from left to right, with real pictures and a real histogram in them.

    images: uint8 [>= 9, 3, H, W]; values: activations after a ReLU, any shape.
    """
    values = np.asarray(values, dtype=np.float64).ravel()
    high = float(np.quantile(values, 0.9995))
    fig, axes = figure(10.4, 3.1, 1, 5)
    fig.get_layout_engine().set(w_pad=0.14, rect=(0.005, 0.15, 0.99, 0.84))
    _layers(axes[0])
    _pictures(axes[1], images)
    _ranges(axes[2], values, high)
    _staircase(axes[3])
    _verdict(axes[4])
    for ax, (title, caption) in zip(axes, STEPS, strict=True):
        ax.set_title(title, fontsize=11.5, fontweight="bold", loc="center", pad=8)
        ax.set_xlabel(caption, fontsize=9.5, labelpad=7)
        ax.xaxis.set_label_coords(0.5, -0.11)
        if ax is not axes[2]:
            ax.set_xticks([])
        ax.set_yticks([])
        ax.minorticks_off()
        for side in ("top", "bottom", "left", "right"):
            ax.spines[side].set(visible=True, color="#c8ccd2")
    _arrows(fig, axes)
    first = [title.split(" · ")[1].lower() for title, _ in STEPS]
    return fig, (
        f"Post-training quantization is five steps, none of them training: {'; '.join(first)}. "
        "An arrow leads from the last back to calibration: where too much was lost, other ranges "
        f"are chosen. Its panel is a histogram of {values.size:,} activations of the trained "
        f"network, cut at {high:.3g}, while the largest is {values.max():.3g}."
    )


def _layers(ax: Any) -> None:
    names = ("convolution", "batch norm", "ReLU", "convolution", "· · ·", "linear")
    for row, name in enumerate(names):
        y = 0.865 - 0.146 * row
        if name == "· · ·":
            ax.text(0.5, y, name, ha="center", va="center", fontsize=11, color=ink(GREY))
            continue
        shade = COLORS[0] if name in ("convolution", "linear") else COLORS[3]
        ax.add_patch(
            FancyBboxPatch((0.16, y - 0.046), 0.68, 0.092, boxstyle="round,pad=0.012",
                           facecolor=shade, alpha=0.3, edgecolor=shade)
        )  # fmt: skip
        ax.text(0.5, y, name, ha="center", va="center", fontsize=9)
    ax.set(xlim=(0, 1), ylim=(0, 1))


def _pictures(ax: Any, images: np.ndarray) -> None:
    nine = np.asarray(images)[:9].transpose(0, 2, 3, 1)
    size, gap = nine.shape[1], 3
    wall = np.full((3 * size + 4 * gap, 3 * size + 4 * gap, 3), 255, np.uint8)
    for i, picture in enumerate(nine):
        y, x = (gap + (i // 3) * (size + gap), gap + (i % 3) * (size + gap))
        wall[y : y + size, x : x + size] = picture
    ax.imshow(wall, aspect="auto")


def _ranges(ax: Any, values: np.ndarray, high: float) -> None:
    """All positive values on a square-root axis, so that the bulk and the largest both show."""
    end = float(values.max())
    edges = np.linspace(0, np.sqrt(end), 61) ** 2
    counts, _ = np.histogram(values[values > 0], bins=edges)
    place = np.sqrt(edges)
    ax.stairs(np.maximum(counts, 0.5), place, fill=True, color=COLORS[0], alpha=0.8, baseline=0.5)
    cut = np.sqrt(high)
    ax.axvspan(0, cut, color=COLORS[1], alpha=0.2, linewidth=0)
    ax.axvline(cut, color=COLORS[6], linestyle="--", linewidth=1.5)
    ax.set(yscale="log", xlim=(-0.02 * place[-1], place[-1]), ylim=(0.5, counts.max() * 30))
    ax.set_xticks([0, cut, place[-1]], ["0", f"{high:.2g}", f"{end:.2g}"], fontsize=8)
    ax.tick_params(axis="x", pad=1, length=2)
    for label, side in zip(ax.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_ha(side)
    top = {"va": "top", "fontsize": 9, "transform": ax.get_xaxis_transform()}
    ax.text(
        cut / 2, 0.96, "kept range", ha="center", color=ink(COLORS[6]), **(top | {"fontsize": 8})
    )
    ax.text((cut + place[-1]) / 2, 0.96, "cut off", ha="center", color=ink(GREY), **top)
    ax.text((cut + place[-1]) / 2, 0.80, "(height: count,\nlog scale)", ha="center",
            color=ink(GREY), **(top | {"fontsize": 8}))  # fmt: skip


def _staircase(ax: Any) -> None:
    x = np.linspace(0, 1, 400)
    wave = 0.52 + 0.36 * np.sin(2 * np.pi * x) + 0.08 * np.sin(4 * np.pi * x)
    rounded = np.round(wave * 9) / 9
    for code in range(1, 9):
        ax.axhline(code / 9, color="#e3e6ea", linewidth=0.8, zorder=0)
    ax.plot(x, wave, color=GREY, linewidth=1.2, linestyle="--")
    ax.plot(x, rounded, color=COLORS[2], linewidth=1.8)
    ax.text(0.47, 0.84, "FP32", fontsize=9, color=ink(GREY))
    ax.text(0.1, 0.14, "integers", fontsize=9, color=ink(COLORS[2]))
    ax.set(xlim=(0, 1), ylim=(0.02, 1))


def _verdict(ax: Any) -> None:
    rows = (("accuracy", "a little less?", COLORS[6]), ("size", "a quarter", COLORS[0]),
            ("latency", "less?", COLORS[0]))  # fmt: skip
    for row, (name, said, shade) in enumerate(rows):
        y = 0.82 - 0.3 * row
        ax.text(0.08, y + 0.035, name, fontsize=9.5, va="center")
        ax.add_patch(
            FancyBboxPatch((0.08, y - 0.13), 0.84, 0.09, boxstyle="round,pad=0.008",
                           facecolor=shade, alpha=0.22, edgecolor="none")
        )  # fmt: skip
        ax.text(0.5, y - 0.085, said, fontsize=9, ha="center", va="center")
    ax.set(xlim=(0, 1), ylim=(0, 1))


def _arrows(fig: Figure, axes: Any) -> None:
    """From panel to panel, and back from validation to calibration."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    boxes = [ax.get_position() for ax in axes]
    middle = (boxes[0].y0 + boxes[0].y1) / 2
    for left, right in itertools.pairwise(boxes):
        _arrow(fig, (left.x1, middle), (right.x0, middle), color="#33373d")
    start, end = boxes[4], boxes[2]
    under = 0.105
    x0, x1 = (start.x0 + start.x1) / 2, (end.x0 + end.x1) / 2
    style = {"color": COLORS[6], "linewidth": 1.4, "transform": fig.transFigure}
    fig.add_artist(Line2D([x0, x0, x1], [under + 0.03, under, under], **style))
    _arrow(fig, (x1, under), (x1, under + 0.045), color=COLORS[6])
    fig.text(
        (x0 + x1) / 2, under - 0.02, "too much lost? choose other ranges, no training needed",
        ha="center", va="top", fontsize=9, color=ink(COLORS[6]),
    )  # fmt: skip


def _arrow(fig: Figure, start: tuple, end: tuple, color: str) -> None:
    fig.add_artist(
        FancyArrowPatch(
            start, end, transform=fig.transFigure, arrowstyle="-|>", mutation_scale=13,
            shrinkA=1, shrinkB=1, color=color, linewidth=1.4,
        )
    )  # fmt: skip
