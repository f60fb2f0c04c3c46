"""The pictures of the course: two fixed splits that ship as bytes, and an endless generator.

split = load_split("test")                       # 4,000 pictures, the same bytes everywhere
for x, y in loader(split, batch_size=64): ...    # float32 inputs, labels
EmojiGenerator(seed=1, shift="dark").batch(100)  # fresh ones, from a shifted world
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.pictures.archive import unpack
from ptq_classroom.pictures.camera import develop, to_input
from ptq_classroom.pictures.classes import CLASS_NAMES, GROUPS
from ptq_classroom.pictures.conditions import DIFFICULTIES, RARE_MODES, SHIFTS, Difficulty, Shift
from ptq_classroom.pictures.generator import IMAGE_SIZE, EmojiGenerator, Pictures
from ptq_classroom.pictures.integrity import verified

__all__ = [
    "CLASS_NAMES",
    "DIFFICULTIES",
    "GROUPS",
    "IMAGE_SIZE",
    "RARE_MODES",
    "SHIFTS",
    "Difficulty",
    "EmojiGenerator",
    "Pictures",
    "Shift",
    "Split",
    "load_split",
    "loader",
    "to_input",
]

SPLITS = ("test", "calibration")


@dataclass(frozen=True, eq=False)
class Split:
    """Pictures uint8 [N, 3, 48, 48], labels int64 [N] and modes, an array of N strings.

    `split[:1000]` or `split[split.modes == "flash"]` is a smaller split. The first 1,000 pictures
    hold as many of each class (within one) and exactly as many of each rare mode as any other
    thousand.
    """

    images: Tensor
    labels: Tensor
    modes: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | np.ndarray | Tensor | list[int]) -> "Split":
        if isinstance(index, int):
            raise TypeError("a split is indexed by a slice, a mask or a list; use split[i : i + 1]")
        at = np.arange(len(self))[index.numpy() if isinstance(index, Tensor) else index]
        where = torch.from_numpy(at)
        return Split(self.images[where], self.labels[where], self.modes[at])


@lru_cache(maxsize=len(SPLITS))
def load_split(name: str) -> Split:
    """The "test" split (4,000 pictures) or the "calibration" split (1,000 others), verified.

    Loaded once a process and shared: copy `images` before writing into it. Raises ValueError for
    another name and `DataIntegrityError` where the file is not the one that the manifest
    describes.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}; choose one of {', '.join(SPLITS)}")
    with np.load(verified(f"{name}.npz")) as archive:
        planes = unpack(archive["luma"], archive["chroma"])
        labels = torch.from_numpy(archive["labels"].astype(np.int64))
        modes = archive["mode_names"][archive["modes"]]
    return Split(develop(planes), labels, modes)


def loader(
    split: Split, batch_size: int = 64, limit: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Batches (inputs float32 [n, 3, 48, 48], labels int64 [n]) of the first `limit` pictures."""
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size {batch_size} and limit {limit} must be at least 1")
    count = len(split) if limit is None else min(limit, len(split))
    ends = [min(start + batch_size, count) for start in range(0, count, batch_size)]
    return [
        (to_input(split.images[start:end]), split.labels[start:end])
        for start, end in zip(range(0, count, batch_size), ends, strict=True)
    ]
