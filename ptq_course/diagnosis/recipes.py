"""The recipes that `diagnose` hands out: code to paste, at most fifteen lines each.

They use the names ``model``, ``calibration`` and ``evaluate`` of the call, and ``config``, which
the recipe defines. The tests run every one of them. A model with several inputs takes all of them
where a recipe says ``x``. Chapters 00 to 15.
"""

from __future__ import annotations

from collections.abc import Sequence

from ptq_course.simulation.qconfig import QConfig

START = "from ptq_course import PTQQuantizer, QConfig"


def drop(config: QConfig) -> str:
    """Paired flips and their interval."""
    return f"""\
{START}
from ptq_course.grids.metrics import paired_bootstrap
config = {config.as_code()}
quantized = PTQQuantizer(model, config=config).observe(calibration).compute_qparams().convert()
before, after = evaluate(model.eval()), evaluate(quantized)
change, low, high = paired_bootstrap(before, after)
print(f"lost {{int((after < before).sum())}}, gained {{int((after > before).sum())}}")
print(f"{{100 * change:+.1f}} points, 95 % interval [{{100 * low:+.1f}}, {{100 * high:+.1f}}]")
print("a real drop" if high < 0 else "not shown to be a drop: evaluate more examples")"""


def fp32_export() -> str:
    """The float network in ONNX Runtime against itself in PyTorch."""
    return """\
import torch
from ptq_course.deploy.onnx import export, session
batch = next(iter(calibration))
x = batch if isinstance(batch, torch.Tensor) else batch[0]
runtime = session(export(model.eval(), x, "fp32.onnx"))
with torch.no_grad():
    expected = model(x)
error = (runtime(x) - expected).abs().max().item()
print(f"largest difference {error:.2g}, outputs reach {expected.abs().max().item():.3g}")
assert error < 1e-3 * expected.abs().max().item() + 1e-6, "repair the export first"
"""


def runtime(config: QConfig) -> str:
    """The INT8 file in ONNX Runtime against the simulation in PyTorch."""
    return f"""\
import torch
{START}
from ptq_course.deploy.onnx import export, session
from ptq_course.grids.metrics import snr_median
config = {config.as_code()}
quantized = PTQQuantizer(model, config=config).observe(calibration).compute_qparams().convert()
batch = next(iter(calibration))
x = batch if isinstance(batch, torch.Tensor) else batch[0]
runtime = session(export(quantized, x, "int8.onnx"))  # guarded where products saturate
with torch.no_grad():
    fp32, simulated = model.eval()(x), quantized(x)
print(f"runtime against simulation {{snr_median(simulated, runtime(x)):.1f}} dB (median)")
print(f"simulation against FP32    {{snr_median(fp32, simulated):.1f}} dB (median)")
print("runs in integers:", runtime.operators)"""


def ablation(config: QConfig) -> str:
    """Weights alone, activations alone, both."""
    return f"""\
from ptq_course import QConfig, ablate
config = {config.as_code()}
table = ablate(model, calibration, evaluate, config=config, more=True)
print(table)"""


def float_layers(config: QConfig, names: Sequence[str]) -> str:
    """Keep some layers in floating point."""
    return f"""\
from dataclasses import replace
{START}, compare
config = {config.as_code()}
config = replace(config, float_layers={tuple(names)!r})
quantized = PTQQuantizer(model, config=config).observe(calibration).compute_qparams().convert()
print(compare(model, quantized, calibration).by_damage())
print(evaluate(quantized))"""


def range_rule(config: QConfig, arguments: str = '"search"') -> str:
    """All range rules from the same statistics, and the one to keep."""
    return f"""\
{START}
config = {config.as_code()}
quantizer = PTQQuantizer(model, config=config).observe(calibration)  # one pass over the data
quantizer.compute_qparams("search")
print(quantizer.searched)  # no labels needed: how near do the outputs come to FP32's?
quantized = quantizer.compute_qparams({arguments}).convert()  # the one to keep
print(evaluate(quantized))"""
