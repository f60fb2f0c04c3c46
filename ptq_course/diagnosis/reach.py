"""The whole art behind one call: reach an accuracy with the cheapest remedies. Chapter 10.

    result = reach(model, calibration, evaluate, drop=0.5)
    print(result.log)          # what was tried, what it gained, what it cost
    result.model, result.line  # the network, and the line that makes it by hand

``evaluate(model)`` returns a score for each example, [N], higher is better, always the same
examples in the same order (`scores`; `top1_on` makes one), or an `OfSet` where the metric is no
mean over examples (mAP, F1). `reach` separates them by index: on the validation part it decides,
and the test part is looked at once, at the end, for FP32 and the chosen network. The best of many
tries looks better than it is on the examples that chose it.

The drop is inside the target when the whole interval is: the upper bound of the 95 % paired
bootstrap interval of FP32's score minus the network's, on the validation part. With few examples no
network can show that; the log says how wide the interval was. One number is accepted too; then the
drop itself decides, no part is held out, and the log says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ptq_course.diagnosis.journal import Journal, key_of
from ptq_course.diagnosis.ladder import Ladder
from ptq_course.diagnosis.log import Log
from ptq_course.diagnosis.meter import Meter
from ptq_course.diagnosis.remedies import Recipe, Workshop, batches_for
from ptq_course.diagnosis.scores import Evaluate, Variant, check_rereadable
from ptq_course.errors import CalibrationError, QuantizationError, flag, number, whole
from ptq_course.graph import required_inputs
from ptq_course.simulation.observe import placed
from ptq_course.simulation.qconfig import TARGETS, QConfig
from ptq_course.simulation.quantized import QuantizedModel, check_float
from ptq_course.simulation.quantizer import PTQQuantizer

EXAMPLES = 512  # of the calibration data, for AdaRound and bias correction


@dataclass(frozen=True)
class Reached:
    """model: the best network found; recipe: how it was made. log: every step.

    reached: is the drop inside the target, by the interval, on the validation part? test: the final
    number, against FP32 on examples that decided nothing; None where evaluate gives one number.
    validation: the same on the others.
    """

    model: QuantizedModel
    recipe: Recipe
    log: Log
    reached: bool
    validation: Variant
    test: Variant | None

    @property
    def confirmed(self) -> bool:
        """Is the drop inside the target on the held-out part, too, by its interval?"""
        return self.log.confirmed

    @property
    def line(self) -> str:
        """Python that makes the network by hand."""
        return self.recipe.line

    def __str__(self) -> str:
        return str(self.log)

    def _repr_html_(self) -> str:
        return self.log._repr_html_()


def reach(
    model: nn.Module,
    calibration: Iterable,
    evaluate: Evaluate,
    drop: float = 0.5,
    target: str | None = None,
    *,
    config: QConfig | None = None,
    learn: int = 0,
    test_share: float = 0.5,
    seed: int = 0,
    resume: str | Path | None = None,
    timed: bool = True,
    progress: bool = True,
) -> Reached:
    """Quantize so that the score drops by at most ``drop``, with the cheapest remedies that do it.

    model: the float model, never changed. calibration: a loader that can be read again. drop: in
    points where all scores lie in [0, 1] (0.5: from 93.0 % to 92.5 %), else in units of the score.
    target: "onnxruntime", "tensorrt" or "arm", whose preset ``config`` is by default; bits and
    granularity of a config of your own are kept, but for layers that must be wider. learn: steps of
    `improve.reconstruction`, 0 for none; a thousand take minutes, and want about a thousand
    calibration examples or more (varied copies count). test_share: part of the examples kept for
    the final number, drawn with ``seed``. resume: a JSON file; a call that was interrupted goes on
    there, and what was measured is not measured again (FP32 is, once, to see that model and
    examples are still the same). timed: also export each kind of network that is kept and time it
    in ONNX Runtime (onnxruntime's files only).

    Tried in this order, each on top of what helped before it, until the target is reached: the
    network as it comes (min-max ranges), the range rule searched, weight ranges by squared error
    (6 bits and fewer), bias correction, equalization or SmoothQuant, AdaRound, reconstruction (if
    ``learn`` is not 0), and layers kept wider, the most sensitive for their bytes first (8 bits,
    then FP16, at most half of them). A remedy is kept where the mean score rises. If nothing
    reaches, the best found is returned, and the log says so.

    Raises QuantizationError for settings out of range; what the first quantization raises, or
    evaluate, passes through. A later remedy that refuses this network is noted, and the next comes.
    """
    check_float(model)
    config = _config(config, target)
    number("drop", drop, "[0, inf)")
    number("test_share", test_share, "(0, 1)")
    whole("seed", seed, 0)
    flag("timed", timed)
    whole("learn", learn, 0)
    if isinstance(calibration, PTQQuantizer):
        raise CalibrationError("reach: pass the calibration data, not a quantizer that saw them.")
    check_rereadable(calibration, "reach")
    names = required_inputs(model)
    first = next((placed(batch, names, model) for batch in calibration), None)
    if first is None:
        raise CalibrationError("reach: the calibration loader gave no batch; pass at least one.")
    journal = Journal(resume, key_of(model, first, config, test_share, seed))
    meter = Meter(model, evaluate, first, test_share, seed, journal, timed)
    workshop = Workshop(model, calibration, progress)
    start = Recipe(config, "minmax", batches=batches_for(calibration, names, EXAMPLES))
    ladder = Ladder(workshop, meter, journal, start, drop * meter.unit, learn)
    ladder.climb()
    best = ladder.best
    chosen = meter.model_of(best, workshop)
    test = meter.test(best)
    reached = ladder.reaches(best)
    log = Log(
        tuple(ladder.steps), meter.reference_row, best, reached, drop, test,
        len(meter.validation), len(meter.held_out), meter.unit, tuple(ladder.notes),
    )  # fmt: skip
    return Reached(chosen, ladder.recipe, log, reached, best.change, test)


def _config(config: QConfig | None, target: str | None) -> QConfig:
    if target is not None and target not in TARGETS:
        raise QuantizationError(f"target is one of {', '.join(TARGETS)}, got {target!r}.")
    if config is None:
        return getattr(QConfig, target or "onnxruntime")()
    if target is not None and config.target != target:
        raise QuantizationError(
            f"target={target!r}, but the config is for {config.target!r}: give one of them, or "
            f"dataclasses.replace(config, target={target!r})."
        )
    if config.weight_bits is None and config.activation_bits is None:
        raise QuantizationError("the config quantizes nothing: set weight or activation bits.")
    if formats := config.formats:
        raise QuantizationError(
            f"reach: its remedies search grids of integers, and the config has {', '.join(formats)}"
            "; give it bits instead, or try the format with ablate() and mixed_precision()."
        )
    return config
