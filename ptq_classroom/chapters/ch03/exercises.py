"""Checks of chapter 03: the divergence, and the two histograms that it compares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
    yield "shares instead of counts", _pair([0.5, 0.25, 0.25], [0.125, 0.5, 0.375])
    rng = np.random.default_rng(301)
    for _ in range(2):
        yield "random", _pair(rng.integers(1, 50, 12), rng.integers(1, 50, 12))


def _long() -> tuple[str, dict[str, Any]]:
    rng = np.random.default_rng(311)
    return "2,048 bins", _pair(rng.integers(1, 50, 2048), rng.integers(1, 50, 2048))


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
                    return not math.isclose(got, kl(p, q), rel_tol=1e-9)
    return False


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


KL = Exercise(
    id="03.1", title="The divergence of two histograms", minutes=6, difficulty=2,
    signature="kl(p, q)", reference=kl, cases=_pairs, compare=_same_divergence,
    returns="the divergence", pace=_long,
    accepted=(_kl_loop, _kl_torch),
    diagnoses=(
        ("np.log( => np.log2(", "log2 gives bits; the natural logarithm gives nats"),
        ("np.log( => np.log10(", "log10 is 2.3 times too small: nats take the natural logarithm"),
        ("p, q = p / p.sum(), q / q.sum() => pass",
         "the counts were not divided by their sums: p and q must each add to 1"),
        ("p, q = p / p.sum(), q / q.sum() => q, p = p / p.sum(), q / q.sum()",
         "this is KL(Q || P): the weights in front of the logarithm are those of P"),
        ("filled = p > 0 => filled = slice(None)",
         "if (q[filled] == 0).any(): => if False:",
         "0 * log(0) is nan in floating point; an empty bin of P counts as 0"),
        ("p > 0 => (p > 0) & (q > 0)",
         "a bin with P > 0 and Q = 0 was skipped: no code could ever have produced it, so the "
         "divergence is infinite"),
        ("if (q[filled] == 0).any(): => if False:",
         "p[filled] / q[filled] => (p[filled] + 1e-10) / (q[filled] + 1e-10)",
         SMOOTHED),
        (").sum()) => ).mean())", "the terms are added up, not averaged"),
        ("(p[filled] * np.log => np.abs(p[filled] * np.log",
         "some terms are negative, and must stay so: no abs()"),
        ("return float( => return -float(", "the sign is reversed: log(p / q), not log(q / p)"),
    ),
    hints=(
        ("I do not know where to begin",
         "Divide p and q by their sums. Then add up p * log(p / q), bin by bin."),
        ("The result is nan",
         "0 * log(0) counts as 0: keep only the bins with p > 0 before taking logarithms."),
        ("A warning about dividing by zero",
         "It comes from a bin where q is 0. If p is above 0 there, return float('inf')."),
    ),
)  # fmt: skip


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


def _long_histogram() -> tuple[str, dict[str, Any]]:
    hist = np.random.default_rng(312).integers(0, 50, 4096)
    return "2,048 of 4,096 bins", {"hist": hist, "i": 2048}


def _p_list(hist: Array, i: int) -> list[int]:
    """The last kept bin and everything after it are one number."""
    return [*hist[: i - 1].tolist(), sum(hist[i - 1 :].tolist())]


def _p_bincount(hist: Array, i: int) -> Array:
    return np.bincount(np.minimum(np.arange(len(hist)), i - 1), weights=hist)


def _p_tensor(hist: Array, i: int) -> Tensor:
    head, tail = torch.as_tensor(hist).split([i, len(hist) - i])
    return torch.cat([head[:-1], head[-1:] + tail.sum()])


MAKE_P = Exercise(
    id="03.2", title="P: the clipped histogram", minutes=4, difficulty=1,
    signature="make_p(hist, i)", reference=make_p, cases=_histograms, returns="P",
    pace=_long_histogram,
    accepted=(_p_list, _p_bincount, _p_tensor),
    diagnoses=(
        ("p[-1] += hist[i:].sum() => pass",
         "the outliers are missing: clipped values are not gone, they land in the last bin"),
        ("p[-1] => p[0]",
         "the outliers went to the first bin: clipping moves them to the last one"),
        ("hist[i:] => hist[i + 1 :]",
         "hist[i + 1:] leaves out bin i, which is the first one outside"),
        ("hist[i:] => hist[i - 1 :]",
         "hist[i - 1:] counts the last kept bin twice: the first bin outside is number i"),
        ("hist[:i] => hist[: i + 1]",
         "hist[i:] => hist[i + 1 :]",
         "there is one bin too many: hist[:i] are the first i bins"),
        ("p[-1] += => p[-1] =", "the last bin's own count was replaced: add the outliers to it"),
        ("p[-1] += hist[i:].sum() => p = np.append(p, hist[i:].sum())",
         "the outliers got a bin of their own: P has i bins, not i + 1"),
        ("return p => return np.append(p, np.zeros(len(hist) - i))",
         "P has only i bins: cut off the zeros behind them"),
        ("return p => return p / p.sum()",
         "return counts: dividing by the sum is left to kl(p, q)"),
        ("p[-1] += hist[i:].sum() => p += hist[i:].sum() / i",
         "the outliers were spread over all bins: clipping moves them to the last one"),
    ),
    hints=(
        ("I do not know where to begin",
         "hist[:i] are the bins inside. hist[i:].sum() is how many values lie beyond."),
        ("It says that I changed the input",
         "hist[:i] is a view: p[-1] += ... writes into hist. Make a copy, for instance with "
         "hist[:i].astype(float)."),
    ),
)  # fmt: skip


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
        {"hist": np.array([8, 4, 2, 0, 0, 5, 0]), "i": 4, "levels": 2},
    )
    yield (
        "an empty last bin, and no outliers",
        {"hist": np.array([4, 0, 2, 6, 1, 0]), "i": 6, "levels": 2},
    )
    yield "as many levels as bins", {"hist": np.array([5, 0, 2, 2, 3]), "i": 4, "levels": 4}
    rng = np.random.default_rng(303)
    for i, levels in ((24, 8), (27, 8)):
        hist = rng.integers(0, 6, 40) * rng.integers(0, 2, 40)
        hist[i:] += 1  # always some outliers
        yield "random", {"hist": hist, "i": i, "levels": levels}


def _many_groups() -> tuple[str, dict[str, Any]]:
    label, inputs = _long_histogram()
    return f"{label} in 128 groups", {**inputs, "levels": 128}


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


MAKE_Q = Exercise(
    id="03.3", title="Q: what the levels can still tell apart", minutes=9, difficulty=3,
    signature="make_q(hist, i, levels)", reference=make_q, cases=_groupings, returns="Q",
    pace=_many_groups,
    rtol=1e-6, atol=1e-12,
    accepted=(_q_prefix_sums, _q_plain_python),
    diagnoses=(
        ("make_p(hist, i) > 0 => np.ones(i)",
         "the mass was spread over all bins of the group: leave those empty that are empty in P"),
        ("hist[:i][group].sum() => make_p(hist, i)[group].sum()",
         "Q was made from P, outliers included: group the first i bins of hist itself"),
        ("/ filled[group].sum() =>",
         "each bin got the mass of its whole group: divide by the filled bins"),
        ("make_p(hist, i) > 0 => hist[:i] > 0",
         "the last bin holds nothing of its own but receives outliers, so it is filled in P and "
         "takes part in its group"),
        ("slice(g * i // levels, (g + 1) * i // levels) => slice(g * (i // levels), i if g == "
         "levels - 1 else (g + 1) * (i // levels))",
         "all the bins that remain went to the last group: group g ends at (g + 1) * i // "
         "levels, so widths differ by one at most"),
        ("slice(g * i // levels, (g + 1) * i // levels) => slice(g * (i // levels), (g + 1) * (i "
         "// levels))",
         "groups of i // levels bins leave the last bins without a group: group g ends at (g + "
         "1) * i // levels"),
        ("slice(g * i // levels, (g + 1) * i // levels) => np.array_split(np.arange(i), "
         "levels)[g]",
         "np.array_split puts the wider groups first: group g runs from g * i // levels to (g + "
         "1) * i // levels"),
        ("slice(g * i // levels, (g + 1) * i // levels) => slice(round(g * i / levels), round((g "
         "+ 1) * i / levels))",
         "the edges of the groups were rounded: // rounds down, group g begins at g * i // levels"),
        ("np.zeros(i) => np.zeros(levels)",
         "q[group] = filled[group] * hist[:i][group].sum() / filled[group].sum() => q[g] = "
         "hist[:i][group].sum()",
         "one number a group is not enough: spread it over the bins again"),
        ("q[group] = filled[group] * => q[group] =",
         "bins that are empty in P received mass as well: they stay 0"),
        ("np.zeros(i) => np.zeros_like(hist[:i])",
         "zeros_like(hist) is made of integers, which cut off the fractions: np.zeros(i)"),
        ("q = np.zeros(i) => q, levels = np.zeros(i), levels - 1",
         "the bins were put into levels - 1 groups: every level is a group"),
        ("range(levels) => range(levels - 1)", "the last group was left out: range(levels)"),
        ("filled = make_p(hist, i) > 0 => filled = hist[:i] > 0; filled[-1] = True",
         "the last bin is filled only where it holds something or receives outliers"),
        ("return q => return q / q.sum()",
         "return counts: dividing by the sum is left to kl(p, q)"),
        ("if filled[group].any(): => if True:",
         "a group without filled bins divides 0 by 0: leave it at 0"),
    ),
    hints=(
        ("I do not know where to begin",
         "Loop over the groups. Group g holds the bins g * i // levels up to, not including, (g "
         "+ 1) * i // levels. Add up its counts, divide by the number of its filled bins, write "
         "the result into those bins."),
        ("Which bins are filled?",
         "Those with make_p(hist, i) > 0. This differs from hist[:i] > 0 in one bin only: the "
         "last, when it is empty itself and outliers land in it."),
        ("My totals do not match",
         "Q holds what lies inside, P holds everything. kl divides both by their sums, so the "
         "difference in total is wanted."),
    ),
)  # fmt: skip


# 03.4 ------------------------------------------------------------------------------------------


def choose_rule(scores: Scores, kinds: Any, protected: str, baseline: str) -> tuple:
    """The best rule on the protected kind of picture, and its interval against the baseline."""
    part = torch.from_numpy(kinds == protected)
    scores = {rule: row[part] for rule, row in scores.items()}
    choice = max(scores, key=lambda rule: scores[rule].mean().item())
    low, high = interval(scores[baseline], scores[choice])
    return choice, low, high


def _lights() -> Iterator[tuple[str, dict[str, Any]]]:
    """Sets of pictures in which what is best for one kind is not best for all."""
    day, night = {"min-max": 0.90, "KL": 0.94, "99.9 %": 0.92}, {"min-max": 0.40, "KL": 0.75}
    parts = (
        ("day", 2400, day),
        ("night", 500, night | {"99.9 %": 0.55}),
        ("flash", 500, {"min-max": 0.85, "KL": 0.70, "99.9 %": 0.80}),
        ("rain", 500, {"min-max": 0.70, "KL": 0.62, "99.9 %": 0.80}),
        ("fog", 500, {"min-max": 0.10, "KL": 0.30, "99.9 %": 0.45}),
    )
    made = [made_scores(count, accuracy, 340 + i) for i, (_, count, accuracy) in enumerate(parts)]
    scores = {rule: torch.cat([row[rule] for row in made]) for rule in day}
    kinds = np.repeat([name for name, _, _ in parts], [count for _, count, _ in parts])
    order = np.random.default_rng(340).permutation(len(kinds))
    scores = {rule: row[torch.from_numpy(order)] for rule, row in scores.items()}
    for protected, baseline in (
        ("flash", "KL"), ("night", "min-max"), ("rain", "min-max"), ("flash", "min-max"),
        ("rain", "KL"), ("day", "min-max"), ("fog", "min-max"), ("fog", "KL"),
    ):  # fmt: skip
        yield f"{protected} pictures count, {baseline} is the baseline", {
            "scores": scores, "kinds": kinds[order], "protected": protected, "baseline": baseline,
        }  # fmt: skip


def _defended_on_the_kind(
    got: Any, expected: Any, scores: Scores, kinds: Any, protected: str, baseline: str
) -> None:
    part = torch.from_numpy(kinds == protected)
    there = {rule: row[part] for rule, row in scores.items()}
    defended(got, expected, there, baseline, no_rival_is_better)


def _choose_rule_numpy(scores: Scores, kinds: Any, protected: str, baseline: str) -> list:
    there = {rule: row.numpy()[kinds == protected] for rule, row in scores.items()}
    rules = sorted(there, key=lambda rule: -there[rule].sum())
    gain = there[rules[0]] - there[baseline]
    means = gain[np.random.default_rng(1).integers(0, len(gain), (2000, len(gain)))].mean(1)
    return [rules[0], *np.percentile(means, [2.5, 97.5])]


def _choose_rule_normal(scores: Scores, kinds: Any, protected: str, baseline: str) -> tuple:
    at = [i for i, kind in enumerate(kinds) if kind == protected]
    right = {rule: row[at].sum() for rule, row in scores.items()}
    best = next(rule for rule, count in right.items() if count == max(right.values()))
    gain = scores[best][at] - scores[baseline][at]
    half = 1.96 * gain.std() / len(at) ** 0.5
    return best, (gain.mean() - half, gain.mean() + half)


CHOOSE_RULE = Exercise(
    id="03.4", title="A rule for the pictures that count", minutes=9, difficulty=3,
    signature="choose_rule(scores, kinds, protected, baseline)", reference=choose_rule,
    cases=_lights, compare=_defended_on_the_kind, agree=same_decision,
    returns=("rule", "low", "high"), accepted=(_choose_rule_numpy, _choose_rule_normal),
    diagnoses=(
        *WRONG_INTERVALS,
        ("row[part] => row", "all pictures were asked: only those of the protected kind count"),
        ("max( => min(", "this is the rule that serves the protected kind worst"),
        ("max(scores, key=lambda rule: scores[rule].mean().item()) => min(scores, key=lambda rule: "
         "scores[rule].std().item())",
         "the smallest deviation was taken: answers that are nearly all wrong deviate as little as "
         "those that are nearly all right"),
        ("kinds == protected => kinds != protected", "the protected pictures were left out"),
        ("return choice, low, high => return baseline, low, high",
         "the baseline's name with another rule's interval"),
        ("max(scores => max((rule for rule in scores if rule != baseline)",
         "the baseline was left out: it is one of the rules, and may be the best of them"),
        ("max(scores, key=lambda rule: scores[rule].mean().item()) => baseline",
         "the baseline is no choice: compare the rules on the protected pictures"),
    ),
    hints=(
        ("Where to begin",
         "`part = torch.from_numpy(kinds == protected)` marks the pictures that count; take "
         "row[part] of every rule before anything else."),
        ("Which rule", "The mean of a row is the accuracy. `max(scores, key=...)` finds a rule."),
        ("The interval",
         "paired_bootstrap(scores[baseline], scores[choice]) gives (difference, low, high), the "
         "choice minus the baseline, on the same pictures."),
    ),
)  # fmt: skip


EXERCISES = [KL, MAKE_P, MAKE_Q, CHOOSE_RULE]
