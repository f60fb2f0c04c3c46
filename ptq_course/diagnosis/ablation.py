"""Which part of the quantization costs? Quantize one part at a time and evaluate.

Chapters 06 and 10. All versions share one pass over the calibration data: only the decisions
differ. Results add up badly (errors interact), so read them as suspects, not as shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.graph import copied
from ptq_course.simulation.observe import output_noise, outputs_over, placed
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel, check_float
from ptq_course.simulation.quantizer import PTQQuantizer
from ptq_course.simulation.statistics import rules_named
from ptq_course.tables import decibels, html_table, text_table


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
    return Variants(tuple(rows), () if reference.examples is not None else (UNPAIRED,))


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


@dataclass(frozen=True)
class Sensitivity:
    """One row a layer, in order of execution; `worst` sorts. ``by`` says what was measured.

    rows[i].score is the score, or the `snr_median` of the output in dB (``by="snr_median"``).
    """

    rows: tuple[Variant, ...]
    mode: str
    by: str
    notes: tuple[str, ...] = ()

    def worst(self, count: int = 3) -> list[Variant]:
        """The layers that hurt most, worst first.

        One quantized at a time: the lowest scores. One in float at a time: the highest.
        """
        sign = 1 if self.mode == "quantize" else -1
        return sorted(self.rows, key=lambda row: sign * row.score)[:count]

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        heading = "quantized alone" if self.mode == "quantize" else "left in float"
        if self.by == "snr_median":
            return (heading, "output, median dB"), [(r.name, decibels(r.score)) for r in self.rows]
        columns = (heading, "score", "lost", "gained", "change", "95 % interval")
        return columns, [r.cells() for r in self.rows]

    def __str__(self) -> str:
        return "\n".join([text_table(*self._table()), *(f"note: {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        return html_table(*self._table(), self.notes)


def sensitivity(
    model: nn.Module,
    calibration: Iterable | PTQQuantizer,
    evaluate: Evaluate | None = None,
    *,
    mode: str = "quantize",
    data: Iterable | None = None,
    layers: Sequence[str] | None = None,
    config: QConfig | None = None,
    ranges: str | None = None,
    progress: bool = True,
) -> Sensitivity:
    """What does each layer cost? One layer at a time, its weights and its inputs.

    mode "quantize": only this layer is quantized, differences are against FP32. mode "float": only
    this layer stays in floating point, differences are against the fully quantized network.
    evaluate: as in `ablate`. Without it each version is rated by the signal-to-noise ratio of its
    output (median over the examples, no labels needed) on ``data``, by default the calibration
    loader. layers: names to try, by default every quantized layer.
    """
    if mode not in ("quantize", "float"):
        raise QuantizationError(f"mode must be 'quantize' or 'float', got {mode!r}.")
    compared = calibration if data is None else data
    if isinstance(compared, PTQQuantizer):
        if evaluate is None:
            raise QuantizationError(
                "sensitivity: without evaluate it needs data to compare outputs on: pass "
                "data=loader."
            )
        compared = ()  # evaluate has data of its own
    quantizer = observed(model, calibration, config, ranges, progress)
    quantized = quantizer.convert()
    parts = parts_of(quantized)
    names = list(parts.layers if layers is None else layers)
    unknown = [name for name in names if name not in parts.feeding]
    if unknown:
        raise QuantizationError(
            f"sensitivity: {unknown[0]!r} is not quantized; there are {', '.join(parts.feeding)}."
        )
    float_model = copied(model)
    choose = parts.only if mode == "quantize" else parts.all_but
    if evaluate is None:
        rate = _output_rater(float_model, compared, quantizer.network.input_names)
    else:
        baseline = float_model if mode == "quantize" else quantized
        reference = score(evaluate, baseline, "FP32" if mode == "quantize" else "the quantized one")
        rate = _score_rater(evaluate, reference)
    rows = []
    for name in tqdm(names, desc="layers", disable=not progress, leave=False):
        rows.append(rate(partly(quantized, *choose([name])), name))
    unpaired = evaluate is not None and reference.examples is None
    return Sensitivity(
        tuple(rows),
        mode,
        "snr_median" if evaluate is None else "score",
        (UNPAIRED,) if unpaired else (),
    )


def _score_rater(evaluate: Evaluate, reference: Scores) -> Any:
    return lambda model, name: against(reference, score(evaluate, model, name), name)


def _output_rater(float_model: nn.Module, data: Iterable, names: list[str]) -> Any:
    batches = [placed(batch, names, float_model) for batch in data]
    if not batches:
        raise CalibrationError("sensitivity: the loader gave no batch; pass at least one.")
    expected = outputs_over(float_model, batches)
    if len(expected[0]) != 1:
        raise QuantizationError("sensitivity: the model must return one tensor, or pass evaluate.")

    def rate(model: nn.Module, name: str) -> Variant:
        (noise,) = output_noise(expected, outputs_over(model, batches), [])
        return Variant(name, float("inf") if noise.snr_median is None else noise.snr_median)

    return rate
