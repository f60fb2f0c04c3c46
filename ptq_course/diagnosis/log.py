"""The log of `reach`: a row a step, what it gained and what it cost. Chapter 10."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ptq_course.diagnosis.remedies import IMPORTS, Recipe
from ptq_course.diagnosis.scores import Variant, shown
from ptq_course.diagnosis.sizes import SIZE_NOT_SPEED
from ptq_course.tables import html_table, text_table

COLUMNS = (
    "", "tried", "score", "change to FP32", "gained", "bytes", "ms", "made in"
)  # fmt: skip
ONE_NUMBER = (
    "evaluate returned one number: the change alone decided, without an interval, and nothing was "
    "held out to confirm it. Return a score for each example, or an OfSet, for both"
)


@dataclass(frozen=True)
class Step:
    """One network that was measured on the validation part.

    line: Python that makes it by hand. change: against FP32. gained: against the best network
    before, None for the first. bytes: of the network, packed as a checkpoint has it. milliseconds:
    an example in ONNX Runtime, None where it was not timed. seconds: to make it. kept: it was
    better, so later steps build on it. scored, timed: seconds that `evaluate` took, and the
    export with its timing.
    """

    name: str
    line: str
    recipe: Recipe | None
    change: Variant
    gained: Variant | None
    bytes: int
    milliseconds: float | None
    seconds: float
    kept: bool
    scored: float = 0.0
    timed: float = 0.0

    def cells(self) -> tuple[str, ...]:
        ms = "-" if self.milliseconds is None else f"{self.milliseconds:.2f} ms"
        change, gained = (
            "" if v is None or v.difference is None else
            str(v).replace(" points", "").replace(" (no interval)", "")
            for v in (self.change, self.gained)
        )  # fmt: skip
        score = shown(self.change.score, self.change.is_share)
        made = "" if self.recipe is None else f"{self.seconds:.1f} s"
        mark = "+" if self.kept else ""
        return (mark, self.name, score, change, gained, f"{self.bytes:,}", ms, made)


@dataclass(frozen=True)
class Log:
    """A sequence of steps that prints as a table with the verdict below it."""

    steps: tuple[Step, ...]
    reference: Step
    best: Step
    reached: bool
    drop: float
    test: Variant | None
    validation_examples: int
    test_examples: int
    unit: float  # of the drop: 0.01 for points, 1 for that of the score
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Step:
        return self.steps[index]

    @property
    def code(self) -> str:
        """Python that repeats each step by hand, one line a step."""
        lines = [IMPORTS]
        for number, step in enumerate(self.steps, 1):
            lines += [f"# {number}. {step.name}", f"quantized = {step.line}"]
        return "\n".join(lines)

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        rows = [step.cells() for step in (self.reference, *self.steps)]
        at = COLUMNS.index("ms")
        if any(row[at] != "-" for row in rows):
            return COLUMNS, rows
        return _without(COLUMNS, at), [_without(row, at) for row in rows]

    def verdict(self) -> list[str]:
        """What came out, in sentences."""
        unit = "" if self.unit == 1 else " point" if self.drop == 1 else " points"
        asked = f"a drop of at most {self.drop:g}{unit}"
        best = f"{self.best.name!r}: {self.best.change}"
        if self.test is not None:
            best += f" on {self.validation_examples} examples"
        if self.reached:
            lines = [f"reached {asked} with {best}"]
        else:
            lines = [f"NOT reached: {asked}. The best found is {best}"]
            if -(self.best.change.difference or 0.0) <= self.limit:
                lines.append(
                    "the mean drop is inside the target, but its interval is not: score more "
                    "examples to decide"
                )
        if self.test is None:
            return [*lines, ONE_NUMBER]
        where = "inside" if self.confirmed else "not shown to be inside"
        lines.append(
            f"held-out test part, {self.test_examples} examples: {self.test}, {where} the target"
        )
        return lines

    @property
    def confirmed(self) -> bool:
        """Is the drop inside the target on the held-out part, too, by its interval?"""
        low = None if self.test is None else self.test.low
        return low is not None and -low <= self.limit

    def _below(self) -> list[str]:
        lines = [*self.verdict(), *self.notes, self._time()]
        if self.best.recipe is not None and self.best.recipe.config.float_layers:
            lines.append(SIZE_NOT_SPEED)
        return [*lines, f"by hand: {self.best.line}"]

    @property
    def limit(self) -> float:
        """The drop in units of the score."""
        return self.drop * self.unit

    def _time(self) -> str:
        made = sum(step.seconds for step in self.steps)
        every = (self.reference, *self.steps)
        scored, timed = sum(step.scored for step in every), sum(step.timed for step in every)
        text = f"{made:.0f} s to make {len(self)} networks, {scored:.0f} s to score them and FP32"
        return text + (f", {timed:.0f} s to export and time them" if timed >= 0.5 else "")

    def __str__(self) -> str:
        return "\n".join([text_table(*self._table()), *self._below()])

    def _repr_html_(self) -> str:
        return html_table(*self._table(), self._below())


def _without(cells: tuple[str, ...], at: int) -> tuple[str, ...]:
    return cells[:at] + cells[at + 1 :]
