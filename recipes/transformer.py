"""A transformer: dynamic activations first; static with SmoothQuant where the runtime needs it."""

import torch

from ptq_course import PTQQuantizer, QConfig, quantize_dynamic
from ptq_course.grids.metrics import snr_median
from ptq_course.improve.smoothquant import SmoothQuant


def run(model, calibration, x):
    config, steps = QConfig.onnxruntime(), [SmoothQuant(calibration, alpha=0.5)]
    versions = {"dynamic": quantize_dynamic(model, config=config)}
    for name, chosen in (("static", []), ("static, SmoothQuant", steps)):
        quantizer = PTQQuantizer(model, config=config, steps=chosen)
        versions[name] = quantizer.calibrate(calibration).convert()
    with torch.no_grad():
        decibels = {name: snr_median(model(x), found(x)) for name, found in versions.items()}
    print(decibels)  # as a rule dynamic is ahead: it has a scale for each token
    return versions, decibels
