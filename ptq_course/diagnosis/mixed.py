"""Mixed precision: each layer its own width, by size budget or accuracy target. Chapters 10, 13.

    found = mixed_precision(model, calibration, evaluate, widths=(8, 4, 2), budget=60_000)
    found = mixed_precision(model, calibration, evaluate, widths=("fp16", 8), target=0.93)

Sensitivities say in which order the layers become narrower (`allocation`); then the networks along
that way are measured, and only their measured scores decide. What was measured is chosen by the
same examples, so a final number wants others (`reach` keeps some back).

An FP16 layer stays in floating point with its inputs. On a CPU it counts for size, not for speed:
its kernels compute in FP32. Rounding to FP16 itself (2^-11 of a weight) is not simulated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from tqdm.auto import tqdm

from ptq_course.diagnosis.ablation import decided_rule, observed
from ptq_course.diagnosis.allocation import Option, Options, filled, path, total
from ptq_course.diagnosis.scores import UNPAIRED, Evaluate, Scores, Variant, against, score, shown
from ptq_course.diagnosis.sensitivity import switched
from ptq_course.diagnosis.sizes import SIZE_NOT_SPEED, fp16_bytes, layer_bytes
from ptq_course.errors import QuantizationError, is_real, whole
from ptq_course.graph import copied
from ptq_course.graph.layer_types import layer_type
from ptq_course.graph.tracing import SECOND_CALL
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer
from ptq_course.tables import html_table, text_table

HALF = "fp16"
COLUMNS = ("", "bytes", "score", "change", "95 % interval", "layers")
GUIDES = ("evaluate", "output")
DO_NOT_ADD = "scores are measured for each row; the sensitivities only gave the order of the layers"


@dataclass(frozen=True)
class Point:
    """One assignment of widths, measured.

    bytes: of all layers with a weight. widths: by layer, bits or "fp16". change: against FP32.
    """

    bytes: int
    change: Variant
    widths: Mapping[str, int | str]

    @property
    def score(self) -> float:
        return self.change.score

    def layers(self) -> str:
        """The layers by width, the most frequent width without names."""
        by_width: dict[int | str, list[str]] = defaultdict(list)
        for name, width in self.widths.items():
            by_width[width].append(name)
        most = max(by_width, key=lambda w: len(by_width[w]))
        words = [f"{len(by_width[most])} {_word(most)}"]
        words += [f"{_word(w)}: {', '.join(n)}" for w, n in by_width.items() if w != most]
        return "; ".join(words)


@dataclass(frozen=True)
class MixedPrecision:
    """The chosen network with all that was measured. ``print`` shows the way, widest first.

    model: the chosen one, ``point`` its row; ``config`` makes it again. points: all that were
    measured, by bytes, the largest first. reached: does it keep to budget and target?
    """

    model: QuantizedModel
    config: QConfig
    point: Point
    points: tuple[Point, ...]
    reference: Variant
    goal: str
    reached: bool
    ranges: str  # the range rule and its options, as arguments of compute_qparams
    notes: tuple[str, ...]

    @property
    def pareto(self) -> list[Point]:
        """The points that no other beats in bytes and score at once, the smallest first."""
        return pareto(self.points)

    @property
    def line(self) -> str:
        """Python that makes the chosen network by hand."""
        return (
            f"PTQQuantizer(model, config={self.config.as_code()}).observe(calibration)"
            f".compute_qparams({self.ranges}).convert()"
        )

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        best, rows = self.pareto, []
        for point in self.points:
            mark = "->" if point is self.point else "*" if point in best else ""
            cells = point.change.cells()
            rows.append((mark, f"{point.bytes:,}", cells[1], *cells[4:], point.layers()))
        return COLUMNS, rows

    def _notes(self) -> list[str]:
        end = "reached by ->" if self.reached else "NOT reached, -> comes nearest"
        scale = shown(self.reference.score, self.reference.is_share)
        return [
            f"FP32 scores {scale}",
            f"{self.goal}: {end}",
            "* no other is smaller and better",
            *self.notes,
        ]

    def __str__(self) -> str:
        return "\n".join([text_table(*self._table()), *(f"note: {n}" for n in self._notes())])

    def _repr_html_(self) -> str:
        return html_table(*self._table(), self._notes())


def pareto(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats in bytes and score at once, the smallest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes, -p.score)):
        if not found or point.score > found[-1].score:
            found.append(point)
    return found


def mixed_precision(
    model: nn.Module,
    calibration: Iterable | PTQQuantizer,
    evaluate: Evaluate,
    *,
    budget: int | None = None,
    target: float | None = None,
    widths: Sequence[int | str] = (HALF, 8),
    guide: str = "evaluate",
    data: Iterable | None = None,
    layers: Sequence[str] | None = None,
    config: QConfig | None = None,
    ranges: str | None = None,
    most: int = 24,
    progress: bool = True,
) -> MixedPrecision:
    """Widths for the layers: the best score within ``budget``, or the fewest bytes for ``target``.

    model, calibration, evaluate, ranges: as for `one_at_a_time`. budget: bytes of all layers with a
    weight, scales and biases included (`sizes`). target: the lowest score accepted, in units of
    what evaluate returns. widths: bits of the weights, or "fp16". Activations keep the config's
    bits. guide: what gives the order, "evaluate", or "output", the noise at the network's output,
    which needs no labels and has a finer scale, but weighs all outputs alike; it is measured on
    ``data``, by default the calibration loader. layers: those that may change, by default all that
    the config quantizes; the others stay as they are. most: how many networks are measured at most
    along the way (widest, narrowest and first fit are always among them).

    Raises QuantizationError where neither or both goals are given, for widths that are none, and
    for a budget below the narrowest widths.
    """
    chosen = check_widths(widths)
    whole("most", most, 2)
    _check_goal(budget, target, guide)
    quantizer = observed(model, calibration, config, ranges, progress)
    if quantizer.config.weight_bits is None:
        raise QuantizationError("mixed_precision: the config has weight_bits=None; set a width.")
    if guide == "output" and data is None:
        if isinstance(calibration, PTQQuantizer):
            raise QuantizationError("mixed_precision: guide='output' needs data=loader.")
        data = calibration
    search = _Search(model, quantizer, evaluate, chosen, layers, ranges)
    options = search.options(evaluate if guide == "evaluate" else None, data, progress)
    way = path(options)
    smallest = total(options, way[-1]).bytes + search.fixed
    if budget is not None and smallest > budget:
        raise QuantizationError(
            f"mixed_precision: budget {budget:,} bytes, but the narrowest widths that help take "
            f"{smallest:,}; allow a narrower width, more layers, or more bytes."
        )
    widest = {name: max(o, key=lambda w: o[w].bytes) for name, o in options.items()}
    candidates = _thinned(way, options, most, None if budget is None else budget - search.fixed)
    if widest not in candidates:
        candidates.insert(0, widest)
    points = [
        search.measured(widths_, options)
        for widths_ in tqdm(candidates, desc="mixed", disable=not progress, leave=False)
    ]
    points.sort(key=lambda point: (-point.bytes, -point.score))
    point, reached, goal = _choice(points, budget, target)
    notes = [DO_NOT_ADD] + ([SIZE_NOT_SPEED] if HALF in chosen else [])
    if not search.reference.paired:
        notes.append(UNPAIRED)
    final = search.config(point.widths)
    return MixedPrecision(
        search.build(final), final, point, tuple(points),
        Variant("FP32", search.reference.mean, is_share=search.reference.is_share), goal, reached,
        arguments(*search.rule), tuple(notes),
    )  # fmt: skip


def check_widths(widths: Sequence[int | str]) -> list[int | str]:
    """Widths as a list; QuantizationError for what is none, or fewer than two."""
    if isinstance(widths, str) or not isinstance(widths, Sequence) or len(set(widths)) < 2:
        raise QuantizationError(
            f"widths: name at least two, such as ('fp16', 8) or (8, 4, 2), got {widths!r}."
        )
    return [
        w if w == HALF else whole("widths (each 'fp16' or bits)", w, 2, 16)
        for w in dict.fromkeys(widths)
    ]


def _check_goal(budget: int | None, target: float | None, guide: str) -> None:
    if (budget is None) == (target is None):
        raise QuantizationError("mixed_precision: give budget= (bytes) or target= (a score).")
    if budget is not None:
        whole("budget (bytes)", budget, 1)
    elif not is_real(target):
        raise QuantizationError(f"target is a score, a number, got {target!r}.")
    if guide not in GUIDES:
        raise QuantizationError(f"guide is one of {', '.join(GUIDES)}, got {guide!r}.")


class _Search:
    """Builds and measures assignments from statistics that were collected once."""

    def __init__(
        self, model: nn.Module, quantizer: PTQQuantizer, evaluate: Evaluate,
        widths: list[int | str], layers: Sequence[str] | None, ranges: str | None,
    ) -> None:  # fmt: skip
        self.model, self.quantizer, self.evaluate = model, quantizer, evaluate
        self.widths, self.rule = widths, decided_rule(quantizer, ranges)
        self.quantized = quantizer.convert().quantized_layers()
        for name in layers or ():
            if name not in self.quantized:
                raise QuantizationError(
                    f"layers: {name!r} is not quantized; there are {', '.join(self.quantized)}."
                )
        self.names = list(self.quantized if layers is None else layers)
        if not self.names:
            raise QuantizationError("layers: name at least one that may change.")
        stay = [layer for name, layer in self.quantized.items() if name not in self.names]
        kept = [s.name for s in quantizer.network.plan.layers.values() if s.kept_float]
        floats = [quantizer.float_model.get_submodule(name) for name in kept]
        self.fixed = sum(map(layer_bytes, stay))
        self.fixed += sum(fp16_bytes(layer) for layer in floats if layer_type(layer) is not None)
        self.reference: Scores = score(evaluate, copied(model), "FP32")

    def options(
        self, evaluate: Evaluate | None, data: Iterable | None, progress: bool
    ) -> dict[str, dict[int | str, Option]]:
        """Bytes and loss of every width of every layer, each measured alone against FP32."""
        bits = [w for w in self.widths if isinstance(w, int)]
        table = switched(
            "quantize", self.model, self.quantizer, evaluate, bits=bits, data=data or (),
            layers=self.names, progress=progress,
        )  # fmt: skip
        found: dict[str, dict[int | str, Option]] = {name: {} for name in self.names}
        for row in table.rows:
            if table.by == "score":
                loss = max(0.0, self.reference.mean - row.score)
            else:
                loss = 10 ** (-row.score / 10)  # noise over signal
            found[row.name][row.bits] = Option(row.bytes, loss)
        if HALF in self.widths:
            for name in self.names:
                size = fp16_bytes(self.quantized[name].float_layer)
                found[name][HALF] = Option(size, 0.0)
        return found

    def config(self, widths: Mapping[str, int | str]) -> QConfig:
        """The quantizer's config with these widths."""
        base = self.quantizer.config
        twins = {name.split(SECOND_CALL)[0] for name in widths if SECOND_CALL in name}
        kept = tuple(
            f"{name}{SECOND_CALL}1" if name in twins else name  # this call alone
            for name, width in widths.items()
            if width == HALF
        )
        bits = {n: b for n, b in base.layer_bits if n not in widths}
        given = None if base.weight_format else base.weight_bits  # what needs no mention
        bits |= {n: int(w) for n, w in widths.items() if w not in (HALF, given)}
        return replace(base, float_layers=(*base.float_layers, *kept), layer_bits=bits)

    def build(self, config: QConfig) -> QuantizedModel:
        rule, settings = self.rule
        fork = self.quantizer.fork()
        return fork.compute_qparams(rule, config=config, **settings).convert()

    def measured(self, widths: Mapping[str, int | str], options: Options) -> Point:
        quantized = self.build(self.config(widths))
        found = score(self.evaluate, quantized, "mixed widths")
        size = total(options, widths).bytes + self.fixed
        return Point(size, against(self.reference, found, "mixed widths"), dict(widths))


def _thinned(
    way: list[dict[str, int | str]], options: Options, most: int, room: int | None
) -> list[dict[str, int | str]]:
    """At most ``most`` assignments of the way, evenly, with the first fit and its fill."""
    must = {0, len(way) - 1}
    extra = []
    if room is not None:
        fits = next(i for i, widths in enumerate(way) if total(options, widths).bytes <= room)
        must.add(fits)
        extra = [filled(options, way[fits], room)]
    others = [i for i in range(len(way)) if i not in must]
    count = min(len(others), max(0, most - len(must) - len(extra)))
    chosen = must | {others[i * len(others) // count] for i in range(count)}
    found = [way[i] for i in sorted(chosen)]
    return found + [widths for widths in extra if widths not in found]


def _choice(
    points: Sequence[Point], budget: int | None, target: float | None
) -> tuple[Point, bool, str]:
    """The point that keeps to the goal, or the nearest; whether it does; the goal in words."""
    if budget is not None:
        fit = [p for p in points if p.bytes <= budget]
        return max(fit, key=lambda p: (p.score, -p.bytes)), True, f"at most {budget:,} bytes"
    assert target is not None
    goal = f"a score of at least {shown(target, points[0].change.is_share)}"
    good = [p for p in points if p.score >= target]
    if good:
        return min(good, key=lambda p: (p.bytes, -p.score)), True, goal
    return max(points, key=lambda p: (p.score, -p.bytes)), False, goal


def arguments(rule: str, options: Mapping[str, object]) -> str:
    """A range rule as arguments of ``compute_qparams``, such as "'percentile', percentile=99.9"."""
    return ", ".join([repr(rule), *(f"{name}={value!r}" for name, value in options.items())])


def _word(width: int | str) -> str:
    return "FP16" if width == HALF else f"INT{width}"
