"""The order in which `reach` tries its remedies: cheapest first, each on what helped before it.

Chapter 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tqdm.auto import tqdm

from ptq_course.diagnosis.journal import Journal
from ptq_course.diagnosis.log import Step
from ptq_course.diagnosis.meter import Meter
from ptq_course.diagnosis.remedies import Recipe, Workshop
from ptq_course.diagnosis.sensitivity import switched
from ptq_course.diagnosis.sizes import fp16_bytes, layer_bytes
from ptq_course.errors import QuantizationError, UnsupportedError
from ptq_course.simulation.qconfig import SEARCH

FEW_BITS = 6  # from here down a weight range by squared error is worth a try
WIDER = 8  # bits of a layer that is kept wider, before FP16
NAMES = {
    "equalized": "equalization",
    "equalized, ReLU6 as ReLU": "equalization, ReLU6 as ReLU",
    "equalized, a limit a channel": "equalization, a limit a channel",
    "smoothed": "SmoothQuant",
    "smoothed, divisions of their own": "SmoothQuant, divisions of their own",
}


class Ladder:
    """``climb()`` tries remedies until one reaches ``limit``, the largest drop, in score's units.

    steps: all that was measured; best: the network that scores highest so far.
    """

    def __init__(
        self, workshop: Workshop, meter: Meter, journal: Journal, start: Recipe, limit: float
    ) -> None:
        self.workshop, self.meter, self.journal = workshop, meter, journal
        self.start, self.limit = start, limit
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self._best: Step | None = None

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
        """Is the whole interval of the drop inside the limit?"""
        return step.change.low is not None and -step.change.low <= self.limit

    def climb(self) -> None:
        with tqdm(bar_format="{desc}", leave=False, disable=not self.workshop.progress) as line:
            for name, make in self._remedies():
                line.set_description_str(f"reach: {name}")
                try:
                    step = self.try_(name, make())
                except UnsupportedError as error:
                    if not self.steps:
                        raise
                    self.notes.append(f"{name} was refused: {error}")
                    continue
                if self.reaches(step):
                    return
            line.set_description_str("reach: layers kept wider")
            self._widen()

    def try_(self, name: str, recipe: Recipe, only_if_reached: bool = False) -> Step:
        """Measure a recipe; the best from now on where it reaches, or its mean score is higher."""
        step = self.meter.measure(name, recipe, self.workshop, self._best)
        higher = self._best is None or step.change.score > self._best.change.score
        if self.reaches(step) or (higher and not only_if_reached):
            step = replace(step, kept=True)
            self._best = step
            self.meter.keep(step)
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
        yield "AdaRound", lambda: replace(self.recipe, steps=("AdaRound()", *self.recipe.steps))

    def _searched(self, recipe: Recipe) -> Recipe:
        """With the range rule of a search, if activations are rounded; it is remembered."""
        if recipe.config.activation_bits is None:
            return recipe

        def make() -> dict[str, Any]:
            found = self.workshop.searched(recipe)
            return {"rule": found.rule, "options": dict(found.options)}

        plain = replace(recipe, rule="minmax", options=(), steps=())
        found = self.journal.get(f"search {plain.line}", make)
        return replace(recipe, rule=found["rule"], options=tuple(found["options"].items()))

    # --- layers kept wider ----------------------------------------------------------------------

    def _widen(self) -> None:
        """Widen the most sensitive layers for their bytes: 1, 2, 4 ..., then the fewest that do."""
        bits = self.start.config.weight_bits
        widths: list[int | None] = [WIDER] if bits is not None and bits < WIDER else []
        for width in [*widths, None]:
            base = self.recipe
            order = self._order(base, width)
            most = len(order) if width else len(order) // 2
            if not most:
                continue
            failed, count = 0, 1
            while True:
                if self.reaches(self._wider(base, order[:count], width)):
                    self._fewest(base, order, width, failed, count)
                    return
                if count == most:
                    break
                failed, count = count, min(2 * count, most)

    def _fewest(
        self, base: Recipe, order: list[str], width: int | None, failed: int, enough: int
    ) -> None:
        """Bisect between a number of layers that fails and one that is enough."""
        while enough - failed > 1:
            middle = (failed + enough) // 2
            if self.reaches(self._wider(base, order[:middle], width, only_if_reached=True)):
                enough = middle
            else:
                failed = middle

    def _config(self, base: Recipe, names: list[str], width: int | None) -> Recipe:
        config = base.config
        bits = {n: b for n, b in config.layer_bits if n not in names}
        if width is None:
            changed = replace(config, float_layers=(*config.float_layers, *names), layer_bits=bits)
        else:
            changed = replace(config, layer_bits=bits | dict.fromkeys(names, width))
        return replace(base, config=changed)

    def _wider(
        self, base: Recipe, names: list[str], width: int | None, only_if_reached: bool = False
    ) -> Step:
        word = f"INT{width}" if width else "FP16"
        few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        recipe = self._config(base, names, width)
        return self.try_(f"{word}: {few}", recipe, only_if_reached)

    def _order(self, base: Recipe, width: int | None) -> list[str]:
        """Layers by what widening wins for its bytes, measured one at a time at the output."""
        return self.journal.get(f"order {width} {base.line}", lambda: self._measured(base, width))

    def _measured(self, base: Recipe, width: int | None) -> list[str]:
        quantizer = self.workshop.quantizer(base)
        layers = quantizer.convert().quantized_layers()
        names = [
            n for n, layer in layers.items()
            if width is None or (layer.weight_grid is not None and layer.weight_grid.bits < width)
        ]  # fmt: skip
        if not names:
            return []

        def noise(bits: list[int]) -> dict[str, float]:
            table = switched(
                "quantize", self.workshop.model, quantizer, None, bits=bits,
                data=self.workshop.calibration, layers=names, progress=self.workshop.progress,
            )  # fmt: skip
            return {row.name: 10 ** (-row.score / 10) for row in table.rows}

        try:
            now, then = noise([]), {} if width is None else noise([width])
        except QuantizationError:  # several outputs: no order by noise, so the order of execution
            self.notes.append("layers are widened in the order of execution: several outputs")
            return names
        worth = {}
        for name in names:
            layer = layers[name]
            grid = layer.weight_grid
            size = layer_bytes(layer)
            if width is None:
                extra = fp16_bytes(layer.float_layer) - size
            else:
                assert grid is not None
                extra = layer.weight_codes.numel() * (width - grid.bits) / 8
            worth[name] = (now[name] - then.get(name, 0.0)) / max(1.0, extra)
        return sorted(names, key=lambda name: -worth[name])


def _rule(recipe: Recipe) -> str:
    return " ".join([recipe.rule, *(f"{value:g}" for _, value in recipe.options)])
