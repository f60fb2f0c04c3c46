"""A detector: boxes and scores share an output, so the head and its decoding stay in FP32."""

from dataclasses import replace

from ptq_course import PTQQuantizer, QConfig


def run(model, calibration, evaluate, keep):
    """keep: say ("head.out", "behind:head.out"); evaluate(model): mAP on validation pictures."""
    found = {"FP32": evaluate(model)}
    config = QConfig.onnxruntime()
    for name, kept in (("all INT8", ()), ("head in FP32", tuple(keep))):
        quantizer = PTQQuantizer(model, config=replace(config, float_layers=kept))
        quantized = quantizer.calibrate(calibration).convert()
        found[name] = evaluate(quantized)
    print(found)
    return quantized, found
