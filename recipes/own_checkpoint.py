"""My own checkpoint to an INT8 file, with proof that the file computes what was simulated."""

from ptq_course import PTQQuantizer, QConfig
from ptq_course.deploy.validate import validate


def run(model, calibration, x, labels, path="int8.onnx"):
    quantizer = PTQQuantizer(model.eval(), config=QConfig.onnxruntime())
    quantizer.calibrate(calibration)  # a few hundred examples, preprocessed as in production
    print(quantizer.searched)  # the range rules, the best one first
    print(quantizer.left_in_float)  # what stays in floating point, and why
    report = validate(quantizer.convert(), model, path, x, labels)
    print(report)  # agreement with the simulation, accuracy, size, speed, kernels
    return report
