"""What `reach` measures of a network: scores on two parts, bytes, milliseconds. Chapter 10."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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

Found = dict[str, Any]  # what a journal keeps of the scores of one network


class Meter:
    """Measures recipes: scores on the two parts, bytes, milliseconds; all of it goes down.

    ``validation``, ``held_out``: indices of the examples. Where `evaluate` gives one number there
    are no parts (both are empty), and it decides by itself.
    """

    def __init__(
        self, model: nn.Module, evaluate: Evaluate, inputs: Sequence[Tensor], test_share: float,
        seed: int, journal: Journal, timed: bool,
    ) -> None:  # fmt: skip
        self.evaluate, self.inputs, self.journal, self.timed = evaluate, inputs, journal, timed
        self._last: tuple[Recipe, QuantizedModel] | None = None
        self._kept: tuple[Recipe, QuantizedModel] | None = None
        self.scoring = False  # inside `evaluate`: its errors are no remedy's
        self.validation = self.held_out = torch.zeros(0, dtype=torch.int64)
        plain = copied(model)
        began = time.perf_counter()
        scores = self._scores(plain, "FP32")
        self.count = _count(scores)
        if self.count is not None:
            self._split(self.count, test_share, seed)
        self.reference = self._found(scores, "FP32")
        seconds = time.perf_counter() - began
        journal.check_reference(_numbers(self.reference))
        # Zeros alone say nothing: FP32's distance to itself is no share of right answers.
        self.unit = 0.01 if scores.is_share and scores.mean > 0 else 1.0
        began = time.perf_counter()
        ms = journal.get("ms FP32", lambda: milliseconds(plain, inputs) if timed else None)
        timing = time.perf_counter() - began if timed else 0.0
        change = replace(self._part("FP32", self.reference), difference=None)
        self.reference_row = Step(
            "FP32", "model.eval()", None, change, None, model_bytes(plain), ms, 0.0, False, seconds,
            timing,
        )  # fmt: skip

    def _split(self, count: int, test_share: float, seed: int) -> None:
        kept = round(count * test_share)
        if count < 2 or not 0 < kept < count:
            raise QuantizationError(
                f"reach: {count} examples cannot be split into validation and test parts with "
                f"test_share={test_share}; score more examples."
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        self.held_out, self.validation = order[:kept].sort()[0], order[kept:].sort()[0]

    def _scores(self, model: nn.Module, name: str) -> Scores:
        self.scoring = True
        found = score(self.evaluate, model, name)
        if name != "FP32" and _count(found) != self.count:
            counts = ["one number" if n is None else f"{n} scores" for n in
                      (self.count, _count(found))]  # fmt: skip
            raise QuantizationError(
                f"evaluate returned {counts[0]} for FP32 and {counts[1]} for {name}: use the same "
                "examples in the same order."
            )
        self.scoring = False
        return found

    def _found(self, scores: Scores, name: str) -> Found:
        if scores.metric is not None:
            parts = {"validation": self.validation, "test": self.held_out}
            drawn = {part: scores.metric.drawn(at, name) for part, at in parts.items()}
            return {part: [value, *draws.tolist()] for part, (value, draws) in drawn.items()}
        if scores.examples is not None:
            return {"scores": scores.examples.tolist()}
        return {"score": scores.mean}

    def _of_part(self, found: Found, test: bool) -> Scores:
        if "score" in found:
            return Scores(found["score"])
        if "scores" in found:
            at = self.held_out if test else self.validation
            part = torch.tensor(found["scores"]).double()[at]
            return Scores(part.mean().item(), part)
        value, *draws = found["test" if test else "validation"]
        return Scores(value, None, torch.tensor(draws).double())

    def _part(self, name: str, found: Found, test: bool = False) -> Variant:
        return against(self._of_part(self.reference, test), self._of_part(found, test), name)

    def measure(
        self, name: str, recipe: Recipe, workshop: Workshop, best: Step | None, spent: float = 0.0
    ) -> Step:
        """Build, score and weigh a recipe, or recall all that.

        spent: seconds that its range rule has taken.
        """

        def make() -> Found:
            began = time.perf_counter()
            quantized = workshop.build(recipe)
            made = time.perf_counter()
            self._last = recipe, quantized
            scores = self._found(self._scores(quantized, name), name)
            scored = time.perf_counter() - made
            return {
                **scores, "bytes": model_bytes(quantized),
                "seconds": made - began + spent, "scored in": scored,
            }  # fmt: skip

        found, gain = self.journal.get(recipe.line, make), None
        if best is not None:
            before = self._of_part(self.journal.results[best.line], False)
            gain = against(before, self._of_part(found, False), name)
        return Step(
            name, recipe.line, recipe, self._part(name, found), gain, found["bytes"],
            self.journal.results.get(_kind(recipe)), found["seconds"], False, found["scored in"],
        )  # fmt: skip

    def keep(self, step: Step) -> Step:
        """Hold on to the network that was built last, if it is this step's, and time its kind."""
        if self._last is None or self._last[0] != step.recipe:
            return step
        self._kept = recipe, quantized = self._last
        if not self.timed or recipe.config.target != "onnxruntime":
            return step
        began = time.perf_counter()
        ms = self.journal.get(_kind(recipe), lambda: milliseconds(quantized, self.inputs))
        return replace(step, milliseconds=ms, timed=time.perf_counter() - began)

    def model_of(self, step: Step, workshop: Workshop) -> QuantizedModel:
        """The network of a step, built again where it comes from a journal."""
        assert step.recipe is not None
        if self._kept is not None and self._kept[0] == step.recipe:
            return self._kept[1]
        return workshop.build(step.recipe)

    def test(self, step: Step) -> Variant | None:
        """A step's network against FP32 on the held-out part, if there is one."""
        if self.count is None:
            return None
        return self._part("test part", self.journal.results[step.line], test=True)


def _kind(recipe: Recipe) -> str:
    """What a file's time depends on."""
    return f"ms {(recipe.prepare, recipe.config)!r}"


def _count(scores: Scores) -> int | None:
    """How many examples; None for one number."""
    if scores.metric is not None:
        return scores.metric.examples
    return None if scores.examples is None else len(scores.examples)


def _numbers(found: Found) -> Tensor:
    """All scores of a network in one vector."""
    values = [x if isinstance(x, list) else [x] for x in found.values()]
    return torch.tensor([number for part in values for number in part]).double()
