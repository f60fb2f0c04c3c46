"""The INT8 file is slower than FP32: which operators does the runtime compute in floating point?"""

from ptq_course.deploy.onnx import session
from ptq_course.deploy.session import Speedup, products_saturate, timings
from ptq_course.deploy.validate import Kernels


def run(fp32_path, int8_path, x, threads=2):
    fp32, int8 = session(fp32_path, threads), session(int8_path, threads)
    kernels = Kernels.of(int8.operators)
    print("in integers", kernels.integer, "\nin floating point", kernels.floating)
    print("Q and DQ left between the two", kernels.boundary)
    print("the guard against saturating sums is", "on" if products_saturate() else "off")
    seconds = timings({"fp32": fp32, "int8": int8}, x)
    speedup = Speedup.of(seconds["fp32"], seconds["int8"])
    print(f"INT8 is {speedup} as fast as FP32 at {len(x)} examples")
    return kernels, speedup
