"""A transformer's encoder with scales chosen at run time, against FP32 and ONNX Runtime's own.

    python benchmarks/dynamic_encoder.py            about two minutes on two idle cores
    python benchmarks/dynamic_encoder.py --quick    two layers, few rounds

The size of MiniLM: 6 layers, width 384, 12 heads, 1536 in between, 128 tokens, at random. Three
files in one run: FP32, `quantize_dynamic` of this course, and that of ONNX Runtime with weights per
channel. Printed: time against FP32 (the median over the turns, in brackets the middle half of
them), bytes, cosine and signal-to-noise ratio against FP32, and the kernels.
The exit code is 1 where ours is slower than FP32 or clearly behind ONNX Runtime's.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType
from onnxruntime.quantization import quantize_dynamic as runtimes_quantize_dynamic
from torch import nn
from torch.nn import functional as F

from ptq_course import quantize_dynamic, sqnr_db
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.session import Speedup, products_saturate, timings

WIDTH, HEADS, BETWEEN, TOKENS = 384, 12, 1536, 128
OURS, THEIRS = "ours", "ONNX Runtime's"
SLACK = 0.95  # of their speed: what one run does not tell apart


def encoder(layers: int) -> nn.Module:
    """At random, with weights as large as trained ones, so that attention is not uniform."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, BETWEEN, activation="gelu", batch_first=True)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.04)
    return model


def main(arguments: list[str] | None = None) -> int:
    """Export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two layers, few rounds")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    model, x = encoder(2 if options.quick else 6), torch.randn(2, TOKENS, WIDTH)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {"FP32": deploy.export(model, x, folder / "fp32.onnx")}
        quantized = quantize_dynamic(model, granularity="per_tensor")
        paths[OURS] = deploy.export(quantized, x, folder / "ours.onnx")
        paths[THEIRS] = folder / "theirs.onnx"
        logging.disable(logging.WARNING)  # of ONNX Runtime: to preprocess first
        runtimes_quantize_dynamic(
            paths["FP32"], paths[THEIRS], per_channel=True, weight_type=QuantType.QInt8
        )
        runs = {name: deploy.session(path, options.threads) for name, path in paths.items()}
        sums = "saturate: the guard is on" if products_saturate() else "are exact: no guard"
        print(f"batch 1, {TOKENS} tokens, {options.threads} threads; INT8 sums {sums}")
        one = x[:1].clone()
        exact = model(one).detach()
        seconds = timings(runs, one, rounds=4 if options.quick else 40, calls=2)
        speeds = {}
        for name, run in runs.items():
            speeds[name] = Speedup.of(seconds["FP32"], seconds[name])
            cosine = F.cosine_similarity(run(one).flatten(), exact.flatten(), dim=0).item()
            kernels = ", ".join(
                f"{count} {op}" for op, count in run.operators.items() if "MatMul" in op
            )
            print(
                f"  {name:<15} {speeds[name]}  {run.size:>12,} bytes  cosine {cosine:.4f}  "
                f"{sqnr_db(exact, run(one)):.1f} dB  {kernels}"
            )
    ours, theirs = speeds[OURS].median, speeds[THEIRS].median
    return int(ours < max(1.0, SLACK * theirs) and not options.quick)


if __name__ == "__main__":
    raise SystemExit(main())
