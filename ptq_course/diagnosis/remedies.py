"""A way of quantizing as a value: it builds the network, and says in one line how. Chapter 10.

`reach` tries recipes. Whatever one of them does can be done by hand with its ``line``, and gives
the same network to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import fx, nn

from ptq_course.graph import plain_module
from ptq_course.grids.affine import QTensor
from ptq_course.improve.adaround import AdaRound
from ptq_course.improve.bias_correction import CorrectBias
from ptq_course.improve.equalization import Equalize
from ptq_course.improve.inputs import find_values
from ptq_course.improve.pairs import find_pairs, prepared, with_limits, without_relu6
from ptq_course.improve.reconstruction import reconstruct
from ptq_course.improve.smoothquant import SmoothQuant, find_norms
from ptq_course.improve.walk import LayerStep, Site, improved
from ptq_course.simulation.observe import model_inputs
from ptq_course.simulation.qconfig import SEARCH, QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer

IMPORTS = """\
from ptq_course import PTQQuantizer, QConfig
from ptq_course.improve.adaround import AdaRound
from ptq_course.improve.bias_correction import CorrectBias
from ptq_course.improve.equalization import Equalize
from ptq_course.improve.pairs import with_limits, without_relu6
from ptq_course.improve.reconstruction import reconstruct
from ptq_course.improve.smoothquant import SmoothQuant
from ptq_course.improve.walk import improved"""

# How the network is prepared: what the line says of the model, and of the steps.
PREPARE = {
    "": ("model", ""),
    "equalized": ("model", ", steps=[Equalize()]"),
    "equalized, ReLU6 as ReLU": ("without_relu6(model)", ", steps=[Equalize()]"),
    "equalized, a limit a channel": ("with_limits(model)", ", steps=[Equalize()]"),
    "smoothed": ("model", ", steps=[SmoothQuant(calibration, alpha=None)]"),
    "smoothed, divisions of their own": (
        "model",
        ", steps=[SmoothQuant(calibration, alpha=None, explicit=True)]",
    ),
}
STEPS: dict[str, Callable[[], LayerStep]] = {
    "AdaRound(alone=True)": lambda: AdaRound(alone=True),
    "CorrectBias()": CorrectBias,
}
ALONE = {"AdaRound(alone=True)"}  # a layer's codes depend on no other layer, and are made once
COSTLY: set[str] = set()  # steps that take minutes, as reconstruction does: see `Recipe.twin`


@dataclass(frozen=True)
class Recipe:
    """config: bits and the rest; rule, options: the range rule and its settings; prepare: a key of
    PREPARE; steps: keys of STEPS, which read ``batches`` batches; learned: steps of reconstruction
    after them, 0 for none, which reads all of the calibration data.
    """

    config: QConfig
    rule: str
    options: tuple[tuple[str, Any], ...] = ()
    prepare: str = ""
    steps: tuple[str, ...] = ()
    batches: int = 8
    learned: int = 0

    @property
    def twin(self) -> Recipe:
        """The same without what takes minutes; itself where nothing does."""
        return replace(self, steps=tuple(s for s in self.steps if s not in COSTLY), learned=0)

    @property
    def line(self) -> str:
        """Python that makes the network from ``model`` and ``calibration``; names of IMPORTS."""
        model, steps = PREPARE[self.prepare]
        rule = ", ".join([repr(self.rule), *(f"{n}={v!r}" for n, v in self.options)])
        config = replace(self.config, activation_range=SEARCH)  # the rule is named at its place
        quantizer = (
            f"PTQQuantizer({model}, config={config.as_code()}{steps})"
            f".observe(calibration).compute_qparams({rule})"
        )
        if not self.learned:
            return self._improved(quantizer) if self.steps else f"{quantizer}.convert()"
        if not self.steps:
            return f"reconstruct({quantizer}, calibration, {self.learned})"
        start = self._improved("q")
        return f"reconstruct((q := {quantizer}), calibration, {self.learned}, start={start})"

    def _improved(self, quantizer: str) -> str:
        steps = ", ".join(self.steps)
        return f"improved({quantizer}, calibration, [{steps}], num_batches={self.batches})"


class Remembering:
    """A step whose codes are kept in ``known``, by layer and grid, and not made again."""

    def __init__(self, step: LayerStep, known: dict[tuple, QTensor]) -> None:
        self.step, self.known = step, known

    def __call__(self, site: Site) -> None:
        q = site.layer.weight_qparams
        if q is None:
            self.step(site)
            return
        numbers = [x.detach().cpu().numpy().tobytes() for x in (q.scale, q.zero_point)]
        key = (site.layer.name, repr(q.grid), q.block_size, *numbers)
        if key in self.known:
            site.use(self.known[key])
        else:
            self.step(site)
            self.known[key] = site.layer.weight_qtensor


class Workshop:
    """Builds recipes for one model; each way of preparing it is observed once."""

    def __init__(self, model: nn.Module, calibration: Iterable, progress: bool) -> None:
        self.model, self.calibration, self.progress = model, calibration, progress
        self._observed: dict[tuple, PTQQuantizer] = {}
        self._codes: dict[tuple, dict[tuple, QTensor]] = {}

    def quantizer(self, recipe: Recipe) -> PTQQuantizer:
        """A quantizer of the prepared network that has decided as the recipe says."""
        config, key = replace(recipe.config, activation_range=SEARCH), self._key(recipe)
        if key not in self._observed:
            model, steps = self.model, []
            if recipe.prepare.startswith("equalized"):
                steps = [Equalize()]
            if recipe.prepare.endswith("as ReLU"):
                model = without_relu6(model)
            elif recipe.prepare.endswith("a channel"):
                model = with_limits(model)
            elif recipe.prepare.startswith("smoothed"):
                explicit = recipe.prepare != "smoothed"
                steps = [SmoothQuant(self.calibration, alpha=None, explicit=explicit)]
            made = PTQQuantizer(model, config=config, steps=steps)
            self._observed[key] = made.observe(self.calibration, progress=self.progress)
        fork = self._observed[key].fork()
        return fork.compute_qparams(recipe.rule, config=config, **dict(recipe.options))

    @staticmethod
    def _key(recipe: Recipe) -> tuple:
        """What the prepared float network depends on, whatever is rounded how."""
        config = recipe.config
        key: tuple = recipe.prepare, config.fused_activations, config.target
        if recipe.prepare.startswith("smoothed"):  # alpha is searched for these grids
            grids = config.activation_grid, config.activation_symmetric, config.weight_grid
            key = *key, *map(repr, grids)
        return key

    def searched(self, recipe: Recipe) -> Recipe:
        """The recipe with the range rule that a search finds best for its network."""
        found = self.quantizer(replace(recipe, rule=SEARCH, options=())).searched
        if found is None:
            return recipe
        return replace(recipe, rule=found.best.rule, options=tuple(found.best.options.items()))

    def build(self, recipe: Recipe) -> QuantizedModel:
        quantizer = self.quantizer(recipe)
        start = self._improved(quantizer, recipe) if recipe.steps else None
        if recipe.learned:
            return reconstruct(
                quantizer, self.calibration, recipe.learned, start=start, progress=self.progress
            )
        return quantizer.convert() if start is None else start

    def _improved(self, quantizer: PTQQuantizer, recipe: Recipe) -> QuantizedModel:
        steps: list[LayerStep] = []
        for name in recipe.steps:
            step = STEPS[name]()
            if name in ALONE:
                key = (name, recipe.batches, *self._key(recipe))
                step = Remembering(step, self._codes.setdefault(key, {}))
            steps.append(step)
        return improved(
            quantizer, self.calibration, steps, num_batches=recipe.batches, progress=self.progress
        )

    def preparations(self) -> list[str]:
        """The keys of PREPARE that change something about this network, the cheapest first."""
        try:
            plain = prepared(plain_module(self.model))
        except ValueError:  # it cannot be traced
            return []
        found = ["equalized"] if find_pairs(plain) else []
        more = len(find_pairs(with_limits(plain))) > len(find_pairs(plain))
        if more:  # ReLU6 stands in the way: first what costs no operation
            found += ["equalized, ReLU6 as ReLU", "equalized, a limit a channel"]
        folded = find_norms(plain)
        if folded:
            found.append("smoothed")
        norms = any(isinstance(part, nn.LayerNorm) for part in plain.modules())
        if norms and len(find_values(plain)) > len(folded):
            found.append("smoothed, divisions of their own")
        return found

    def traced(self, recipe: Recipe) -> bool:
        return isinstance(self.quantizer(recipe).float_model, fx.GraphModule)


def batches_for(calibration: Iterable, names: list[str], examples: int) -> int:
    """How many batches hold that many examples, at most all of them."""
    seen = count = 0
    for batch in islice(calibration, examples):
        count += 1
        seen += len(model_inputs(batch, names)[0])
        if seen >= examples:
            break
    return max(1, count)
