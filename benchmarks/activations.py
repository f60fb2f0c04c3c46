"""INT8 files of small networks around each activation, against FP32 and ONNX Runtime's own tool.

    python benchmarks/activations.py              one to two minutes on two idle cores
    python benchmarks/activations.py silu gelu    some of them

Two hidden convolutions of 32 channels on pictures of 48 x 48, the activation behind each, a last
convolution; 8 pictures at a time, two threads. A row: the speed of our file and of the file that
`onnxruntime.quantization.quantize_static` makes (min-max ranges, per channel, on the same pictures)
as times faster than FP32, the two files' sizes over FP32's, the outputs' signal-to-noise ratio of
both on other pictures, and what of ours is not computed with integers. A row is a MISS where a
convolution of ours stays real, where it is slower than FP32 or than the tool's file, or larger, or
less exact by more than half a decibel.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from onnxruntime import quantization
from torch import Tensor, nn

from ptq_course import PTQQuantizer
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.session import Session, Speedup, timings
from ptq_course.grids.metrics import snr_pooled

CHANNELS, SIDE, PICTURES = 32, 48, 8
BETWEEN: dict[str, Callable[[int], list[nn.Module]]] = {
    "ReLU": lambda c: [nn.ReLU()],
    "ReLU, batch norm": lambda c: [nn.ReLU(), nn.BatchNorm2d(c)],
    "PReLU": lambda c: [nn.PReLU(c)],
    "LeakyReLU": lambda c: [nn.LeakyReLU(0.1)],
    "SiLU": lambda c: [nn.SiLU()],
    "Hardswish": lambda c: [nn.Hardswish()],
    "GELU": lambda c: [nn.GELU()],
    "GroupNorm, ReLU": lambda c: [nn.GroupNorm(4, c), nn.ReLU()],
    "Sigmoid": lambda c: [nn.Sigmoid()],
    "Tanh": lambda c: [nn.Tanh()],
    "pooled, resized": lambda c: [nn.ReLU(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)],
}


def network(name: str) -> nn.Sequential:
    """Convolution, batch norm and what is between, twice; a last convolution."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (3, CHANNELS):
        layers += [nn.Conv2d(width, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)]
        layers += BETWEEN[name](CHANNELS)
    model = nn.Sequential(*layers, nn.Conv2d(CHANNELS, 8, 1))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2.0)
        if isinstance(part, nn.PReLU):
            part.weight.data.uniform_(0.05, 0.4)
    return model.eval()


class Reader(quantization.CalibrationDataReader):
    """The calibration pictures, as ONNX Runtime's tool asks for them."""

    def __init__(self, name: str, batches: list[Tensor]) -> None:
        self.rest: Iterator[dict[str, np.ndarray]] = iter([{name: x.numpy()} for x in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)


def tools_file(fp32: Path, batches: list[Tensor], path: Path) -> Path:
    """What ONNX Runtime's quantize_static makes of the FP32 file, whose batch norms are folded.

    Its advised preparation (quant_pre_process) is left out: there is nothing to fold or to infer,
    and ONNX Runtime 1.32 does not open what its tool makes of the prepared file.
    """
    reader = Reader(Session(fp32)._names[0], batches)
    quantization.quantize_static(fp32, path, reader, per_channel=True, reduce_range=False)
    return path


def compared(name: str, folder: Path, rounds: int) -> bool:
    """Print a network's row; True where it is a miss."""
    model = network(name)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(PICTURES, 3, SIDE, SIDE, generator=generator) for _ in range(4)]
    x = torch.randn(PICTURES, 3, SIDE, SIDE, generator=generator)
    quantizer = PTQQuantizer(model).observe(batches, progress=False).compute_qparams("minmax")
    files = {
        "FP32": deploy.export(model, x, folder / "fp32.onnx"),
        "ours": deploy.export(quantizer.convert(), x, folder / "ours.onnx"),
    }
    files["tool"] = tools_file(files["FP32"], batches, folder / "tool.onnx")
    sessions = {who: deploy.session(path) for who, path in files.items()}
    seconds = timings(sessions, x, rounds=rounds)
    speed = {who: Speedup.of(seconds["FP32"], seconds[who]) for who in ("ours", "tool")}
    size = {who: s.size / sessions["FP32"].size for who, s in sessions.items()}
    with torch.no_grad():
        snr = {who: snr_pooled(model(x), s(x)) for who, s in sessions.items()}
    real = {"Conv", "FusedConv"} & set(sessions["ours"].operators)
    behind = speed["ours"].median < 0.95 * speed["tool"].median  # within the noise of turns
    miss = bool(real) or speed["ours"].median < 1.0 or behind or snr["ours"] < snr["tool"] - 0.5
    miss |= size["ours"] > size["tool"]
    left = ", ".join(sorted({why.split(" ")[-1] for why in quantizer.left_in_float.values()}))
    print(
        f"{'MISS' if miss else 'PASS'}  {name:<18}{speed['ours']!s:>22}{speed['tool']!s:>22}"
        f"{size['ours']:8.2f}{size['tool']:8.2f}{snr['ours']:9.1f}{snr['tool']:9.1f}   "
        f"{len(quantizer.left_in_float)} {left}",
        flush=True,
    )
    return miss


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 where a row is a miss."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="some of: " + ", ".join(BETWEEN))
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    wanted = [name.lower() for name in options.names]
    chosen = [n for n in BETWEEN if not wanted or any(w in n.lower() for w in wanted)]
    print(f"{'':<24}{'ours over FP32':>22}{'tool over FP32':>22}{'size':>16}{'dB pooled':>18}")
    missed = 0
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            missed += compared(name, Path(folder), options.rounds)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
