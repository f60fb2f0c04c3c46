"""What `evaluate` returns, checked, and how two versions of a network are compared by it.

Chapter 06. One contract: ``evaluate(model)`` returns a score for each example, float or 0/1 [N],
higher is better, always the same examples in the same order. Then versions are compared in pairs,
with an interval. Scores in [0, 1] are shown in percent and their differences in points, others (a
negative error, say) as they are. A metric that is no mean over examples (mAP, F1, a correlation) is
an `OfSet`: it is computed again for every draw of a bootstrap. A single float is accepted too; it
gives a difference without an interval, and every table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptq_course.errors import CalibrationError, QuantizationError, whole
from ptq_course.grids.metrics import correct, paired_bootstrap
from ptq_course.simulation.observe import LABELS, labels_of
from ptq_course.tables import html_table, points, text_table

Evaluate = Callable[[nn.Module], Any]
COLUMNS = ("version", "score", "lost", "gained", "change", "95 % interval")
DRAWS = 400  # of an `OfSet`: each computes the metric once
UNPAIRED = (
    "evaluate returned one number, so no interval can be given: let it return a score for each "
    "example, or an OfSet, to compare in pairs"
)


@dataclass(frozen=True, eq=False)
class OfSet:
    """A metric of a whole set of examples, as `evaluate` may return it.

    examples: how many there are. of: from int64 [B, N], how often each example counts in each of B
    draws, to the metric of each draw, [B]; higher is better. Whoever matches predictions with the
    truth once can weigh the matches many times.
    """

    examples: int
    of: Callable[[Tensor], Any]

    def __post_init__(self) -> None:
        whole("OfSet: examples", self.examples, 1)

    def values(self, counts: Tensor, version: str) -> Tensor:
        """The metric of each draw, float64 [B], checked; ``version`` names the model."""
        found = torch.as_tensor(self.of(counts)).detach().double().cpu()
        if found.shape != (len(counts),) or not bool(torch.isfinite(found).all()):
            raise QuantizationError(
                f"evaluate: of(counts) of an OfSet must give {len(counts)} finite numbers, one a "
                f"draw; for {version} it gave shape {tuple(found.shape)}."
            )
        return found

    def drawn(self, among: Tensor, version: str) -> tuple[float, Tensor]:
        """The metric over the examples ``among`` (indices), and of DRAWS draws of them, [DRAWS]."""
        random = np.random.default_rng(0)  # the same draws for every version: they are pairs
        share = np.full(len(among), 1 / len(among))
        counts = torch.zeros(DRAWS + 1, self.examples, dtype=torch.int64)
        counts[0, among] = 1
        counts[1:, among] = torch.from_numpy(random.multinomial(len(among), share, DRAWS))
        values = self.values(counts, version)
        return values[0].item(), values[1:]


def top1_on(loader: Iterable) -> Evaluate:
    """An ``evaluate`` that scores 1.0 for each example of ``loader`` whose top-1 is its label.

    loader: batches (x, label), (x1, x2, label) or dicts with "labels"; labels are integers [n].
    They are read again for each model: a list or a DataLoader. Raises CalibrationError where it is
    empty, an iterator, or has no labels.
    """
    check_rereadable(loader, "top1_on")

    def evaluate(model: nn.Module) -> Tensor:
        scores = []
        for batch in loader:
            inputs, named = (), {}
            if isinstance(batch, Mapping):
                named = {key: x for key, x in batch.items() if key not in LABELS}
            elif isinstance(batch, (tuple, list)):
                inputs = tuple(batch[:-1])
            first = next((x for x in (*inputs, *named.values()) if isinstance(x, Tensor)), None)
            count = 0 if first is None else len(first)
            labels = labels_of(batch, len(inputs), count)
            if labels is None or not count:
                raise CalibrationError(
                    "top1_on: a batch must be (x, label) with integer labels; without labels use "
                    "compare(), which counts the predictions that agree."
                )
            scores.append(correct(model(*inputs, **named), labels))
        if not scores:
            raise CalibrationError("top1_on: the loader gave no batch; pass at least one.")
        return torch.cat(scores)

    return evaluate


def check_rereadable(loader: Iterable, who: str) -> None:
    """Raise CalibrationError for an iterator, which is empty when it is read a second time."""
    if not isinstance(loader, Iterable):
        raise CalibrationError(f"{who}: expected a loader of batches, got {type(loader).__name__}.")
    if iter(loader) is loader:
        raise CalibrationError(
            f"{who}: the data are read more than once and this {type(loader).__name__} can be read "
            "only once; pass a list(...) of batches or a DataLoader."
        )


@dataclass(frozen=True)
class Scores:
    """Checked result of ``evaluate``: the mean, and the scores of the examples where known.

    draws: for an `OfSet`, of which ``mean`` is the metric, what it is in the draws of a bootstrap.
    """

    mean: float
    examples: Tensor | None = None
    draws: Tensor | None = None
    metric: OfSet | None = None

    @property
    def is_share(self) -> bool:
        """Do all scores lie in [0, 1], so that they read as percentages?"""
        values = torch.tensor([self.mean]) if self.examples is None else self.examples
        return values.min().item() >= 0 and values.max().item() <= 1

    @property
    def paired(self) -> bool:
        """Is there more than one number, so that a difference has an interval?"""
        return self.examples is not None or self.draws is not None


def score(evaluate: Evaluate, model: nn.Module, version: str) -> Scores:
    """Call ``evaluate`` without gradients and check what it returns; ``version`` names the model.

    Raises QuantizationError for NaN, an empty vector or another shape.
    """
    if not callable(evaluate):
        raise QuantizationError(
            f"evaluate must be a function of a model, got {type(evaluate).__name__}; "
            "top1_on(loader) makes one from batches with labels."
        )
    with torch.no_grad():
        result = evaluate(model)
    if isinstance(result, OfSet):
        value, draws = result.drawn(torch.arange(result.examples), version)
        return Scores(value, None, draws, result)
    try:
        values = torch.as_tensor(result).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise QuantizationError(
            f"evaluate returned a {type(result).__name__} for {version}: return one score for each "
            "example, [N], or a single number."
        ) from error
    if values.dim() > 1 or values.numel() == 0:
        raise QuantizationError(
            f"evaluate returned shape {tuple(values.shape)} for {version}: return one score for "
            "each example, [N]. From logits grids.metrics.correct(logits, labels)."
        )
    if not torch.isfinite(values).all():
        raise QuantizationError(
            f"evaluate returned NaN or infinity for {version}: "
            + ("check the metric and the data." if version == "FP32" else
               "the float model gave numbers, so find the layer with compare().")
        )  # fmt: skip
    return Scores(values.mean().item(), values if values.dim() == 1 else None)


@dataclass(frozen=True)
class Variant:
    """One version of the network against a reference; lost and gained count examples.

    difference and its interval are in units of the score; None where they cannot be known.
    is_share: the scores lie in [0, 1] and are shown in percent.
    """

    name: str
    score: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    lost: int | None = None
    gained: int | None = None
    is_share: bool = True

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high), None where there is none."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def better(self) -> bool:
        """Is this version shown to be better? Without an interval any gain counts."""
        low = self.difference if self.low is None else self.low
        return low is not None and low > 0

    @property
    def worse(self) -> bool:
        """Is this version shown to be worse? Without an interval any loss counts."""
        high = self.difference if self.high is None else self.high
        return high is not None and high < 0

    @property
    def significant(self) -> bool:
        """Does the interval exclude zero? Never without one."""
        return self.interval is not None and (self.better or self.worse)

    def cells(self) -> tuple[str, ...]:
        score = shown(self.score, self.is_share)
        if self.difference is None:
            return (self.name, score, "", "", "", "")
        change = self._signed(self.difference)
        if self.interval is None:
            return (self.name, score, "?", "?", change, "unknown")
        if self.lost is None:
            return (self.name, score, "", "", change, self._interval())
        return (self.name, score, str(self.lost), str(self.gained), change, self._interval())

    def _interval(self) -> str:
        return f"[{', '.join(map(self._signed, self.interval or ()))}]"

    def _signed(self, difference: float) -> str:
        return points(difference) if self.is_share else f"{difference:+.4g}"

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.name} {shown(self.score, self.is_share)}"
        change = self._signed(self.difference) + (" points" if self.is_share else "")
        return f"{change} {'(no interval)' if self.interval is None else self._interval()}"


def shown(score: float, is_share: bool = True) -> str:
    """A mean score: a share in percent with one decimal, another number with four digits."""
    return f"{100 * score:.1f}" if is_share else f"{score:.4g}"


def against(reference: Scores, other: Scores, name: str) -> Variant:
    """Compare two versions on the same examples; QuantizationError where these are not the same."""
    is_share = reference.is_share and other.is_share
    difference = other.mean - reference.mean
    if reference.draws is not None and other.draws is not None:
        low, high = (other.draws - reference.draws).quantile(torch.tensor([0.025, 0.975]).double())
        return Variant(name, other.mean, difference, low.item(), high.item(), is_share=is_share)
    if reference.examples is None or other.examples is None:
        return Variant(name, other.mean, difference, is_share=is_share)
    if len(reference.examples) != len(other.examples):
        raise QuantizationError(
            f"evaluate returned {len(reference.examples)} scores for the reference and "
            f"{len(other.examples)} for {name}: use the same examples in the same order."
        )
    difference, low, high = paired_bootstrap(reference.examples, other.examples)
    lost = int((other.examples < reference.examples).sum())
    gained = int((other.examples > reference.examples).sum())
    return Variant(name, other.mean, difference, low, high, lost, gained, is_share)


@dataclass(frozen=True)
class Variants:
    """A table of versions; the first is usually the reference. ``table["W8A32"]`` finds one."""

    rows: tuple[Variant, ...]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Variant:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no version {name!r}; there are {', '.join(r.name for r in self.rows)}")

    def __str__(self) -> str:
        table = text_table(COLUMNS, [row.cells() for row in self.rows])
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        return html_table(COLUMNS, [row.cells() for row in self.rows], self.notes)
