"""Quantized checkpoints: integer codes, scales and zero points in a safetensors file.

Chapters 00, 05, 07 and 13. `save` writes what `PTQQuantizer.convert`, `quantize_weights` or
`quantize_dynamic` gave; `load` puts it into the float architecture again, bit for bit: the loaded
model computes the same outputs. `size_report` says where the bytes went.

    layers/<name>/codes         up to 7 bits: packed bit by bit; 8: bytes; 9 to 16: int16
    layers/<name>/scale         float32 (or float16), one for each block
    layers/<name>/zero_point    where they are not all 0
    layers/<name>/codebook      instead of scales, where a codebook decodes the codes
    layers/<name>/bias_codes    int32
    layers/<name>/bias_scale    only where it is not the product of the scales of input and weight
    layers/<name>/bias          the bias, where it stays in floating point
    values/scale, zero_point    of all activations
    float/<name>                every other parameter or buffer of the fused network

`format.py` has the header that says how to read them, `packing.py` the codes of a few bits.
"""

from ptq_course.deploy.checkpoint.saving import load, save, size_report

__all__ = ["load", "save", "size_report"]
