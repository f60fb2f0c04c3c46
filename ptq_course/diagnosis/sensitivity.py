"""What does each layer cost? One layer quantized at a time, or all but one. Chapters 06 and 10.

The network is calibrated once; then single layers are switched between their integers and floating
point. `one_at_a_time` shows each layer's own damage, `all_but_one` what would be won by keeping it
wide. The two differ, and neither adds up: errors interact. So they name suspects, and whoever acts
on them measures the result (`mixed`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from torch import nn
from tqdm.auto import tqdm

from ptq_course.diagnosis.ablation import observed
from ptq_course.diagnosis.parts import partly, parts_of
from ptq_course.diagnosis.scores import UNPAIRED, Evaluate, Scores, Variant, against, score
from ptq_course.diagnosis.sizes import SIZE_NOT_SPEED, fp16_bytes, layer_bytes
from ptq_course.errors import CalibrationError, QuantizationError, whole
from ptq_course.graph import copied
from ptq_course.simulation.observe import output_noise, outputs_over, placed
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer
from ptq_course.tables import decibels, html_table, text_table

HEADINGS = {"quantize": "quantized alone", "float": "left in float"}


@dataclass(frozen=True)
class LayerVariant(Variant):
    """The version of the network that switches one layer: ``name``, at ``bits`` of its weight.

    bytes: of the layer at that width; fp16_bytes: in FP16 (`sizes`).
    """

    bits: int = 8
    bytes: int = 0
    fp16_bytes: int = 0


@dataclass(frozen=True)
class Sensitivity:
    """One row a layer and width, in order of execution; printed with the worst first.

    rows[i].score is the score, or the `snr_median` of the output in dB (``by="snr_median"``).
    """

    rows: tuple[LayerVariant, ...]
    mode: str
    by: str
    reference: Variant | None = None  # what the differences are against
    notes: tuple[str, ...] = ()

    def worst(self, count: int | None = 3, *, bits: int | None = None) -> list[LayerVariant]:
        """The layers that hurt most, worst first; None: all. ``bits``: of this width alone.

        One quantized at a time: the lowest scores. One in float at a time: the highest.
        """
        sign = 1 if self.mode == "quantize" else -1
        rows = [row for row in self.rows if bits is None or row.bits == bits]
        return sorted(rows, key=lambda row: sign * row.score)[:count]

    def __getitem__(self, name: str) -> LayerVariant:
        """The row of a layer; of several widths the first."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no layer {name!r}; there are {', '.join(r.name for r in self.rows)}")

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        rows = self.worst(None)
        sizes = [(f"{row.bytes:,}", f"{row.fp16_bytes:,}") for row in rows]
        if self.by == "snr_median":
            columns: tuple[str, ...] = ("output, median dB",)
            cells = [(decibels(row.score),) for row in rows]
        else:
            columns = ("score", "lost", "gained", "change", "95 % interval")
            cells = [row.cells()[1:] for row in rows]
        lines = [
            (row.name, str(row.bits), *middle, *size)
            for row, middle, size in zip(rows, cells, sizes, strict=True)
        ]
        return (HEADINGS[self.mode], "bits", *columns, "bytes", "in FP16"), lines

    def __str__(self) -> str:
        return "\n".join([text_table(*self._table()), *(f"note: {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        return html_table(*self._table(), self.notes)


def one_at_a_time(
    model: nn.Module,
    calibration: Iterable | PTQQuantizer,
    evaluate: Evaluate | None = None,
    *,
    bits: int | Sequence[int] | None = None,
    data: Iterable | None = None,
    layers: Sequence[str] | None = None,
    config: QConfig | None = None,
    ranges: str | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Quantize one layer at a time, its weight and its inputs; differences are against FP32.

    model: the float model, never changed. calibration: a loader, or a PTQQuantizer of this model
    that has observed its data; it is read once. evaluate: a function of a model, higher is better:
    a score for each example [N], which gives intervals, or one number (`scores`). Without it each
    version is rated by the signal-to-noise ratio of its output (median over the examples, no labels
    needed) on ``data``, by default the calibration loader. bits: widths of the weights to try, such
    as (8, 4); by default the config's. layers: names to try, by default every quantized layer.

    Raises QuantizationError for a layer that is not quantized, bits outside 2..16, a model that is
    quantized already, or what evaluate must not return.
    """
    return _switched("quantize", model, calibration, evaluate, bits, data, layers, config, ranges,
                     progress)  # fmt: skip


def all_but_one(
    model: nn.Module,
    calibration: Iterable | PTQQuantizer,
    evaluate: Evaluate | None = None,
    *,
    bits: int | Sequence[int] | None = None,
    data: Iterable | None = None,
    layers: Sequence[str] | None = None,
    config: QConfig | None = None,
    ranges: str | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Quantize all but one layer at a time; differences are against the fully quantized network.

    Arguments as of `one_at_a_time`; ``bits`` are those of all other layers. Where there are several
    widths, each has a reference of its own and ``reference`` is the first one's.
    """
    return _switched("float", model, calibration, evaluate, bits, data, layers, config, ranges,
                     progress)  # fmt: skip


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
    """`one_at_a_time` (mode "quantize") or `all_but_one` (mode "float")."""
    if mode not in HEADINGS:
        raise QuantizationError(f"mode must be 'quantize' or 'float', got {mode!r}.")
    return _switched(mode, model, calibration, evaluate, None, data, layers, config, ranges,
                     progress)  # fmt: skip


def _switched(
    mode: str, model: nn.Module, calibration: Iterable | PTQQuantizer, evaluate: Evaluate | None,
    bits: int | Sequence[int] | None, data: Iterable | None, layers: Sequence[str] | None,
    config: QConfig | None, ranges: str | None, progress: bool,
) -> Sensitivity:  # fmt: skip
    compared = calibration if data is None else data
    if isinstance(compared, PTQQuantizer):
        if evaluate is None:
            raise QuantizationError(
                "sensitivity: without evaluate it needs data to compare outputs on: pass "
                "data=loader."
            )
        compared = ()  # evaluate has data of its own
    asked = check_bits(bits)
    quantizer = observed(model, calibration, config, ranges, progress)
    return switched(mode, model, quantizer, evaluate, bits=asked, data=compared, layers=layers,
                    progress=progress)  # fmt: skip


def switched(
    mode: str, model: nn.Module, quantizer: PTQQuantizer, evaluate: Evaluate | None, *,
    bits: Sequence[int], data: Iterable, layers: Sequence[str] | None, progress: bool,
) -> Sensitivity:  # fmt: skip
    """Both sweeps, by a quantizer that has decided."""
    if bits and quantizer.config.weight_bits is None:
        raise QuantizationError("bits: the config has weight_bits=None, so no weight is rounded.")
    versions = at_bits(quantizer, bits)
    parts = parts_of(versions[0])
    names = list(parts.layers if layers is None else layers)
    unknown = [name for name in names if name not in parts.feeding]
    if unknown:
        raise QuantizationError(
            f"sensitivity: {unknown[0]!r} is not quantized; there are {', '.join(parts.feeding)}."
        )
    float_model = copied(model)
    choose, whole_name = parts.only, "FP32"
    if mode == "float":
        choose, whole_name = parts.all_but, "the quantized one"
    by_output = None
    if evaluate is None:
        by_output = _output_rater(float_model, data, quantizer.network.input_names)
    rows: list[LayerVariant] = []
    references: list[Scores] = []
    bar = tqdm(total=len(names) * len(versions), desc="layers", disable=not progress, leave=False)
    with bar:
        for version in versions:
            rate = by_output
            if evaluate is not None:
                if mode == "float" or not references:
                    baseline = version if mode == "float" else float_model
                    references.append(score(evaluate, baseline, whole_name))
                rate = _score_rater(evaluate, references[-1])
            assert rate is not None
            for name in names:
                rows.append(_row(rate(partly(version, *choose([name])), name), name, version))
                bar.update()
    notes = [UNPAIRED] if any(r.examples is None for r in references) else []
    if mode == "float":
        notes.append(SIZE_NOT_SPEED)
    first = references[0] if references else None
    reference = first and Variant(whole_name, first.mean, is_share=first.is_share)
    by = "snr_median" if evaluate is None else "score"
    return Sensitivity(tuple(rows), mode, by, reference, tuple(notes))


def check_bits(bits: int | Sequence[int] | None) -> list[int]:
    """Widths as a list; QuantizationError for what is none."""
    if bits is None:
        return []
    given = list(bits) if isinstance(bits, Sequence) else [bits]
    if not given:
        raise QuantizationError("bits: name at least one width, such as bits=(8, 4).")
    return [whole("bits", b, 2, 16) for b in given]


def at_bits(quantizer: PTQQuantizer, bits: Sequence[int]) -> list[QuantizedModel]:
    """The converted network with integer weights of every width; the activations' scales stay."""
    if not bits:
        return [quantizer.convert()]
    found = []
    for width in bits:
        other = quantizer.fork()
        other.config = quantizer.config.with_integers(width)
        found.append(other.convert())
    return found


def _row(found: Variant, name: str, version: QuantizedModel) -> LayerVariant:
    given = {f.name: getattr(found, f.name) for f in fields(Variant)}
    layer = version.quantized_layers().get(name)
    if layer is None:  # an operation without a weight
        return LayerVariant(**given, bits=version.config.activation_bits or 0)
    grid = layer.weight_grid
    return LayerVariant(
        **given,
        bits=0 if grid is None else grid.bits,
        bytes=layer_bytes(layer),
        fp16_bytes=fp16_bytes(layer.float_layer),
    )


Rate = Callable[[nn.Module, str], Variant]


def _score_rater(evaluate: Evaluate, reference: Scores) -> Rate:
    return lambda model, name: against(reference, score(evaluate, model, name), name)


def _output_rater(float_model: nn.Module, data: Iterable, names: list[str]) -> Rate:
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
