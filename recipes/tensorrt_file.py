"""A file for TensorRT: symmetric INT8 with explicit Q/DQ, checked against the rules it needs."""

from ptq_course import PTQQuantizer, QConfig
from ptq_course.deploy.onnx import export
from ptq_course.deploy.tensorrt import check_tensorrt


def run(model, calibration, example, path="tensorrt.onnx"):
    quantizer = PTQQuantizer(model, config=QConfig.tensorrt()).calibrate(calibration)
    export(quantizer.convert(), example, path, target="tensorrt")
    breaches = check_tensorrt(path)
    for breach in breaches:
        print(breach)
    print(f"{len(breaches)} breaches; build it with: trtexec --onnx={path} --stronglyTyped")
    return breaches
