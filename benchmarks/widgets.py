"""From a key to the changed picture, for every chapter's widget: `python benchmarks/widgets.py`.

Two numbers: what a redraw costs the kernel (processor time, which a busy machine does not change),
and the time that passes in JupyterLab between a key and the picture, measured in Chromium's page
where there is one. The budget is 100 ms on an idle machine; the load beside it says how idle.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "browser")]

from driving import (  # noqa: E402  (found through the line above)
    CLOCK,
    CONTROLS,
    WIDGETS,
    every_widget,
    jupyterlab,
    moved,
    opened,
)  # fmt: skip
from launch import NoBrowser, launched  # noqa: E402
from small_widgets import NAMES, explorer  # noqa: E402

BUDGET = 100  # ms
TURNS = 15


def in_the_kernel(name: str) -> float:
    """Milliseconds of processor time of one redraw, the median over the positions of each control.

    Each control is moved through its range from where it starts.
    """
    made, took = explorer(name), []
    start = made.values
    for control, main in made.inputs.items():
        for value in positions(main):
            before = time.process_time()
            made.set(**{control: value})
            took.append(1000 * (time.process_time() - before))
        made.set(**start)
    return statistics.median(took)


def positions(main) -> list:
    """Places of a control from its first to its last."""
    if hasattr(main, "options"):
        return [value for _, value in main._options_full]
    marks = round((main.max - main.min) / main.step)  # of the slider, which stands on one of them
    steps = [main.min + main.step * round(marks * i / (TURNS - 1)) for i in range(TURNS)]
    base = getattr(main, "base", None)
    return [type(main.value)(step if base is None else base**step) for step in steps]


def in_the_page(turns: int = 3) -> dict[str, list[float]]:
    """Milliseconds from each key to its picture; {} where there is no Chromium to drive."""
    took: dict[str, list[float]] = {name: [] for name in NAMES}
    try:
        with tempfile.TemporaryDirectory() as folder, launched() as browser:
            course = Path(folder) / "my_course"
            course.mkdir()
            (course / f"{WIDGETS}.ipynb").write_text(every_widget(), encoding="utf-8")
            with jupyterlab(Path(folder)) as address:
                page = opened(browser, address.replace("NAME", WIDGETS), len(NAMES))
                page.evaluate(CLOCK)
                for place, name in enumerate(NAMES):
                    cell = page.locator(".jp-CodeCell").nth(1 + place)
                    for kind, keys in CONTROLS:
                        for number in range(cell.locator(kind).count()):
                            cell.locator(kind).nth(number).focus()
                            took[name] += [moved(page, cell, keys) for _ in range(turns)]
                page.close()
    except NoBrowser as reason:
        print(f"not measured in a page: {reason}")
        return {}
    return took


def main() -> None:
    kernel = {name: in_the_kernel(name) for name in NAMES}
    before, pages, after = os.getloadavg()[0], in_the_page(), os.getloadavg()[0]
    print(f"{'widget':8}{'kernel':>10}{'key to picture':>18}{'slowest':>10}   (ms)")
    for name in NAMES:
        took = pages.get(name, [])
        page = (
            f"{statistics.median(took):18.0f}{max(took):10.0f}" if took else f"{'-':>18}{'-':>10}"
        )
        print(f"{name:8}{kernel[name]:10.0f}{page}")
    over = [name for name in NAMES if pages and statistics.median(pages[name]) > BUDGET]
    print(f"load {before:.1f} before, {after:.1f} after, on {os.cpu_count()} processors")
    print(f"median over {BUDGET} ms: {', '.join(over) or 'none'}")


if __name__ == "__main__":
    main()
