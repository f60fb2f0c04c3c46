"""What can go wrong, as exceptions that a caller may want to tell apart.

All of them are `ValueError`, so code that knows nothing of this package catches them too. Every
message names the place (layer, argument, file), what was found there, and what to do about it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any


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


# --- arguments -----------------------------------------------------------------------------------
# NumPy's numbers count as numbers, True and False do not.

Refusal = type[QuantizationError]


def whole(
    name: str, value: object, low: int, high: int | None = None,
    error: Refusal = QuantizationError,
) -> int:  # fmt: skip
    """``value`` as an int, where it is an integer from ``low`` to ``high`` (None: any above)."""
    if (
        isinstance(value, Integral)
        and not isinstance(value, bool)
        and low <= int(value)
        and (high is None or int(value) <= high)
    ):
        return int(value)
    span = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise error(f"{name} must be an integer {span}, got {value!r}.")


def number(name: str, value: Any, interval: str, error: Refusal = QuantizationError) -> float:
    """``value``, where it is a real number in ``interval``, such as "[0, 1)"."""
    low, high = map(float, interval[1:-1].split(","))
    if (
        is_real(value)
        and low <= value <= high
        and (value != low or interval[0] == "[")
        and (value != high or interval[-1] == "]")
    ):
        return value
    raise error(f"{name} must lie in {interval}, got {value!r}.")


def is_real(value: object) -> bool:
    """Whether a setting is a real number (NumPy's, too); a bool or a string is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def flag(name: str, value: object) -> bool:
    """``value``, where it is True or False."""
    if isinstance(value, bool):
        return value
    raise QuantizationError(f"{name} is True or False, got {value!r}.")
