"""Calibrate on several machines: the merged statistics are those of one pass, bit for bit."""

import torch.distributed as dist

from ptq_course import PTQQuantizer, QConfig


def run(model, own_part, ranges="mse"):
    """Start it with torchrun on each machine, own_part being that machine's share of the data."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    quantizer = PTQQuantizer(model, config=QConfig.onnxruntime())
    quantizer.observe(own_part, ranges=ranges)
    quantizer.all_reduce()  # in one process: quantizer.merge(other) for each of the others
    return quantizer.compute_qparams(ranges).convert()
