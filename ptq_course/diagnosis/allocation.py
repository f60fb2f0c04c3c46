"""Which layer gets which width? A knapsack over measured losses, solved greedily. Chapter 10.

Each layer has options, a width with its bytes and its loss, and one is to be chosen for each. Were
the losses of layers to add, this would be the multiple-choice knapsack: on the lower convex hull of
each layer's options the greedy order, least loss per byte saved first, is optimal at every size
that it reaches (Sinha, Zoltners, "The Multiple-Choice Knapsack Problem", 1979). They do not add, so
`mixed` measures what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple, TypeVar

Width = TypeVar("Width", int, str, int | str)


class Option(NamedTuple):
    """What one width of one layer costs."""

    bytes: int
    loss: float


Options = Mapping[str, Mapping[Width, Option]]  # layer -> width -> its cost


def hull(options: Mapping[Width, Option]) -> list[Width]:
    """The widths on the lower convex hull of loss over bytes, largest first.

    The first has the least loss of all, of equals the fewest bytes; from there on every step saves
    bytes at a growing price in loss per byte.
    """
    order = sorted(options, key=lambda w: (options[w].loss, options[w].bytes))
    kept: list[Width] = []
    for width in order:
        at = options[width]
        if kept and at.bytes >= options[kept[-1]].bytes:
            continue  # no smaller, and it loses no less
        while len(kept) > 1 and _price(options[kept[-2]], options[kept[-1]]) >= _price(
            options[kept[-1]], at
        ):
            kept.pop()
        kept.append(width)
    return kept


def _price(wide: Option, narrow: Option) -> float:
    """Loss per byte saved."""
    return (narrow.loss - wide.loss) / (wide.bytes - narrow.bytes)


def path(options: Options) -> list[dict[str, Width]]:
    """Assignments from the least loss to the fewest bytes, one layer a step narrower each time.

    Each is optimal among all of its size or smaller, if losses add. Of equal prices the step that
    saves more bytes comes first.
    """
    hulls = {name: hull(widths) for name, widths in options.items()}
    steps = []
    for name, widths in hulls.items():
        for position, (wide, narrow) in enumerate(pairwise(widths)):
            before, after = options[name][wide], options[name][narrow]
            saved = before.bytes - after.bytes
            steps.append((_price(before, after), -saved, name, position, narrow))
    steps.sort(key=lambda step: (step[0], step[3] if step[0] == 0 else 0, step[1]))
    current = {name: widths[0] for name, widths in hulls.items()}
    found = [dict(current)]
    for *_, name, _, narrow in steps:
        current[name] = narrow
        found.append(dict(current))
    return found


def total(options: Options, widths: Mapping[str, Width]) -> Option:
    """Bytes and summed loss of an assignment."""
    chosen = [options[name][width] for name, width in widths.items()]
    return Option(sum(c.bytes for c in chosen), sum(c.loss for c in chosen))


def filled(options: Options, widths: Mapping[str, Width], budget: int) -> dict[str, Width]:
    """An assignment that fits ``budget`` bytes, its layers widened while there is room.

    Greedy: what gains most loss per byte first. Never worse than ``widths``, if losses add.
    """
    current = dict(widths)
    while True:
        room = budget - total(options, current).bytes
        best: tuple[float, str, Width] | None = None
        for name, width in current.items():
            at = options[name][width]
            for other, there in options[name].items():
                extra, gain = there.bytes - at.bytes, at.loss - there.loss
                if extra <= room and gain > 0 and extra > 0:
                    best = max(best or (0.0, "", other), (gain / extra, name, other),
                               key=lambda found: found[0])  # fmt: skip
        if best is None or not best[1]:
            return current
        current[best[1]] = best[2]
