"""Layers kept wider: the most sensitive for their bytes, and no more of them than needed.

Chapter 10. 1, 2, 4 ... layers of the order until the target is reached, then bisection. What takes
minutes (`remedies.COSTLY`) is left out while layers are chosen: it comes in where the network
without it has lost so little that it should be enough, going by what it has repaired before.
Where FP16 reaches the target, the layers of 8 bits that are not needed any more go back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from ptq_course.diagnosis.journal import Journal
from ptq_course.diagnosis.log import Step
from ptq_course.diagnosis.noise import OutputNoise
from ptq_course.diagnosis.remedies import Recipe, Workshop
from ptq_course.errors import QuantizationError
from ptq_course.graph.tracing import SECOND_CALL

WIDER = 8  # bits of a layer that is kept wider, before FP16


class Climber(Protocol):
    """What is asked of a `Ladder`."""

    workshop: Workshop
    journal: Journal
    start: Recipe
    limit: float
    steps: list[Step]
    notes: list[str]

    @property
    def recipe(self) -> Recipe: ...
    def reaches(self, step: Step) -> bool: ...
    def try_(self, name: str, recipe: Recipe, only_if_reached: bool = False) -> Step: ...


class Widening:
    """``climb()`` widens layers of the ladder's best recipe: to 8 bits, then to FP16."""

    def __init__(self, ladder: Climber) -> None:
        self.ladder = ladder
        self.wide: list[str] = []  # layers of 8 bits that were not enough, and the widths before
        self.bits: dict[str, int] = {}

    def climb(self) -> None:
        bits = self.ladder.start.config.weight_bits
        widths: list[int | None] = [WIDER] if bits is not None and bits < WIDER else []
        for width in [*widths, None]:
            base = self.ladder.recipe
            order = self._order(base, width)
            most = len(order) if width else len(order) // 2
            reached = bool(most) and self._gallop(base, order, width, most)
            if width is None and self.wide and not reached and most:
                reached = self._all_wide(base, order[:most])
            if reached and width is None and self.wide:
                self._narrow_again(self.ladder.recipe)
            if reached:
                return
            if width:
                self.wide, self.bits = order, dict(base.config.layer_bits)

    def _all_wide(self, base: Recipe, names: list[str]) -> bool:
        """These layers in FP16 and all others at 8 bits: the widest that is tried."""
        recipe = self._config(self._config(base, self.wide, WIDER), names, None)
        if recipe == self._config(base, names, None):
            return False
        return self._reaches(f"FP16: {_few(names)}, INT8: all others", base, recipe, False)

    def _narrow_again(self, best: Recipe) -> None:
        """With some layers in FP16, not all that have 8 bits by now need them: the fewest that do.

        They were kept while nothing reached, whatever their bytes.
        """
        names = [n for n, _ in best.config.layer_bits if n not in self.bits]
        order = [n for n in self.wide if n in names]
        failed, enough = -1, len(order)
        while enough - failed > 1:
            middle = (failed + enough) // 2
            few = order[:middle]
            recipe = _with_bits(best, self.bits | dict.fromkeys(few, WIDER))
            name = f"FP16 as before, INT8: {_few(few)}"
            if self._reaches(name, best, recipe, only_if_reached=True):
                enough = middle
            else:
                failed = middle

    def _gallop(self, base: Recipe, order: list[str], width: int | None, most: int) -> bool:
        failed, count = 0, 1
        while True:
            if self._enough(base, order[:count], width):
                self._fewest(base, order, width, failed, count)
                return True
            if count == most:
                return False
            failed, count = count, min(2 * count, most)

    def _fewest(
        self, base: Recipe, order: list[str], width: int | None, failed: int, enough: int
    ) -> None:
        """Bisect between a number of layers that fails and one that is enough."""
        while enough - failed > 1:
            middle = (failed + enough) // 2
            if self._enough(base, order[:middle], width, only_if_reached=True):
                enough = middle
            else:
                failed = middle

    def _enough(
        self, base: Recipe, names: list[str], width: int | None, only_if_reached: bool = False
    ) -> bool:
        """Measure these layers wider. Is the target reached?"""
        name = f"{f'INT{width}' if width else 'FP16'}: {_few(names)}"
        return self._reaches(name, base, self._config(base, names, width), only_if_reached)

    def _reaches(self, name: str, base: Recipe, recipe: Recipe, only_if_reached: bool) -> bool:
        """Measure a recipe, first without what takes minutes."""
        ladder = self.ladder
        step = ladder.try_(name, recipe.twin, only_if_reached)
        if recipe == recipe.twin or ladder.reaches(step):
            return ladder.reaches(step)
        change, measured = step.change, {s.recipe: s for s in ladder.steps}
        margin = 0.0 if change.low is None else (change.difference or 0.0) - change.low
        expected = _left(measured.get(base), measured.get(base.twin)) * _drop(step)
        if expected + margin > ladder.limit:
            return False
        full = measured[base].name if base in measured else "all steps"
        return ladder.reaches(ladder.try_(f"{name}, {full}", recipe, only_if_reached))

    def _config(self, base: Recipe, names: list[str], width: int | None) -> Recipe:
        config = base.config
        bits = {n: b for n, b in config.layer_bits if n not in names}
        if width is not None:
            return _with_bits(base, bits | dict.fromkeys(names, width))
        calls = {name.split(SECOND_CALL)[0] for name in bits if SECOND_CALL in name}
        kept = [f"{n}{SECOND_CALL}1" if n in calls else n for n in names]  # this call alone
        return _with_bits(base, bits, (*config.float_layers, *kept))

    def _order(self, base: Recipe, width: int | None) -> list[str]:
        """Layers by what widening wins for its bytes, measured one at a time at the output."""
        twin, ladder = base.twin, self.ladder

        def measured() -> list[str]:
            noise = OutputNoise(ladder.workshop, twin)
            try:
                return noise.order(width)
            except QuantizationError as error:
                ladder.notes.append(f"layers are widened in the order of execution: {error}")
                return list(noise.quantizer.convert().quantized_layers())

        return ladder.journal.get(f"order {width} {twin.line}", measured)


def _with_bits(recipe: Recipe, bits: dict[str, int], kept: tuple[str, ...] | None = None) -> Recipe:
    """With these widths, sorted: the same network has one line, and is measured once."""
    config = recipe.config
    kept = config.float_layers if kept is None else kept
    config = replace(config, float_layers=kept, layer_bits=dict(sorted(bits.items())))
    return replace(recipe, config=config)


def _few(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _drop(step: Step) -> float:
    return max(0.0, -(step.change.difference or 0.0))


def _left(full: Step | None, twin: Step | None) -> float:
    """The share of the twin's drop that is left with what takes minutes; 1 where not known."""
    if full is None or twin is None or not _drop(twin):
        return 1.0
    return min(1.0, _drop(full) / _drop(twin))
