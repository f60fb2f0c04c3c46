"""Which range rule? Try them all on the calibration data and keep the one nearest to FP32.

Chapter 06. No rule wins everywhere, and the statistics are collected once, so trying is cheap. The
criterion needs no labels: noise over signal of the network's outputs against FP32's, all examples
pooled, so that a rule that ruins a few of them cannot hide behind the many. Each output of a
network with several counts by its own ratio: a loud one cannot speak for a quiet one.

The error of the values themselves would cost no run at all, since the histograms know it. But it is
what "mse" minimizes, and on the course's residual network a percentile is 6 dB better: a few loud
values own the squared error. So the outputs decide, and time is saved elsewhere:

- at most SAMPLE examples run;
- the many percentiles, which are alike, compete by sequential halving: all on a sixteenth of the
  examples, the better half on twice as many, and so on, until two are left;
- these and all other rules meet on everything, because a part need not hold the rare large values
  that may decide between rules. But whoever has collected more noise than the leader has in the
  end cannot win, and stops there.
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
from ptq_course.grids.affine import AnyQParams
from ptq_course.grids.metrics import Noise
from ptq_course.ranges.calibrators import CALIBRATORS
from ptq_course.simulation.layers import ActivationQuantizer
from ptq_course.simulation.network import replace_submodules
from ptq_course.simulation.observe import Sample, model_inputs, output_noise, outputs_over
from ptq_course.simulation.qconfig import QConfig

Candidate = tuple[str, dict[str, Any]]
PIECES = 16  # the data are cut into so many


class Quantizer(Protocol):
    """What is asked of a `PTQQuantizer`, which searches too and so cannot be imported here."""

    config: QConfig
    qparams: dict[str, AnyQParams]
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
    options: dict[str, Any]
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


def every_candidate(bits: int = 8, floats: bool = False) -> list[Candidate]:
    """Every rule that suits so many bits, with every choice of its options worth trying.

    floats: for a grid of floats, which the rules that search a grid of integers do not know.
    """
    rules = [calibrator.rule for calibrator in CALIBRATORS.values()]
    fit = [r for r in rules if bits <= r.most_bits and not (floats and r.sweep is not None)]
    return [(rule.name, o) for rule in fit for o in rule.tried]


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
    not used, and of many examples SAMPLE are kept, evenly spread. candidates: pairs of a rule and
    its options, by default what each `RangeRule` wants tried. Biases stay in floating point.
    Raises CalibrationError where ``batches`` is empty, QuantizationError without candidates.
    """
    if candidates is None:
        config = quantizer.config
        floats = config.activation_format is not None
        candidates = every_candidate(config.activation_bits or 8, floats)
    if not candidates:
        raise QuantizationError("search_ranges: no candidates; leave the default or name a rule.")
    float_model = quantizer.float_model
    sample = Sample()
    for batch in batches:
        sample.add(model_inputs(batch, quantizer.network.input_names))
    if not sample.batches:
        raise CalibrationError("search_ranges: the loader gave no batch: pass at least one.")
    trial = quantizer.fork()
    # With a bias on a grid of its own, every layer would depend on the scale of its input.
    config = replace(quantizer.config, quantize_bias=False)
    rivals = [
        _Rival(rule, options, trial.compute_qparams(rule, config=config, **options).qparams)
        for rule, options in candidates
    ]
    contest = _Contest(_pieces(sample.batches, float_model), float_model, trial.convert())
    contest.decide(rivals, progress)
    # sorted is stable: of equals, the candidate named first
    rivals.sort(key=lambda rival: (-rival.pieces, -rival.sqnr_db))
    return RangeSearch(
        tuple(
            Tried(r.rule, dict(r.options), r.sqnr_db, r.pieces / len(contest.pieces))
            for r in rivals
        )
    )


class _Rival:
    """A candidate in the contest: what it decides, its errors so far, on how many pieces."""

    def __init__(
        self, rule: str, options: dict[str, float], qparams: dict[str, AnyQParams]
    ) -> None:
        self.rule, self.options, self.qparams = rule, options, qparams
        self.noises: list[Noise] = []
        self.pieces = 0

    @property
    def sqnr_db(self) -> float:
        mean = self.noise([noise.signal for noise in self.noises])
        return -10 * math.log10(mean) if mean > 0 else math.inf

    def noise(self, signals: list[float]) -> float:
        """Each output counts by its own ratio; one that is always zero in FP32 has none."""
        pairs = zip(self.noises, signals, strict=False)
        ratios = [noise.noise / signal for noise, signal in pairs if signal > 0]
        return sum(ratios) / max(1, len(ratios))

    def round_as_decided(self, model: nn.Module) -> None:
        """Put the quantizers of this candidate into a converted model."""
        new = {
            path: ActivationQuantizer(self.qparams[part.name], name=part.name)
            for path, part in model.named_modules()
            if isinstance(part, ActivationQuantizer)
        }
        replace_submodules(model, new)


class _Contest:
    """Runs candidates against FP32 on the same pieces of the data; ``signals``: of each output."""

    def __init__(self, pieces: list[list], float_model: nn.Module, model: nn.Module) -> None:
        self.pieces, self.model = pieces, model
        self.expected = [outputs_over(float_model, piece) for piece in pieces]
        alone: list[Noise] = []
        for outputs in self.expected:
            output_noise(outputs, outputs, alone)
        if not any(noise.decibels for noise in alone):
            raise QuantizationError("search_ranges: the model returns no floating-point tensor.")
        self.signals = [noise.signal for noise in alone]

    def run(self, rival: _Rival, until: int, limit: float = math.inf) -> None:
        """Bring a candidate to so many pieces, unless it has more noise than ``limit`` before."""
        rival.round_as_decided(self.model)
        while rival.pieces < until and rival.noise(self.signals) <= limit:
            found = outputs_over(self.model, self.pieces[rival.pieces])
            output_noise(self.expected[rival.pieces], found, rival.noises)
            rival.pieces += 1

    def decide(self, rivals: list[_Rival], progress: bool) -> None:
        """All that can win run on everything, the most promising first."""
        finalists: list[_Rival] = []
        for rule in dict.fromkeys(rival.rule for rival in rivals):
            finalists += self.halved([rival for rival in rivals if rival.rule == rule])
        for rival in finalists:
            self.run(rival, 1)
        finalists.sort(key=lambda rival: -rival.sqnr_db)
        least = math.inf
        for rival in tqdm(finalists, "range rules", disable=not progress, leave=False):
            self.run(rival, len(self.pieces), least)
            if rival.pieces == len(self.pieces):
                least = min(least, rival.noise(self.signals))

    def halved(self, rivals: list[_Rival]) -> list[_Rival]:
        """The best two of many, by sequential halving."""
        until = -(-len(self.pieces) // PIECES)
        while len(rivals) > 2:
            for rival in rivals:
                self.run(rival, until)
            rivals = sorted(rivals, key=lambda rival: -rival.sqnr_db)[: max(2, len(rivals) // 2)]
            until = min(2 * until, len(self.pieces))
        return rivals


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
    # The first part, the first two, the first four ... are spread: 0, 8, 4, 12, 2, 10, ...
    order = sorted(range(PIECES), key=lambda i: f"{i:04b}"[::-1])
    return [data[i::PIECES] for i in order if i < len(data)]
