"""KL calibration: which part of a histogram to keep when there are only a few levels (chapter 03).

For every candidate window of bins ask how much is lost, in nats, by clipping to it and quantizing:

    P   the histogram inside the window, everything outside added to the window's outermost bins;
    Q   the same bins before that addition, merged into `levels` groups, the mass of each group
        spread evenly over its bins that are not empty in P;
    KL  sum p log(p / q) over the bins with p > 0, after both were normalized to sum 1.

A small window makes P differ from Q by the outliers piled onto its edge, a large one by the detail
lost inside wide groups. The best window balances the two. The usual histogram is one of magnitudes
|x|, the window starts at bin 0 and only its stop, the clipping threshold, is searched.

    clipped_histogram, requantized_histogram, kl_divergence, kl_divergences_loop    to be read
    kl_divergences                                   the same numbers, all candidates at once

Choices that the method leaves open, the same in both versions:
- Groups. Group g of a window of n bins holds its bins g*n//levels up to (g+1)*n//levels, so widths
  differ by one bin at most. (ONNX Runtime takes n//levels bins a group and gives all that remain,
  up to levels - 1 of them, to the last group; its curve is a saw-tooth for that reason.)
- Empty bins. A bin is empty when P is 0 there. An edge bin that was empty and received outliers is
  not empty, so it takes part in its group.
- P > 0 where Q = 0 happens in one case: outliers landed in a group that holds nothing else. The
  divergence is then infinite; no smoothing constant is invented. The window of all bins has no
  outliers, so there is always a finite candidate. Groups that are empty in P and Q contribute 0.
- Candidates have at least as many bins as levels. A histogram with no more bins than levels has one
  candidate only, all of it: KL calibration is then min-max calibration (`candidate_stops`).
- Ties. Divergences within TIE of the smallest are equal, and the largest window wins.

Where it must not be used: where rare large values are the answer. KL weighs how many values are
clipped, and not how far: a thousandth of them costs the same at twice the threshold and at a
hundred times it. A classifier often bears that. A regression (boxes, distances, energies) with a
long, dense tail does not: at 8 bits KL is as good as min-max on a bell and on exponential data and
about 7 dB below it on log-normal data (tests/ranges/test_kl.py, chapter 03).

Method: Szymon Migacz, "8-bit Inference with TensorRT", NVIDIA GPU Technology Conference, 2017.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptq_course.errors import CalibrationError, QuantizationError, whole
from ptq_course.ranges.threads import in_shares

TIE = 1e-9  # nats: below it two divergences differ by rounding, not by merit
TINY = np.finfo(np.float64).tiny
BLOCK = 2**15  # (candidate, group) pairs evaluated at a time: temporaries that fit the L2 cache


# --- the algorithm as it is told ---------------------------------------------------------------


def clipped_histogram(counts: ArrayLike, stop: int, start: int = 0) -> NDArray[np.float64]:
    """P: the bins start..stop-1 of `counts` with what lies outside added to the first and last.

    Raises QuantizationError for a window that is empty or not inside the histogram.
    """
    counts = np.asarray(counts)
    _check_windows(len(counts), np.atleast_1d(start), np.atleast_1d(stop))
    p = counts[start:stop].astype(np.float64)
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    return p


def requantized_histogram(
    counts: ArrayLike, levels: int, stop: int, start: int = 0
) -> NDArray[np.float64]:
    """Q: the bins start..stop-1 of `counts`, in `levels` groups, each spread over its filled bins.

    No outliers are added here; they only decide, through P, whether an edge bin counts as filled.
    Raises QuantizationError for fewer than 1 of levels and where clipped_histogram does.
    """
    _check_levels(levels)
    filled = clipped_histogram(counts, stop, start) > 0
    inside = np.asarray(counts)[start:stop]
    bins = len(inside)
    q = np.zeros(bins)
    for g in range(levels):
        group = slice(g * bins // levels, (g + 1) * bins // levels)
        if filled[group].any():
            q[group][filled[group]] = inside[group].sum() / filled[group].sum()
    return q


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """KL(P || Q) in nats, after normalizing both. Infinite where P has mass and Q has none.

    p, q: nonnegative, equal shape [n]; p not all zero. Raises QuantizationError otherwise.
    Source: Kullback and Leibler, "On Information and Sufficiency", 1951.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    if p.ndim != 1 or p.shape != q.shape:
        raise QuantizationError(f"p and q must be alike, [n], got shapes {p.shape} and {q.shape}")
    if not ((p >= 0).all() and (q >= 0).all() and 0 < p.sum() < np.inf and q.sum() < np.inf):
        raise QuantizationError("p and q must be finite, none of them negative, and p not all 0")
    filled = p > 0
    a, b = p[filled] / p.sum(), q[filled] / max(q.sum(), TINY)
    return float(np.sum(a * np.log(a / b))) if (b > 0).all() else float("inf")


def kl_divergences_loop(
    counts: ArrayLike, levels: int, stops: ArrayLike | None = None, starts: ArrayLike = 0
) -> NDArray[np.float64]:
    """The divergence of each candidate window, one after the other. Arguments: kl_divergences."""
    counts, stops, starts = _checked_windows(counts, levels, stops, starts)
    divergences = []
    for start, stop in zip(starts, stops, strict=True):
        p = clipped_histogram(counts, stop, start)
        q = requantized_histogram(counts, levels, stop, start)
        divergences.append(kl_divergence(p, q))
    return np.array(divergences)


# --- which candidates, and which of them wins --------------------------------------------------


def candidate_stops(bins: int, levels: int, candidates: int | None = None) -> NDArray[np.int64]:
    """Window lengths to try: from `levels` bins to `bins` (always tried), increasing.

    candidates None tries every length (the classic search). A number tries at most so many, in
    geometric progression, so that a threshold a hundredth of the largest value is found to the same
    relative precision as one next to it; lengths that round to the same bin are tried once.
    With bins <= levels the only candidate is `bins`: nothing is searched.
    """
    if bins <= levels:
        return np.array([bins])
    if candidates is None or candidates > bins - levels:
        return np.arange(levels, bins + 1)
    stops = np.geomspace(levels, bins, max(candidates, 2)).round().astype(np.int64)
    return stops[np.diff(stops, prepend=0) > 0]  # sorted already, which np.unique would do again


def best_candidate(scores: ArrayLike, tie: float = TIE) -> int:
    """Index of the smallest score; among scores within `tie` of it the last, the largest window."""
    scores = np.asarray(scores)
    return int(np.flatnonzero(scores <= scores.min() + tie)[-1])


# --- every candidate at once -------------------------------------------------------------------


def kl_divergences(
    counts: ArrayLike, levels: int, stops: ArrayLike | None = None, starts: ArrayLike = 0
) -> NDArray[np.float64]:
    """The divergence in nats of every candidate window, from three prefix sums.

    counts: [bins] nonnegative, not all zero. levels: number of groups, at least 1.
    stops, starts: windows starts[i]..stops[i]-1, any shape that broadcasts to [candidates];
    stops None means every length from `levels` to `bins` (candidate_stops). Returns [candidates].

    Inside a group Q is one number, so the logarithm leaves the sum over the group's bins. With h
    the counts, S their sum over a group, m its filled bins, H the total, W the sum over the window,
    and P equal to h except in the two edge bins:

        H * KL =   sum_window P log P  -  H log H  +  H log W
                 - sum_groups S log(S / m)
                 - left * log(S / m of the first group)  -  right * log(S / m of the last group)

    where left and right are the outliers on either side. The sums over windows and groups are
    differences of prefix sums of h log h, of h, and of the filled bins. Agrees with the loop to
    1e-9 nats. Raises QuantizationError for windows outside the histogram or levels < 1, and
    CalibrationError for an empty histogram or negative counts.
    """
    counts, stops, starts = _checked_windows(counts, levels, stops, starts)
    return window_divergences(prefix_sums(counts), levels, starts, stops)


class PrefixSums(NamedTuple):
    """A histogram and its prefix sums; entry i of the latter, [bins + 1], sums the first i bins."""

    counts: NDArray  # [bins] h
    mass: NDArray[np.float64]  # of h
    filled: NDArray[np.float64]  # of h > 0
    information: NDArray[np.float64]  # of h log h


def prefix_sums(counts: NDArray) -> PrefixSums:
    """The three prefix sums of kl_divergences. Made once, they serve any windows and any levels."""
    return PrefixSums(
        counts, _prefix_sum(counts), _prefix_sum(counts > 0), _prefix_sum(_x_log_x(counts))
    )


def window_divergences(
    sums: PrefixSums, levels: int, starts: NDArray, stops: NDArray
) -> NDArray[np.float64]:
    """kl_divergences of windows known to be valid, by all threads, in blocks that fit the cache."""
    rows = max(1, BLOCK // levels)

    def divergences(share: NDArray) -> list[NDArray]:
        blocks = (share[i : i + rows].T for i in range(0, len(share), rows))
        return [_block_divergences(sums, levels, *block) for block in blocks]

    shares = in_shares(divergences, np.stack([starts, stops], axis=1), rows)
    return np.concatenate([block for share in shares for block in share])


def _block_divergences(sums: PrefixSums, levels: int, start: NDArray, stop: NDArray) -> NDArray:
    """[candidates] from start and stop [candidates]; the formula is in kl_divergences."""
    counts, mass, filled, information = sums
    bins = stop - start
    edges = start[:, None] + bins[:, None] * np.arange(levels + 1) // levels
    group_mass = np.diff(mass.take(edges), axis=1)
    group_filled = np.diff(filled.take(edges), axis=1)

    total, inside = mass[-1], mass[stop] - mass[start]
    left, right = mass[start], total - mass[stop]
    first, last = counts[start], counts[stop - 1]
    row = np.arange(len(stop))
    first_group = -(-levels // bins) - 1  # 0 unless there are fewer bins than groups
    group_filled[row, first_group] += (left > 0) & (first == 0)  # an empty bin that receives
    group_filled[row, -1] += (right > 0) & (last == 0)  #          outliers is filled

    height = group_mass / np.maximum(group_filled, 1)  # Q in the filled bins of each group
    log_height = np.log(np.maximum(height, TINY))
    p_log_p = information[stop] - information[start]
    p_log_p += _x_log_x(first + left) - _x_log_x(first) + _x_log_x(last + right) - _x_log_x(last)
    p_log_q = np.einsum("cg,cg->c", group_mass, log_height)  # a dot product for each candidate
    p_log_q += left * log_height[row, first_group] + right * log_height[:, -1]
    divergence = (p_log_p - p_log_q) / total - np.log(total) + np.log(np.maximum(inside, TINY))

    impossible = (left > 0) & (height[row, first_group] == 0)
    impossible |= (right > 0) & (height[:, -1] == 0)
    divergence = np.where(bins == 1, 0.0, np.maximum(divergence, 0.0))  # one bin: P = Q = 1
    return np.where(impossible, np.inf, divergence)


def _prefix_sum(values: NDArray) -> NDArray[np.float64]:
    """[n] -> [n + 1]: entry i is the sum of the first i values."""
    return np.concatenate([[0], np.cumsum(values)]).astype(np.float64)


def _x_log_x(x: NDArray) -> NDArray[np.float64]:
    return x * np.log(np.maximum(x, TINY))


def _checked_windows(
    counts: ArrayLike, levels: int, stops: ArrayLike | None, starts: ArrayLike
) -> tuple[NDArray, NDArray, NDArray]:
    """counts [bins], stops and starts [candidates], or an error that says what is wrong."""
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.size == 0 or not counts.any():
        raise CalibrationError(
            f"a histogram must be one-dimensional with a count above 0, got shape {counts.shape}: "
            "collect data before searching a threshold"
        )
    if not (counts >= 0).all() or not np.isfinite(counts.sum(dtype=np.float64)):
        raise CalibrationError("a histogram must hold finite counts, none of them negative")
    _check_levels(levels)
    if stops is None:
        last = int(np.max(starts))
        stops = last + candidate_stops(len(counts) - last, levels)
    until, since = np.broadcast_arrays(np.atleast_1d(stops), starts)
    until, since = until.ravel(), since.ravel()
    _check_windows(len(counts), since, until)
    return counts, until, since


def _check_levels(levels: int) -> None:
    whole("levels", levels, 1)


def _check_windows(bins: int, starts: NDArray, stops: NDArray) -> None:
    if not len(stops):
        raise QuantizationError("there is no window to try: give at least one stop")
    for name, bound in (("start", starts), ("stop", stops)):
        if bound.dtype.kind not in "iu" or bound.ndim != 1:
            raise QuantizationError(f"{name} counts bins: give integers, got {bound.dtype}")
    if not ((starts >= 0) & (starts < stops) & (stops <= bins)).all():
        raise QuantizationError(
            f"every window needs 0 <= start < stop <= {bins} bins, got starts "
            f"{starts.min()}..{starts.max()} and stops {stops.min()}..{stops.max()}"
        )
