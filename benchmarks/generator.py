"""What a drawn picture costs: the emoji generator against one bare resampling of the same size.

    python benchmarks/generator.py            under a minute on two cores
    python benchmarks/generator.py --quick    fewer rounds

The peer is torch's affine_grid + grid_sample of as many pictures of 4 x 48 x 48, the one step that
no generator of turned and scaled pictures can do without. Both take turns inside one run, so that
what else the machine does hits both; a figure is the ratio of the best rounds, by the clock and by
processor time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from contest import best_of
from torch.nn import functional

from ptq_classroom.pictures.atlas import load_atlas
from ptq_classroom.pictures.conditions import DIFFICULTIES
from ptq_classroom.pictures.generator import CHUNK, IMAGE_SIZE, EmojiGenerator

PICTURES = 8 * CHUNK
PEER = "grid_sample alone"


def resampling() -> Callable[[], object]:
    """Turn and scale as many pictures as the generator draws, a chunk at a time, and no more."""
    torch.manual_seed(0)
    emoji = load_atlas()
    labels = torch.randint(len(emoji), (CHUNK,))
    matrices = torch.randn(CHUNK, 2, 3)
    size = [CHUNK, 4, IMAGE_SIZE, IMAGE_SIZE]

    def run() -> None:
        for _ in range(PICTURES // CHUNK):
            grid = functional.affine_grid(matrices, size, align_corners=False)
            functional.grid_sample(emoji[labels], grid, align_corners=False)

    return run


def main() -> None:
    """Print the ratios and microseconds a picture."""
    rounds = 3 if "--quick" in sys.argv[1:] else 15
    contestants: dict[str, Callable[[], object]] = {PEER: resampling()}
    for difficulty in DIFFICULTIES:
        generator = EmojiGenerator(seed=0, difficulty=difficulty)
        contestants[f"generator, {difficulty}"] = lambda g=generator: g.batch(PICTURES)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, best of {rounds} rounds")
    seconds = best_of(contestants, rounds)
    print(f"  {'times ' + PEER:<24}   clock  processor")
    for name, (clock, processor) in seconds.items():
        ratios = clock / seconds[PEER][0], processor / seconds[PEER][1]
        micro = clock / PICTURES * 1e6
        print(f"  {name:<24} {ratios[0]:7.1f} {ratios[1]:10.1f}   {micro:6.0f} us a picture")


if __name__ == "__main__":
    main()
