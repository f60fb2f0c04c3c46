"""Which range rule? Try them all on the calibration data and keep the one nearest to FP32.

Chapter 06. No rule wins everywhere, and the statistics are collected once, so trying is cheap. The
criterion needs no labels: the signal-to-noise ratio of the network's outputs against FP32's, all
examples pooled, so that a rule that ruins a few of them cannot hide behind the many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.grids.metrics import snr_pooled
from ptq_course.ranges.calibrators import CALIBRATORS
from ptq_course.simulation.observe import outputs_over, placed
from ptq_course.simulation.quantizer import PTQQuantizer
from ptq_course.simulation.statistics import rules_named

Candidate = tuple[str, dict[str, float]]


@dataclass(frozen=True)
class Tried:
    """One range rule, and how near the quantized network's outputs came to FP32's (snr_pooled)."""

    rule: str
    options: dict[str, float]
    sqnr_db: float

    def __str__(self) -> str:
        options = ", ".join(f"{value:g}" for value in self.options.values())
        return f"{self.rule} {options}".strip()


@dataclass(frozen=True)
class RangeSearch:
    """Every rule that was tried, best first. Prints as a table."""

    tried: tuple[Tried, ...]

    @property
    def best(self) -> Tried:
        return self.tried[0]

    def __str__(self) -> str:
        width = max(len(str(t)) for t in self.tried)
        lines = [f"{'rule':<{width}}  outputs, pooled"]
        return "\n".join([*lines, *(f"{t!s:<{width}}  {t.sqnr_db:8.1f} dB" for t in self.tried)])


def every_candidate() -> list[Candidate]:
    """Every rule with every choice of its options that is worth trying."""
    return [(name, o) for name in rules_named(None) for o in CALIBRATORS[name].rule.tried]


def search_ranges(
    quantizer: PTQQuantizer,
    batches: Iterable,
    candidates: Sequence[Candidate] | None = None,
    *,
    progress: bool = True,
) -> RangeSearch:
    """Convert with every candidate, compare outputs with FP32, leave ``quantizer`` with the best.

    quantizer: one that has observed its calibration data for all rules (``observe(loader)``).
    batches: inputs to compare on, usually the calibration data again; labels are not used. The
    outputs are kept in memory. candidates: pairs of a rule and its options, by default
    what each `RangeRule` wants tried.
    Raises CalibrationError where ``batches`` is empty, QuantizationError without candidates; a
    failure leaves the quantizer's scales as they were.
    """
    if candidates is None:
        candidates = every_candidate()
    if not candidates:
        raise QuantizationError("search_ranges: no candidates; leave the default or name a rule.")
    batches = list(batches)
    if not batches:
        raise CalibrationError("search_ranges: the loader gave no batch: pass at least one.")
    trial, names = quantizer.fork(), quantizer.network.input_names  # errors leave it alone
    inputs = [placed(batch, names, quantizer.float_model) for batch in batches]
    expected = _outputs(quantizer.float_model, inputs)
    tried = []
    for rule, options in tqdm(candidates, "range rules", disable=not progress, leave=False):
        found = _outputs(trial.compute_qparams(rule, **options).convert(), inputs)
        tried.append(Tried(rule, dict(options), snr_pooled(expected, found)))
    # sorted is stable: of equals, the candidate named first
    search = RangeSearch(tuple(sorted(tried, key=lambda t: -t.sqnr_db)))
    quantizer.compute_qparams(search.best.rule, **search.best.options)
    return search


def _outputs(model: torch.nn.Module, batches: list[list[Tensor]]) -> Tensor:
    """All outputs, in one vector."""
    outputs = outputs_over(model, batches)
    rows = [t.flatten() for tensors in outputs for t in tensors if t.is_floating_point()]
    if not rows:
        raise QuantizationError("search_ranges: the model returns no floating-point tensor.")
    return torch.cat(rows)
