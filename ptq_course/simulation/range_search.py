"""Which range rule? Try them all on the calibration data and keep the one nearest to FP32.

Chapter 06. No rule wins everywhere, and the statistics are collected once, so trying is cheap. The
criterion needs no labels: noise over signal of the network's outputs against FP32's, all examples
pooled, so that a rule that ruins a few of them cannot hide behind the many. Each output of a
network with several counts by its own ratio: a loud one cannot speak for a quiet one.

The error of the values themselves would cost no run at all, since the histograms know it. But it is
what "mse" minimizes, and on the course's residual network a percentile is 6 dB better: a few loud
values own the squared error. So the outputs decide, and time is saved elsewhere: sequential halving
tries all candidates on a small part of the data, the better half on twice as much, and so on.
Source: Karnin, Koren, Somekh, "Almost Optimal Exploration in Multi-Armed Bandits", 2013.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn
from tqdm.auto import tqdm

from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.grids.affine import QParams
from ptq_course.grids.metrics import Noise
from ptq_course.ranges.calibrators import CALIBRATORS
from ptq_course.simulation.layers import ActivationQuantizer
from ptq_course.simulation.observe import model_inputs, output_noise, outputs_over
from ptq_course.simulation.qconfig import QConfig

Candidate = tuple[str, dict[str, float]]
PIECES = 16  # the data are cut into so many
CLOSE = 3.0  # dB


class Quantizer(Protocol):
    """What is asked of a `PTQQuantizer`, which searches too and so cannot be imported here."""

    config: QConfig
    qparams: dict[str, QParams]
    network: Any

    @property
    def float_model(self) -> nn.Module: ...
    def fork(self) -> Quantizer: ...
    def compute_qparams(self, ranges: str, **options: Any) -> Quantizer: ...
    def convert(self) -> nn.Module: ...


@dataclass(frozen=True)
class Tried:
    """One range rule, and how near the quantized network's outputs came to FP32's.

    sqnr_db: snr_pooled; with several outputs the mean of their noise over signal, in decibels.
    data: the share of the data on which it was measured.
    """

    rule: str
    options: dict[str, float]
    sqnr_db: float
    data: float

    @property
    def arguments(self) -> str:
        """As they are written in ``compute_qparams(...)``."""
        return ", ".join([repr(self.rule), *(f"{name}={v!r}" for name, v in self.options.items())])

    def __str__(self) -> str:
        options = ", ".join(f"{value:g}" for value in self.options.values())
        return f"{self.rule} {options}".strip()


@dataclass(frozen=True)
class RangeSearch:
    """Every rule that was tried, best first: by how long it stayed, then by decibels. Prints."""

    tried: tuple[Tried, ...]

    @property
    def best(self) -> Tried:
        return self.tried[0]

    def __str__(self) -> str:
        width = max(len(str(t)) for t in self.tried)
        lines = [f"{'rule':<{width}}  outputs, pooled  of the data"]
        lines += [f"{t!s:<{width}}  {t.sqnr_db:12.1f} dB  {t.data:11.0%}" for t in self.tried]
        return "\n".join(lines)


def every_candidate(bits: int = 8) -> list[Candidate]:
    """Every rule that suits so many bits, with every choice of its options worth trying."""
    rules = [calibrator.rule for calibrator in CALIBRATORS.values()]
    return [(rule.name, o) for rule in rules if bits <= rule.most_bits for o in rule.tried]


def search_ranges(
    quantizer: Quantizer,
    batches: Iterable,
    candidates: Sequence[Candidate] | None = None,
    *,
    progress: bool = True,
) -> RangeSearch:
    """`compare_rules`, and leave ``quantizer`` with the best of them.

    A failure leaves the quantizer's scales as they were.
    """
    search = compare_rules(quantizer, batches, candidates, progress=progress)
    quantizer.compute_qparams(search.best.rule, **search.best.options)
    return search


def compare_rules(
    quantizer: Quantizer,
    batches: Iterable,
    candidates: Sequence[Candidate] | None = None,
    *,
    progress: bool = True,
) -> RangeSearch:
    """Round with every candidate's ranges and compare the outputs with FP32's.

    quantizer: one that has observed its calibration data for all rules (``observe(loader)``); it
    stays as it is. batches: inputs to compare on, usually the calibration data again; labels are
    not used. FP32's outputs are kept in memory. candidates: pairs of a rule and its options, by
    default what each `RangeRule` wants tried. Biases stay in floating point meanwhile.
    Raises CalibrationError where ``batches`` is empty, QuantizationError without candidates.
    """
    if candidates is None:
        candidates = every_candidate(quantizer.config.activation_bits or 8)
    if not candidates:
        raise QuantizationError("search_ranges: no candidates; leave the default or name a rule.")
    float_model = quantizer.float_model
    data = [model_inputs(batch, quantizer.network.input_names) for batch in batches]
    if not data:
        raise CalibrationError("search_ranges: the loader gave no batch: pass at least one.")
    trial = quantizer.fork()
    # With a bias on a grid of its own, every layer would depend on the scale of its input.
    config = replace(quantizer.config, quantize_bias=False)
    rivals = [
        _Rival(rule, options, trial.compute_qparams(rule, config=config, **options).qparams)
        for rule, options in candidates
    ]
    pieces = _pieces(data, float_model)
    _halve(rivals, pieces, float_model, trial.convert(), progress)
    # sorted is stable: of equals, the candidate named first
    rivals.sort(key=lambda rival: (-rival.pieces, -rival.sqnr_db))
    return RangeSearch(
        tuple(Tried(r.rule, dict(r.options), r.sqnr_db, r.pieces / len(pieces)) for r in rivals)
    )


class _Rival:
    """A candidate in the contest: what it decides, its errors so far, on how many pieces."""

    def __init__(self, rule: str, options: dict[str, float], qparams: dict[str, QParams]) -> None:
        self.rule, self.options, self.qparams = rule, options, qparams
        self.noises: list[Noise] = []
        self.pieces = 0

    @property
    def sqnr_db(self) -> float:
        """Each output counts by its own ratio; one that is always zero in FP32 has none."""
        ratios = [noise.noise / noise.signal for noise in self.noises if noise.signal > 0]
        mean = sum(ratios) / max(1, len(ratios))
        return -10 * math.log10(mean) if mean > 0 else math.inf

    def round_as_decided(self, model: nn.Module) -> None:
        """Put the quantizers of this candidate into a converted model."""
        for path, part in list(model.named_modules()):
            if isinstance(part, ActivationQuantizer):
                parent, _, name = path.rpartition(".")
                new = ActivationQuantizer(self.qparams[part.name], name=part.name)
                setattr(model.get_submodule(parent), name, new)


def _halve(
    rivals: list[_Rival], pieces: list[list], float_model: nn.Module, model: nn.Module,
    progress: bool,
) -> None:  # fmt: skip
    """After each round the better half goes on to twice as much data, the best of a quarter to all.

    The best of each other rule goes on too while it is CLOSE to the leader: the many percentiles
    are alike and would crowd it out. Sixteen candidates cost the time of four on all data, at most
    that of five.
    """
    expected: list[list[list[Tensor]]] = []
    until = -(-len(pieces) // len(rivals))
    while True:
        expected += [outputs_over(float_model, piece) for piece in pieces[len(expected) : until]]
        for rival in tqdm(rivals, "range rules", disable=not progress, leave=False):
            rival.round_as_decided(model)
            for number in range(rival.pieces, until):
                found = outputs_over(model, pieces[number])
                output_noise(expected[number], found, rival.noises)
            rival.pieces = until
        if not any(noise.decibels for noise in rivals[0].noises):
            raise QuantizationError("search_ranges: the model returns no floating-point tensor.")
        if until == len(pieces):
            return
        ranked = sorted(rivals, key=lambda rival: -rival.sqnr_db)
        final = 4 * until >= len(pieces) or len(ranked) <= 4
        rivals = ranked[: 2 if final else len(ranked) // 2]
        for rival in ranked[len(rivals) :]:
            other = rival.rule not in {better.rule for better in rivals}
            close = rival.sqnr_db > ranked[0].sqnr_db - CLOSE
            if other and close and (len(rivals) < 3 or not final):
                rivals.append(rival)
        until = len(pieces) if final else 2 * until


def _pieces(data: list[list[Tensor]], float_model: nn.Module) -> list[list[list[Tensor]]]:
    """The batches in at most PIECES parts, each of them spread over all of the data.

    Few batches are cut along their first dimension, unless the model takes one size only.
    """
    cuts = -(-PIECES // len(data))
    rows = [{len(x) if x.dim() else 0 for x in inputs} for inputs in data]
    if cuts > 1 and all(len(found) == 1 for found in rows):
        cut = [[x[j::cuts] for x in inputs] for j in range(cuts) for inputs in data]
        cut = [inputs for inputs in cut if len(inputs[0])]
        try:
            outputs_over(float_model, cut[:1])
            data = cut
        except Exception:  # whatever a model raises for a batch of another size
            pass
    return [data[i::PIECES] for i in range(min(PIECES, len(data)))]
