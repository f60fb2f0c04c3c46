"""Contestants of one benchmark take turns, so that a busy moment of the machine meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable


def best_of(
    contestants: dict[str, Callable[[], object]], rounds: int
) -> dict[str, tuple[float, float]]:
    """Seconds by the clock and of processor time of the best round of each; they take turns."""
    best = {name: (float("inf"), float("inf")) for name in contestants}
    for round_ in range(rounds + 1):
        for name, function in contestants.items():
            clock, processor = time.perf_counter(), time.process_time()
            function()
            took = (time.perf_counter() - clock, time.process_time() - processor)
            if round_:  # the first one warms up
                best[name] = tuple(map(min, best[name], took))
    return best
