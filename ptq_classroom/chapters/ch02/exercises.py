"""Checks of chapter 02: the scale of min-max over batches, and a percentile from a histogram."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    defended,
    interval,
    made_scores,
    no_rival_is_better,
    same_decision,
    unpaired,  # noqa: F401  (a wrong answer's)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect_close, expect_number
from ptq_course.grids.metrics import paired_bootstrap

# 02.1 ------------------------------------------------------------------------------------------


def minmax_scale(batches: list[Tensor], bits: int) -> float:
    """Symmetric scale that covers every value of every batch."""
    largest = 0.0
    for batch in batches:
        largest = max(largest, batch.abs().max().item())
    return largest / (2 ** (bits - 1) - 1)


def _batches() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, rows: list[list[float]], bits: int) -> tuple[str, dict[str, Any]]:
        return label, {"batches": [torch.tensor(row) for row in rows], "bits": bits}

    yield case("the largest value in the last batch", [[0.5, -1.0], [0.2, 2.0], [-0.1, 2.54]], 8)
    yield case("the largest value in the first batch", [[5.08, -1.0], [0.2, 2.0], [-0.1, 1.0]], 8)
    yield case("the largest magnitude is negative", [[0.5, -1.0], [0.2, -12.7], [0.3, 2.0]], 8)
    yield case("everything is negative", [[-0.25, -0.5], [-0.35, -0.45], [-0.1, -0.2]], 6)
    yield case("4 bits", [[0.7, -1.4], [2.1, -3.5], [0.1, 0.2]], 4)
    yield case("batches of different length", [[0.5, -1.0, 0.1], [2.54], [0.2, 0.3]], 8)
    generator = torch.Generator().manual_seed(201)
    images = [torch.randn(4, 3, 5, 5, generator=generator) * k for k in (1.0, 3.0, 0.5)]
    yield "batches of pictures [4, 3, 5, 5]", {"batches": images, "bits": 8}


def _width(batches: list[Tensor]) -> float:
    """Used by wrong answers."""
    return max(b.max().item() for b in batches) - min(b.min().item() for b in batches)


def _same_scale(got: Any, expected: float, **_: Any) -> None:
    expect_number(got, "scale")
    expect_close(got, expected, "scale", rtol=1e-5)


def _scale_concatenated(batches: list[Tensor], bits: int) -> Tensor:
    values = torch.cat([batch.flatten() for batch in batches])
    return torch.maximum(values.max(), -values.min()) / (2 ** (bits - 1) - 1)


def _scale_numpy(batches: list[Tensor], bits: int) -> float:
    ends = [(float(b.numpy().min()), float(b.numpy().max())) for b in batches]
    return float(np.abs(np.array(ends)).max() / ((1 << (bits - 1)) - 1))


MINMAX_SCALE = Exercise(
    id="02.1", title="The scale of min-max, batch by batch", minutes=6, difficulty=1,
    signature="minmax_scale(batches, bits)", reference=minmax_scale, cases=_batches,
    compare=_same_scale, returns="scale",
    accepted=(_scale_concatenated, _scale_numpy),
    diagnoses=(
        ("max(largest, batch.abs().max().item()) => batch.abs().max().item()",
         "only the last batch counts: carry the largest value from batch to batch"),
        ("in batches: => in batches[:1]:",
         "only the first batch counts: a later batch may hold larger values"),
        ("max(largest, batch.abs().max().item()) => largest + batch.abs().max().item() / "
         "len(batches)",
         "this is the mean of the batches' maxima; values above the mean would be clipped"),
        ('largest = 0.0 => largest = float("-inf")',
         "batch.abs() => batch",
         "the maximum, not the largest magnitude: a large negative value is left out"),
        ("(2 ** (bits - 1) - 1) => 2 ** (bits - 1)",
         "divided by 2^(bits-1): the largest code is 2^(bits-1) - 1"),
        ("largest / (2 ** (bits - 1) - 1) => _width(batches) / (2**bits - 1)",
         "this is the affine scale; the symmetric one has its range around 0"),
        ("max(largest, batch.abs().max().item()) => 0.9 * (largest or batch.abs().max().item()) "
         "+ 0.1 * batch.abs().max().item()",
         "this is a moving average: it ends below the largest value, which is then clipped"),
        ("return largest => return _width(batches) / 2",
         "half of highest minus lowest: the range is centred on 0, so the larger magnitude "
         "decides"),
        ("in batches: => in torch.stack(batches):",
         "torch.stack wants batches of one shape, and the last one is often shorter: loop over "
         "the list"),
        ("(2 ** (bits - 1) - 1) => 127", "127 is the largest code of 8 bits only: use `bits`"),
    ),
    hints=(
        ("I do not know what to keep",
         "One number is enough: the largest |x| of all batches so far."),
        ("Which number divides it?",
         "Symmetric codes of b bits end at 2^(b-1) - 1: 127 for 8 bits, 7 for 4 bits."),
    ),
)  # fmt: skip


# 02.2 ------------------------------------------------------------------------------------------


def hist_percentile(counts: np.ndarray, edges: np.ndarray, p: float) -> float:
    """The value below which p percent of the counted values lie."""
    wanted = p / 100 * counts.sum()
    running = np.cumsum(counts)
    i = int(np.searchsorted(running, wanted))
    i = min(i, len(counts) - 1)
    below = running[i] - counts[i]
    inside = (wanted - below) / counts[i] if counts[i] else 0.0
    width = edges[i + 1] - edges[i]
    return float(edges[i] + inside * width)


def _histograms() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, counts: list[int], edges: list[float], p: float) -> tuple:
        given = {"counts": np.array(counts), "edges": np.array(edges, dtype=float), "p": p}
        return label, given

    yield case("four bins, half of the values", [10, 20, 40, 30], [0, 1, 2, 3, 4], 50)
    yield case("in the first bin", [60, 20, 15, 5], [0, 1, 2, 3, 4], 30)
    yield case("the edge of a bin", [10, 20, 40, 30], [0, 1, 2, 3, 4], 70)
    yield case("wide bins that begin below zero", [5, 25, 50, 20], [-8, -4, 0, 4, 8], 95)
    yield case("an outlier far out", [900, 90, 9, 0, 0, 0, 0, 1], list(range(0, 90, 10)), 99)
    yield case("everything", [3, 4, 3], [0, 2, 4, 6], 100)
    yield case("bins of unequal width", [10, 10], [0, 1, 3], 75)
    rng = np.random.default_rng(202)
    counts, edges = np.histogram(rng.exponential(size=4999), bins=64)
    yield "a long tail", {"counts": counts, "edges": edges, "p": 99.9}


def _same_value(got: Any, expected: float, edges: np.ndarray, **_: Any) -> None:
    expect_number(got, "the percentile")
    expect_close(got, expected, "the percentile", rtol=1e-6, atol=1e-6 * float(edges[1] - edges[0]))


def _walk(counts: np.ndarray, edges: np.ndarray, p: float) -> float:
    left = counts.sum() * p / 100
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if left <= count:
            return low + (high - low) * left / max(count, 1)
        left -= count
    return edges[-1]


def _interpolated(counts: np.ndarray, edges: np.ndarray, p: float) -> np.float64:
    filled = np.asarray(counts) > 0
    upto = np.cumsum(counts)[filled] / counts.sum() * 100
    before = upto - counts[filled] / counts.sum() * 100
    shares = np.stack([before, upto], 1).ravel()  # both ends of every bin that is not empty
    values = np.stack([edges[:-1][filled], edges[1:][filled]], 1).ravel()
    return np.interp(p, shares, values)


HIST_PERCENTILE = Exercise(
    id="02.2", title="A percentile from a histogram", minutes=9, difficulty=3,
    signature="hist_percentile(counts, edges, p)", reference=hist_percentile, cases=_histograms,
    compare=_same_value, returns="value",
    accepted=(_walk, _interpolated),
    diagnoses=(
        ("edges[i] + inside * width => edges[i]",
         "the left edge of the bin: values in it are spread up to its right edge"),
        ("edges[i] + inside * width => edges[i + 1]",
         "the right edge of the bin: go only the needed part of the way into it"),
        ("p / 100 => min(p, 1.0)", "p is a percentage: divide it by 100"),
        ("edges[i] + inside * width => edges[0] + p / 100 * (edges[-1] - edges[0])",
         "p percent of the range; it is p percent of the values"),
        ("edges[i] + inside * width => np.interp(wanted, running, edges[1:])",
         "the interpolation begins after the first bin: before it the running sum is 0, at "
         "edges[0]"),
        ("running[i] - counts[i] => running[i - 1]",
         "running[i - 1] of the first bin is the last sum of all: before the first bin the "
         "running sum is 0"),
        ("edges[i] + inside * width => (edges[i] + edges[i + 1]) / 2",
         "the centre of the bin: go the needed share of the way from its left to its right edge"),
        ("edges[i + 1] - edges[i] => edges[1] - edges[0]",
         "the width of the first bin was used for all: bins may differ, take edges[i + 1] - "
         "edges[i]"),
        ("p / 100 * => p *", "p runs from 0 to 100: divide it by 100 before multiplying"),
        ("p / 100 => (1 - p / 100)",
         "counted from the top: p percent of the values lie below the result"),
    ),
    hints=(
        ("Where do I begin?",
         "How many values lie below the result? p / 100 of the total. Walk from the left until "
         "the running sum reaches that number."),
        ("I have the bin, but not the value",
         "The bin holds n values and you still need m of them: go the share m / n of the way "
         "from its left to its right edge."),
        ("numpy has something for running sums",
         "np.cumsum(counts) gives them, np.searchsorted finds the first large enough."),
    ),
)  # fmt: skip


# 02.3 ------------------------------------------------------------------------------------------


def moving_average(maxima: list[float], momentum: float) -> float:
    """The average that starts at the first maximum and then keeps `momentum` of itself."""
    average = maxima[0]
    for maximum in maxima[1:]:
        average = momentum * average + (1 - momentum) * maximum
    return average


def _maxima() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "two batches", {"maxima": [1.0, 2.0], "momentum": 0.9}
    yield "the largest comes first", {"maxima": [9.0, 1.0, 1.0, 2.0], "momentum": 0.9}
    yield "the largest comes last", {"maxima": [1.0, 2.0, 1.0, 9.0], "momentum": 0.9}
    yield "another momentum", {"maxima": [3.0, 1.0, 4.0, 1.0, 5.0], "momentum": 0.5}
    yield "one batch", {"maxima": [2.5], "momentum": 0.9}
    rng = np.random.default_rng(203)
    yield "many batches", {"maxima": rng.gamma(2, 2, 40).tolist(), "momentum": 0.99}


def _average_of_weights(maxima: list[float], momentum: float) -> float:
    n = len(maxima)
    weights = [(1 - momentum) * momentum ** (n - 1 - i) for i in range(n)]
    weights[0] = momentum ** (n - 1)
    return sum(w * m for w, m in zip(weights, maxima, strict=True))


def _average_recursive(maxima: list[float], momentum: float) -> float:
    if len(maxima) == 1:
        return maxima[0]
    before = _average_recursive(maxima[:-1], momentum)
    return before + (1 - momentum) * (maxima[-1] - before)


MOVING_AVERAGE = Exercise(
    id="02.3", title="A moving average", minutes=5, difficulty=1,
    signature="moving_average(maxima, momentum)", reference=moving_average, cases=_maxima,
    returns="the average", accepted=(_average_of_weights, _average_recursive),
    diagnoses=(
        ("momentum * average + (1 - momentum) * maximum => (1 - momentum) * average + "
         "momentum * maximum",
         "the new batch got the weight of the old average: it counts 1 - momentum"),
        ("average = maxima[0] => average = 0.0", "in maxima[1:] => in maxima",
         "the average starts at 0 and needs many batches to forget it: start at the first one"),
        ("return average => return sum(maxima) / len(maxima)",
         "the plain mean: every batch weighs the same, and the momentum is not used"),
        ("return average => return max(maxima)",
         "the largest of all batches: that is min-max, which forgets nothing"),
        ("momentum * average + (1 - momentum) * maximum => max(average, momentum * average + "
         "(1 - momentum) * maximum)",
         "this average only grows: a smaller maximum pulls it down too"),
        ("momentum * average + (1 - momentum) * maximum => 0.9 * average + 0.1 * maximum",
         "0.9 is one momentum only: use the argument"),
    ),
    hints=(
        ("Where does it start?", "At the first maximum itself. The loop begins with the second."),
        ("One turn of the loop", "Keep `momentum` of the average, add 1 - momentum of the new."),
    ),
)  # fmt: skip


# 02.4 ------------------------------------------------------------------------------------------


def choose_percentile(scores: Scores, flash: Scores, baseline: str) -> tuple:
    """The best rule among those that do not surely lose flash pictures, and its interval."""
    harmless = [name for name in scores if interval(flash[baseline], flash[name])[1] >= 0]
    choice = max(harmless, key=lambda name: scores[name].mean().item())
    low, high = interval(scores[baseline], scores[choice])
    return choice, low, high


def _clippings() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, all_: list[float], flash: list[float], seed: int, base: str) -> tuple:
        names = ("p99.99", "p99.9", "p99", "p97")
        scores = made_scores(3000, dict(zip(names, all_, strict=True)), seed)
        there = made_scores(600, dict(zip(names, flash, strict=True)), seed + 1)
        return label, {"scores": scores, "flash": there, "baseline": base}

    yield case("more clipping costs flash pictures", [0.80, 0.86, 0.90, 0.93],
               [0.45, 0.50, 0.30, 0.20], 240, "p99.9")  # fmt: skip
    yield case("clipping costs nobody surely", [0.80, 0.86, 0.90, 0.94], [0.50, 0.5, 0.54, 0.49],
               242, "p99.9")  # fmt: skip
    yield case("more clipping hurts everyone", [0.88, 0.90, 0.80, 0.60], [0.5, 0.4, 0.3, 0.2],
               244, "p99.9")  # fmt: skip
    yield case("all are allowed, the third is best", [0.80, 0.86, 0.93, 0.84],
               [0.5, 0.5, 0.5, 0.5], 246, "p99.9")  # fmt: skip


def _clips_no_flash(choice: str, scores: Scores, flash: Scores, baseline: str) -> str:
    low, high = interval(flash[baseline], flash[choice])
    if high < 0:
        return f"flash pictures lose {-high:.3f} to {-low:.3f} against {baseline!r}"
    rest = {n: s for n, s in scores.items() if interval(flash[baseline], flash[n])[1] >= 0}
    return no_rival_is_better(choice, rest, baseline)


def _defended_for_flash(
    got: Any, expected: Any, scores: Scores, flash: Scores, baseline: str
) -> None:
    defended(got, expected, scores, baseline, lambda c, s, b: _clips_no_flash(c, s, flash, b))


def _choose_in_a_loop(scores: Scores, flash: Scores, baseline: str) -> tuple:
    best = baseline
    for name, row in scores.items():
        fine = paired_bootstrap(flash[baseline], flash[name])[2] >= 0
        if fine and row.sum() > scores[best].sum():
            best = name
    return best, paired_bootstrap(scores[baseline], scores[best], seed=3)[1:]


def _choose_by_losses(scores: Scores, flash: Scores, baseline: str) -> list:
    gain = {name: (row - flash[baseline]) for name, row in flash.items()}
    loses = {n: (d.mean() + 1.96 * d.std() / len(d) ** 0.5).item() < 0 for n, d in gain.items()}
    best = sorted((name for name in scores if not loses[name]), key=lambda n: -scores[n].sum())[0]
    change = scores[best] - scores[baseline]
    half = 1.96 * change.std() / len(change) ** 0.5
    return [best, change.mean() - half, change.mean() + half]


CHOOSE_PERCENTILE = Exercise(
    id="02.4", title="A percentile that you can defend", minutes=8, difficulty=3,
    signature="choose_percentile(scores, flash, baseline)", reference=choose_percentile,
    cases=_clippings, compare=_defended_for_flash, agree=same_decision,
    returns=("rule", "low", "high"), accepted=(_choose_in_a_loop, _choose_by_losses),
    diagnoses=(
        *WRONG_INTERVALS,
        ("max(harmless => max(scores",
         "the flash pictures were not asked: look at their interval before you choose"),
        ("flash[name])[1] >= 0 => flash[name])[0] >= 0",
         "this asks that flash pictures surely do not lose: they may, unless they surely lose"),
        ("max(harmless, key=lambda name: scores[name].mean().item()) => harmless[-1]",
         "this clips as much as is allowed: among those that are allowed, take what is best"),
        ("max(harmless => min(harmless", "this is the worst of those that are allowed"),
        ("max(harmless, key=lambda name: scores[name].mean().item()) => baseline",
         "the baseline is allowed, but another one beats it without hurting flash pictures"),
        ("max(harmless, key=lambda name: scores[name].mean().item()) => max(flash, "
         "key=lambda name: flash[name].mean().item())",
         "best for the flash pictures alone: among the harmless ones, all pictures decide"),
    ),
    hints=(
        ("Two questions",
         "First: which percentiles does the flash interval allow? Its upper end must reach 0. "
         "Then: which of those is best on all pictures?"),
        ("The interval",
         "paired_bootstrap(scores[baseline], scores[choice]) gives (difference, low, high)."),
    ),
)  # fmt: skip


EXERCISES = [MINMAX_SCALE, HIST_PERCENTILE, MOVING_AVERAGE, CHOOSE_PERCENTILE]
