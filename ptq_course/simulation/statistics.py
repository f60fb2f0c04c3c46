"""What calibration has seen: summaries of every tensor value of a network. Chapters 06 and 09.

Collecting needs the data and is done once; deciding (`decisions`) reads the summaries and may be
repeated. Statistics of the same network merge: cut the data over days or machines as you like.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch.distributed as dist

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.ranges.calibrators import CALIBRATORS, Calibrator
from ptq_course.ranges.reduction import check_group, gather_texts
from ptq_course.ranges.summaries import Summary
from ptq_course.simulation.observe import Observer
from ptq_course.simulation.qconfig import SEARCH


class Statistics:
    """Summaries by the name of the value, and how many batches they have seen.

    integers: inputs of the network that arrived as integers, which need no scale.
    """

    def __init__(self) -> None:
        self.summaries: dict[str, dict[type[Summary], Summary]] = {}
        self.integers: set[str] = set()
        self.num_batches = 0

    def copy(self) -> Statistics:
        """An independent copy, to be thrown away should an update fail."""
        return copy.deepcopy(self)

    def prepare(self, names: Iterable[str], ranges: str | Sequence[str] | None) -> None:
        """Empty summaries of these values, of every kind that the rules read."""
        kinds = {CALIBRATORS[rule].rule.summary for rule in rules_named(ranges)}
        self.summaries = {name: {kind: kind() for kind in kinds} for name in names}

    def missing(self, ranges: str | Sequence[str] | None) -> list[str]:
        """Those of the rules that need what the first observation left out."""
        kept = [set(mine) for mine in self.summaries.values()]
        return [
            rule for rule in rules_named(ranges)
            if not all(CALIBRATORS[rule].rule.summary in kinds for kinds in kept)
        ]  # fmt: skip

    def require(self, ranges: str | Sequence[str]) -> None:
        """Raise CalibrationError where a rule needs what the first observation left out."""
        for rule in self.missing(ranges):
            raise CalibrationError(
                f"ranges={rule!r} was not collected by the first call of observe(). Start with "
                f"a new PTQQuantizer and observe(loader, ranges={rule!r}), or None for all."
            )

    def observers(self, inputs: Collection[str]) -> dict[str, Observer]:
        """A module for each value that updates its summaries; ``inputs``: the network's own."""
        return {
            name: Observer(name, mine, self.integers if name in inputs else None)
            for name, mine in self.summaries.items()
        }

    def calibrator(self, name: str, rule: str, options: dict[str, Any]) -> Calibrator:
        """The value's summary under a range rule; CalibrationError where no data reached it."""
        kind = CALIBRATORS[rule]
        summary = self.summaries[name][kind.rule.summary]
        if summary.count == 0:
            raise CalibrationError(
                f"value {name!r}: no calibration data reached it. Use data that exercises this "
                "branch, or keep the layers that read it in floating point (float_layers)."
            )
        try:
            return kind(summary=summary, **options)
        except TypeError as error:
            raise QuantizationError(
                f"ranges={rule!r} takes no option {', '.join(map(repr, options))}."
            ) from error

    def merge(self, other: Statistics) -> Statistics:
        """Both together; neither changes. CalibrationError where they do not belong together."""
        if not (self.summaries and other.summaries):
            return (self if self.summaries else other).copy()
        if self._collected() != other._collected():
            raise CalibrationError(
                "merge: the two quantizers observed other values or collected for other range "
                "rules. Make both from the same model and config, and call observe alike."
            )
        both = self.copy()
        for name, kinds in both.summaries.items():
            for kind, summary in kinds.items():
                summary.merge(other.summaries[name][kind])
        both.integers |= other.integers
        both.num_batches += other.num_batches
        return both

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Statistics:
        """Those of all processes of ``torch.distributed`` together; this object is unchanged."""
        check_group(group, "statistics")
        mine = (self._collected(), sorted(self.integers), self.num_batches)
        everyone = [json.loads(text) for text in gather_texts(json.dumps(mine), group)]
        if any(collected != self._collected() for collected, _, _ in everyone):
            raise CalibrationError(
                "all_reduce: the processes observed other values or collected for other range "
                "rules. Each must observe at least one batch, of the same model, alike."
            )
        both = self.copy()
        for _, kinds in sorted(both.summaries.items()):
            for _, summary in sorted(kinds.items(), key=lambda item: item[0].__name__):
                summary.all_reduce(group)
        both.integers = set().union(*(integers for _, integers, _ in everyone))
        both.num_batches = sum(count for _, _, count in everyone)
        return both

    def _collected(self) -> dict[str, list[str]]:
        return {name: sorted(k.__name__ for k in kinds) for name, kinds in self.summaries.items()}


def rules_named(ranges: str | Sequence[str] | None) -> list[str]:
    """The range rules of one name or several; None or "search": all that `search_ranges` tries."""
    if ranges in (None, SEARCH):
        return [name for name, calibrator in CALIBRATORS.items() if calibrator.rule.tried]
    rules = [ranges] if isinstance(ranges, str) else list(ranges)
    for rule in rules:
        if rule not in CALIBRATORS:
            raise QuantizationError(
                f"unknown range rule {rule!r}; choose from {', '.join(sorted(CALIBRATORS))}."
            )
    return rules
