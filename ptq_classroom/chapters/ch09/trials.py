"""Chapter 09's experiments: what many calibration sets and shifted worlds do to a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from ptq_classroom.chapters.ch09.widget import Measured
from ptq_classroom.pictures.datasets import Split, to_input
from ptq_classroom.pictures.evaluate import logits
from ptq_course.grids.affine import QParams
from ptq_course.grids.metrics import correct, paired_bootstrap
from ptq_course.ranges.summaries import MinMax
from ptq_course.simulation.monitor import clipped_share
from ptq_course.simulation.quantized import QuantizedModel

Interval = tuple[float, float, float]


class Exam:
    """The first thousand test pictures, and with them all flash and night pictures of the split."""

    def __init__(self, test: Split) -> None:
        chosen = np.union1d(np.arange(1000), np.flatnonzero(test.modes != "normal"))
        modes = test.modes[chosen]
        masks = {"all pictures": chosen < 1000} | {m: modes == m for m in ("night", "flash")}
        self.groups = {kind: torch.from_numpy(mask) for kind, mask in masks.items()}
        self.labels = test.labels[chosen]
        self._inputs = to_input(test.images[chosen])  # once, for all networks to come

    def answers(self, network: Callable[[Tensor], Tensor]) -> Tensor:
        """1.0 where the network is right, 0.0 where it is wrong: [pictures]."""
        with torch.inference_mode():
            outputs = torch.cat([network(x) for x in self._inputs.split(250)])
        return correct(outputs, self.labels)

    def of(self, right: Tensor, kind: str = "all pictures") -> Tensor:
        """The answers to one kind of picture."""
        return right[self.groups[kind]]

    def accuracy(self, right: Tensor, kind: str = "all pictures") -> float:
        """Percent right on one kind of picture."""
        return 100 * self.of(right, kind).mean().item()

    def change(self, first: Tensor, second: Tensor, kind: str = "all pictures") -> Interval:
        """Change of accuracy from the first answers to the second, with its 95 % interval."""
        return paired_bootstrap(self.of(first, kind), self.of(second, kind))


def coverage(
    summary_of: Callable[[NDArray], MinMax], live: Tensor, sizes: Sequence[int],
    rng: np.random.Generator, draws: int = 150, pictures: int = 1000,
) -> tuple[NDArray, NDArray]:  # fmt: skip
    """Upper ends of the ranges of random sets, and percent of `live` clipped: [draws, sizes]."""
    ordered = live.flatten().sort().values.numpy()
    highs, clipped = np.zeros((2, draws, len(sizes)))
    for draw, column in tqdm(list(np.ndindex(highs.shape)), desc="sets"):
        found = summary_of(rng.choice(pictures, sizes[column], replace=False))
        highs[draw, column] = max(found.max_val, 0.0)
        below = np.searchsorted(ordered, found.min_val, side="left")
        above = len(ordered) - np.searchsorted(ordered, highs[draw, column], side="right")
        clipped[draw, column] = 100 * (below + above) / len(ordered)
    return highs, clipped


def missed(
    has: NDArray[np.bool_], sizes: Sequence[int], rng: np.random.Generator, draws: int = 1000
) -> list[float]:
    """Share of random sets, of each size, without any picture of a kind; has: [pictures]."""

    def one_misses(size: int) -> bool:
        return not has[rng.choice(len(has), size, replace=False)].any()

    return [float(np.mean([one_misses(size) for _ in range(draws)])) for size in sizes]


def table(
    exam: Exam, right: Mapping[tuple[str, int, int], Tensor], rules: Sequence[str],
    sizes: Sequence[int],
) -> dict[str, dict[str, NDArray]]:  # fmt: skip
    """Percent right by rule and kind of picture: [orders, sizes], NaN where there is no set.

    right: (rule, order, size) -> answers of the exam.
    """
    orders = 1 + max(draw for _, draw, _ in right)
    found = {
        rule: {kind: np.full((orders, len(sizes)), np.nan) for kind in exam.groups}
        for rule in rules
    }
    for (rule, draw, size), score in right.items():
        for kind in exam.groups:
            found[rule][kind][draw, sizes.index(size)] = exam.accuracy(score, kind)
    return found


def by_what_they_met(
    exam: Exam, right: Mapping[tuple[str, int, int], Tensor], large: NDArray[np.bool_],
) -> tuple[list[float], list[float], list[int]]:  # fmt: skip
    """Percent right of the min-max sets that hold a large value, of the others, and where it came.

    right: (rule, order, size) -> answers; large: [pictures], in the order of the split. Sets of one
    or two pictures are left out. The last list counts from 1, one number an order.
    """
    met, free, first = [], [], {}
    for (rule, draw, size), score in right.items():
        order = np.random.default_rng(draw).permutation(len(large))
        first[draw] = int(np.flatnonzero(large[order])[0]) + 1
        if rule == "minmax" and size >= 3:
            (met if size >= first[draw] else free).append(exam.accuracy(score))
    return met, free, list(first.values())


def hits(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """1.0 where the network is right on uint8 pictures, 0.0 where it is wrong: [pictures]."""
    return correct(logits(network, images), labels)


def over_shifts(
    networks: Mapping[str, Sequence[QuantizedModel]],
    worlds: Mapping[str, tuple[Tensor, Tensor]],
    known: Mapping[tuple[str, str], list[Tensor]],
) -> tuple[dict[tuple[str, str], Measured], dict[tuple[str, str], list[Tensor]]]:
    """Each rule's networks (one a size) in each world of (images, labels): measured, and answers.

    Both are by (rule, world); the answers are a list, one a size, each [pictures]. `known` holds
    such answers that need not be found again.
    """
    measured, scores = {}, {}
    pairs = [(rule, world) for rule in networks for world in worlds]
    for rule, world in tqdm(pairs, desc="shifts"):
        decided = (network.qparams["x"] for network in networks[rule])
        ranges = [q for q in decided if isinstance(q, QParams)]
        inputs = to_input(worlds[world][0])
        found = known.get((rule, world)) or [hits(n, *worlds[world]) for n in networks[rule]]
        scores[rule, world] = found
        measured[rule, world] = Measured(
            highs=[(255 - int(q.zero_point)) * q.scale.item() for q in ranges],
            clipped=[100 * clipped_share(inputs, q) for q in ranges],
            accuracy=[100 * right.mean().item() for right in found],
        )
    return measured, scores


def election(
    candidates: Tensor, jury: int, rng: np.random.Generator, draws: int = 500
) -> tuple[float, float]:
    """Mean lead, in points, of the candidate that a jury of pictures elects: there, and elsewhere.

    candidates: answers [networks, pictures].
    """
    leads = []
    for _ in range(draws):
        order = torch.from_numpy(rng.permutation(candidates.shape[1]))
        there, elsewhere = candidates[:, order[:jury]].mean(1), candidates[:, order[jury:]].mean(1)
        winner = int(there.argmax())
        leads.append([(score[winner] - score.mean()).item() for score in (there, elsewhere)])
    lead, later = 100 * np.mean(leads, axis=0)
    return float(lead), float(later)
