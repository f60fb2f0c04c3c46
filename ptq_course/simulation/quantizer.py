"""PTQQuantizer: the five steps of post-training quantization on a whole network.

Chapters 00 and 06.

    prepare     q = PTQQuantizer(model, bits=8)           trace, fuse; your model is left alone
    observe     q.observe(loader)                         statistics only; calls add up
    decide      q.compute_qparams(ranges="kl")            repeatable, no second pass over the data
    convert     quantized = q.convert()                   a module that rounds as integers would
    validate    q.report(), metrics.flips(...)
"""

from __future__ import annotations

import copy
import functools
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.graph import copied, plain_module, trace
from ptq_course.graph.layer_types import own_forward
from ptq_course.graph.sequences import norms_of_sequences
from ptq_course.grids.affine import AnyGrid, AnyQParams, QParams
from ptq_course.ranges.calibrators import Calibrator
from ptq_course.simulation.decisions import check_widths, decide, never_alive
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer, weight_qparams
from ptq_course.simulation.network import TracedNetwork, check_same_outputs
from ptq_course.simulation.observe import Sample, run
from ptq_course.simulation.qconfig import SEARCH, QConfig
from ptq_course.simulation.quantized import QuantizedModel, check_float
from ptq_course.simulation.range_search import RangeSearch, compare_rules, every_candidate
from ptq_course.simulation.report import Report, make_report
from ptq_course.simulation.statistics import Statistics, rules_named
from ptq_course.simulation.untraced import UntracedNetwork

Step = Callable[[fx.GraphModule, "PTQQuantizer"], fx.GraphModule]
P = ParamSpec("P")
R = TypeVar("R")


def checked_steps(steps: Any, such_as: str = "[Equalize()]") -> tuple[Any, ...]:
    """The steps; QuantizationError for one alone, or a class in place of what it makes."""
    listed = isinstance(steps, Sequence) and not isinstance(steps, str)
    if listed and all(callable(step) and not isinstance(step, type) for step in steps):
        return tuple(steps)
    raise QuantizationError(
        f"steps is a list of objects or functions, such as {such_as}, got {steps}."
    )


def _one_at_a_time(
    step: Callable[Concatenate[PTQQuantizer, P], R],
) -> Callable[Concatenate[PTQQuantizer, P], R]:
    """A step that waits while another thread is inside a step of the same quantizer."""

    @functools.wraps(step)
    def waiting(self: PTQQuantizer, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            return step(self, *args, **kwargs)

    return waiting


class PTQQuantizer:
    """Quantizes a trained model with calibration data and no training.

    model: any nn.Module; it is copied and never changed (weights, mode and device stay), and
    ``model`` it remains: what is quantized is what `convert` and `quantize_weights` return.
    bits: for weights and activations, 2 to 16; ``config`` says the rest (default:
    `QConfig.onnxruntime()`), and its own bits count where ``bits`` is not given.
    steps: functions ``(graph_module, quantizer) -> graph_module`` run after fusion, before
    observation (equalization, SmoothQuant: chapters 11 and 12).
    example: an input, or several, for layers whose forward() asks for the shape of its input; else
    the first batch that is observed is it.

    A model that torch.fx cannot trace gets quantization layer by layer, without fusion;
    ``left_in_float`` then says what stays in floating point.

    Its parts: ``config``; ``network``, the prepared copy with its plan; ``statistics``, what was
    observed; and after `compute_qparams` ``qparams``, what was decided, by tensor value. Views of
    these by layer: ``scales``, ``zero_points`` and ``calibrators`` of its input, ``left_in_float``.
    Threads may share a quantizer: its steps wait for each other.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: int | None = None,
        config: QConfig | None = None,
        steps: Sequence[Step] = (),
        example: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        check_float(model)
        self._lock = threading.RLock()
        self.model = model
        model = plain_module(model)
        config = config or QConfig.onnxruntime()
        self.config = config if bits is None else config.with_bits(bits)
        self._unfused: nn.Module = copied(model)
        self._needs_example = False
        self._steps: tuple[Step, ...] = checked_steps(steps)
        self._example = [example] if isinstance(example, Tensor) else example
        try:
            self.network: TracedNetwork | UntracedNetwork = self._traced()
        except UnsupportedError as error:
            if steps:
                raise UnsupportedError(f"steps need a traced graph. {error}") from error
            self.network = UntracedNetwork(model)
            self._needs_example = bool(own_forward(model)) and example is None
            warnings.warn(f"Quantizing layer by layer. {error}", stacklevel=2)
        self.network.plan_for(self.config)
        if not self._needs_example:
            self._check_layers()
            check_widths(self.config, self.network.plan.layers)
        self._apply_steps()
        self.statistics = Statistics()
        self._sample: Sample | None = Sample()  # None: of other quantizers' examples, too
        self.searched: RangeSearch | None = None
        self.qparams: dict[str, AnyQParams] = {}
        self._calibrators: dict[str, Calibrator] = {}  # by value, as qparams
        self._decided = False

    def _traced(self, norms: Collection[str] = ()) -> TracedNetwork:
        return TracedNetwork(self._unfused, self._example, norms)

    def _apply_steps(self) -> None:
        if isinstance(self.network, TracedNetwork):
            for step in self._steps:
                self.network.apply(lambda module, step=step: step(module, self), self.config)

    # --- step 2: observe -------------------------------------------------------------------

    @_one_at_a_time
    def observe(
        self,
        loader: Iterable,
        num_batches: int | None = None,
        *,
        ranges: str | Sequence[str] | None = None,
        progress: bool = True,
    ) -> PTQQuantizer:
        """Collect statistics of every tensor value from the loader; further calls add to them.

        ranges: the rules to collect for, decided by the first call; None collects for all that
        merge, so that `compute_qparams` can be repeated with any of them. Either the whole call
        counts or, on an error, none of it.
        """
        before, statistics = self.statistics, self.statistics.copy()
        rules_named(ranges)
        if ranges is not None and statistics.summaries:
            statistics.require(ranges)
        sample = self._sample and self._sample.copy()

        def begin(inputs: list[Tensor]) -> nn.Module:
            if not self.statistics.num_batches:
                self._learn_from(inputs)
            network = self.network
            if not statistics.summaries:
                values = network.full_plan.values.items()
                statistics.prepare((name for name, value in values if value.range is None), ranges)
            return network.with_observers(statistics.observers(network.input_values))

        statistics.num_batches += run(
            self.network.module,
            loader,
            input_names=self.network.input_names,
            optional_names=self.network.optional_names,
            num_batches=num_batches,
            begin=begin,
            sample=sample,
            progress=progress,
        )
        if self.statistics is not before:  # the lock lets its own thread in
            raise CalibrationError(
                "observe: the loader itself observed with this quantizer, whose batches count and "
                "these do not. Call observe() first for one, then for the other."
            )
        self.statistics, self._sample = statistics, sample
        return self

    @_one_at_a_time
    def merge(self, other: PTQQuantizer) -> PTQQuantizer:
        """Add the statistics that another quantizer of the same model has observed.

        The result is the same, to the bit, as if this one had observed its data too, in any order.
        Raises CalibrationError where the two do not belong together, UnsupportedError where they
        collected for a rule that does not merge (a moving average); then nothing has changed.
        """
        self.statistics, self._sample = self.statistics.merge(other.statistics), None
        if isinstance(other.network, TracedNetwork):
            self._leave(other.network.norms)
        self.network.types = other.network.types
        return self

    @_one_at_a_time
    def all_reduce(self, group: dist.ProcessGroup | None = None) -> PTQQuantizer:
        """`merge` with the quantizers of all processes of ``torch.distributed``."""
        self.statistics, self._sample = self.statistics.all_reduce(group), None
        return self

    def _learn_from(self, inputs: list[Tensor]) -> None:
        """What only an example tells: questions about shapes, and the types of what is computed."""
        if self._needs_example:
            try:
                self.network, self._needs_example = TracedNetwork(self._unfused, inputs), False
                self.network.plan_for(self.config)
            except UnsupportedError as error:
                self._check_layers(str(error))
        if isinstance(self.network, TracedNetwork):
            self.network.learn_types(inputs)
        self._check_fusion(inputs)

    def _check_layers(self, why: str = "") -> None:
        if not self.network.plan.layers:
            raise UnsupportedError(
                f"{type(self._unfused).__name__} has no layer to quantize (Conv, ConvTranspose, "
                f"Linear or Embedding). {why}".rstrip()
            )

    def _check_fusion(self, inputs: list[Tensor]) -> None:
        """The fused graph must compute what the user's model computes.

        Where it does not, batch norms that read sequences here are taken out of Linear layers.
        """
        before = self.network
        try:
            self._compare(inputs)
        except UnsupportedError:
            if not isinstance(before, TracedNetwork):
                raise
            if not self._leave(self._norms_of_sequences(inputs)):
                self._blame_steps(inputs)
                raise
            try:
                cast(TracedNetwork, self.network).learn_types(inputs)
                self._compare(inputs)
            except UnsupportedError:
                self.network = before
                raise

    def _blame_steps(self, inputs: list[Tensor]) -> None:
        """Raise UnsupportedError, naming the steps, where the network without them is equal."""
        names = [getattr(step, "__name__", type(step).__name__) for step in self._steps]
        if not names or not isinstance(self.network, TracedNetwork):
            return
        try:
            check_same_outputs(self._unfused, self._traced(self.network.norms).module, inputs)
        except UnsupportedError:
            return
        raise UnsupportedError(
            f"steps: after {', '.join(names)} the network does not compute the same, without them "
            "it does; leave them out. Known causes: pictures without a batch behind a Flatten, "
            "16-bit weights that a step had to round."
        )

    def _norms_of_sequences(self, inputs: list[Tensor]) -> list[str]:
        try:
            return norms_of_sequences(trace(self._unfused, self._example), inputs)
        except UnsupportedError:  # it was traced beside these inputs, which told already
            return []

    def _leave(self, norms: Collection[str]) -> bool:
        """Fuse again without these batch norms; False where that would change nothing."""
        if not norms or not isinstance(self.network, TracedNetwork) or self.network.norms:
            return False
        self.network = self._traced(norms)
        self.network.plan_for(self.config)
        self._apply_steps()
        return True

    def _compare(self, inputs: list[Tensor]) -> None:
        if len(inputs) == 1 and inputs[0].dim() > 1:  # several need not share their dimensions
            few = [inputs[0][:2]]
            try:
                return check_same_outputs(self._unfused, self.network.module, few)
            except UnsupportedError:
                raise
            except Exception:
                pass  # it takes one size only, or its first dimension is no batch: try all of it
        return check_same_outputs(self._unfused, self.network.module, inputs)

    # --- step 3: decide --------------------------------------------------------------------

    @_one_at_a_time
    def compute_qparams(
        self, ranges: str | None = None, *, bits: int | None = None, config: QConfig | None = None,
        progress: bool = False, **options: float,
    ) -> PTQQuantizer:  # fmt: skip
        """Turn the statistics into scales and zero points; repeat it with other rules and bits.

        ranges: a name in CALIBRATORS, to which ``options`` go (``percentile=99.99``); or "search",
        which tries all that observe() collected for on 1024 of its examples at most and takes the
        one nearest to FP32 (`range_search`; ``searched`` is its table). Default: the config's,
        "search" unless told otherwise. An error leaves all as it was. CalibrationError for a search
        after `merge` or `all_reduce`, whose result must not depend on who saw which examples.
        """
        config = self.config if config is None else config
        config = config if bits is None else config.with_bits(bits)
        network = copy.copy(self.network)
        network.replan(config)
        check_widths(config, network.plan.layers)
        rule, searched = ranges or config.activation_range, None
        if rule == SEARCH:
            rule, options, searched = self._search(config, options, progress)
        calibrators, qparams = decide(self.statistics, network.plan, config, rule, options)
        if silent := never_alive(calibrators):
            warnings.warn(
                f"{', '.join(silent)}: 0 in all calibration data, so that nothing is known of the "
                "range, and the scale is 1. Add data that exercises it, or keep it in floating "
                "point (float_layers).",
                stacklevel=3,
            )
        self.config, self.network, self._decided = config, network, True
        self._calibrators, self.qparams, self.searched = calibrators, qparams, searched
        return self

    def _search(
        self, config: QConfig, options: dict[str, float], progress: bool
    ) -> tuple[str, dict[str, float], RangeSearch | None]:
        """The best rule of those whose statistics were collected, its options, and the contest."""
        if options:
            raise QuantizationError(
                f"ranges='search' takes no option {', '.join(map(repr, options))}: name a rule."
            )
        found = every_candidate(config.activation_bits or 8, config.activation_format is not None)
        found = [(rule, o) for rule, o in found if not self.statistics.missing(rule)]
        if not found:
            self.statistics.require(SEARCH)
        if len(found) == 1 or config.activation_grid is None or not self.statistics.num_batches:
            return *found[0], None  # there is nothing to compare, or nothing to compare on
        if self._sample is None:
            raise CalibrationError(
                "compute_qparams: after merge or all_reduce this quantizer has no examples of its "
                "own to search a range rule with: name a rule, as in ranges='minmax', or call "
                "search_ranges(quantizer, batches)."
            )
        other = self.fork()
        other.config = config
        searched = compare_rules(other, self._sample.batches, found, progress=progress)
        return searched.best.rule, searched.best.options, searched

    # --- step 4: convert -------------------------------------------------------------------

    def convert(self) -> QuantizedModel:
        """The quantized model; CalibrationError before qparams exist."""
        if self.config.activation_bits is not None and not self._decided:
            raise CalibrationError(
                "convert: no scales yet. Call observe(loader) and compute_qparams(), "
                "or calibrate(loader)."
            )
        return self._build(self.qparams)

    def _build(self, qparams: dict[str, AnyQParams]) -> QuantizedModel:
        self._check_layers("Layers with a forward() of their own need example=.")
        config, plan = self.config, self.network.plan
        layers = {}
        if config.weight_bits is not None:
            check_widths(config, plan.layers)
            for name, site in plan.layers.items():
                grid = config.weight_grid_of(name)
                if grid is not None and not site.kept_float:
                    source = qparams.get(site.input_value or "") if config.quantize_bias else None
                    layers[name] = self._quantized_layer(name, grid, source)
        quantizers = {n: ActivationQuantizer(q, name=n) for n, q in qparams.items()}
        module = self.network.with_quantizers(
            layers, quantizers, config.activation_grid if qparams else None
        )
        return QuantizedModel(module, config, dict(qparams), self.left_in_float)

    def _quantized_layer(
        self, name: str, grid: AnyGrid, input_qparams: AnyQParams | None
    ) -> QuantizedLayer:
        layer, config = self.network.module.get_submodule(name), self.config
        try:
            qparams = weight_qparams(
                layer, grid, config.weight_granularity, config.weight_symmetric,
                config.weight_range,
            )  # fmt: skip
            return QuantizedLayer.from_float(
                copy.deepcopy(layer), qparams, input_qparams, name=name
            )
        except QuantizationError as error:
            raise type(error)(f"layer {name!r}: {error}") from error

    # --- in one call, as in small scripts --------------------------------------------------

    def calibrate(
        self,
        dataloader: Iterable,
        num_batches: int = 100,
        *,
        ranges: str | None = None,
        progress: bool = True,
        **options: Any,
    ) -> PTQQuantizer:
        """`observe` + `compute_qparams`: unless told otherwise with the rule that a search finds.

        ranges, options: as in `compute_qparams`. Labels are not used.
        """
        rule = ranges or self.config.activation_range
        self.observe(dataloader, num_batches, ranges=rule, progress=progress)
        return self.compute_qparams(rule, progress=progress, **options)

    def quantize_weights(self) -> QuantizedModel:
        """A model with integer weights, its activations in floating point; needs no data."""
        if self.config.weight_bits is None:
            raise QuantizationError("quantize_weights: the config has weight_bits=None.")
        weights = self.fork()
        weights.config = replace(self.config, activation_bits=None)
        weights.network = copy.copy(self.network)
        weights.network.replan(weights.config)
        return weights._build({})

    @property
    def bits(self) -> int | None:
        """Of the weights, or of the activations where only these are quantized."""
        return self.config.weight_bits or self.config.activation_bits

    @property
    def calibrators(self) -> dict[str, Calibrator]:
        """The calibrator of each layer's input, by the layer's path."""
        return self._by_layer(self._calibrators)

    @property
    def scales(self) -> dict[str, float]:
        """The scale of each layer's input activation, by the layer's path."""
        return {name: p.scale.item() for name, p in self._by_layer(self.qparams).items()}

    @property
    def zero_points(self) -> dict[str, int]:
        """The zero point of each layer's input activation, by the layer's path; 0 for floats."""
        found = self._by_layer(self.qparams)
        return {n: int(p.zero_point) if isinstance(p, QParams) else 0 for n, p in found.items()}

    @property
    def float_model(self) -> nn.Module:
        """The prepared network in floating point: traced, fused, after every step."""
        return self.network.module

    @property
    def left_in_float(self) -> dict[str, str]:
        """Operations that stay in floating point, and why."""
        arrived = dict.fromkeys(self.statistics.integers, "an input that arrives as integers")
        return self.network.plan.left_in_float | arrived

    def check_made_from(self, model: nn.Module) -> None:
        """Raise QuantizationError where ``model`` is not the one that this quantizer was given."""
        mine, other = self._unfused.state_dict(), plain_module(model).state_dict()
        if mine.keys() != other.keys() or not all(
            mine[name].shape == other[name].shape and torch.equal(mine[name], other[name])
            for name in mine
        ):
            raise QuantizationError(
                "the quantizer was made from another model, or this one changed since: pass the "
                "float model that it was made from, or make a new quantizer."
            )

    def fork(self) -> PTQQuantizer:
        """Another quantizer that knows the same; what either does from now on is its own."""
        other = copy.copy(self)  # what is decided and observed is replaced, not written to
        other.network = self.network.fork()
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a pickle, which has a lock of its own."""
        vars(self).update(state, _lock=threading.RLock())

    def report(self) -> Report:
        """A table of layers that prints and plots: ranges, scales, error of the weights."""
        network = self.network
        return make_report(network.module, network.plan, self.config, self.qparams, self.statistics)

    def _by_layer(self, by_value: dict) -> dict:
        sites = self.network.plan.layers.items()
        return {n: by_value[s.input_value] for n, s in sites if s.input_value in by_value}
