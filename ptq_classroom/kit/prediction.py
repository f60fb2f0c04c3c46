"""`guess = predict("03.1", 4.0)`: keep a guess and draw it into a later figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """A kept guess; `guess` is None where nobody predicted (in CI), and then nothing is drawn."""

    id: str
    guess: float | str | None
    unit: str = ""

    def draw(self, ax: Any, axis: str = "x") -> None:
        """Mark the guess on a Matplotlib axis ("x" or "y") with a dashed line and a label."""
        if not isinstance(self.guess, int | float):
            return
        line, where = (ax.axvline, "x") if axis == "x" else (ax.axhline, "y")
        line(self.guess, color="#717581", linestyle=(0, (4, 2)), linewidth=1.5, zorder=5)
        x, y = (self.guess, 0.98) if where == "x" else (0.98, self.guess)
        transform = ax.get_xaxis_transform() if where == "x" else ax.get_yaxis_transform()
        vertical = {"rotation": 90, "ha": "right", "va": "top"}
        style = vertical if where == "x" else {"ha": "right", "va": "bottom"}
        ax.text(x, y, "your guess", transform=transform, color="#717581", fontsize=9, **style)

    def compare(self, measured: float | str) -> None:
        """Print the guess beside what was measured."""
        if self.guess is None:
            print(f"{self.id}: measured {_text(measured, self.unit)} (no prediction to compare)")
        elif isinstance(self.guess, str) or isinstance(measured, str):
            verdict = "right" if self.guess == measured else "not so"
            print(f"{self.id}: you said {self.guess}, measured {measured}: {verdict}")
        else:
            unit = "points" if self.unit == "%" else self.unit  # a difference of two percentages
            off = _text(abs(self.guess - measured), unit)
            print(
                f"{self.id}: you said {_text(self.guess, self.unit)}, "
                f"measured {_text(measured, self.unit)}: off by {off}"
            )


def predict(
    id: str,
    guess: float | str | None,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Prediction:
    """Keep `guess` (a number in [low, high], or one of `choices`); None makes no prediction.

    A guess that cannot be used is explained and counts as none, so the notebook runs on.
    """
    wanted = _wanted(unit, low, high, choices)
    if guess is None:
        print(f"no prediction made: {id} ({wanted})")
        return Prediction(id, None, unit)
    problem = _problem(guess, low, high, choices)
    if problem:
        print(f"{id}: {guess!r} {problem}; give {wanted}")
        return Prediction(id, None, unit)
    value = guess if choices else float(guess)
    print(f"kept: you predict {_text(value, unit)} for {id}")
    return Prediction(id, value, unit)


def _wanted(unit: str, low: float | None, high: float | None, choices: Any) -> str:
    if choices:
        return "one of " + ", ".join(choices)
    between = {
        (True, True): "",
        (False, True): f" of at least {low:g}" if low is not None else "",
        (True, False): f" of at most {high:g}" if high is not None else "",
    }.get((low is None, high is None), f" from {low} to {high}")
    return f"a number{between}{f', in {unit}' if unit else ''}"


def _problem(guess: Any, low: float | None, high: float | None, choices: Any) -> str:
    if choices:
        return "" if guess in choices else "is not among the choices"
    try:
        value = float(guess)
    except (TypeError, ValueError):
        return "is not a number"
    if not math.isfinite(value):
        return "is not a finite number"
    outside = (low is not None and value < low) or (high is not None and value > high)
    return "is outside the possible range" if outside else ""


def _text(value: float | str, unit: str) -> str:
    number = value if isinstance(value, str) else f"{value:.4g}"
    return f"{number} {unit}".strip() if unit != "%" else f"{number} %"
