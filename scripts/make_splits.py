"""Draw the two fixed splits, data/test.npz and data/calibration.npz, and list them.

Run by a maintainer; the files ship as bytes, because the same seed may give a few other bytes on
another processor.

    python scripts/make_splits.py            # write
    python scripts/make_splits.py --check    # draw again, compare with what ships, write nothing
"""

import argparse
import hashlib

import numpy as np
import torch
from tqdm.auto import tqdm

from ptq_classroom.pictures import archive
from ptq_classroom.pictures.camera import Planes, develop
from ptq_classroom.pictures.classes import CLASS_NAMES
from ptq_classroom.pictures.conditions import RARE_MODES
from ptq_classroom.pictures.generator import EmojiGenerator
from ptq_classroom.pictures.integrity import DATA, read_manifest, record

SPLITS = {"test": (4000, 2_000_001), "calibration": (1000, 2_000_002)}  # pictures, seed
MODE_NAMES = ["normal", *RARE_MODES]
BLOCK = 1000  # every block holds the same number of each rare mode


def plan(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (each class once in every 48) and modes (exact shares in every block), shuffled."""
    rng = np.random.default_rng([seed, 7])
    rounds = -(-count // len(CLASS_NAMES))
    labels = np.concatenate([rng.permutation(len(CLASS_NAMES)) for _ in range(rounds)])[:count]
    modes = []
    for _ in range(count // BLOCK):
        block = np.zeros(BLOCK, np.int64)
        start = 0
        for code, share in enumerate(RARE_MODES.values(), start=1):
            end = start + round(share * BLOCK)
            block[start:end] = code
            start = end
        modes.append(rng.permutation(block))
    return labels, np.concatenate(modes)


def draw(count: int, seed: int) -> tuple[Planes, np.ndarray, np.ndarray]:
    """Stored planes, labels and mode codes of a whole split."""
    labels, modes = plan(count, seed)
    generator = EmojiGenerator(seed)
    parts = []
    for start in tqdm(range(0, count, BLOCK), desc="drawing", leave=False):
        part = slice(start, start + BLOCK)
        names = [MODE_NAMES[code] for code in modes[part]]
        parts.append(generator.draw(BLOCK, torch.from_numpy(labels[part]), names).planes)
    return Planes(*(torch.cat(part) for part in zip(*parts, strict=True))), labels, modes


def main() -> None:
    """Write the splits, or compare them with what ships."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    for name, (count, seed) in SPLITS.items():
        planes, labels, modes = draw(count, seed)
        pixels = hashlib.sha256(develop(planes).numpy().tobytes()).hexdigest()
        if arguments.check:
            same = pixels == read_manifest()["files"][f"{name}.npz"]["pixels_sha256"]
            print(f"{name}: drawn again, {'the same' if same else 'other'} pictures")
            continue
        arrays = {
            **archive.pack(planes),
            "labels": labels.astype(np.uint8),
            "modes": modes.astype(np.uint8),
            "mode_names": np.array(MODE_NAMES),
        }
        archive.save(DATA / f"{name}.npz", arrays)
        record(
            f"{name}.npz",
            licence="Apache-2.0",
            pictures=count,
            seed=seed,
            pixels_sha256=pixels,
            command="python scripts/make_splits.py",
        )
        size = (DATA / f"{name}.npz").stat().st_size
        print(f"{name}: {count} pictures, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
