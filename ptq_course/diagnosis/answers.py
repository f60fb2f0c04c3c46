"""What `diagnose` found: one answer for each question, and what to do first. Chapter 06."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ptq_course.diagnosis.comparison import Comparison
from ptq_course.diagnosis.scores import Variant

Remedy = tuple[str, Variant]  # what to do, and what it gained over the quantized model
CHAPTERS = {
    "drop": "00 Start here",
    "fp32 export": "15 Deployment",
    "runtime": "08 Integer inference",
    "weights or activations": "06 Static PTQ",
    "range rule": "02 Range calibration, 03 KL calibration",
    "layers": "10 Sensitivity and mixed precision",
}


@dataclass(frozen=True)
class Answer:
    """One question: ``verdict`` in a word or two, ``finding`` in sentences, ``numbers`` behind it.

    recipe: code of at most fifteen lines that uses model, calibration and evaluate.
    """

    topic: str
    question: str
    verdict: str
    finding: str
    recipe: str
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def chapter(self) -> str:
        return CHAPTERS[self.topic]

    def __str__(self) -> str:
        body = textwrap.fill(self.finding, 92, initial_indent="   ", subsequent_indent="   ")
        code = textwrap.indent(self.recipe.strip(), "     | ")
        chapter = f"   chapter {self.chapter}; to repeat it:"
        return f"{self.question} {self.verdict.upper()}\n{body}\n{chapter}\n{code}"


@dataclass(frozen=True)
class Diagnosis:
    """The answers in order, what to do first, and the measurements behind them.

    ``print`` shows everything; ``summary()`` leaves the recipes out; ``diagnosis["layers"]`` is one
    answer. ``comparison`` holds the errors of all layers (None where it was not needed).
    """

    answers: tuple[Answer, ...]
    advice: str
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()

    def __getitem__(self, topic: str) -> Answer:
        for answer in self.answers:
            if answer.topic == topic:
                return answer
        raise KeyError(f"no answer {topic!r}; there are {', '.join(a.topic for a in self.answers)}")

    def summary(self) -> str:
        """One line a question, and what to do first."""
        lines = [f"{a.question} {a.verdict.upper()}. {a.finding}" for a in self.answers]
        return "\n".join([*lines, f"Do first: {self.advice}", *_noted(self.notes)])

    def __str__(self) -> str:
        numbered = [f"{n}. {answer}" for n, answer in enumerate(self.answers, 1)]
        last = textwrap.fill(f"Do first: {self.advice}", 95)
        return "\n\n".join([*numbered, last, *_noted(self.notes)])

    __repr__ = __str__


def _noted(notes: Sequence[str]) -> list[str]:
    return [f"note: {note}" for note in notes]


def advise(answers: Sequence[Answer], remedies: Sequence[Remedy]) -> str:
    """What to do first: what is broken before what is costly, what is free before what is not."""
    verdicts = {answer.topic: answer.verdict for answer in answers}
    if verdicts.get("fp32 export") == "no":
        return "repair the FP32 export; nothing that follows can be trusted before it is equal."
    if verdicts.get("runtime") == "no":
        return (
            "find why the runtime differs from the simulation (saturating products, an operator "
            "left in floating point); other ranges cannot repair that."
        )
    if "layers" not in verdicts or (verdicts["drop"] == "not shown" and not remedies):
        return (
            "nothing in the ranges or layers, since no drop was shown. If your own figures differ, "
            "compare preprocessing and the file that you deploy."
        )
    if not remedies:
        return (
            "neither another range rule nor the worst layers in floating point gain anything that "
            "can be shown: look at the calibration data (chapter 09), then at more bits."
        )
    # A range rule costs nothing at run time, so it is tried before layers that stay in float.
    text, gain = remedies[0]
    least = gain.difference or 0.0
    more = [t for t, row in remedies[1:] if row.interval is not None and row.interval[0] > least]
    return f"{text}." + (f" Or, at the price of speed, {more[0]}." if more else "")
