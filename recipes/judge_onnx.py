"""An ONNX file that another tool has quantized: what does it compute, how well, how fast?"""

from pathlib import Path

from ptq_course.deploy.onnx import session
from ptq_course.deploy.session import Speedup, timings
from ptq_course.deploy.validate import Kernels
from ptq_course.grids.metrics import flips, snr_median


def run(fp32_path, int8_path, x, labels):
    fp32, int8 = session(fp32_path), session(int8_path)
    before, after = fp32(x), int8(x)
    print(f"outputs {snr_median(before, after):.1f} dB;", flips(before, after, labels))
    print(f"file {Path(int8_path).stat().st_size / Path(fp32_path).stat().st_size:.2f}x")
    seconds = timings({"fp32": fp32, "int8": int8}, x)
    print("speed", Speedup.of(seconds["fp32"], seconds["int8"]))
    kernels = Kernels.of(int8.operators)
    print("in floating point:", kernels.floating or "nothing")
    return before, after, kernels
