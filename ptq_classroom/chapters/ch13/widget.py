"""Widget of chapter 13: bits and groups, what they cost and what they keep; all measured before."""

from __future__ import annotations

from ptq_classroom.chapters.ch13.recorded import recorded
from ptq_classroom.kit.controls import Choice, Slider
from ptq_classroom.kit.explorer import Explorer
from ptq_classroom.kit.show import COLORS, GREY, color, figure

WAYS = ("nearest", "GPTQ")
NAMES = ("to nearest", "GPTQ")
BITS = tuple(range(2, 9))
GROUPS = {"one for each row": "row", "32 inputs": 32, "8 inputs": 8, "4 inputs": 4}


def point(way: str, bits: int, group: str) -> tuple[float, float]:
    """(bits a weight with its share of the scales, accuracy in percent) of the residual network."""
    accuracy, size = recorded()["groups"][f"{way} {bits} {GROUPS[group]}"]
    return size, 100 * accuracy


class BitsAndGroups:
    """The figure and its pure `frame`; the artists are made once and then moved."""

    def __init__(self) -> None:
        self.fig, ax = figure(6.8, 3.9)
        for group in GROUPS:
            for way in WAYS:
                ax.plot(*zip(*(point(way, b, group) for b in BITS), strict=True),
                        ".", color=GREY, markersize=4)  # fmt: skip
        self.lines = [
            ax.plot([0, 1], [0, 1], marker="os"[i], markersize=4, label=name, **color(2 * i))[0]
            for i, name in enumerate(NAMES)
        ]
        self.here = [
            ax.plot([], [], "os"[i], color=COLORS[2 * i], markersize=11, markeredgecolor="black")[0]
            for i in range(len(NAMES))
        ]
        fp32 = 100 * recorded()["fp32"]["resnet"]
        ax.axhline(fp32, color=GREY, linestyle="--", linewidth=1.2)
        ax.text(9.9, fp32 + 1, f"FP32 {fp32:.1f}", fontsize=9, ha="right", va="bottom")
        ax.set(xlabel="stored bits of a weight, scales included", ylabel="top-1 accuracy (%)")
        ax.set(xlim=(1.8, 10), ylim=(0, 104))
        ax.legend(fontsize=9, loc="lower right", title="grey: all other settings")
        ax.get_legend().get_title().set_fontsize(9)

    def frame(self, bits: int, group: str) -> tuple[str, str]:
        """Show the curves over the bits for this group, and where these bits stand on them."""
        told = []
        for line, dot, way, name in zip(self.lines, self.here, WAYS, NAMES, strict=True):
            points = [point(way, b, group) for b in BITS]
            line.set_data(*zip(*points, strict=True))
            x, y = point(way, bits, group)
            dot.set_data([x], [y])
            told.append(f"{name} {y:.1f} %")
        size = point(WAYS[0], bits, group)[0]
        head = (
            f"{bits} bits, a scale for {group.removeprefix('one for ')}: {size:.2f} bits a weight"
        )
        readout = f"{head}; {', '.join(told)}"
        return readout, f"{readout}. FP32 keeps {100 * recorded()['fp32']['resnet']:.1f} %."


def explorer() -> Explorer:
    """The widget: bits and group."""
    picture = BitsAndGroups()
    controls = [
        Slider("bits", BITS[0], BITS[-1], 3),
        Choice("group", tuple(GROUPS), "one for each row"),
    ]
    return Explorer(picture.fig, controls, picture.frame, "Bits and groups")
