"""diagnose: "my INT8 model lost 3 %". Ask an engineer's questions in the order that saves time.

Chapter 06. Each answer is measured, names the chapter that explains it and carries a recipe to
paste. The questions: is the drop real? is the FP32 export equal? does the runtime equal the
simulation? is it the weights or the activations? is it the range rule? which layers?
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ptq_course.diagnosis import recipes
from ptq_course.diagnosis.ablation import observed, versions
from ptq_course.diagnosis.answers import Answer, Diagnosis, Remedy, advise
from ptq_course.diagnosis.comparison import Comparison, compare
from ptq_course.diagnosis.scores import (
    UNPAIRED,
    Evaluate,
    Scores,
    Variant,
    against,
    check_rereadable,
    score,
    shown,
)
from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.graph import copied
from ptq_course.grids.metrics import rounding_limit, snr_median
from ptq_course.simulation.observe import model_inputs, outputs_over
from ptq_course.simulation.qconfig import SEARCH, QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer
from ptq_course.simulation.range_search import Tried
from ptq_course.tables import decibels

EXAMPLES = 512  # calibration examples on which layers and runtimes are compared


def diagnose(
    model: nn.Module,
    calibration: Iterable,
    evaluate: Evaluate,
    *,
    config: QConfig | None = None,
    ranges: str | None = None,
    runtime: bool = True,
    thorough: bool = False,
    worst: int = 3,
    progress: bool = True,
) -> Diagnosis:
    """Quantize ``model`` and find out why it loses accuracy.

    model: the float model, never changed. calibration: a loader that can be read again (a list or
    a DataLoader). evaluate: a function of a model that returns a score for each example [N], higher
    is better (`scores.top1_on(loader)` makes one); a single number works without intervals. config,
    ranges: how the model was quantized. runtime: also export and run both files in ONNX Runtime.
    thorough: go on to the causes where no drop was shown. worst: how many layers to try in float.

    Raises QuantizationError where the model is quantized already or evaluate returns something
    unusable, CalibrationError where the data are empty or can be read only once.
    """
    check_rereadable(calibration, "diagnose")
    config = config or QConfig.onnxruntime()
    config = config if ranges is None else replace(config, activation_range=ranges)
    bar = tqdm(total=6, desc="diagnosing", unit="question", disable=not progress, leave=False)
    with bar:
        case = _Case(model, calibration, evaluate, config, worst)
        answers = [case.is_the_drop_real()]
        bar.update()
        if runtime:
            answers += [case.is_the_export_equal(), case.is_the_runtime_equal()]
        bar.update(2)
        notes = () if case.reference.paired else (UNPAIRED,)
        if not (case.drop.worse or thorough):
            return Diagnosis(tuple(answers), advise(answers, case.remedies), notes=notes)
        for question in (case.weights_or_activations, case.is_it_the_range_rule, case.which_layers):
            answers.append(question())
            bar.update()
    return Diagnosis(tuple(answers), advise(answers, case.remedies), case.comparison, notes)


class _Case:
    """What the questions share: the statistics, FP32's scores and those of the quantized model."""

    def __init__(
        self, model: nn.Module, calibration: Iterable, evaluate: Evaluate, config: QConfig,
        worst: int,
    ) -> None:  # fmt: skip
        self.config, self.evaluate, self.worst = config, evaluate, worst
        self.quantizer: PTQQuantizer = observed(model, calibration, config, None, progress=False)
        searched = self.quantizer.searched
        self.rule = config.activation_range
        self.options: dict[str, Any] = {}
        if searched is not None:
            self.rule, self.options = searched.best.rule, searched.best.options
        self.quantized: QuantizedModel = self.quantizer.convert()
        self.float_model = copied(model)
        self.reference: Scores = score(evaluate, self.float_model, "FP32")
        self.scores: Scores = score(evaluate, self.quantized, "the quantized model")
        self.name = "the quantized model"
        self.drop: Variant = against(self.reference, self.scores, self.name)
        self.batches = _some(calibration, self.quantizer.network.input_names)
        self.comparison: Comparison | None = None
        self.remedies: list[Remedy] = []

    def is_the_drop_real(self) -> Answer:
        drop, examples = self.drop, self.scores.examples
        if drop.interval is None or examples is None:
            verdict = "cannot tell"
            finding = f"The score changed by {drop}."
        else:
            verdict = "yes" if drop.worse else "not shown"
            before, after = (shown(s.mean, drop.is_share) for s in (self.reference, self.scores))
            finding = (
                f"FP32 scores {before}, the quantized model {after}: {drop} on {len(examples)} "
                f"examples, {drop.lost} lost and {drop.gained} gained."
            )
            if verdict != "yes":
                finding += " The interval does not lie below zero."
        return Answer(
            "drop", "Is the drop real?", verdict, finding, recipes.drop(self.config),
            {"drop": drop},
        )  # fmt: skip

    def is_the_export_equal(self) -> Answer:
        answer = ("fp32 export", "Is the FP32 export equal?")
        expected = _outputs(self.float_model, self.batches)
        got = self._exported(self.float_model)
        if isinstance(got, str):
            return Answer(*answer, "not checked", got, recipes.fp32_export())
        error = (got - expected).abs().max().item()
        limit = rounding_limit(expected)
        finding = (
            f"On {len(expected)} calibration examples the largest difference between ONNX Runtime "
            f"and PyTorch is {error:.1g}; the outputs reach {expected.abs().max().item():.3g}."
        )
        verdict = "yes" if error <= limit else "no"
        return Answer(*answer, verdict, finding, recipes.fp32_export(), {"error": error})

    def is_the_runtime_equal(self) -> Answer:
        answer = ("runtime", "Does the runtime equal the simulation?")
        recipe = recipes.runtime(self.config)
        simulated = _outputs(self.quantized, self.batches)
        got = self._exported(self.quantized)
        if isinstance(got, str):
            return Answer(*answer, "not checked", got, recipe)
        exact = _outputs(self.float_model, self.batches)
        own, real = snr_median(exact, simulated), snr_median(exact, got)
        between = snr_median(simulated, got)
        numbers: dict[str, Any] = {
            "simulation_db": own, "runtime_db": real, "between_db": between,
        }  # fmt: skip
        finding = (
            f"Against FP32 the simulation has {decibels(own)} dB and ONNX Runtime "
            f"{decibels(real)} dB (medians over the examples), against each other "
            f"{decibels(between)} dB."
        )
        equal = real >= own - 1  # where they differ, they must not differ to the runtime's cost
        if simulated.dim() == 2 and simulated.shape[1] > 1:
            agree = (simulated.argmax(1) == got.argmax(1)).double().mean().item()
            numbers["agreement"] = agree
            finding += f" {100 * agree:.1f} % of {len(got)} predictions agree."
            equal = equal or agree >= 0.995
        return Answer(*answer, "yes" if equal else "no", finding, recipe, numbers)

    def _exported(self, model: nn.Module) -> Tensor | str:
        """Outputs of the exported file, or why there are none."""
        from ptq_course.deploy.onnx import export, session  # here: importing ONNX takes a second

        first = [torch.cat([x, x])[:2] for x in self.batches[0]]
        with tempfile.TemporaryDirectory() as folder:
            try:
                run = session(export(model, first, Path(folder) / "model.onnx"))
            except QuantizationError as error:
                return f"The export was refused: {str(error).splitlines()[0]}"
            return _outputs(run, self.batches)

    def weights_or_activations(self) -> Answer:
        table = versions(self.quantizer, self.evaluate, self.reference, more=False, progress=False)
        by_name = {row.name: row for row in table.rows[1:]}
        alone = [row for name, row in by_name.items() if "32" in name][:2]
        finding = "; ".join(f"{row.name}: {row}" for row in by_name.values()) + "."
        verdict = "only one of them is quantized"
        if len(alone) == 2:
            weights, activations = alone
            larger = "weights" if weights.score < activations.score else "activations"
            verdict = {
                (True, False): "weights",
                (False, True): "activations",
                (True, True): f"both, mostly the {larger}",
                (False, False): "neither alone",
            }[weights.worse, activations.worse]
        return Answer(
            "weights or activations", "Is it the weights or the activations?", verdict, finding,
            recipes.ablation(self.config), {"table": table},
        )  # fmt: skip

    def is_it_the_range_rule(self) -> Answer:
        question = ("range rule", "Is it the range rule?")
        own, none = shown(self.scores.mean, self.drop.is_share), recipes.range_rule(self.config)
        trial = self.quantizer.fork().compute_qparams(SEARCH)
        search = trial.searched
        if search is None:
            return Answer(*question, "no", "No activation is quantized.", none)
        best_of_rule = {t.rule: t for t in reversed(search.tried)}
        others: list[tuple[Tried, Scores, Variant]] = []
        for tried in sorted(best_of_rule.values(), key=search.tried.index):
            if (tried.rule, tried.options) != (self.rule, self.options):
                quantized = trial.compute_qparams(tried.rule, **tried.options).convert()
                scores = score(self.evaluate, quantized, f"ranges={str(tried)!r}")
                others.append((tried, scores, against(self.scores, scores, str(tried))))
        _, best, row = max(others, key=lambda other: other[2].score)
        listed = "; ".join(f"{t} {shown(row.score, row.is_share)} ({row})" for t, _, row in others)
        nearest = search.best
        finding = (
            f"{self.rule} scores {own}; against it, {listed}. The outputs come nearest to FP32's "
            f"with {nearest}: {decibels(nearest.sqnr_db)} dB, pooled."
        )
        numbers = {"search": search, "rules": {str(t): row for t, _, row in others}}
        if not row.better:
            return Answer(*question, "no", finding, none, numbers)
        # Of rules that the scores do not tell apart, the one whose outputs are nearest to FP32's.
        tried, row = next(
            (t, mine) for t, scores, mine in others
            if scores is best or (mine.better and _tie(against(best, scores, str(t))))
        )  # fmt: skip
        self.remedies.append((f"choose ranges={tried.arguments} ({row})", row))
        recipe = recipes.range_rule(self.config, tried.arguments)
        return Answer(*question, f"yes, {tried} is better", finding, recipe, numbers)

    def which_layers(self) -> Answer:
        self.comparison = compare(self.float_model, self.quantized, self.batches, progress=False)
        layers = {row.name for row in self.quantizer.report().layers}  # what float_layers may name
        rated = [r for r in self.comparison.worst(len(self.comparison.layers)) if r.name in layers]
        worst = rated[: min(self.worst, len(layers) - 1)]  # at least one stays quantized
        names = [row.name for row in worst]
        if not names:
            return Answer(
                "layers", "Which layers?", "only one", "There is no other layer to compare with.",
                recipes.float_layers(self.config, ()),
            )  # fmt: skip
        groups = [(name,) for name in names] + ([tuple(names)] if len(names) > 1 else [])
        scores: dict[str, Scores] = {}
        for group in groups:
            config = replace(self.config, float_layers=(*self.config.float_layers, *group))
            kept = self.quantizer.fork().compute_qparams(self.rule, config=config, **self.options)
            scores[", ".join(group)] = score(self.evaluate, kept.convert(), f"{group} in float")
        gains = {name: against(self.scores, found, name) for name, found in scores.items()}
        best = max(names, key=lambda name: gains[name].score)
        together = ", ".join(names)
        if against(scores[best], scores[together], together).better:
            best = together  # several layers only where one is shown not to be enough
        listed = "; ".join(
            f"{row.name} {decibels(row.isolated_db)} dB, in floating point {gains[row.name]}"
            for row in worst
        )
        finding = f"Worst by themselves (medians over the examples): {listed}."
        if len(names) > 1:
            finding += f" All {len(names)} in floating point: {gains[together]}."
        if gains[best].better:
            self.remedies.append((f"keep {best} in floating point ({gains[best]})", gains[best]))
        else:
            finding += " Keeping them in floating point repairs nothing that can be shown."
            best = names[0]
        recipe = recipes.float_layers(self.config, best.split(", "))
        return Answer(
            "layers", "Which layers?", best, finding, recipe,
            {"worst": worst, "gains": gains},
        )  # fmt: skip


def _tie(row: Variant) -> bool:
    return not (row.better or row.worse)


def _some(loader: Iterable, names: list[str]) -> list[list[Tensor]]:
    """Inputs of the first batches, up to EXAMPLES examples."""
    batches, count = [], 0
    for batch in loader:
        if count >= EXAMPLES:
            break
        inputs = model_inputs(batch, names)
        batches.append(inputs)
        count += len(inputs[0])
    if not batches:
        raise CalibrationError("diagnose: the calibration loader gave no batch; pass at least one.")
    return batches


def _outputs(run: Callable, batches: list[list[Tensor]]) -> Tensor:
    outputs = outputs_over(run, batches)
    if len(outputs[0]) != 1:
        raise QuantizationError(
            f"diagnose: the model returns {len(outputs[0])} tensors; wrap it in a module that "
            "returns the one to compare."
        )
    return torch.cat([tensor for (tensor,) in outputs])
