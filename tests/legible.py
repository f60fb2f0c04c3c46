"""Whether a figure can be read: contrast and size of each word that is drawn, and the resolution.

Contrast is WCAG 2.2's (success criterion 1.4.3): 4.5 to 1 against what lies behind the word.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

CONTRAST, POINTS, DPI = 4.5, 8.0, 144


def contrast(one: Any, other: Any) -> float:
    """Contrast of two opaque colours, 1 to 21."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def complaints(fig: Figure) -> list[str]:
    """What cannot be read in `fig`, one line each; [] where all is well."""
    found = [] if fig.dpi >= DPI else [f"{fig.dpi:g} dpi, not {DPI}"]
    words = _drawn(fig)
    ground = _without_letters(fig)
    for word in words:
        said = " ".join(word.get_text().split())
        if word.get_fontsize() < POINTS:
            found.append(f"{said!r} has {word.get_fontsize():g} pt, not {POINTS:g}")
        behind = _behind(word, ground)
        if behind is None:
            continue
        r, g, b, alpha = to_rgba(word.get_color(), word.get_alpha())
        seen = alpha * np.array([r, g, b]) + (1 - alpha) * behind
        if (ratio := contrast(seen, behind)) < CONTRAST:
            found.append(f"{said!r} has a contrast of {ratio:.1f}, not {CONTRAST}")
    return found


def _luminance(color: Any) -> float:
    rgb = np.asarray(color, dtype=float)[:3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _drawn(fig: Figure) -> list[Text]:
    """Every text that a drawing of the figure comes past and shows, in order."""
    seen: dict[int, Text] = {}
    draw = Text.draw

    def recorded(self: Text, renderer: Any, *args: Any, **kwargs: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            seen[id(self)] = self
        draw(self, renderer, *args, **kwargs)

    with patch.object(Text, "draw", recorded):
        fig.canvas.draw()
    return list(seen.values())


def _without_letters(fig: Figure) -> NDArray:
    """The pixels of the figure [H, W, 3], 0 to 1, without letters: what they stand on stays."""
    from matplotlib.backends.backend_agg import RendererAgg

    def nothing(*_args: Any, **_kwargs: Any) -> None:
        pass

    with patch.object(RendererAgg, "draw_text", nothing):
        fig.canvas.draw()
    return np.asarray(fig.canvas.buffer_rgba())[..., :3] / 255.0


def _behind(word: Text, ground: NDArray) -> NDArray | None:
    """The colour that most pixels behind the word have; None where it is outside of the figure."""
    box, height = word.get_window_extent(), len(ground)
    rows = slice(max(0, int(height - box.y1)), max(0, int(height - box.y0) + 1))
    columns = slice(max(0, int(box.x0)), max(0, int(box.x1) + 1))
    pixels = ground[rows, columns].reshape(-1, 3)
    if not len(pixels):
        return None
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    return colors[counts.argmax()]
