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
from typing import Any

from torch import Tensor, fx, nn

from ptq_course.affine import IntGrid, QParams, choose_qparams
from ptq_course.calibrators import CALIBRATORS, Calibrator
from ptq_course.errors import CalibrationError, QuantizationError, UnsupportedError
from ptq_course.graph import Value, copied
from ptq_course.layers import ActivationQuantizer, QuantizedLayer, weight_qparams
from ptq_course.network import TracedNetwork, UntracedNetwork, check_same_outputs
from ptq_course.observe import Observer, model_inputs, run
from ptq_course.qconfig import QConfig
from ptq_course.report import Report, make_report
from ptq_course.summaries import Summary

KL_BITS = 8  # above, KL's candidate thresholds are too few for the levels (chapter 03)
Step = Callable[[fx.GraphModule, "PTQQuantizer"], fx.GraphModule]


class QuantizedModel(nn.Module):
    """The network after conversion: same inputs and outputs, every value on its integer grid.

    It simulates integers in floating point; `deploy.onnx.export` writes real ones. ``config`` says
    how it was made, ``qparams`` holds the QParams of each value, ``left_in_float`` says what was
    not quantized and why.
    """

    def __init__(
        self, module: nn.Module, config: QConfig, qparams: dict[str, QParams],
        left_in_float: dict[str, str],
    ) -> None:  # fmt: skip
        super().__init__()
        self.module = module
        self.config = config
        self.qparams = qparams
        self.left_in_float = left_in_float
        self.eval()

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.module(*inputs, **named)

    def quantized_layers(self) -> dict[str, QuantizedLayer]:
        """The layers with integer weights, by their path in the user's model."""
        return {m.name: m for m in self.module.modules() if isinstance(m, QuantizedLayer)}


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
        if not isinstance(model, nn.Module):
            raise QuantizationError(f"model must be an nn.Module, got {type(model).__name__}.")
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
        self.num_batches = 0
        self._summaries: dict[str, dict[type[Summary], Summary]] = {}
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
        summaries = copy.deepcopy(self._summaries)
        if not summaries:
            kinds = {CALIBRATORS[rule].summary_type for rule in _rules(ranges)}
            for name, value in self._network.full_plan.values.items():
                if value.range is None:
                    summaries[name] = {kind: kind() for kind in kinds}
        elif ranges is not None:
            self._check_collected(_rules(ranges))
        observed = self._network.with_observers(
            {name: Observer(name, mine) for name, mine in summaries.items()}
        )
        names = self._network.input_names
        done, first = run(
            observed,
            loader,
            input_names=names,
            num_batches=num_batches,
            progress=progress,
            optional_names=self._network.optional_names,
        )
        if self.num_batches == 0:
            self._check_fusion(first)
        self._summaries = summaries
        self.num_batches += done
        return self

    def _check_collected(self, rules: list[str]) -> None:
        for rule in rules:
            kind = CALIBRATORS[rule].summary_type
            if any(kind not in mine for mine in self._summaries.values()):
                raise CalibrationError(
                    f"ranges={rule!r} was not collected by the first call of observe(). Start with "
                    f"a new PTQQuantizer and observe(loader, ranges={rule!r}), or None for all."
                )

    def _check_fusion(self, batch: object) -> None:
        """The fused graph must compute what the user's model computes."""
        inputs = model_inputs(batch, self._network.input_names)
        if len(inputs) == 1:  # several need not share their first dimension
            inputs = [inputs[0][:2]]
        device = next((p.device for p in self._unfused.parameters()), inputs[0].device)
        inputs = [x.to(device) for x in inputs]
        check_same_outputs(self._unfused, self._network.module, inputs)

    # --- step 3: decide --------------------------------------------------------------------

    def compute_qparams(
        self, ranges: str | None = None, *, bits: int | None = None, config: QConfig | None = None,
        **options: float,
    ) -> PTQQuantizer:  # fmt: skip
        """Turn the statistics into scales and zero points; repeat it with other rules and bits.

        ranges: "minmax", "moving_average", "percentile", "kl" or "mse" (default: the config's);
        ``options`` go to its calibrator (``percentile=99.99``). An error leaves all as it was.
        """
        before = self.config, self._network
        self._network = copy.copy(self._network)
        try:
            if config is not None:
                self._network.replan(config.float_layers, config.fused_activations)
                self.config = config
            self.value_calibrators, self.qparams = self._decide(ranges, bits, options)
        except Exception:
            self.config, self._network = before
            raise
        return self

    def _decide(
        self, ranges: str | None, bits: int | None, options: dict[str, float]
    ) -> tuple[dict[str, Calibrator], dict[str, QParams]]:
        """A calibrator and QParams for each value of the plan."""
        if bits is not None:
            self.config = self.config.with_bits(bits)
        rule = ranges or self.config.activation_range
        _rules(rule)
        if rule == "kl" and (self.config.activation_bits or 0) > KL_BITS:
            warnings.warn(
                f"ranges='kl' with {self.config.activation_bits} bits: its 2,048 candidates leave "
                "so fine a grid little to choose from; 'minmax' or 'percentile' suit it better.",
                stacklevel=3,
            )
        if self.num_batches == 0 and self.config.activation_bits is not None:
            raise CalibrationError("compute_qparams: no data was observed; call observe(loader).")
        grid = self.config.activation_grid
        calibrators: dict[str, Calibrator] = {}
        qparams: dict[str, QParams] = {}
        if grid is None:
            return calibrators, qparams
        self._check_collected([rule])
        for name, value in self._network.plan.values.items():
            if value.range is not None:
                qparams[name] = _fixed_qparams(value, self.config)
                continue
            calibrator = self._calibrator(name, rule, options)
            calibrators[name] = calibrator
            try:
                qparams[name] = calibrator.qparams(grid, self.config.activation_symmetric)
            except QuantizationError as error:
                raise type(error)(f"value {name!r}: {error}") from error
        return calibrators, qparams

    def _calibrator(self, name: str, rule: str, options: dict[str, float]) -> Calibrator:
        kind = CALIBRATORS[rule]
        summary = self._summaries[name][kind.summary_type]
        if summary.count == 0:
            raise CalibrationError(
                f"value {name!r}: no calibration data reached it. Use data that exercises this "
                "branch, or keep the layers that read it in floating point (float_layers)."
            )
        return kind(summary=summary, **options)

    # --- step 4: convert -------------------------------------------------------------------

    def convert(self) -> QuantizedModel:
        """The quantized model, also ``self.model``; CalibrationError before qparams exist."""
        if self.config.activation_bits is not None and not self.qparams:
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
                if name not in config.float_layers:
                    source = qparams.get(site.input_value) if config.quantize_bias else None
                    layers[name] = self._quantized_layer(name, source)
        quantizers = {n: ActivationQuantizer(q, name=n) for n, q in qparams.items()}
        module = self._network.with_quantizers(layers, quantizers)
        return QuantizedModel(module, config, dict(qparams), dict(plan.left_in_float))

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

    # --- the founding API ------------------------------------------------------------------

    def calibrate(
        self,
        dataloader: Iterable,
        num_batches: int = 100,
        *,
        progress: bool = True,
        **options: float,
    ) -> PTQQuantizer:
        """`observe` + `compute_qparams` with the config's range rule; labels are not used."""
        rule = self.config.activation_range
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
            if name not in config.float_layers
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
        return dict(self._network.plan.left_in_float)

    def summary(self, layer: str, kind: type[Summary]) -> Summary:
        """The statistics of one kind of a layer's input, for plots and experiments."""
        value = self._network.plan.layers[layer].input_value
        return self._summaries[value][kind]

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


def _rules(ranges: str | Sequence[str] | None) -> list[str]:
    if ranges is None:
        return ["minmax", "percentile", "kl"]  # three summaries serve every rule that merges
    rules = [ranges] if isinstance(ranges, str) else list(ranges)
    for rule in rules:
        if rule not in CALIBRATORS:
            raise QuantizationError(
                f"unknown range rule {rule!r}; choose from {', '.join(sorted(CALIBRATORS))}."
            )
    return rules


def _fixed_qparams(value: Value, config: QConfig) -> QParams:
    grid = config.activation_grid
    if not config.activation_symmetric:
        grid = IntGrid(grid.bits, signed=grid.signed)
    return choose_qparams(*value.range, grid, symmetric=config.activation_symmetric)
