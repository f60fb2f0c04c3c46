"""What can go wrong, as exceptions that a caller may want to tell apart.

All of them are `ValueError`, so code that knows nothing of this package catches them too. Every
message names the place (layer, argument, file), what was found there, and what to do about it.
"""

from __future__ import annotations


class QuantizationError(ValueError):
    """Base of every error that this package raises on purpose."""


class CalibrationError(QuantizationError):
    """Calibration data is missing or unusable: empty, NaN, infinite, or not floating point."""


class UnsupportedError(QuantizationError):
    """Something that this package refuses by name instead of doing it wrongly."""


class DataIntegrityError(QuantizationError):
    """A shipped file is not the one its manifest describes."""
