"""Deciding: from the statistics of a network, its plan and a configuration to scales. Chapter 06.

A pure step between collecting and converting: it may be repeated with other rules and bits, and
reads no data.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.graph import Plan
from ptq_course.graph.planning import LayerSite
from ptq_course.grids.affine import AnyQParams, choose_qparams
from ptq_course.ranges.calibrators import CALIBRATORS, Calibrator
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.statistics import Statistics, rules_named


def decide(
    statistics: Statistics, plan: Plan, config: QConfig, rule: str, options: dict[str, float]
) -> tuple[dict[str, Calibrator], dict[str, AnyQParams]]:
    """A calibrator and QParams for each value of the plan, by name.

    rule: the name of a range rule, ``options`` for its calibrator. Both dictionaries are empty
    where the config leaves the activations in floating point. Raises CalibrationError, naming the
    value, where no data were seen, QuantizationError for a rule that its grid has no use for.
    """
    rules_named(rule)
    grid = config.activation_grid
    if grid is None:
        return {}, {}
    if grid.bits > CALIBRATORS[rule].rule.most_bits:
        warnings.warn(
            f"ranges={rule!r} with {grid.bits} bits: its 2,048 candidates leave "
            "so fine a grid little to choose from; 'minmax' or 'percentile' suit it better.",
            stacklevel=3,
        )
    if statistics.num_batches == 0:
        raise CalibrationError("compute_qparams: no data was observed; call observe(loader).")
    statistics.require(rule)
    calibrators: dict[str, Calibrator] = {}
    qparams: dict[str, AnyQParams] = {}
    for name, value in plan.values.items():
        if name in statistics.integers:
            continue
        if value.range is not None:  # known beforehand, such as a softmax's [0, 1]
            qparams[name] = choose_qparams(*value.range, grid, config.activation_symmetric)
            continue
        calibrator = calibrators[name] = statistics.calibrator(name, rule, options)
        try:
            qparams[name] = calibrator.qparams(grid, config.activation_symmetric)
        except QuantizationError as error:
            raise type(error)(f"value {name!r}: {error}") from error
    return calibrators, qparams


def never_alive(calibrators: Mapping[str, Calibrator]) -> list[str]:
    """The values that were 0 in all data: nothing is known of their range."""
    return [name for name, c in calibrators.items() if c.min_val == c.max_val == 0]


def check_widths(config: QConfig, layers: Mapping[str, LayerSite]) -> None:
    """Raise QuantizationError where ``config.layer_bits`` names no layer with integer weights."""
    for name, bits in config.layer_bits:
        if name not in layers:
            raise QuantizationError(
                f"layer_bits gives {name!r} {_word(bits)}, but the model has no such layer. Its "
                f"layers: {', '.join(sorted(layers))}."
            )
        if layers[name].kept_float:
            raise QuantizationError(
                f"layer_bits gives {name!r} {_word(bits)}, but its weight stays in floating point "
                "(left_in_float says why); take it out of layer_bits."
            )


def _word(width: int | str) -> str:
    return width if isinstance(width, str) else f"{width} bits"
