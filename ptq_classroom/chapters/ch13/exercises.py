"""Checks of chapter 13: packed codes, a codebook, rounding for the output, the fewest bits."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ptq_classroom.kit.cheapest import (
    HINTS,
    WRONG_CHOICES,
    by_standard_error,
    first_that_fits,
    limit_cases,
)
from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    cheapest_within,
    defended,
    interval,
    same_decision,
    unpaired,  # noqa: F401 (of a wrong answer)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import (
    Failure,
    expect,
    expect_close,
    expect_dtype,
    expect_integers,
    roughly,
)
from ptq_classroom.kit.values import as_array

# 13.1 ------------------------------------------------------------------------------------------


def pack_int4(q: Tensor) -> Tensor:
    """Two codes a byte, the first of each pair in the low four bits: uint8 [ceil(n / 2)]."""
    even = torch.cat([q, q.new_zeros(len(q) % 2)])
    bits = even.long() & 15
    first, second = bits[0::2], bits[1::2]
    return (first | (second << 4)).to(torch.uint8)


FLOATING = "a byte is a whole number: the result is uint8"


def _codes() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "two positive codes", {"q": torch.tensor([3, 5], dtype=torch.int8)}
    yield "a negative code first", {"q": torch.tensor([-1, 2], dtype=torch.int8)}
    yield "a negative code second", {"q": torch.tensor([4, -8], dtype=torch.int8)}
    yield "an odd number of codes", {"q": torch.tensor([7, -3, 6], dtype=torch.int8)}
    yield "one code", {"q": torch.tensor([-7], dtype=torch.int8)}
    every = torch.arange(-8, 8, dtype=torch.int8)
    yield "every code", {"q": every}
    g = torch.Generator().manual_seed(1301)
    yield "101 codes", {"q": every[torch.randint(0, 16, (101,), generator=g)]}


def _bytes(got: Any, expected: Tensor, **_: Any) -> None:
    fractions = isinstance(got, list | tuple) and any(isinstance(v, float) for v in got)
    expect(not fractions, "the bytes are floating-point numbers, four bytes each or more",
           expected=expected, got=got, cause=FLOATING)  # fmt: skip
    expect_close(got, expected, "the bytes", rtol=0, atol=0)
    expect_integers(got, "the bytes")
    expect_dtype(got, torch.uint8, "the bytes")


def _pack_by_loop(q: Tensor) -> list[int]:
    codes = [*q.tolist(), 0]
    return [
        codes[i] % 16 + 16 * (codes[i + 1] % 16) for i in range(0, len(codes) - 1, 2)
    ]  # a list of whole numbers says the same as a tensor of bytes


def _pack_by_product(q: Tensor) -> Tensor:
    pairs = torch.nn.functional.pad(q.int() % 16, (0, len(q) % 2)).reshape(-1, 2)
    return (pairs * torch.tensor([1, 16])).sum(1).to(torch.uint8)


PACK_INT4 = Exercise(
    id="13.1", title="Two weights in one byte", minutes=7, difficulty=2,
    signature="pack_int4(q)", reference=pack_int4, cases=_codes, compare=_bytes,
    returns="the bytes", accepted=(_pack_by_loop, _pack_by_product),
    diagnoses=(
        ("first | (second << 4) => second | (first << 4)",
         "the other way round: the first code of a pair is in the low four bits"),
        ("even.long() & 15 => even.long()",
         "a negative code has ones in all its high bits, which overwrite the other code: keep "
         "four bits of each with & 15"),
        ("even.long() & 15 => even.long() + 8",
         "8 was added: asked for is two's complement, where -1 is 1111 and 0 is 0000"),
        ("even = torch.cat([q, q.new_zeros(len(q) % 2)]) => even = q[: len(q) // 2 * 2]",
         "the last code of an odd number is lost: fill its byte up with a 0"),
        ("second << 4 => second << 8",
         "shifted by 8: the second code is outside the byte"),
        ("first | (second << 4) => first + second",
         "added without a shift: two codes share the same four bits"),
        ("bits[0::2], bits[1::2] => bits[: len(bits) // 2], bits[len(bits) // 2 :]",
         "the first half goes with the second: neighbours share a byte"),
        ("even.long() & 15 => even.long().abs() & 15", "the sign is lost: 3 and -3 look alike"),
        ("to(torch.uint8) => to(torch.int16)",
         "stored in 16 bits: as large as before, and one byte is enough"),
    ),
    hints=(
        ("What are the four bits of -3?",
         "Two's complement, the low four bits of the int8 code: `q & 15`, which is 13."),
        ("How do I put two codes together?", "`first | (second << 4)`, in a type wider than int8."),
        ("An odd number of codes", "Append one 0 before you make pairs."),
    ),
)  # fmt: skip


# 13.2 ------------------------------------------------------------------------------------------


def kmeans_1d(w: Tensor, k: int) -> Tensor:
    """A codebook of k values for the weights w [n], by Lloyd's iterations from quantiles."""
    start = (torch.arange(k) + 0.5) / k
    book = torch.quantile(w, start)
    for _ in range(100):
        nearest = (w[:, None] - book).abs().argmin(1)
        for i in range(k):
            members = w[nearest == i]
            if len(members):
                book[i] = members.mean()
    return book


def least_error(w: Tensor, k: int) -> float:
    """The least squared error that k values can have: exact, by dynamic programming.

    In one dimension clusters are runs of the sorted weights. After step j, ``least[i]`` is the best
    error of the first i weights with j + 1 runs.
    """
    x = w.double().sort().values
    zero = x.new_zeros(1)
    sums, squares = torch.cat([zero, x.cumsum(0)]), torch.cat([zero, (x * x).cumsum(0)])
    ends = torch.arange(len(x) + 1)
    count = (ends[None] - ends[:, None]).clamp(min=1)
    cost = squares[None] - squares[:, None] - (sums[None] - sums[:, None]).square() / count
    cost = torch.where(ends[None] > ends[:, None], cost, torch.inf)  # of the run x[i:j]
    least = torch.where(ends == 0, 0.0, torch.inf).double()
    for _ in range(k):
        least = torch.minimum((least[:, None] + cost).amin(0), least)
    return float(least[-1])


def codebook_error(w: Tensor, book: Tensor) -> float:
    """Summed squared distance of the weights to the nearest value of a codebook."""
    return float((w.double()[:, None] - book.double()).abs().amin(1).square().sum())


NEAR = (
    1.2  # of the least error: Lloyd's iterations from quantiles, or from weights drawn at random,
)
# reach 1.15 on all cases


def _weights() -> Iterator[tuple[str, dict[str, Any]]]:
    g = torch.Generator().manual_seed(1302)
    two = torch.tensor([-1.1, -1.0, -0.9, 0.9, 1.0, 1.1])
    yield "two clusters of three", {"w": two, "k": 2}
    lopsided = torch.cat(
        [0.1 * torch.randn(300, generator=g), 3 + 0.1 * torch.randn(9, generator=g)]
    )
    yield "many small weights and a few large ones", {"w": lopsided, "k": 4}
    yield "skewed weights", {"w": torch.randn(200, generator=g).exp(), "k": 4}
    yield "a bell", {"w": torch.randn(400, generator=g), "k": 8}
    yield "one value for all", {"w": torch.tensor([1.0, 2.0, 6.0]), "k": 1}
    yield "weights that repeat", {"w": torch.tensor([0.5, 0.5, 0.5, -0.5, -0.5, 2.0]), "k": 4}
    often = torch.tensor([0.0] * 8 + [1.0, 3.0, 3.0])
    yield "weights that repeat, and fewer values", {"w": often, "k": 2}


def _near_the_optimum(got: Any, expected: Tensor, w: Tensor, k: int) -> None:
    found = as_array(got).reshape(-1) if got is not None else None
    if found is None or found.shape != (k,):
        expect_close(got, expected, "the codebook")
        return
    book = torch.as_tensor(found.astype("float64"))
    expect(bool(torch.isfinite(book).all()), "the codebook holds NaN or infinity",
           expected=expected, got=got,
           cause="a cluster without members has no mean: keep its value as it was")  # fmt: skip
    error, least = codebook_error(w, book), least_error(w, k)
    if error > NEAR * least + 1e-6:
        raise Failure(
            f"the squared error is {error:.4g}; the least possible is {least:.4g}, and up to "
            f"{NEAR} times that is accepted",
            expected=expected, got=got,
        )  # fmt: skip


def _same_error(got: Any, wrong: Any) -> bool:
    try:
        a, b = (torch.as_tensor(as_array(v).astype("float64")).sort().values for v in (got, wrong))
    except (TypeError, ValueError):
        return False
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)


def _kmeans_by_sorting(w: Tensor, k: int) -> Tensor:
    ordered = w.double().sort().values
    book = ordered[((torch.arange(k) + 0.5) / k * len(w)).long()].clone()
    for _ in range(200):
        cuts = torch.searchsorted(ordered, (book[1:] + book[:-1]) / 2)
        parts = torch.tensor_split(ordered, cuts)
        book = torch.stack([p.mean() if len(p) else c for p, c in zip(parts, book, strict=True)])
    return book


def _kmeans_exact(w: Tensor, k: int) -> list[float]:
    """The optimum itself, by dynamic programming over where each run ends."""
    x = w.double().sort().values
    n = len(x)
    best: list[tuple[float, list[float]]] = [(0.0, [])] + [(float("inf"), [])] * n
    for _ in range(k):
        new = []
        for j in range(n + 1):
            ways = [best[j]]
            for i in range(j):
                run = x[i:j]
                mean = run.mean().item()
                error = best[i][0] + ((run - mean) ** 2).sum().item()
                ways.append((error, [*best[i][1], mean]))
            new.append(min(ways, key=lambda way: way[0]))
        best = new
    book = best[n][1]
    return book + [book[-1]] * (k - len(book))


def _kmeans_exact_or_sorted(w: Tensor, k: int) -> list[float]:
    return _kmeans_exact(w, k) if len(w) < 50 else _kmeans_by_sorting(w, k).tolist()


def _even(w: Tensor, k: int) -> Tensor:
    return torch.linspace(w.min().item(), w.max().item(), k)


def _largest_k(w: Tensor, k: int) -> Tensor:
    ordered = w[w.abs().argsort(descending=True)]
    return torch.cat([ordered, ordered[-1:].expand(k)])[:k]


KMEANS_1D = Exercise(
    id="13.2", title="Values where the weights are", minutes=10, difficulty=3,
    signature="kmeans_1d(w, k)", reference=kmeans_1d, cases=_weights,
    compare=_near_the_optimum, agree=_same_error, returns="the codebook",
    accepted=(_kmeans_by_sorting, _kmeans_exact_or_sorted),
    diagnoses=(
        (_even, "evenly spaced values: that is a uniform grid, and nothing has moved to the "
         "weights"),
        ("for _ in range(100): => for _ in range(0):",
         "the starting values were returned: assign, average, and repeat"),
        ("for _ in range(100): => for _ in range(1):",
         "one iteration: the assignment changes with the averages, so repeat until nothing moves"),
        ("members.mean() => members.median()",
         "the median has the least absolute error; the squared error wants the mean"),
        ("members = w[nearest == i] => members = w[nearest == i].unique()",
         "weights that repeat were counted once: each of them is one more member"),
        ("members.mean() => members[(members - members.mean()).abs().argmin()]",
         "the member nearest to the mean was taken: a value of the codebook need not be a weight"),
        ("book = torch.quantile(w, start) => book = torch.linspace(w.min(), w.max(), k)",
         "begun at evenly spaced values, it stopped in a poor local optimum: most weights are "
         "small, and too few values are near them. Begin at quantiles"),
        ("if len(members): => if True:",
         "a cluster without members has no mean: keep its value as it was"),
        ("abs().argmin(1) => argmin(1)",
         "the distance has no sign: without abs the largest value is always the nearest"),
        ("abs().argmin(1) => abs().argmax(1)", "each weight went to the value farthest from it"),
        ("members.mean() => (members.min() + members.max()) / 2",
         "the middle of each cluster; the mean of its members has the least squared error"),
        (_largest_k, "the largest weights were taken: the many small ones then have no value near"),
    ),
    hints=(
        ("Where do I begin?",
         "Anywhere inside the weights. Quantiles are a good start: torch.quantile(w, places)."),
        ("What is repeated?",
         "1. Give each weight to its nearest value. 2. Move each value to its weights' mean."),
        ("nan", "A value that no weight is nearest to has no mean. Leave it where it is."),
        ("The error is too large", "Is it repeated until nothing moves? 100 times is plenty."),
    ),
)  # fmt: skip


# 13.3 ------------------------------------------------------------------------------------------


def choose_bits(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The smallest version that surely loses at most two points, and the interval of its change."""
    limit = 0.02
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


CHOOSE_BITS = Exercise(
    id="13.3", title="Decide: the fewest bits", minutes=8, difficulty=3,
    signature="choose_bits(scores, baseline)", reference=choose_bits,
    cases=functools.partial(limit_cases, ("2 bits", "3 bits", "4 bits", "FP32"), 0.02, 1330),
    compare=functools.partial(defended, objection=cheapest_within(0.02)), agree=same_decision,
    accepted=(first_that_fits(0.02), by_standard_error(0.02)),
    diagnoses=(*WRONG_INTERVALS, *WRONG_CHOICES), hints=HINTS,
)  # fmt: skip


# 13.4 ------------------------------------------------------------------------------------------


def best_rounding(w: Tensor, x: Tensor) -> Tensor:
    """Each weight of w [n] rounded down or up, so that x [N, n] times it changes least."""
    best, least = w.round(), torch.inf
    for ups in itertools.product([0.0, 1.0], repeat=len(w)):
        candidate = w.floor() + torch.tensor(ups)
        error = (x @ (candidate - w)).square().sum().item()
        if error < least:
            best, least = candidate, error
    return best


def _layers() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "two weights that meet the same input", {
        "w": torch.tensor([0.4, 0.4]), "x": torch.tensor([[1.0, 1.0], [2.0, 2.1]]),
    }  # fmt: skip
    yield "negative weights", {
        "w": torch.tensor([-1.4, -0.4, 2.3]), "x": torch.tensor([[1.0, 1.0, 0.9], [3.0, 2.8, 3.1]]),
    }  # fmt: skip
    g = torch.Generator().manual_seed(1304)
    for label, size, count, common in (
        ("four weights", 4, 12, 2.0),
        ("eight weights", 8, 40, 2.0),
        ("eight weights, inputs that hardly agree", 8, 40, 0.3),
        ("eight weights, fewer examples than weights", 8, 5, 1.0),
    ):
        x = torch.randn(count, size, generator=g) + common * torch.randn(count, 1, generator=g)
        x[0] *= 4
        w = 3 * torch.randn(size, generator=g)
        yield label, {"w": w, "x": x * torch.linspace(0.3, 2, size)}
    yield "inputs behind a ReLU, none below 0", {
        "w": 3 * torch.randn(6, generator=g), "x": 1 + torch.rand(30, 6, generator=g),
    }  # fmt: skip
    yield "a whole weight stays", {
        "w": torch.tensor([2.0, 0.4, -0.4]), "x": torch.randn(9, 3, generator=g),
    }  # fmt: skip


def _least_output_error(got: Any, expected: Tensor, w: Tensor, x: Tensor) -> None:
    if got is None or as_array(got).shape != tuple(w.shape):
        expect_close(got, expected, "the weights")
        return
    expect_integers(got, "the weights")
    found = torch.as_tensor(as_array(got).astype("float64"))
    inside = (found - w.double()).abs() <= 1 + 1e-6
    expect(bool(inside.all()), "a weight moved by more than one step", expected=expected, got=got,
           cause="each weight has two choices: floor and floor + 1")  # fmt: skip
    error, least = (
        (x.double() @ (v.double() - w.double())).square().sum().item() for v in (found, expected)
    )
    if error > least * (1 + 1e-4) + 1e-9:
        raise Failure(
            f"the output's squared error is {error:.4g}; {least:.4g} can be reached",
            expected=expected, got=got,
        )  # fmt: skip


def _all_at_once(w: Tensor, x: Tensor) -> Tensor:
    ways = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * len(w)).reshape(-1, len(w))
    candidates = (w.floor() + ways).double()
    errors = (candidates - w.double()) @ x.double().T
    return candidates[errors.square().sum(1).argmin()]


def _by_second_moments(w: Tensor, x: Tensor) -> list[float]:
    moments, floor = (x.T @ x).double(), w.floor()
    best: tuple[float, list[float]] = (float("inf"), [])
    for number in range(2 ** len(w)):
        up = torch.tensor([(number >> i) & 1 for i in range(len(w))])
        error = (floor + up - w).double()
        best = min(best, (float(error @ moments @ error), (floor + up).tolist()))
    return best[1]


def _one_after_the_other(w: Tensor, x: Tensor) -> Tensor:
    best = w.round()
    for i in range(len(w)):
        for value in (w[i].floor(), w[i].floor() + 1):
            other = best.clone()
            other[i] = value
            if (x @ (other - w)).square().sum() < (x @ (best - w)).square().sum():
                best = other
    return best


BEST_ROUNDING = Exercise(
    id="13.4", title="The best of 256 roundings", minutes=9, difficulty=3,
    signature="best_rounding(w, x)", reference=best_rounding, cases=_layers,
    compare=_least_output_error, agree=roughly, returns="the weights",
    accepted=(_all_at_once, _by_second_moments),
    diagnoses=(
        ("(x @ (candidate - w)) => (candidate - w)",
         "the weights' error was measured: that is rounding to nearest; measure the output's"),
        ("square().sum().item() => sum().abs().item()",
         "errors of different examples cancelled: square each one before you add"),
        ("square().sum().item() => abs().sum().item()",
         "absolute errors: asked for is the squared error"),
        ("square().sum().item() => abs().max().item()",
         "the largest error of any example: asked for is the sum of squares"),
        ("square().sum().item() => var(unbiased=False).item()",
         "the spread of the errors: what shifts all outputs alike is an error, too"),
        ("(x @ (candidate - w)) => (x[:1] @ (candidate - w))",
         "only the first example counts: all of them do"),
        ("(x @ (candidate - w)) => (x.mean(0) @ (candidate - w))",
         "the mean input was taken: examples differ, and the error is squared for each"),
        ("w.floor() + torch.tensor(ups) => w.round() + torch.tensor(ups)",
         "up or down from floor: counted from round, floor or ceil is missing"),
        ("error < least => error > least", "torch.inf => -torch.inf",
         "the worst rounding was kept"),
        (_one_after_the_other,
         "one weight after the other stops at a local optimum: try all 2^n combinations"),
    ),
    hints=(
        ("How do I list all combinations?",
         "itertools.product([0.0, 1.0], repeat=len(w)) gives 2^n tuples; add each to w.floor()."),
        ("Which error?", "The output's: x @ (rounded - w), squared and summed over the examples."),
    ),
)  # fmt: skip


# 13.5 ------------------------------------------------------------------------------------------


def compensate(w: Tensor, H: Tensor, j: int) -> Tensor:
    """w [n] with w[j] rounded, and the weights behind it moved to make up for the error."""
    w = w.clone()
    inverse = torch.linalg.inv(H[j:, j:])
    error = w[j] - w[j].round()
    w[j:] -= error / inverse[0, 0] * inverse[0]
    return w


def _moments() -> Iterator[tuple[str, dict[str, Any]]]:
    H = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    yield "two weights, the first", {"w": torch.tensor([0.4, 0.4]), "H": H, "j": 0}
    yield "two weights, the last", {"w": torch.tensor([0.0, 0.6]), "H": H, "j": 1}
    alone = torch.diag(torch.tensor([1.0, 4.0, 2.0]))
    yield "inputs that have nothing in common", {
        "w": torch.tensor([0.3, 1.2, -0.6]), "H": alone, "j": 0,
    }  # fmt: skip
    g = torch.Generator().manual_seed(1305)
    for label, size, j in (("five weights", 5, 0), ("the third of six", 6, 2), ("of eight", 8, 5)):
        x = torch.randn(3 * size, size, generator=g) + torch.randn(3 * size, 1, generator=g)
        w = 3 * torch.randn(size, generator=g)
        w[:j] = w[:j].round()
        yield label, {"w": w, "H": x.T @ x / len(x), "j": j}


def _by_least_squares(w: Tensor, H: Tensor, j: int) -> Tensor:
    found, rounded = w.double().clone(), float(round(w[j].item()))
    step = rounded - w[j].item()
    found[j] = rounded
    rest = H[j + 1 :, j + 1 :].double()
    if len(rest):
        found[j + 1 :] -= torch.linalg.solve(rest, H[j + 1 :, j].double() * step)
    return found


def _by_cholesky(w: Tensor, H: Tensor, j: int) -> list[float]:
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H.double()))
    factor = torch.linalg.cholesky(inverse, upper=True)
    found = w.double().clone()
    error = (found[j] - found[j].round()) / factor[j, j]
    return (found - error * torch.cat([torch.zeros(j).double(), factor[j, j:]])).tolist()


COMPENSATE = Exercise(
    id="13.5", title="Let the others make up for it", minutes=12, difficulty=4,
    signature="compensate(w, H, j)", reference=compensate, cases=_moments, agree=roughly,
    compare=lambda got, expected, **_: expect_close(got, expected, "the weights", 1e-4, 1e-4),
    returns="the weights", accepted=(_by_least_squares, _by_cholesky),
    diagnoses=(
        ("error / inverse[0, 0] * inverse[0] => error * inverse[0]",
         "not divided by the diagonal entry: w[j] itself has to land on its rounded value"),
        ("inverse = torch.linalg.inv(H[j:, j:]) => inverse = H[j:, j:]",
         "H itself was taken; the update needs the inverse"),
        ("inverse = torch.linalg.inv(H[j:, j:]) => inverse = torch.linalg.inv(H)[j:, j:]",
         "inverted before the rounded weights were taken out: those are fixed, so invert "
         "H[j:, j:]"),
        ("w[j:] -= => w[j:] +=", "the sign: the others now add to the error"),
        ("w[j:] -= error / inverse[0, 0] * inverse[0] => w[j] -= error",
         "w[j] was rounded, and the others do not make up for it"),
        ("w[j].round() => w[j].floor()", "rounded down: w[j] itself goes to the nearest"),
        ("w[j:] -= error / inverse[0, 0] * inverse[0] => "
         "w[j + 1 :] -= (error / inverse[0, 0] * inverse[0])[1:]",
         "the others moved, and w[j] is not rounded"),
        ("w[j:] -= error / inverse[0, 0] * inverse[0] => "
         "w -= error * torch.linalg.inv(H)[j] / torch.linalg.inv(H)[j, j]",
         "weights before j moved too: they are codes already"),
    ),
    hints=(
        ("Where does the formula come from?",
         "Minimize d H d over the changes d of the weights from j on, with d[j] fixed at "
         "round(w[j]) - w[j]: d is proportional to the first column of the inverse of H[j:, j:]."),
        ("How large is the step?",
         "So large that w[j] lands on its rounded value: divide by the entry [0, 0] of the "
         "inverse."),
        ("Which weights may move?", "Only those behind j: the ones before are codes already."),
    ),
)  # fmt: skip


EXERCISES = [PACK_INT4, KMEANS_1D, CHOOSE_BITS, BEST_ROUNDING, COMPENSATE]
