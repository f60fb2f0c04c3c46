"""What can go wrong, as exceptions that a caller may want to tell apart.

All of them are `ValueError`, so code that knows nothing of this package catches them too. Every
message names the place (layer, argument, file), what was found there, and what to do about it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class QuantizationError(ValueError):
    """Base of every error that this package raises on purpose."""


class CalibrationError(QuantizationError):
    """Calibration data is missing or unusable: empty, NaN, infinite, or not floating point."""


class UnsupportedError(QuantizationError):
    """Something that this package refuses by name instead of doing it wrongly."""


class DataIntegrityError(QuantizationError):
    """A shipped file is not the one its manifest describes."""


class MissingExtraError(QuantizationError, ImportError):
    """A library that comes only with an extra of the distribution is not installed."""


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the import of what an extra brings: `MissingExtraError` where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as problem:
        raise MissingExtraError(
            f"{problem.name} is not installed; it comes with the extra {extra!r} of ptq-course. "
            f"Run: pip install 'ptq-course[{extra}]'"
        ) from problem
