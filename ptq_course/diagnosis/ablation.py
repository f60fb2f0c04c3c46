"""Which part of the quantization costs? Quantize one part at a time and evaluate.

Chapters 06 and 10. All versions share one pass over the calibration data: only the decisions
differ. Results add up badly (errors interact), so read them as suspects, not as shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from ptq_course.diagnosis.parts import Parts, partly, parts_of
from ptq_course.diagnosis.scores import (
    UNPAIRED,
    Evaluate,
    Scores,
    Variant,
    Variants,
    against,
    check_rereadable,
    score,
)
from ptq_course.errors import QuantizationError
from ptq_course.graph import copied
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel, check_float
from ptq_course.simulation.quantizer import PTQQuantizer
from ptq_course.simulation.statistics import rules_named


def observed(
    model: nn.Module,
    calibration: Iterable | PTQQuantizer,
    config: QConfig | None,
    ranges: str | None,
    progress: bool,
) -> PTQQuantizer:
    """A quantizer that has seen the data and decided: a fork of ``calibration`` where it is one."""
    check_float(model)
    if isinstance(calibration, PTQQuantizer):
        calibration.check_made_from(model)
        quantizer = calibration.fork()
        config = config or quantizer.config
    else:
        check_rereadable(calibration, "calibration")
        quantizer = PTQQuantizer(model, config=config)
        config = quantizer.config
        rules = {*rules_named(None), *rules_named(config.activation_range), *rules_named(ranges)}
        quantizer.observe(calibration, ranges=sorted(rules), progress=progress)
    if config.weight_bits is None and config.activation_bits is None:
        raise QuantizationError("the config quantizes nothing: set weight or activation bits.")
    return quantizer.compute_qparams(ranges, config=config)


def decided_rule(quantizer: PTQQuantizer, ranges: str | None = None) -> tuple[str, dict[str, Any]]:
    """The range rule by which `observed` decided, and its options: a search is not repeated."""
    if quantizer.searched is not None:
        return quantizer.searched.best.rule, quantizer.searched.best.options
    return ranges or quantizer.config.activation_range, {}


def ablate(
    model: nn.Module,
    calibration: Iterable | PTQQuantizer,
    evaluate: Evaluate,
    *,
    config: QConfig | None = None,
    ranges: str | None = None,
    more: bool = False,
    progress: bool = True,
) -> Variants:
    """Evaluate FP32, integer weights alone, integer activations alone, and both.

    model: the float model, never changed. calibration: a loader, or a PTQQuantizer of this model
    that has observed its data (its scales stay as they are). evaluate: see `scores`: a function of
    a model that returns a score for each example [N], higher is better. config: bits and the rest,
    by default 8 and 8. ranges: the range rule. more: also round the network's input alone, all but
    the input, and all but the first layer, the last layer, or both.

    Differences are against FP32. Raises QuantizationError where the model is quantized already, or
    evaluate returns something else.
    """
    quantizer = observed(model, calibration, config, ranges, progress)
    reference = score(evaluate, copied(model), "FP32")
    return versions(quantizer, evaluate, reference, more=more, progress=progress)


def versions(
    quantizer: PTQQuantizer, evaluate: Evaluate, reference: Scores, *, more: bool, progress: bool
) -> Variants:
    """The table of `ablate` for a quantizer that has decided; ``reference``: FP32's scores."""
    config = quantizer.config
    quantized = quantizer.convert()
    weights, activations = config.weight_bits, config.activation_bits
    found: list[tuple[str, Any]] = []
    if weights is not None:
        found.append((f"W{weights}A32", partly(quantized, None, ())))
    if activations is not None:
        found.append((f"W32A{activations}", partly(quantized, (), None)))
    if len(found) == 2:
        found.append((f"W{weights}A{activations}", quantized))
    if more:
        found += _more(quantized, parts_of(quantized))
    rows = [Variant("FP32", reference.mean)]
    for name, version in tqdm(found, desc="ablation", disable=not progress, leave=False):
        rows.append(against(reference, score(evaluate, version, name), name))
    return Variants(tuple(rows), () if reference.paired else (UNPAIRED,))


def _more(quantized: QuantizedModel, parts: Parts) -> list[tuple[str, QuantizedModel]]:
    found = []
    if parts.inputs:
        rest = set(parts.quantizers) - set(parts.inputs)
        found = [
            ("input only", partly(quantized, (), parts.inputs)),
            ("all but the input", partly(quantized, None, rest)),
        ]
    if len(parts.layers) > 2:
        first, last = parts.layers[0], parts.layers[-1]
        for label, names in (
            (f"all but {first}", [first]),
            (f"all but {last}", [last]),
            (f"all but {first}, {last}", [first, last]),
        ):
            found.append((label, partly(quantized, *parts.all_but(names))))
    return found
