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
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn

from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.graph import copied, plain_module, stays_float
from ptq_course.grids.affine import QParams
from ptq_course.ranges.calibrators import Calibrator
from ptq_course.ranges.summaries import Summary
from ptq_course.simulation.decisions import decide
from ptq_course.simulation.layers import ActivationQuantizer, QuantizedLayer, weight_qparams
from ptq_course.simulation.network import TracedNetwork, check_same_outputs
from ptq_course.simulation.observe import Sample, run
from ptq_course.simulation.qconfig import SEARCH, QConfig
from ptq_course.simulation.quantized import QuantizedModel, check_float
from ptq_course.simulation.range_search import RangeSearch, compare_rules, every_candidate
from ptq_course.simulation.report import Report, make_report
from ptq_course.simulation.statistics import Statistics
from ptq_course.simulation.untraced import UntracedNetwork

Step = Callable[[fx.GraphModule, "PTQQuantizer"], fx.GraphModule]


class PTQQuantizer:
    """Quantizes a trained model with calibration data and no training.

    model: any nn.Module; it is copied and never changed (weights, mode and device stay).
    bits: for weights and activations, 2 to 16; ``config`` says the rest (default:
    `QConfig.onnxruntime()`), and its own bits count where ``bits`` is not given.
    steps: functions ``(graph_module, quantizer) -> graph_module`` run after fusion, before
    observation (equalization, SmoothQuant: chapters 11 and 12).

    A model that torch.fx cannot trace gets quantization layer by layer, without fusion;
    ``left_in_float`` then says what stays in floating point.

    After `compute_qparams`: ``scales[layer]`` and ``zero_points[layer]`` describe the input of each
    layer, ``calibrators[layer]`` is the calibrator that chose them, ``weight_scales[layer]`` stands
    beside them, and ``qparams[value]`` holds every tensor value.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: int | None = None,
        config: QConfig | None = None,
        steps: Sequence[Step] = (),
    ) -> None:
        check_float(model)
        model = plain_module(model)
        config = config or QConfig.onnxruntime()
        self.config = config if bits is None else config.with_bits(bits)
        try:
            self._network = TracedNetwork(
                model, self.config.float_layers, self.config.fused_activations
            )
        except UnsupportedError as error:
            if steps:
                raise UnsupportedError(f"steps need a traced graph. {error}") from error
            self._network = UntracedNetwork(model, self.config.float_layers)
            warnings.warn(f"Quantizing layer by layer. {error}", stacklevel=2)
        if not self._network.plan.layers:
            raise UnsupportedError(
                f"{type(model).__name__} has no layer to quantize (Conv, ConvTranspose, Linear or "
                "Embedding)."
            )
        for step in steps:
            self._network.apply(lambda module, step=step: step(module, self))
        self._unfused: nn.Module = copied(model)
        self.model: nn.Module = self._network.module
        self.statistics = Statistics()
        self._sample: Sample | None = Sample()  # None: of other quantizers' examples, too
        self.searched: RangeSearch | None = None
        self._decided = False
        self.value_calibrators: dict[str, Calibrator] = {}
        self.qparams: dict[str, QParams] = {}

    # --- step 2: observe -------------------------------------------------------------------

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
        statistics = self.statistics.copy()
        if not statistics.summaries:
            values = self._network.full_plan.values.items()
            statistics.prepare((name for name, value in values if value.range is None), ranges)
        elif ranges is not None:
            statistics.require(ranges)
        sample = self._sample and self._sample.copy()
        network = self._network
        statistics.num_batches += run(
            network.with_observers(statistics.observers(network.input_values)),
            loader,
            input_names=network.input_names,
            optional_names=network.optional_names,
            num_batches=num_batches,
            check_first=None if self.num_batches else self._check_fusion,
            sample=sample,
            progress=progress,
        )
        self.statistics, self._sample = statistics, sample
        return self

    def merge(self, other: PTQQuantizer) -> PTQQuantizer:
        """Add the statistics that another quantizer of the same model has observed.

        The result is the same, to the bit, as if this one had observed its data too, in any order.
        Raises CalibrationError where the two do not belong together, UnsupportedError where they
        collected for a rule that does not merge (a moving average); then nothing has changed.
        """
        self.statistics, self._sample = self.statistics.merge(other.statistics), None
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> PTQQuantizer:
        """`merge` with the quantizers of all processes of ``torch.distributed``."""
        self.statistics, self._sample = self.statistics.all_reduce(group), None
        return self

    @property
    def num_batches(self) -> int:
        """How many batches have been observed."""
        return self.statistics.num_batches

    def _check_fusion(self, inputs: list[Tensor]) -> None:
        """The fused graph must compute what the user's model computes."""
        if len(inputs) == 1 and inputs[0].dim() > 1:  # several need not share their dimensions
            few = [inputs[0][:2]]
            try:
                return check_same_outputs(self._unfused, self._network.module, few)
            except UnsupportedError:
                raise
            except Exception:
                pass  # it takes one size only, or its first dimension is no batch: try all of it
        return check_same_outputs(self._unfused, self._network.module, inputs)

    # --- step 3: decide --------------------------------------------------------------------

    def compute_qparams(
        self, ranges: str | None = None, *, bits: int | None = None, config: QConfig | None = None,
        **options: float,
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
        network = copy.copy(self._network)
        network.replan(config.float_layers, config.fused_activations)
        rule, searched = ranges or config.activation_range, None
        if rule == SEARCH:
            rule, options, searched = self._search(config, options)
        calibrators, qparams = decide(self.statistics, network.plan, config, rule, options)
        self.config, self._network, self._decided = config, network, True
        self.value_calibrators, self.qparams, self.searched = calibrators, qparams, searched
        return self

    def _search(
        self, config: QConfig, options: dict[str, float]
    ) -> tuple[str, dict[str, float], RangeSearch | None]:
        """The best rule of those whose statistics were collected, its options, and the contest."""
        if options:
            raise QuantizationError(
                f"ranges='search' takes no option {', '.join(map(repr, options))}: name a rule."
            )
        found = every_candidate(config.activation_bits or 8)
        found = [(rule, o) for rule, o in found if not self.statistics.missing(rule)]
        if not found:
            self.statistics.require(SEARCH)
        if len(found) == 1 or config.activation_grid is None or not self.num_batches:
            return *found[0], None  # there is nothing to compare, or nothing to compare on
        if self._sample is None:
            raise CalibrationError(
                "compute_qparams: after merge or all_reduce this quantizer has no examples of its "
                "own to search a range rule with: name a rule, as in ranges='minmax', or call "
                "search_ranges(quantizer, batches)."
            )
        other = self.fork()
        other.config = config
        searched = compare_rules(other, self._sample.batches, found, progress=False)
        return searched.best.rule, searched.best.options, searched

    # --- step 4: convert -------------------------------------------------------------------

    def convert(self) -> QuantizedModel:
        """The quantized model, also ``self.model``; CalibrationError before qparams exist."""
        if self.config.activation_bits is not None and not self._decided:
            raise CalibrationError(
                "convert: no scales yet. Call observe(loader) and compute_qparams(), "
                "or calibrate(loader)."
            )
        self.model = self._build(self.qparams)
        return self.model

    def _build(self, qparams: dict[str, QParams]) -> QuantizedModel:
        config, plan = self.config, self._network.plan
        layers = {}
        if config.weight_bits is not None:
            for name, site in plan.layers.items():
                if not stays_float(name, config.float_layers):
                    source = qparams.get(site.input_value) if config.quantize_bias else None
                    layers[name] = self._quantized_layer(name, source)
        quantizers = {n: ActivationQuantizer(q, name=n) for n, q in qparams.items()}
        module = self._network.with_quantizers(layers, quantizers)
        return QuantizedModel(module, config, dict(qparams), self.left_in_float)

    def _quantized_layer(self, name: str, input_qparams: QParams | None) -> QuantizedLayer:
        layer = self._network.module.get_submodule(name)
        config = self.config
        try:
            qparams = weight_qparams(
                layer, config.weight_grid, config.weight_granularity, config.weight_symmetric
            )
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
        **options: float,
    ) -> PTQQuantizer:
        """`observe` + `compute_qparams`: unless told otherwise with the rule that a search finds.

        ranges, options: as in `compute_qparams`. Labels are not used.
        """
        rule = ranges or self.config.activation_range
        self.observe(dataloader, num_batches, ranges=rule, progress=progress)
        return self.compute_qparams(rule, **options)

    def quantize_weights(self) -> nn.Module:
        """Integer weights, activations left in floating point: ``self.model``, without any data."""
        if self.config.weight_bits is None:
            raise QuantizationError("quantize_weights: the config has weight_bits=None.")
        self.model = self._build({})
        return self.model

    @property
    def calibrators(self) -> dict[str, Calibrator]:
        """The calibrator of each layer's input, by the layer's path."""
        return self._by_layer(self.value_calibrators)

    @property
    def scales(self) -> dict[str, float]:
        """The scale of each layer's input activation, by the layer's path."""
        return {name: p.scale.item() for name, p in self._by_layer(self.qparams).items()}

    @property
    def zero_points(self) -> dict[str, int]:
        """The zero point of each layer's input activation, by the layer's path."""
        return {name: int(p.zero_point) for name, p in self._by_layer(self.qparams).items()}

    @property
    def weight_scales(self) -> dict[str, Tensor]:
        """The weight scales of each layer: 0-d per tensor, one per channel or group otherwise."""
        config = self.config
        if config.weight_bits is None:
            return {}
        return {
            name: weight_qparams(
                self._network.module.get_submodule(name),
                config.weight_grid,
                config.weight_granularity,
                config.weight_symmetric,
            ).scale
            for name in self._network.plan.layers
            if not stays_float(name, config.float_layers)
        }  # fmt: skip

    @property
    def float_model(self) -> nn.Module:
        """The prepared network in floating point: traced, fused, after every step."""
        return self._network.module

    @property
    def input_names(self) -> list[str]:
        """The arguments that the model takes from a batch."""
        return self._network.input_names

    @property
    def left_in_float(self) -> dict[str, str]:
        """Operations that stay in floating point, and why."""
        arrived = dict.fromkeys(self.statistics.integers, "an input that arrives as integers")
        return self._network.plan.left_in_float | arrived

    def summary(self, layer: str, kind: type[Summary]) -> Summary:
        """The statistics of one kind of a layer's input, for plots and experiments."""
        value = self._network.plan.layers[layer].input_value
        return self.statistics.summaries[value][kind]

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
        """Another quantizer with the same network and statistics, whose decisions are its own."""
        other = copy.copy(self)
        other._network = copy.copy(self._network)
        return other

    def report(self) -> Report:
        """A table of layers that prints and plots: ranges, scales, error of the weights."""
        return make_report(self._network.module, self._network.plan, self.config, self.qparams)

    def _by_layer(self, by_value: dict) -> dict:
        sites = self._network.plan.layers.items()
        return {n: by_value[s.input_value] for n, s in sites if s.input_value in by_value}
