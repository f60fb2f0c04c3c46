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
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.observe import output_tensors, placed
from ptq_course.simulation.quantizer import PTQQuantizer

Candidate = tuple[str, dict[str, float]]
# Percentiles six to a decade of the share cut off, from 1 % to 0.01 %: 99, 99.32, ..., 99.99.
PERCENTILES = tuple(round(100 - 10 ** (-k / 6), 4) for k in range(13))
CANDIDATES: tuple[Candidate, ...] = (
    ("minmax", {}),
    *(("percentile", {"percentile": p}) for p in PERCENTILES),
    ("kl", {}),
    ("mse", {}),
)


@dataclass(frozen=True)
class Tried:
    """One range rule, and how near the quantized network's outputs came to FP32's (dB, pooled)."""

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
        lines = [f"{'rule':<{width}}  output SQNR (pooled)"]
        return "\n".join([*lines, *(f"{t!s:<{width}}  {t.sqnr_db:8.1f} dB" for t in self.tried)])


def search_ranges(
    quantizer: PTQQuantizer,
    batches: Iterable,
    candidates: Sequence[Candidate] = CANDIDATES,
    *,
    progress: bool = True,
) -> RangeSearch:
    """Convert with every candidate, compare outputs with FP32, leave ``quantizer`` with the best.

    quantizer: one that has observed its calibration data for all rules (``observe(loader)``).
    batches: inputs to compare on, usually the calibration data again; labels are not used. The
    outputs are kept in memory. candidates: pairs of a rule and its options.
    Raises CalibrationError where ``batches`` is empty, QuantizationError without candidates; a
    failure leaves the quantizer's scales as they were.
    """
    if not candidates:
        raise QuantizationError("search_ranges: no candidates; leave the default or name a rule.")
    batches = list(batches)
    if not batches:
        raise CalibrationError("search_ranges: the loader gave no batch: pass at least one.")
    trial, names = quantizer.fork(), quantizer.network.input_names  # errors leave it alone
    reference = _outputs(quantizer.float_model, batches, names)
    tried = []
    for rule, options in tqdm(candidates, "range rules", disable=not progress, leave=False):
        found = _outputs(trial.compute_qparams(rule, **options).convert(), batches, names)
        tried.append(Tried(rule, dict(options), sqnr_db(reference, found)))
    # sorted is stable: of equals, the candidate named first
    search = RangeSearch(tuple(sorted(tried, key=lambda t: -t.sqnr_db)))
    quantizer.compute_qparams(search.best.rule, **search.best.options)
    return search


def _outputs(model: torch.nn.Module, batches: list, input_names: list[str]) -> Tensor:
    """All outputs, in one vector."""
    rows: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            found = output_tensors(model(*placed(batch, input_names, model)))
            rows += [t.flatten() for t in found if t.is_floating_point()]
    if not rows:
        raise QuantizationError("search_ranges: the model returns no floating-point tensor.")
    return torch.cat(rows)
