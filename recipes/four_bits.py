"""Weights in 4 bits: groups, ranges by squared error, learned rounding, packed two to a byte."""

from dataclasses import replace

from ptq_course import PTQQuantizer, QConfig
from ptq_course.deploy.checkpoint import save, size_report
from ptq_course.improve.adaround import AdaRound
from ptq_course.improve.walk import improved


def run(model, calibration, path="int4.safetensors", bits=4, granularity="per_channel"):
    """granularity: "per_channel", or the length of a group: 32 or 64 for Linear layers."""
    config = replace(QConfig.onnxruntime(), weight_bits=bits, weight_granularity=granularity)
    config = replace(config, weight_range="mse", activation_bits=None)
    quantizer = PTQQuantizer(model, config=config).observe(calibration)
    quantized = improved(quantizer, calibration, [AdaRound()])
    report = size_report(save(quantized, path))
    print(report)
    return quantized, report
