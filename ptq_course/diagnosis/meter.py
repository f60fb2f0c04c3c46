"""What `reach` measures of a network: scores on two parts, bytes, milliseconds. Chapter 10."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ptq_course.diagnosis.journal import Journal
from ptq_course.diagnosis.log import Step
from ptq_course.diagnosis.remedies import Recipe, Workshop
from ptq_course.diagnosis.runtime import milliseconds
from ptq_course.diagnosis.scores import Evaluate, Scores, Variant, against, score
from ptq_course.diagnosis.sizes import model_bytes
from ptq_course.errors import QuantizationError
from ptq_course.graph import copied
from ptq_course.simulation.quantized import QuantizedModel


class Meter:
    """Measures recipes: scores on the two parts, bytes, milliseconds; all of it goes down."""

    def __init__(
        self, model: nn.Module, evaluate: Evaluate, inputs: Sequence[Tensor], test_share: float,
        seed: int, journal: Journal, timed: bool,
    ) -> None:  # fmt: skip
        self.evaluate, self.inputs, self.journal, self.timed = evaluate, inputs, journal, timed
        self._last: tuple[Recipe, QuantizedModel] | None = None
        self._kept: tuple[Recipe, QuantizedModel] | None = None
        plain = copied(model)
        self.reference = self._scores(plain, "FP32")
        journal.check_reference(self.reference)
        count = len(self.reference)
        kept = round(count * test_share)
        if count < 2 or not 0 < kept < count:
            raise QuantizationError(
                f"reach: {count} examples cannot be split into validation and test parts with "
                f"test_share={test_share}; score more examples."
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        self.held_out, self.validation = order[:kept].sort()[0], order[kept:].sort()[0]
        is_share = Scores(0.0, self.reference).is_share
        self.unit = 0.01 if is_share else 1.0
        ms = journal.get("ms FP32", lambda: milliseconds(plain, inputs) if timed else None)
        self.reference_row = Step(
            "FP32", "model.eval()", None, self._part("FP32", self.reference), None,
            model_bytes(plain), ms, 0.0, False,
        )  # fmt: skip

    def _scores(self, model: nn.Module, name: str) -> Tensor:
        examples = score(self.evaluate, model, name).examples
        if examples is None:
            raise QuantizationError(
                "reach: evaluate returned one number. It must return a score for each example, "
                "[N]: reach separates validation and test parts by index and stops by a paired "
                "interval. For a metric of a whole set (mAP, F1) return it for each picture or "
                "document."
            )
        if name != "FP32" and len(examples) != len(self.reference):
            raise QuantizationError(
                f"evaluate returned {len(self.reference)} scores for FP32 and {len(examples)} for "
                f"{name}: use the same examples in the same order."
            )
        return examples

    def _part(self, name: str, scores: Tensor, test: bool = False) -> Variant:
        at = self.held_out if test else self.validation
        reference, part = self.reference[at], scores[at]
        found = against(_of(reference), _of(part), name)
        return replace(found, difference=None) if name == "FP32" else found

    def measure(self, name: str, recipe: Recipe, workshop: Workshop, best: Step | None) -> Step:
        """Build, score, weigh and time a recipe, or recall all that."""

        def make() -> dict:
            began = time.perf_counter()
            quantized = workshop.build(recipe)
            seconds = time.perf_counter() - began
            self._last = recipe, quantized
            scores = self._scores(quantized, name)
            kind = repr((recipe.prepare, recipe.config))
            ms = None
            if self.timed and recipe.config.target == "onnxruntime":
                ms = self.journal.get(f"ms {kind}", lambda: milliseconds(quantized, self.inputs))
            return {
                "scores": scores.tolist(), "bytes": model_bytes(quantized), "ms": ms,
                "seconds": seconds,
            }  # fmt: skip

        found = self.journal.get(recipe.line, make)
        scores, at, gain = self._recalled(recipe.line), self.validation, None
        if best is not None:
            before = self._recalled(best.line)
            gain = against(_of(before[at]), _of(scores[at]), name)
        return Step(
            name, recipe.line, recipe, self._part(name, scores), gain, found["bytes"], found["ms"],
            found["seconds"], False,
        )  # fmt: skip

    def keep(self, step: Step) -> None:
        """Hold on to the network that was built last, if it is this step's."""
        if self._last is not None and self._last[0] == step.recipe:
            self._kept = self._last

    def model_of(self, step: Step, workshop: Workshop) -> QuantizedModel:
        """The network of a step, built again where it comes from a journal."""
        assert step.recipe is not None
        if self._kept is not None and self._kept[0] == step.recipe:
            return self._kept[1]
        return workshop.build(step.recipe)

    def test(self, step: Step) -> Variant:
        """A step's network against FP32 on the held-out part."""
        return self._part("test part", self._recalled(step.line), test=True)

    def _recalled(self, line: str) -> Tensor:
        return torch.tensor(self.journal.results[line]["scores"]).double()


def _of(scores: Tensor) -> Scores:
    return Scores(scores.mean().item(), scores)
