"""Checks of chapter 03: the divergence, and the two histograms that it compares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure, expect_close
from ptq_classroom.kit.values import as_array

Array = NDArray[np.float64]


# 03.1 ------------------------------------------------------------------------------------------


def kl(p: Array, q: Array) -> float:
    """KL divergence of two histograms in nats; infinite where only P has mass."""
    p, q = p / p.sum(), q / q.sum()
    filled = p > 0
    if (q[filled] == 0).any():
        return math.inf
    return float((p[filled] * np.log(p[filled] / q[filled])).sum())


def _pairs() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "the four bins of the text", _pair([5, 3, 2, 2], [4, 4, 2, 2])
    yield "totals that differ", _pair([5, 3, 2, 3], [4, 4, 2, 2])
    yield "equal shapes", _pair([1, 2, 3], [2, 4, 6])
    yield "a bin that is empty in P", _pair([3, 0, 1, 4], [2, 1, 1, 4])
    yield "a bin that is empty in both", _pair([6, 0, 2], [5, 0, 3])
    yield "a bin that is empty in Q only", _pair([6, 1, 2], [5, 0, 3])
    rng = np.random.default_rng(301)
    for _ in range(2):
        yield "random", _pair(rng.integers(1, 50, 12), rng.integers(1, 50, 12))


def _pair(p: Any, q: Any) -> dict[str, Any]:
    return {"p": np.asarray(p, np.float64), "q": np.asarray(q, np.float64)}


SMOOTHED = (
    "a small constant was added to avoid log(0): where P > 0 and Q = 0 the divergence is infinite, "
    "not as large as the constant makes it"
)


def _same_divergence(got: Any, expected: float, p: Array, q: Array) -> None:
    try:
        expect_close(got, expected, "the divergence", atol=1e-7)
    except Failure as failure:
        if failure.index is not None and _is_smoothed(as_array(got).item(), p, q):
            failure.cause = SMOOTHED
        raise


def _is_smoothed(got: float, p: Array, q: Array) -> bool:
    """Whether some power of ten in the logarithm, or in an empty bin of Q, gives this number."""
    p, q = p / p.sum(), q / q.sum()
    for tiny in 10.0 ** -np.arange(1, 31):
        floor = np.where(q == 0, tiny, q)
        for a, b in ((p + tiny, q + tiny), (p, q + tiny), (p, np.maximum(q, tiny)), (p, floor)):
            for total in (1.0, b.sum()):
                with np.errstate(divide="ignore", invalid="ignore"):
                    smoothed = np.where(p > 0, p * np.log(a / b * total), 0.0).sum()
                if math.isclose(got, smoothed, rel_tol=1e-9):
                    return not math.isclose(got, float(_terms(p, q).sum()), rel_tol=1e-9)
    return False


def _terms(p: Array, q: Array, log: Any = np.log, normalise: bool = True) -> Array:
    """The summands of the divergence, 0 where P is 0; infinite where only P has mass."""
    if normalise:
        p, q = p / p.sum(), q / q.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * log(p / q), 0.0)


def _kl_in_bits(p: Array, q: Array) -> float:
    return float(_terms(p, q, np.log2).sum())


def _kl_of_counts(p: Array, q: Array) -> float:
    return float(_terms(p, q, normalise=False).sum())


def _kl_swapped(p: Array, q: Array) -> float:
    return float(_terms(q, p).sum())


def _kl_unmasked(p: Array, q: Array) -> float:
    p, q = p / p.sum(), q / q.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((p * np.log(p / q)).sum())


def _kl_both_masked(p: Array, q: Array) -> float:
    terms = _terms(p, q)
    return float(terms[np.isfinite(terms)].sum())


def _kl_smoothed(p: Array, q: Array) -> float:
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log((p + 1e-10) / (q + 1e-10))).sum())


def _kl_mean(p: Array, q: Array) -> float:
    return float(_terms(p, q).mean())


def _kl_absolute(p: Array, q: Array) -> float:
    return float(np.abs(_terms(p, q)).sum())


def _kl_negative(p: Array, q: Array) -> float:
    return -float(_terms(p, q).sum())


def _kl_loop(p: Array, q: Array) -> float:
    total, p_sum, q_sum = 0.0, sum(p), sum(q)
    for a, b in zip(p, q, strict=True):
        if a > 0 and b == 0:
            return float("inf")
        if a > 0:
            total += a / p_sum * math.log((a / p_sum) / (b / q_sum))
    return total


def _kl_torch(p: Array, q: Array) -> Tensor:
    """Two logarithms of counts, as xlogy gives 0 * log(0) = 0."""
    a, b = torch.as_tensor(p).double(), torch.as_tensor(q).double()
    cross = torch.special.xlogy(a, a) - torch.special.xlogy(a, b)
    return cross.sum() / a.sum() - a.sum().log() + b.sum().log()


# 03.2 ------------------------------------------------------------------------------------------


def make_p(hist: NDArray[np.int64], i: int) -> Array:
    """The first i bins, what lies beyond added to the last of them."""
    p = hist[:i].astype(np.float64)
    p[-1] += hist[i:].sum()
    return p


def _histograms() -> Iterator[tuple[str, dict[str, Any]]]:
    seven = np.array([5, 3, 2, 2, 0, 0, 1])
    yield "the seven bins of the text, four kept", {"hist": seven, "i": 4}
    yield "all seven kept", {"hist": seven.copy(), "i": 7}
    yield "the last bin kept is empty", {"hist": seven.copy(), "i": 5}
    yield "one bin kept", {"hist": seven.copy(), "i": 1}
    rng = np.random.default_rng(302)
    yield "a long tail", {"hist": rng.geometric(0.02, 3000).astype(np.int64), "i": 2900}
    yield "random", {"hist": rng.integers(0, 9, 40), "i": 25}


def _p_dropped(hist: Array, i: int) -> Array:
    return hist[:i].astype(np.float64)


def _p_in_front(hist: Array, i: int) -> Array:
    p = hist[:i].astype(np.float64)
    p[0] += hist[i:].sum()
    return p


def _p_forgets_one(hist: Array, i: int) -> Array:
    p = hist[:i].astype(np.float64)
    p[-1] += hist[i + 1 :].sum()
    return p


def _p_counts_one_twice(hist: Array, i: int) -> Array:
    p = hist[:i].astype(np.float64)
    p[-1] += hist[i - 1 :].sum()
    return p


def _p_one_too_many(hist: Array, i: int) -> Array:
    p = hist[: i + 1].astype(np.float64)
    p[-1] += hist[i + 1 :].sum()
    return p


def _p_replaced(hist: Array, i: int) -> Array:
    p = hist[:i].astype(np.float64)
    p[-1] = hist[i:].sum()
    return p


def _p_appended(hist: Array, i: int) -> Array:
    return np.append(hist[:i], hist[i:].sum())


def _p_padded(hist: Array, i: int) -> Array:
    p = np.zeros(len(hist))
    p[:i] = make_p(hist, i)
    return p


def _p_normalised(hist: Array, i: int) -> Array:
    return make_p(hist, i) / hist.sum()


def _p_spread(hist: Array, i: int) -> Array:
    return hist[:i] + hist[i:].sum() / i


def _p_list(hist: Array, i: int) -> list[int]:
    """The last kept bin and everything after it are one number."""
    return [*hist[: i - 1].tolist(), sum(hist[i - 1 :].tolist())]


def _p_bincount(hist: Array, i: int) -> Array:
    return np.bincount(np.minimum(np.arange(len(hist)), i - 1), weights=hist)


def _p_tensor(hist: Array, i: int) -> Tensor:
    head, tail = torch.as_tensor(hist).split([i, len(hist) - i])
    return torch.cat([head[:-1], head[-1:] + tail.sum()])


# 03.3 ------------------------------------------------------------------------------------------


def make_q(hist: NDArray[np.int64], i: int, levels: int) -> Array:
    """The first i bins in `levels` groups, the mass of each spread over its filled bins."""
    filled = make_p(hist, i) > 0
    q = np.zeros(i)
    for g in range(levels):
        group = slice(g * i // levels, (g + 1) * i // levels)
        if filled[group].any():
            q[group] = filled[group] * hist[:i][group].sum() / filled[group].sum()
    return q


def _groupings() -> Iterator[tuple[str, dict[str, Any]]]:
    seven = np.array([5, 3, 2, 2, 0, 0, 1])
    yield "the seven bins of the text, four kept", {"hist": seven, "i": 4, "levels": 2}
    yield "an empty bin in a group", {"hist": np.array([4, 0, 2, 6, 1, 1]), "i": 6, "levels": 2}
    yield "an empty group", {"hist": np.array([4, 2, 0, 0, 3, 1]), "i": 6, "levels": 3}
    yield "groups of unequal width", {"hist": seven.copy(), "i": 7, "levels": 2}
    yield (
        "an empty last bin that receives outliers",
        {"hist": np.array([8, 4, 2, 0, 0, 5]), "i": 4, "levels": 2},
    )
    yield "as many levels as bins", {"hist": np.array([5, 0, 2, 2, 3]), "i": 4, "levels": 4}
    rng = np.random.default_rng(303)
    for i, levels in ((24, 8), (27, 8)):
        hist = rng.integers(0, 6, 40) * rng.integers(0, 2, 40)
        hist[i:] += 1  # always some outliers
        yield "random", {"hist": hist, "i": i, "levels": levels}


def _groups(i: int, levels: int) -> list[slice]:
    return [slice(g * i // levels, (g + 1) * i // levels) for g in range(levels)]


def _q_over_all(hist: Array, i: int, levels: int) -> Array:
    q = np.zeros(i)
    for group in _groups(i, levels):
        q[group] = hist[:i][group].mean()
    return q


def _q_from_p(hist: Array, i: int, levels: int) -> Array:
    return make_q(make_p(hist, i), i, levels)


def _q_not_divided(hist: Array, i: int, levels: int) -> Array:
    filled, q = make_p(hist, i) > 0, np.zeros(i)
    for group in _groups(i, levels):
        q[group] = filled[group] * hist[:i][group].sum()
    return q


def _q_filled_without_outliers(hist: Array, i: int, levels: int) -> Array:
    return make_q(hist[:i], i, levels)


def _q_rest_in_last(hist: Array, i: int, levels: int) -> Array:
    ends = [g * (i // levels) for g in range(levels)] + [i]
    return _in_groups(hist, i, [slice(a, b) for a, b in pairwise(ends)])


def _q_rest_dropped(hist: Array, i: int, levels: int) -> Array:
    width = i // levels
    return _in_groups(hist, i, [slice(g * width, (g + 1) * width) for g in range(levels)])


def _q_rounded_edges(hist: Array, i: int, levels: int) -> Array:
    edges = [round(g * i / levels) for g in range(levels + 1)]
    return _in_groups(hist, i, [slice(a, b) for a, b in pairwise(edges)])


def _q_longest_first(hist: Array, i: int, levels: int) -> Array:
    parts = np.array_split(np.arange(i), levels)
    return _in_groups(hist, i, [slice(part[0], part[-1] + 1) for part in parts])


def _q_merged_only(hist: Array, i: int, levels: int) -> Array:
    return np.array([hist[:i][group].sum() for group in _groups(i, levels)], np.float64)


def _q_mean_of_filled_everywhere(hist: Array, i: int, levels: int) -> Array:
    filled, q = make_p(hist, i) > 0, np.zeros(i)
    for group in _groups(i, levels):
        q[group] = hist[:i][group].sum() / max(filled[group].sum(), 1)
    return q


def _q_normalised(hist: Array, i: int, levels: int) -> Array:
    q = make_q(hist, i, levels)
    return q / q.sum()


def _q_nan(hist: Array, i: int, levels: int) -> Array:
    filled, q = make_p(hist, i) > 0, np.zeros(i)
    for group in _groups(i, levels):
        with np.errstate(invalid="ignore"):
            q[group] = filled[group] * (np.float64(hist[:i][group].sum()) / filled[group].sum())
    return q


def _in_groups(hist: Array, i: int, groups: list[slice]) -> Array:
    filled, q = make_p(hist, i) > 0, np.zeros(i)
    for group in groups:
        q[group] = filled[group] * hist[:i][group].sum() / max(filled[group].sum(), 1)
    return q


def _q_prefix_sums(hist: Array, i: int, levels: int) -> Array:
    """Every group at once: differences of cumulative sums, repeated over the group's bins."""
    edges = np.arange(levels + 1) * i // levels
    filled = np.asarray(_p_list(hist, i)) > 0
    mass = np.diff(np.append(0, np.cumsum(hist[:i]))[edges])
    places = np.diff(np.append(0, np.cumsum(filled))[edges])
    return np.repeat(mass / np.maximum(places, 1), np.diff(edges)) * filled


def _q_plain_python(hist: Array, i: int, levels: int) -> list[float]:
    outliers, q = int(sum(hist[i:])), []
    for g in range(levels):
        begin, end = g * i // levels, (g + 1) * i // levels
        filled = [hist[j] > 0 or (j == i - 1 and outliers > 0) for j in range(begin, end)]
        share = sum(int(hist[j]) for j in range(begin, end)) / max(1, sum(filled))
        q += [share if f else 0.0 for f in filled]
    return q


EXERCISES = [
    Exercise(
        id="03.1",
        title="The divergence of two histograms",
        minutes=6,
        difficulty=2,
        signature="kl(p, q)",
        reference=kl,
        cases=_pairs,
        compare=_same_divergence,
        returns="the divergence",
        accepted=(_kl_loop, _kl_torch),
        diagnoses=(
            (_kl_in_bits, "log2 gives bits; the natural logarithm gives nats"),
            (
                _kl_of_counts,
                "the counts were not divided by their sums: p and q must each add to 1",
            ),
            (
                _kl_swapped,
                "this is KL(Q || P): the weights in front of the logarithm are those of P",
            ),
            (_kl_unmasked, "0 * log(0) is nan in floating point; an empty bin of P counts as 0"),
            (
                _kl_both_masked,
                "a bin with P > 0 and Q = 0 was skipped: no code could ever have produced it, so "
                "the divergence is infinite",
            ),
            (_kl_smoothed, SMOOTHED),
            (_kl_mean, "the terms are added up, not averaged"),
            (_kl_absolute, "some terms are negative, and must stay so: no abs()"),
            (_kl_negative, "the sign is reversed: log(p / q), not log(q / p)"),
        ),
        hints=(
            (
                "I do not know where to begin",
                "Divide p and q by their sums. Then add up p * log(p / q), bin by bin.",
            ),
            (
                "The result is nan",
                "0 * log(0) counts as 0: keep only the bins with p > 0 before taking logarithms.",
            ),
            (
                "A warning about dividing by zero",
                "It comes from a bin where q is 0. If p is above 0 there, return float('inf').",
            ),
        ),
    ),
    Exercise(
        id="03.2",
        title="P: the clipped histogram",
        minutes=4,
        difficulty=1,
        signature="make_p(hist, i)",
        reference=make_p,
        cases=_histograms,
        returns="P",
        accepted=(_p_list, _p_bincount, _p_tensor),
        diagnoses=(
            (
                _p_dropped,
                "the outliers are missing: clipped values are not gone, they land in the last bin",
            ),
            (
                _p_in_front,
                "the outliers went to the first bin: clipping moves them to the last one",
            ),
            (_p_forgets_one, "hist[i + 1:] leaves out bin i, which is the first one outside"),
            (
                _p_counts_one_twice,
                "hist[i - 1:] counts the last kept bin twice: the first bin outside is number i",
            ),
            (_p_one_too_many, "there is one bin too many: hist[:i] are the first i bins"),
            (_p_replaced, "the last bin's own count was replaced: add the outliers to it"),
            (_p_appended, "the outliers got a bin of their own: P has i bins, not i + 1"),
            (_p_padded, "P has only i bins: cut off the zeros behind them"),
            (_p_normalised, "return counts: dividing by the sum is left to kl(p, q)"),
            (
                _p_spread,
                "the outliers were spread over all bins: clipping moves them to the last one",
            ),
        ),
        hints=(
            (
                "I do not know where to begin",
                "hist[:i] are the bins inside. hist[i:].sum() is how many values lie beyond.",
            ),
            (
                "It says that I changed the input",
                "hist[:i] is a view: p[-1] += ... writes into hist. Make a copy, for instance with "
                "hist[:i].astype(float).",
            ),
        ),
    ),
    Exercise(
        id="03.3",
        title="Q: what the levels can still tell apart",
        minutes=9,
        difficulty=3,
        signature="make_q(hist, i, levels)",
        reference=make_q,
        cases=_groupings,
        returns="Q",
        rtol=1e-6,
        accepted=(_q_prefix_sums, _q_plain_python),
        diagnoses=(
            (
                _q_over_all,
                "the mass was spread over all bins of the group: leave those empty that are empty "
                "in P",
            ),
            (
                _q_from_p,
                "Q was made from P, outliers included: group the first i bins of hist itself",
            ),
            (_q_not_divided, "each bin got the mass of its whole group: divide by the filled bins"),
            (
                _q_filled_without_outliers,
                "the last bin holds nothing of its own but receives outliers, so it is filled in P "
                "and takes part in its group",
            ),
            (
                _q_rest_in_last,
                "all the bins that remain went to the last group: group g ends at "
                "(g + 1) * i // levels, so widths differ by one at most",
            ),
            (
                _q_rest_dropped,
                "groups of i // levels bins leave the last bins without a group: group g ends at "
                "(g + 1) * i // levels",
            ),
            (
                _q_longest_first,
                "np.array_split puts the wider groups first: group g runs from g * i // levels to "
                "(g + 1) * i // levels",
            ),
            (
                _q_rounded_edges,
                "the edges of the groups were rounded: // rounds down, group g begins at "
                "g * i // levels",
            ),
            (_q_merged_only, "one number a group is not enough: spread it over the bins again"),
            (
                _q_mean_of_filled_everywhere,
                "bins that are empty in P received mass as well: they stay 0",
            ),
            (_q_normalised, "return counts: dividing by the sum is left to kl(p, q)"),
            (_q_nan, "a group without filled bins divides 0 by 0: leave it at 0"),
        ),
        hints=(
            (
                "I do not know where to begin",
                "Loop over the groups. Group g holds the bins g * i // levels up to, not "
                "including, (g + 1) * i // levels. Add up its counts, divide by the number of its "
                "filled bins, write the result into those bins.",
            ),
            (
                "Which bins are filled?",
                "Those with make_p(hist, i) > 0. This differs from hist[:i] > 0 in one bin only: "
                "the last, when it is empty itself and outliers land in it.",
            ),
            (
                "My totals do not match",
                "Q holds what lies inside, P holds everything. kl divides both by their sums, so "
                "the difference in total is wanted.",
            ),
        ),
    ),
]
