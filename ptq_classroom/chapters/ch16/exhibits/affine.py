"""Scale and zero point of unsigned 8-bit codes."""


def scale_and_zero_point(lo: float, hi: float) -> tuple[float, int]:
    """x is decoded as scale * (code - zero_point), with codes in 0 .. 255."""
    scale = max(hi - lo, 1e-12) / 255
    zero_point = round(-lo / scale)
    return scale, min(max(zero_point, 0), 255)
