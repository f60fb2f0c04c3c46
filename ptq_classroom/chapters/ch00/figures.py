"""Figures of chapter 00: the classes, one prediction, the pictures that flipped, the scoreboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ptq_classroom.kit.names import rule_name
from ptq_classroom.kit.show import COLORS, DPI, GREY, color, figure, ink
from ptq_classroom.pictures.brighten import developed, gain_of, light_of
from ptq_classroom.pictures.camera import MEAN, STD
from ptq_classroom.pictures.classes import CLASS_NAMES, GROUPS

Shown = tuple[Figure, str]
LOST, GAINED = ink(COLORS[2]), ink(COLORS[0])
WHITE = "white"
MARK = {True: "✓", False: "✗"}
NAMED = 9  # changed answers that an alt text names before it says how many more there are


def classes(split: Any, columns: int = 8) -> Shown:
    """The first ordinary picture of each class in `split`, under the class's name."""
    labels, ordinary = split.labels.numpy(), np.asarray(split.modes) == "normal"
    first = [int(np.flatnonzero((labels == k) & ordinary)[0]) for k in range(len(CLASS_NAMES))]
    fig, axes = _wall(len(first), columns, times=3, gap=24)
    for ax, place, name in zip(axes, first, CLASS_NAMES, strict=True):
        ax.imshow(_picture(split.images[place]))
        ax.set_title(_two_lines(name), fontsize=8, loc="center", pad=3)
    groups = ", ".join(f"{len(names)} of {group}" for group, names in GROUPS.items())
    return fig, f"One picture of each of the {len(CLASS_NAMES)} classes: {groups}."


def prediction(image: Tensor, outputs: Mapping[str, Tensor], truth: int, top: int = 4) -> Shown:
    """A picture beside the probabilities that each network gives to the likeliest classes.

    image: uint8 [3, H, W]; outputs: logits [classes] by the network's name.
    """
    shares = {name: np.asarray(x.double().softmax(0)) for name, x in outputs.items()}
    chosen = np.argsort(-sum(shares.values()), kind="stable")[:top]
    if truth not in chosen:
        chosen[-1] = truth
    fig, (left, right) = figure(7.6, 2.7, 1, 2, width_ratios=(1, 2.4))
    fig.get_layout_engine().set(h_pad=0.12)  # room for the title above the picture
    left.imshow(_picture(image))
    left.axis("off")
    left.set_title(CLASS_NAMES[truth], loc="center")
    height = 0.8 / len(shares)
    for i, (name, share) in enumerate(shares.items()):
        place = np.arange(len(chosen)) + (i - (len(shares) - 1) / 2) * height
        bars = right.barh(place, 100 * share[chosen], height * 0.9, color=COLORS[i], label=name,
                          hatch=(None, "///")[i % 2], edgecolor=WHITE, linewidth=0)  # fmt: skip
        right.bar_label(bars, [f"{100 * share[k]:.0f}" for k in chosen], padding=3, fontsize=8)
    right.set_yticks(np.arange(len(chosen)), [_starred(k, truth) for k in chosen])
    right.invert_yaxis()
    right.set(xlabel="probability that the network gives (%)", xlim=(0, 108))
    right.legend(loc="lower right")
    said = "; ".join(
        f"{name}: " + ", ".join(f"{CLASS_NAMES[k]} {100 * share[k]:.0f} percent" for k in chosen)
        for name, share in shares.items()
    )
    finding = ", ".join(
        f"{name} answers {CLASS_NAMES[int(share.argmax())]} "
        f"({'right' if int(share.argmax()) == truth else 'wrong'})"
        for name, share in shares.items()
    )
    return fig, f"{finding}. A picture of class {CLASS_NAMES[truth]} beside bars. {said}."


def flipped(split: Any, fp: Tensor, q: Tensor, places: Sequence[int], columns: int = 6) -> Shown:
    """Pictures whose answer changed: what FP32 said, and what INT8 says, right or wrong.

    fp, q: logits [N, classes] on `split`; places: which pictures to show.
    """
    labels, before, after = split.labels.numpy(), fp.argmax(1).numpy(), q.argmax(1).numpy()
    chosen = [int(i) for i in places]
    gains = {i: gain for i in chosen if (gain := gain_of(light_of(split.images[i]))) > 1}
    fig, axes = _wall(len(chosen) + len(gains), columns, times=4, gap=40)
    told, cells = [], iter(axes)
    for i in chosen:
        was, now = before[i] == labels[i], after[i] == labels[i]
        tint = LOST if was and not now else GAINED if now and not was else ink(GREY)
        said = (
            f"FP32 {MARK[bool(was)]} {_short(before[i])}\nINT8 {MARK[bool(now)]} {_short(after[i])}"
        )
        _show(next(cells), _picture(split.images[i]), said, tint)
        if i in gains:
            copy = developed(light_of(split.images[i]) * gains[i])
            _show(next(cells), _picture(copy), f"the same,\n{gains[i]}x the light", "black")
        told.append(f"{CLASS_NAMES[before[i]]} to {CLASS_NAMES[after[i]]}")
    lost, gained = (
        sum(bool(x[i] == labels[i]) and not bool(y[i] == labels[i]) for i in chosen)
        for x, y in ((before, after), (after, before))
    )
    rest = f", and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return fig, (
        f"{lost} pictures that only FP32 names right, then {gained} that only INT8 does; "
        f"{len(gains)} are so dark that a brightened copy stands beside them. "
        f"From FP32's answer to INT8's: {', '.join(told[:NAMED])}{rest}."
    )


def seen(rows: Mapping[str, Tensor], kinds: Sequence[str]) -> Shown:
    """Inputs drawn as pictures again, one row a network: what it gets to see.

    rows: normalized inputs float32 [N, 3, H, W] as `to_input` makes them; kinds: a word a picture.
    Beside a picture that is dark in the first row stands a copy, brightened alike in all rows.
    """
    lights = {name: (inputs * STD + MEAN).clamp(min=0) for name, inputs in rows.items()}
    columns: list[tuple[int, int]] = []  # (picture, how many times its light)
    for i, light in enumerate(next(iter(lights.values()))):
        gain = gain_of(light)
        columns += [(i, 1)] if gain == 1 else [(i, 1), (i, gain)]
    fig, axes = figure(9.6, 0.95 * len(rows) + 0.4, len(rows), len(columns), squeeze=False)
    for line, (name, light) in zip(axes, lights.items(), strict=True):
        for ax, (i, gain) in zip(line, columns, strict=True):
            title = str(kinds[i]) if gain == 1 else f"{gain}x\nthe light"
            title = title if name == next(iter(rows)) else ""
            _show(ax, _picture(developed(light[i] * gain)), title, "black")
        label = name.replace(", ", ",\n").replace(" sees", "\nsees")
        line[0].annotate(
            label, (0, 0.5), xycoords="axes fraction", xytext=(-6, 0), fontsize=9,
            textcoords="offset points", ha="right", va="center",
        )  # fmt: skip
    counts = {name: [len(x.unique()) for x in inputs] for name, inputs in rows.items()}
    first, *others = counts
    worst = min(counts, key=lambda name: min(counts[name]))
    at = int(np.argmin(counts[worst]))
    kept = ", ".join(f"{counts[name][at]} in {name}" for name in others)
    told = "; ".join(f"{name}: {_by_kind(kinds, row)}" for name, row in counts.items())
    return fig, (
        f"A {kinds[at]} picture of {counts[first][at]} different values keeps {kept}. "
        f"{len(kinds)} pictures as each network gets to see them, a row a network. "
        f"Different values in each: {told}."
    )


def difference(
    rows: Mapping[str, tuple[float, float, float]], guess: Any = None, title: str = ""
) -> Shown:
    """Change of accuracy in points with its 95 % interval, one row a comparison, and zero.

    rows: (difference, low, high) as shares of 1, as `metrics.paired_bootstrap` gives them.
    guess: a `Prediction` of the loss, drawn at its negative.
    """
    fig, ax = figure(7.0, 0.9 + 0.42 * len(rows))
    values = 100 * np.array(list(rows.values()))
    place = np.arange(len(rows))
    error = np.stack([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
    ax.errorbar(values[:, 0], place, xerr=error, fmt="o", color=COLORS[0], capsize=4, zorder=3)
    for y, (middle, _, _) in zip(place, values, strict=True):
        ax.annotate(f"{middle:+.1f}", (middle, y), xytext=(0, 6), textcoords="offset points",
                    ha="center", fontsize=9)  # fmt: skip
    ax.axvline(0, color=GREY, linewidth=1.2)
    ax.set_yticks(place, [rule_name(name) for name in rows])
    ax.set(ylim=(len(rows) - 0.5, -0.6), xlabel="change of accuracy against FP32 (points)")
    ax.set_xlim(min(values.min(), 0) * 1.15 - 0.1, max(values.max(), 0) * 1.15 + 0.5)
    ax.set_title(title)
    if guess is not None and isinstance(guess.guess, int | float):
        shown = type(guess)(guess.id, -guess.guess, guess.unit)
        ax.set_xlim(min(ax.get_xlim()[0], 1.1 * shown.guess), None)
        shown.draw(ax)
    told = "; ".join(
        f"{rule_name(name)} {a:+.1f} points, from {b:+.1f} to {c:+.1f}"
        for name, (a, b, c) in zip(rows, values.tolist(), strict=True)
    )
    return fig, f"{told}: changes of accuracy against FP32, with 95 percent intervals."


def scoreboard(
    accuracy: Mapping[str, float],
    megabytes: Mapping[str, float],
    speed: Mapping[str, float],
    guesses: Sequence[Any] = (),
) -> Shown:
    """Accuracy (%), file size (MB), speed against FP32: what was won and lost, in one row.

    guesses: up to three `Prediction`s: loss in points, times smaller, times faster. Each is a
    dashed line with its label above the axes; a value that the line would cross moves into its bar.
    """
    parts = (
        ("top-1 accuracy (%)", accuracy, "{:.1f}"),
        ("file size (MB)", megabytes, "{:.2f}"),
        ("speed (FP32 = 1)", speed, "{:.1f}"),
    )
    lines = _guesses(parts, guesses)
    fig, axes = figure(9.6, 2.5, 1, 3)
    for ax, line, (title, values, form) in zip(axes, lines, parts, strict=True):
        tints = [GREY, *([COLORS[0]] * (len(values) - 1))]
        bars = ax.barh(np.arange(len(values)), list(values.values()), color=tints, height=0.6)
        ax.set_yticks(np.arange(len(values)), list(values))
        ax.invert_yaxis()
        ax.set_title(title, pad=6 if line is None else 24)
        end = max(1.22 * max(values.values()), 1.1 * (line or 0))
        ax.set_xlim(0, end)
        for bar, value in zip(bars, values.values(), strict=True):
            crossed = line is not None and -0.01 * end < line - value < 0.17 * end
            ax.annotate(
                form.format(value), (value, bar.get_y() + bar.get_height() / 2),
                xytext=(-8 if crossed else 4, 0), textcoords="offset points", fontsize=9,
                ha="right" if crossed else "left", va="center",
            )  # fmt: skip
        if line is not None:
            ax.axvline(line, color="black", linestyle=(0, (4, 2)), linewidth=1.5, zorder=5)
            ax.text(
                line, 1.02, "your guess", transform=ax.get_xaxis_transform(), fontsize=9,
                ha="center", va="bottom", zorder=10,
                bbox={"facecolor": WHITE, "edgecolor": "none", "pad": 1},
            )  # fmt: skip
    told = [
        f"{title}: " + ", ".join(f"{name} ~{form.format(v)}" for name, v in values.items())
        for title, values, form in parts
    ]
    return fig, f"Scoreboard. {'; '.join(told)}."


def fewer_bits(bits: Sequence[int], rows: Mapping[str, Sequence[float]], reference: float) -> Shown:
    """Accuracy (%) over the bits of weights and activations, a line a rule; FP32 is dashed."""
    fig, ax = figure(7.0, 3.3)
    place = np.arange(len(bits))
    told = []
    for i, (name, accuracy) in enumerate(rows.items()):
        ax.plot(place, accuracy, marker="o", **color(i))
        ax.annotate(
            f"{rule_name(name)} {accuracy[-1]:.1f}", (place[-1], accuracy[-1]), xytext=(8, 0),
            textcoords="offset points", va="center", fontsize=9, color=ink(COLORS[i]),
        )  # fmt: skip
        pairs = ", ".join(f"{b} bits {a:.1f}" for b, a in zip(bits, accuracy, strict=True))
        told.append(f"{rule_name(name)}: {pairs}")
    ax.axhline(reference, color=GREY, linestyle="--", linewidth=1.2)
    ax.text(0, reference + 1, f"FP32 {reference:.1f}", color=ink(GREY), fontsize=9, va="bottom")
    ax.set(xlabel="bits of weights and activations", ylabel="top-1 accuracy (%)")
    ax.set_xticks(place, list(map(str, bits)))
    ax.set(ylim=(0, 108), xlim=(-0.2, place[-1] + 0.75))
    last = {rule_name(name): float(row[-1]) for name, row in rows.items()}
    best, worst = max(last, key=last.__getitem__), min(last, key=last.__getitem__)
    said = "; ".join(told)
    return fig, (
        f"With {bits[-1]} bits {best} keeps {last[best]:.1f} percent, {worst} {last[worst]:.1f}. "
        f"Lines of top-1 accuracy in percent over bits. {said}. FP32 {reference:.1f}."
    )


def _guesses(parts: tuple, guesses: Sequence[Any]) -> list[float | None]:
    """Where each guess stands on its axis, None where nobody guessed."""
    fp_accuracy, fp_size = (next(iter(values.values())) for _, values, _ in parts[:2])
    turn = (lambda g: fp_accuracy - g, lambda g: fp_size / g, lambda g: g)
    made = [g.guess if isinstance(g.guess, int | float) else None for g in guesses]
    made += [None] * (len(parts) - len(made))
    return [None if g is None else convert(g) for g, convert in zip(made, turn, strict=True)]


def _wall(count: int, columns: int, times: int, gap: int) -> tuple[Figure, list[Any]]:
    """Axes for pictures of 48 pixels, each exactly `times` dots wide, under titles of two lines.

    Whole dots compress well: noise that is resampled unevenly makes the notebook a third larger.
    """
    side, title, rows = 48 * times, 46, -(-count // columns)
    wide, high = columns * (side + gap), rows * (side + title)
    fig, axes = figure(wide / DPI, high / DPI, rows, columns, squeeze=False)
    fig.set_layout_engine("none")
    for i, ax in enumerate(axes.flat):
        ax.axis("off")
        x, y = i % columns * (side + gap) + gap // 2, high - (i // columns + 1) * (side + title)
        ax.set_position((x / wide, y / high, side / wide, side / high))
    return fig, list(axes.flat[:count])


def _show(ax: Any, picture: np.ndarray, title: str, tint: str) -> None:
    ax.imshow(picture)
    ax.axis("off")
    if title:
        ax.set_title(title, fontsize=8, loc="center", pad=3, color=tint)


def _by_kind(kinds: Sequence[str], counts: Sequence[int]) -> str:
    """The counts of each kind of picture: "night 2 to 4"."""
    said = []
    for kind in dict.fromkeys(map(str, kinds)):
        own = [n for k, n in zip(kinds, counts, strict=True) if k == kind]
        said.append(f"{kind} {min(own)}" + (f" to {max(own)}" if max(own) > min(own) else ""))
    return ", ".join(said)


def _picture(image: Tensor) -> np.ndarray:
    return np.asarray(image).transpose(1, 2, 0)


def _two_lines(name: str) -> str:
    """Long names on two lines, short ones on the lower of two."""
    if len(name) <= 14:
        return f"\n{name}"
    words = name.split()
    cut = min(range(1, len(words)), key=lambda i: abs(len(" ".join(words[:i])) - len(name) / 2))
    return " ".join(words[:cut]) + "\n" + " ".join(words[cut:])


def _short(k: int) -> str:
    return CLASS_NAMES[k].removeprefix("smiling ")


def _starred(k: int, truth: int) -> str:
    return f"{CLASS_NAMES[k]} ✓" if k == truth else CLASS_NAMES[k]
