"""One scale for an activation, from several batches of calibration data."""

from torch import Tensor


def activation_scale(batches: list[Tensor]) -> float:
    """The scale of symmetric 8-bit codes in which every value seen has a code."""
    scales = [float(batch.abs().max()) / 127 for batch in batches]
    return sum(scales) / len(scales)
