"""The release card: what was quantized, how, and how it was accepted. Chapter 17.

A page that goes out with the file. What can be read off the model and its validation is written;
what only its author knows is left open, and marked, so that nobody ships it unread. The idea of a
card beside a model is Mitchell et al., "Model Cards for Model Reporting", 2019.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ptq_course.deploy.validate import Validation
from ptq_course.errors import QuantizationError
from ptq_course.simulation.quantized import ConvertedModel

OPEN = "**TO DO**"


def release_card(
    name: str,
    quantized: ConvertedModel,
    validation: Validation,
    change: tuple[float, float, float],
    *,
    calibration: str = OPEN,
    limit: float | None = None,
    by_mode: Sequence[tuple[str, int, float, float, float]] = (),
    weaknesses: str = OPEN,
) -> str:
    """Markdown of the card; what is not given stands in it as `OPEN`.

    change: INT8's accuracy minus FP32's with its interval (mean, low, high), shares of 1, as
    `paired_bootstrap` gives it. calibration: how many inputs, from where. limit: the loss that is
    accepted, a share. by_mode: (mode, examples, mean, low, high) of the change.
    Raises QuantizationError for an interval that is none.
    """
    mean, low, high = change
    if not low <= mean <= high:
        raise QuantizationError(
            f"release_card: the change {change} is no (mean, low, high); see paired_bootstrap."
        )
    verdict = OPEN
    if limit is not None:
        kept = "kept" if low >= -limit else "**broken**"
        verdict = (
            f"the lower end of the 95 % interval is at least {_points(-limit)} points: {kept} "
            f"({_points(low)})"
        )
    rows = [f"| {what} | {value} |" for what, value in validation.rows()]
    modes = [
        f"| {mode} | {count} | {_points(m)} | {_points(a)} to {_points(b)} |"
        for mode, count, m, a, b in by_mode
    ]
    version = importlib.import_module("ptq_course").__version__  # of the front door, above
    left = [f"- `{part}`: {why}" for part, why in quantized.left_in_float.items()]
    return "\n".join(
        (
            f"# Release card: {name}",
            "",
            "## What was quantized, and how",
            "",
            f"{len(quantized.quantized_layers())} layers, by ptq_course {version}: "
            f"`{quantized.config.as_code()}`.",
            "",
            "In floating point stay:" if left else "Nothing stays in floating point.",
            *left,
            "",
            "## Calibration data",
            "",
            calibration,
            "",
            "## Accuracy",
            "",
            f"Against FP32 {_points(mean)} points, 95 % interval {_points(low)} to "
            f"{_points(high)}, on {validation.examples} examples, paired.",
            *(
                ("", "| mode | examples | change | interval |", "|---|---|---|---|", *modes)
                if modes
                else ()
            ),
            "",
            "## The file",
            "",
            "| measured | |",
            "|---|---|",
            *rows,
            "",
            "## Acceptance rule",
            "",
            verdict,
            "",
            "## Known weaknesses",
            "",
            weaknesses,
            "",
            "## Regression test",
            "",
            "Run before each new release, on the same examples:",
            "",
            "```python",
            "assert paired_bootstrap(right_before, right_now)[1] >= "
            f"{-limit if limit is not None else 'LIMIT'}",
            "```",
            "",
        )
    )


def open_points(card: str) -> list[str]:
    """The headings under which something is still open."""
    parts = card.split("\n## ")
    return [part.splitlines()[0] for part in parts[1:] if OPEN in part]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
