"""How wide an accumulator must be: a bound for every layer, known before any picture is seen.

Chapter 08. int32 is a promise of the hardware, not of the network: whether every partial sum fits
follows from the weight codes, the bias codes and the grid of the input, and is checked beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ptq_course.errors import UnsupportedError
from ptq_course.grids.int32_bound import INT32_MAX, fits_int32, largest
from ptq_course.integer.finish import Requantize, span, span_text
from ptq_course.integer.layers import IntegerOp
from ptq_course.tables import html_table, text_table


def bits_needed(low: int, high: int) -> int:
    """Bits of the two's complement integer that holds every number of low..high."""
    return max((-low - 1).bit_length() if low < 0 else 0, max(high, 0).bit_length()) + 1


def check_accumulator_range(op: IntegerOp) -> None:
    """Raise UnsupportedError, naming the layer, where an accumulator could leave int32."""
    found = op.accumulator_range()
    if not fits_int32(found):
        raise UnsupportedError(
            f"to_integer: the accumulator of {op.name} can reach {largest(found):.3g}, which needs "
            f"{bits_needed(*found)} bits, and int32 ends at {INT32_MAX:.3g}. Use fewer bits for "
            "its weights or inputs, a larger weight scale where the bias is large, or split the "
            "layer."
        )


COLUMNS = (
    "layer",
    "operation",
    "terms",
    "lowest sum",
    "highest sum",
    "bits",
    "multiplier",
    "shift",
)


@dataclass(frozen=True)
class AccumulatorRow:
    """One layer's accumulator; low and high bound every partial sum for every possible input."""

    name: str
    kind: str
    terms: int  # products or codes added up; 0 where the picture's size decides
    low: int
    high: int
    multiplier: tuple[int, int] | None  # smallest and largest; None where real numbers follow
    shift: tuple[int, int] | None

    @property
    def bits(self) -> int:
        """Bits of accumulator that this layer really needs."""
        return bits_needed(self.low, self.high)

    def cells(self) -> tuple[str, ...]:
        pairs = ("-" if p is None else span_text(p) for p in (self.multiplier, self.shift))
        if not self.terms:  # an average over a whole picture, whose size is not known yet
            return (self.name, self.kind, "-", "-", "-", "-", *pairs)
        sums = (f"{self.low:,}", f"{self.high:,}", str(self.bits))
        return (self.name, self.kind, str(self.terms), *sums, *pairs)


@dataclass(frozen=True)
class AccumulatorTable:
    """All accumulators of a network: ``print`` it, or leave it last in a cell."""

    rows: tuple[AccumulatorRow, ...]

    @property
    def bits(self) -> int:
        """Bits that the widest accumulator needs."""
        return max(row.bits for row in self.rows)

    def __str__(self) -> str:
        return text_table(COLUMNS, [row.cells() for row in self.rows])

    def _repr_html_(self) -> str:
        return html_table(COLUMNS, [row.cells() for row in self.rows])


def accumulator_table(operations: Sequence[IntegerOp]) -> AccumulatorTable:
    """One row an operation, in the order of the network."""
    rows = []
    for op in operations:
        low, high = op.accumulator_range()
        multiplier = shift = None
        if isinstance(op.finish, Requantize):
            multiplier, shift = span(op.finish.multiplier), span(op.finish.shift)
        rows.append(AccumulatorRow(op.name, op.kind, op.terms, low, high, multiplier, shift))
    return AccumulatorTable(tuple(rows))
