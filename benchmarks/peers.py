"""Other tools' quantized networks, for `accuracy.py`: each made as its own documentation says.

ONNX Runtime is installed with the course. The others are tried where a user has installed them
beside it (``pip install --no-deps --target FOLDER ...``, then PYTHONPATH=FOLDER): NNCF, which
quantizes the ONNX file; torchao, whose PT2E flow quantizes the exported program for its x86
backend; NVIDIA Model Optimizer, which puts fake quantization around every layer; and AIMET, with
its AdaRound. Their weights have one scale a channel, their activations one a tensor, as ours have.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QuantType
from torch import Tensor, nn

from ptq_course.deploy.session import Session, session

Batches = Sequence[tuple[Tensor, Tensor]]
Way = Callable[[], nn.Module | Session]


class Reader(quantization.CalibrationDataReader):
    """The calibration pictures, as ONNX Runtime's tool asks for them."""

    def __init__(self, name: str, batches: Batches) -> None:
        # Eight at a time: it keeps all outputs in one array, which a shorter last batch breaks.
        self.rest: Iterator = iter(
            [{name: some.numpy()} for x, _ in batches for some in x.split(8)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)


def onnxruntimes(
    fp32: Path, batches: Batches, weights: int, activations: int, method: CalibrationMethod,
    path: Path,
) -> Session:  # fmt: skip
    """What `quantize_static` makes of the FP32 file: per channel, Q/DQ."""
    kinds = {8: (QuantType.QInt8, QuantType.QUInt8), 4: (QuantType.QInt4, QuantType.QUInt4)}
    reader = Reader(Session(fp32)._names[0], batches)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how its histograms are doing
        quantization.quantize_static(
            fp32, path, reader, per_channel=True, reduce_range=False, calibrate_method=method,
            weight_type=kinds[weights][0], activation_type=kinds[activations][1],
        )  # fmt: skip
    return session(path)


def nncfs(fp32: Path, batches: Batches, path: Path) -> Session:
    """NNCF's quantization of the FP32 file to 8 bits, with its fast bias correction."""
    import nncf

    model = onnx.load(fp32)
    name = model.graph.input[0].name
    pictures = [{name: x[None].numpy()} for batch, _ in batches for x in batch]
    with contextlib.redirect_stdout(io.StringIO()):
        made = nncf.quantize(model, nncf.Dataset(pictures), subset_size=len(pictures))
    onnx.save(made, path)
    return session(path)


def torchaos(model: nn.Module, batches: Batches, weights: int, activations: int) -> nn.Module:
    """torchao's PT2E quantization with the settings of its x86 backend, and these bits.

    Histogram observers for activations, min-max for each channel of a weight.
    """
    from torchao.quantization.pt2e.quantize_pt2e import (
        convert_pt2e,
        prepare_pt2e,
    )
    from torchao.quantization.pt2e.quantizer import (
        x86_inductor_quantizer as x86,
    )

    config = x86.get_default_x86_inductor_quantization_config()
    top = 2 ** (weights - 1)
    few = dataclasses.replace(config.weight, quant_min=-top, quant_max=top - 1)
    values = dataclasses.replace(config.input_activation, quant_max=2**activations - 1)
    quantizer = x86.X86InductorQuantizer().set_global(
        dataclasses.replace(config, input_activation=values, output_activation=values, weight=few)
    )
    first = batches[0][0]
    free = {0: torch.export.Dim("examples", min=2)}
    program = torch.export.export(model.eval(), (first,), dynamic_shapes=(free,), strict=True)
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for x, _ in batches:
            prepared(x)
    return Always(convert_pt2e(prepared))


def model_optimizers(
    model: nn.Module, batches: Batches, weights: int, activations: int, method: str
) -> nn.Module:
    """NVIDIA Model Optimizer's INT8 settings, with these bits; method: "max" or "mse"."""
    import modelopt.torch.quantization as mtq

    config = copy.deepcopy(mtq.INT8_DEFAULT_CFG)
    bits = {"*weight_quantizer": weights, "*input_quantizer": activations}
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] in bits:
            entry["cfg"]["num_bits"] = bits[entry["quantizer_name"]]
    config["algorithm"] = method

    def calibrate(network: nn.Module) -> None:
        with torch.no_grad():
            for x, _ in batches:
                network(x)

    with contextlib.redirect_stdout(io.StringIO()):  # it prints how many quantizers it put in
        return mtq.quantize(copy.deepcopy(model), config, calibrate)


def aimets(
    model: nn.Module, batches: Batches, weights: int, activations: int, rounded: bool
) -> nn.Module:
    """AIMET: batch norms folded, "tf enhanced" ranges, and AdaRound where ``rounded`` says so.

    AdaRound has its default of 10,000 iterations a layer, which take minutes.
    """
    from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.common.defs import QuantScheme
    from aimet_torch.common.quantsim_config.utils import get_path_for_per_channel_config
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quantsim import QuantizationSimModel

    settings = get_path_for_per_channel_config()
    enhanced = QuantScheme.post_training_tf_enhanced
    first = batches[0][0]
    with contextlib.redirect_stdout(io.StringIO()):
        network = prepare_model(copy.deepcopy(model).eval())
        fold_all_batch_norms(network, tuple(first[:1].shape))
        with tempfile.TemporaryDirectory() as folder:
            if rounded:
                data = [x for x, _ in batches]
                network = Adaround.apply_adaround(
                    network, first[:1], AdaroundParameters(data, len(data), 10_000), path=folder,
                    filename_prefix="weights", default_param_bw=weights,
                    default_quant_scheme=enhanced, default_config_file=settings,
                )  # fmt: skip
            made = QuantizationSimModel(
                network, first[:1], enhanced, default_output_bw=activations,
                default_param_bw=weights, config_file=settings,
            )  # fmt: skip
            if rounded:
                made.set_and_freeze_param_encodings(str(Path(folder, "weights.encodings")))
        with torch.no_grad():
            made.compute_encodings(lambda m, _=None: [m(x) for x, _ in batches])
    return made.model


class Always(nn.Module):
    """An exported program, which knows no training mode and says so when asked for evaluation."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.run = program.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def peers(
    model: nn.Module, batches: Batches, weights: int, activations: int, fp32: Path, folder: Path
) -> dict[str, Way]:
    """Each other tool's way to a quantized network. fp32: the ONNX file of the model."""
    bits = f"w{weights}a{activations}"
    found: dict[str, Way] = {}
    for method in (CalibrationMethod.MinMax, CalibrationMethod.Percentile):
        found[f"ONNX Runtime, {method.name}"] = lambda method=method: onnxruntimes(
            fp32, batches, weights, activations, method, folder / f"{bits}{method.name}.onnx"
        )
    if find_spec("nncf") and (weights, activations) == (8, 8):  # it has no other integers
        found["NNCF, fast bias correction"] = lambda: nncfs(fp32, batches, folder / "nncf.onnx")
    if find_spec("torchao"):
        found["torchao, histograms"] = lambda: torchaos(model, batches, weights, activations)
    if find_spec("modelopt"):
        for method in ("max", "mse"):
            found[f"Model Optimizer, {method}"] = lambda method=method: model_optimizers(
                model, batches, weights, activations, method
            )
    if find_spec("aimet_torch"):
        for rounded in (False, True)[: 1 + (weights < 8)]:
            found[f"AIMET, {'AdaRound' if rounded else 'tf enhanced'}"] = lambda r=rounded: aimets(
                model, batches, weights, activations, r
            )
    return found
