"""One style for every figure, `show(fig, alt)`, and alt texts made from the plotted data.

Figures are made with `figure()`, drawn into, and shown with `show`. Nothing goes through pyplot's
global state, so a figure appears once, where `show` is called, with its alt text.

Where a notebook is executed to be committed (PTQ_FIGURES=png says so), a picture is an image/png
with its alt text in the metadata: viewers that sanitize HTML, as code hosts do, drop pictures that
stand in it. The lab shows no alt text from metadata, so there a picture is HTML.
"""

from __future__ import annotations

import base64
import html
import io
import os
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

DPI = 144  # dots in an inch of a figure
PAGE = 100  # pixels of a page that an inch of a figure takes, whatever its dots
# Matplotlib's petroff10 (M. A. Petroff, "Accessible color sequences for data visualization", 2021)
COLORS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
          "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")  # fmt: skip
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
GREY = COLORS[8]
STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": "white",
    "axes.prop_cycle": matplotlib.cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "font.size": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.interpolation": "nearest",
    "svg.hashsalt": "ptq_course",
}


def figure(
    width: float = 7.0, height: float = 3.2, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """A styled figure (inches) and its axes: one Axes, or an array where there are several."""
    matplotlib.rcParams.update(STYLE)
    fig = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(fig)
    return fig, fig.subplots(rows, columns, **options)


def color(i: int) -> dict[str, Any]:
    """Colour and line style number `i`: series differ in both, so that no one needs the colour."""
    return {"color": COLORS[i % len(COLORS)], "linestyle": LINES[i % len(LINES)]}


@cache
def ink(color: str) -> str:
    """This colour for words: as dark as it takes to be read on white and on a pale band.

    WCAG 2.2 asks for a contrast of 4.5 to 1; 5.5 on white leaves room for the band. Black and white
    stay what they are.
    """
    rgb = np.array(to_rgb(color))
    if rgb.min() == 1:
        return color
    while 1.05 / (_luminance(rgb) + 0.05) < 5.5:
        rgb *= 0.97
    return to_hex(rgb.tolist())


def _luminance(rgb: np.ndarray) -> float:
    """Relative luminance (WCAG 2.2) of one sRGB colour [3], 0 to 1."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def png(fig: Figure) -> bytes:
    """The figure as PNG bytes at DPI dots an inch, without software or date stamps."""
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def img(data: bytes, alt: str, dpi: int = DPI) -> str:
    """An HTML image that carries its bytes and its alt text."""
    encoded = base64.b64encode(data).decode("ascii")
    return (
        f'<img alt="{html.escape(alt)}" width="{_width(data, dpi)}" '
        f'style="max-width:100%;height:auto" '
        f'src="data:image/png;base64,{encoded}">'
    )


def _width(data: bytes, dpi: int = DPI) -> int:
    """Pixels of the page that a PNG takes: its width stands in bytes 16 to 19."""
    return round(int.from_bytes(data[16:20], "big") * PAGE / dpi)


def for_the_page() -> bool:
    """Whether outputs are made for readers without a kernel, in the notebook that is committed."""
    return os.environ.get("PTQ_FIGURES") == "png"


def show_picture(data: bytes, alt: str) -> None:
    """Display PNG bytes with their alt text, in the form that their readers can see."""
    from IPython.display import display

    if for_the_page():
        page = {"image/png": base64.b64encode(data).decode("ascii"), "text/plain": alt}
        display(page, metadata={"image/png": {"alt": alt, "width": _width(data)}}, raw=True)
    else:
        display({"text/html": img(data, alt), "text/plain": alt}, metadata={}, raw=True)


def show(fig: Figure, alt: str) -> None:
    """Display `fig` with an alt text (required: say what the plotted data says), then close it."""
    if not alt.strip():
        raise ValueError("a figure needs an alt text; see the describe_* helpers")
    show_picture(png(fig), alt)
    if getattr(fig, "number", None) is not None:
        import matplotlib.pyplot as plt

        plt.close(fig)


def text_number(value: float) -> str:
    """A number for an alt text: three digits, no needless zeros."""
    return f"{float(value):.3g}"


def describe_curve(
    x: Any, y: Any, x_label: str, y_label: str, marked: dict[str, float] | None = None
) -> str:
    """Alt text of a curve: range, extremes, and marked x positions by name."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    finite = np.isfinite(y)
    x, y, n = x[finite], y[finite], text_number
    low, high = int(y.argmin()), int(y.argmax())
    text = (
        f"Curve of {y_label} over {x_label} from {n(x[0])} to {n(x[-1])}: starts at {n(y[0])}, "
        f"ends at {n(y[-1])}, lowest {n(y[low])} at {n(x[low])}, "
        f"highest {n(y[high])} at {n(x[high])}."
    )
    return text + "".join(f" {name} at {n(at)}." for name, at in (marked or {}).items())


def describe_bars(labels: Any, values: Any, unit: str) -> str:
    """Alt text of bars: each label with its value."""
    pairs = ", ".join(f"{a} {text_number(v)}" for a, v in zip(labels, values, strict=True))
    return f"Bars of {unit}: {pairs}."


def describe_histogram(
    counts: Any, edges: Any, label: str, low: float | None = None, high: float | None = None
) -> str:
    """Alt text of a histogram: where its values lie, its peak, and the share outside a range."""
    counts, edges = np.asarray(counts, dtype=np.float64), np.asarray(edges, dtype=np.float64)
    n, peak, filled = text_number, int(counts.argmax()), np.flatnonzero(counts)
    text = (
        f"Histogram of {label} from {n(edges[filled[0]])} to {n(edges[filled[-1] + 1])}, "
        f"highest between {n(edges[peak])} and {n(edges[peak + 1])}."
    )
    if low is not None and high is not None:
        centers = (edges[:-1] + edges[1:]) / 2
        outside = counts[(centers < low) | (centers > high)].sum() / max(counts.sum(), 1)
        text += f" The range {n(low)} to {n(high)} leaves {100 * outside:.2g} percent outside."
    return text


def points(change: tuple[float, float, float]) -> str:
    """A paired difference with its interval, shares of 1: "+2.9 points (+2.1 to +3.6)"."""
    return "{:+.1f} points ({:+.1f} to {:+.1f})".format(*(100 * value for value in change))
