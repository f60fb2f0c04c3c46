"""Controls of an `Explorer`: a number (box and slider) and a choice of a few options.

What ipywidgets 8 lets Python say decides their form. A number box is a native <input> with a
<label>: it has a name, speaks its value as it is written, and takes the arrow keys. A slider's
handle has neither a name nor a unit, and nothing in Python can give it one (explorer.js does): the
box comes first, and the slider is there for the hand. Radio buttons are native too and say which
one is chosen, where toggle buttons only change their colour; explorer.js makes them one group and
keeps their arrow keys, as the slider's, from the notebook.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import ipywidgets as w

DIGITS = 3  # significant digits in the box of a logarithmic slider
ABOVE = {"description_width": "auto"}  # with flex_flow="column": the label on a row of its own
WRAPPED = {"flex_flow": "row wrap", "align_items": "flex-end"}  # at 200 % the slider goes below


@dataclass(frozen=True)
class Slider:
    """A number with a box and a slider. Whole numbers when low, high and value are ints.

    log: the slider moves by powers of ten, `step` of them at a time (then low > 0).
    unit: is said in the label, for instance "dB".
    """

    name: str
    low: float
    high: float
    value: float
    step: float | None = None
    label: str = ""
    unit: str = ""
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the numbers are integers."""
        return not self.log and all(isinstance(v, int) for v in (self.low, self.high, self.value))

    @property
    def by(self) -> float:
        """One step: of the number, or of its decimal logarithm."""
        if self.step:
            return self.step
        return 0.02 if self.log else 1 if self.whole else (self.high - self.low) / 100

    @property
    def digits(self) -> int:
        """Digits that are written: behind the point, or of a logarithmic slider in all."""
        if self.log:
            return DIGITS
        return max(0, -int(Decimal(str(self.by)).normalize().as_tuple().exponent))

    def rounded(self, value: float) -> float:
        """The number as it is written: at its step's last digit, or with three digits."""
        if self.whole:
            return int(value)
        digits = self.digits - 1 - math.floor(math.log10(value)) if self.log else self.digits
        return min(max(round(value, digits), self.low), self.high)

    def build(self) -> tuple[Any, Any]:
        """(the widget whose value counts, what stands on the page)."""
        text = (self.label or self.name) + (f" ({self.unit})" if self.unit else "")
        ends = {"min": self.low, "max": self.high, "step": self.by}
        if self.log:
            ends |= {"min": math.log10(self.low), "max": math.log10(self.high)}
        kind = w.FloatLogSlider if self.log else w.IntSlider if self.whole else w.FloatSlider
        box_kind = w.BoundedIntText if self.whole else w.BoundedFloatText
        main = kind(
            **ends, value=self.value, readout=False, layout={"width": "420px", "max_width": "100%"}
        )
        box = box_kind(
            min=self.low, max=self.high, step=self._box_step(), value=self.rounded(self.value),
            description=text, style=ABOVE, continuous_update=False,
            layout={"flex_flow": "column", "height": "auto", "width": "260px"},
        )  # fmt: skip

        def write(change: dict) -> None:
            box.value = self.rounded(change["new"])

        def read(change: dict) -> None:
            if change["new"] != self.rounded(main.value):
                main.value = change["new"]

        main.observe(write, names="value")
        box.observe(read, names="value")
        return main, w.HBox([box, main], layout=WRAPPED)

    def _box_step(self) -> float:
        """What an arrow key adds in the box: of a logarithmic number, a tenth of its start."""
        if not self.log:
            return self.by
        return 10.0 ** math.floor(math.log10(self.value) - 1)


@dataclass(frozen=True)
class Choice:
    """One of a few named options, side by side. options: values, or (name, value) pairs."""

    name: str
    options: tuple
    value: Any
    label: str = ""

    def build(self) -> tuple[Any, Any]:
        """(the widget whose value counts, what stands on the page): the same here."""
        buttons = w.RadioButtons(
            options=list(self.options),
            value=self.value,
            description=self.label or self.name,
            style=ABOVE,
            orientation="horizontal",
            layout={"flex_flow": "column", "height": "auto", "width": "auto"},
        )
        return buttons, buttons
