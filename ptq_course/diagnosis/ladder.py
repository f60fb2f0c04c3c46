"""The order in which `reach` tries its remedies: cheapest first, each on what helped before it.

Chapter 10.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from ptq_course.diagnosis.journal import Journal
from ptq_course.diagnosis.log import Step
from ptq_course.diagnosis.meter import Meter
from ptq_course.diagnosis.noise import OutputNoise
from ptq_course.diagnosis.remedies import Recipe, Workshop
from ptq_course.diagnosis.widening import Widening
from ptq_course.errors import QuantizationError
from ptq_course.simulation.qconfig import SEARCH

FEW_BITS = 6  # from here down a weight range by squared error is worth a try
LITTLE = 0.1  # a share of the noise that is not worth minutes: taking it away wins 0.5 dB at most
NAMES = {
    "equalized": "equalization",
    "equalized, ReLU6 as ReLU": "equalization, ReLU6 as ReLU",
    "equalized, a limit a channel": "equalization, a limit a channel",
    "smoothed": "SmoothQuant",
    "smoothed, divisions of their own": "SmoothQuant, divisions of their own",
}
# Better rounding of the weights, cheapest first: a name, and what it makes of the best recipe. To
# add a rung, add a line here, what the line of its recipe calls to `remedies.STEPS`, and its
# import to `remedies.IMPORTS`; where it takes minutes, add it to `remedies.COSTLY` too.
ROUNDING: list[tuple[str, Callable[[Recipe], Recipe]]] = [
    ("AdaRound", lambda best: replace(best, steps=("AdaRound(alone=True)", *best.steps))),
]


class Ladder:
    """``climb()`` tries remedies until one reaches ``limit``, the largest drop, in score's units.

    learn: steps of reconstruction, 0 to leave it out.
    steps: all that was measured; best: the network that scores highest so far.
    """

    def __init__(
        self, workshop: Workshop, meter: Meter, journal: Journal, start: Recipe, limit: float,
        learn: int = 0,
    ) -> None:  # fmt: skip
        self.workshop, self.meter, self.journal = workshop, meter, journal
        self.start, self.limit, self.learn = start, limit, learn
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self._best: Step | None = None
        self._spent = 0.0  # seconds that the search for the next step's range rule took

    @property
    def best(self) -> Step:
        assert self._best is not None
        return self._best

    @property
    def recipe(self) -> Recipe:
        """What the next remedy builds on."""
        recipe = self.best.recipe
        assert recipe is not None
        return recipe

    def reaches(self, step: Step) -> bool:
        """Is the whole interval of the drop inside the limit? Without one the drop itself."""
        change = step.change
        least = change.difference if change.low is None else change.low
        return least is not None and -least <= self.limit

    def climb(self) -> None:
        with tqdm(bar_format="{desc}", leave=False, disable=not self.workshop.progress) as line:
            for name, make in self._remedies():
                line.set_description_str(f"reach: {name}")
                went = self._goes(name, lambda make=make, name=name: self.try_(name, make()))
                if went and self.reaches(self.steps[-1]):
                    return
            line.set_description_str("reach: layers kept wider")
            self._goes("layers kept wider", Widening(self).climb)

    def _goes(self, name: str, take: Callable[[], object]) -> bool:
        """Take a step, or note why it is refused; the first step's errors and evaluate's raise."""
        try:
            take()
            return True
        except QuantizationError as error:
            if not self.steps or self.meter.scoring:
                raise
            self.notes.append(f"{name} was refused: {error}")
            return False

    def try_(self, name: str, recipe: Recipe, only_if_reached: bool = False) -> Step:
        """Measure a recipe; the best from now on where it reaches, or its mean score is higher."""
        spent, self._spent = self._spent, 0.0
        step = self.meter.measure(name, recipe, self.workshop, self._best, spent)
        higher = self._best is None or step.change.score > self._best.change.score
        if self.reaches(step) or (higher and not only_if_reached):
            step = self.meter.keep(replace(step, kept=True))
            self._best = step
        self.steps.append(step)
        return step

    def _remedies(self) -> Iterator[tuple[str, Callable[[], Recipe]]]:
        """Names, and what makes the recipe when the ones before have been measured."""
        config = self.start.config
        rounds_activations = config.activation_bits is not None
        few = config.weight_bits is not None and config.weight_bits <= FEW_BITS
        named = config.activation_range != SEARCH
        start = replace(self.start, rule=config.activation_range) if named else self.start
        ranges = f", {start.rule} ranges" if rounds_activations else ""
        yield f"as it comes{ranges}", lambda: start
        if rounds_activations:
            found = self._searched(start)
            if (found.rule, found.options) != (start.rule, start.options):
                yield f"range rule searched: {_rule(found)}", lambda: found
        if few and config.weight_range != "mse":
            wider = replace(self.recipe.config, weight_range="mse")
            finer = replace(self.recipe, config=wider)
            yield "weight ranges by squared error", lambda: finer
        if config.weight_bits is None:
            return
        traced = self.workshop.traced(self.recipe)
        if not traced:
            self.notes.append(
                "the network could not be traced, so bias correction, equalization and AdaRound "
                "were not tried"
            )
            return
        yield "bias correction", lambda: replace(self.recipe, steps=("CorrectBias()",))
        before = self.recipe
        for prepare in self.workshop.preparations():
            other = replace(before, prepare=prepare)
            yield NAMES[prepare], lambda other=other: self._searched(other)
        if self._share_of_weights() < LITTLE:
            names = ", ".join(name for name, _ in ROUNDING)
            self.notes.append(
                f"not tried: {names}. Rounded weights make less than {LITTLE:.0%} of the noise at "
                "the output; the activations make the rest"
            )
        else:
            for name, change in ROUNDING:
                yield name, lambda change=change: change(self.recipe)
        if self.learn:
            yield "reconstruction", lambda: replace(self.recipe, learned=self.learn)
        else:
            self.notes.append(
                "not tried: reconstruction, which takes minutes and no bytes (learn=1000)"
            )

    def _share_of_weights(self) -> float:
        """Of the noise at the output; 1 where it cannot be measured."""
        recipe = replace(self.recipe, steps=())
        if recipe.config.activation_bits is None:
            return 1.0

        def measured() -> float:
            try:
                return OutputNoise(self.workshop, recipe).share_of_weights()
            except QuantizationError:
                return 1.0

        return self.journal.get(f"share of weights {recipe.line}", measured)

    def _searched(self, recipe: Recipe) -> Recipe:
        """With the range rule of a search, if activations are rounded; it is remembered."""
        if recipe.config.activation_bits is None:
            return recipe

        def make() -> dict[str, Any]:
            found = self.workshop.searched(recipe)
            return {"rule": found.rule, "options": dict(found.options)}

        plain, began = replace(recipe, rule="minmax", options=(), steps=()), time.perf_counter()
        found = self.journal.get(f"search {plain.line}", make)
        self._spent = time.perf_counter() - began
        return replace(recipe, rule=found["rule"], options=tuple(found["options"].items()))


def _rule(recipe: Recipe) -> str:
    return " ".join([recipe.rule, *(f"{value:g}" for _, value in recipe.options)])
