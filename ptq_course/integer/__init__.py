"""Integer-only execution of convolutional networks (chapter 08).

    integer = to_integer(quantizer.convert())    # int8 codes and weights, int32 sums and biases
    logits = integer(x)
    print(integer.accumulators())                # how many bits each accumulator needs
    print(agreement(integer, quantized, x))      # codes compared with the simulation's

`fixed_point` has the multiplier and the rounding, `products` the exact matrix product, `operations`
the functions on codes, `layers` the modules, `convert` the walk through the graph.
"""

from ptq_course.integer.accumulators import AccumulatorTable, bits_needed
from ptq_course.integer.agreement import Agreement, agreement
from ptq_course.integer.convert import to_integer
from ptq_course.integer.fixed_point import requantize, to_multiplier
from ptq_course.integer.model import IntegerModel
from ptq_course.integer.operations import add_int, int_conv2d, int_linear
from ptq_course.integer.products import int_matmul, int_mm_is_exact
from ptq_course.simulation.bias import quantize_bias

__all__ = [
    "AccumulatorTable",
    "Agreement",
    "IntegerModel",
    "add_int",
    "agreement",
    "bits_needed",
    "int_conv2d",
    "int_linear",
    "int_matmul",
    "int_mm_is_exact",
    "quantize_bias",
    "requantize",
    "to_integer",
    "to_multiplier",
]
