"""Scenes for the detector of chapter 10: 96x96 pixels, one to six emoji, and where they are.

Drawn as the single pictures are (`generator`): emoji turned, scaled and recoloured on textures
whose amplitude spectrum falls like 1/f. A box is what the emoji's own alpha mask covers, also where
another emoji lies over it.

    scenes = load_scenes("scenes_test")          # the same bytes everywhere
    SceneGenerator(seed=1).draw(100)             # fresh ones
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ptq_classroom.pictures import camera, scene
from ptq_classroom.pictures.archive import unpack
from ptq_classroom.pictures.atlas import load_atlas
from ptq_classroom.pictures.classes import CLASS_NAMES
from ptq_classroom.pictures.integrity import verified

SCENE_SIZE = 96
PATCH = 48  # the square that one emoji is drawn in before it is laid into the scene
DETECTED = (
    "red apple",
    "banana",
    "strawberry",
    "tangerine",
    "automobile",
    "bus",
    "rocket",
    "dog face",
    "fox",
    "frog",
    "soccer ball",
    "basketball",
)
SPLITS = ("scenes_test", "scenes_calibration")
MOST = 6  # emoji in a scene
MOST_COVERED = 0.6  # share of an earlier box that a later one may cover
TRIES = 6
TEXTURES, TEXTURE_SIZE = 32, 128


@dataclass(frozen=True, eq=False)
class Scenes:
    """Pictures uint8 [N, 3, 96, 96] and what is in them, one row an object.

    boxes: float32 [M, 4], left, top, right, bottom in pixels; labels: int64 [M], positions in
    DETECTED; scene: int64 [M], which picture, in ascending order.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    scene: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> Scenes:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"scenes are sliced in steps of 1, got {step}")
        inside = (self.scene >= start) & (self.scene < stop)
        return Scenes(
            self.images[part], self.boxes[inside], self.labels[inside], self.scene[inside] - start
        )

    def objects(self, index: int) -> tuple[Tensor, Tensor]:
        """Boxes [m, 4] and labels [m] of one picture."""
        inside = self.scene == index
        return self.boxes[inside], self.labels[inside]

    def inputs(self) -> Tensor:
        """What the detector reads: float32 [N, 3, 96, 96], linear light as in `camera.to_input`."""
        return camera.to_input(self.images)


@lru_cache(maxsize=len(SPLITS))
def load_scenes(name: str) -> Scenes:
    """The scenes "scenes_test" (300) or "scenes_calibration" (100 others), verified.

    Raises ValueError for another name, `DataIntegrityError` for a file that is not the manifest's.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown scenes {name!r}; choose one of {', '.join(SPLITS)}")
    with np.load(verified(f"{name}.npz")) as archive:
        images = camera.develop(unpack(archive["luma"], archive["chroma"]))
        boxes = torch.from_numpy(archive["boxes"].astype(np.float32))
        labels = torch.from_numpy(archive["labels"].astype(np.int64))
        counts = torch.from_numpy(archive["counts"].astype(np.int64))
    return Scenes(images, boxes, labels, torch.arange(len(images)).repeat_interleave(counts))


class SceneGenerator:
    """Endless scenes; the same seed gives the same ones on the same machine."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng([seed, SCENE_SIZE])
        self._emoji = load_atlas()[[CLASS_NAMES.index(name) for name in DETECTED]]
        self._textures = scene.natural_textures(self.rng, TEXTURES, TEXTURE_SIZE)

    def draw(self, count: int) -> tuple[Scenes, camera.Planes]:
        """`count` new scenes, and their pictures as the camera stores them."""
        if count < 1:
            raise ValueError(f"draw wants at least one scene, got {count}")
        numbers = self.rng.integers(1, MOST + 1, count)
        labels = self.rng.integers(0, len(DETECTED), int(numbers.sum()))
        layers, inner = self._patches(labels)
        light = self._backgrounds(count)
        boxes, kept, where = [], [], []
        at = 0
        for index, number in enumerate(numbers):
            placed: list[np.ndarray] = []
            for patch in range(at, at + number):
                corner = self._place(inner[patch], placed)
                if corner is None:
                    continue
                self._lay(light[index], layers[patch], corner)
                placed.append(inner[patch] + np.tile(corner, 2))
                kept.append(labels[patch])
                where.append(index)
            boxes += placed
            at += number
        planes = self._photograph(torch.from_numpy(light))
        return Scenes(
            camera.develop(planes),
            torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)),
            torch.from_numpy(np.array(kept, np.int64)),
            torch.from_numpy(np.array(where, np.int64)),
        ), planes

    def _uniform(self, n: int, low: float, high: float) -> Tensor:
        return torch.from_numpy(self.rng.uniform(low, high, n).astype(np.float32))

    def _patches(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Emoji under an affine map and a colour matrix [n, 4, 48, 48], and their boxes in it."""
        n = len(labels)
        size = self._uniform(n, 0.3, 0.9)
        angle = self._uniform(n, -0.5, 0.5)
        aspect = torch.exp(self._uniform(n, -0.1, 0.1))
        flip = torch.from_numpy(self.rng.choice(np.array([-1, 1], np.float32), n))
        cos, sin = angle.cos(), angle.sin()
        rows = torch.stack([flip * cos / aspect, flip * sin / aspect, -sin * aspect, cos * aspect])
        matrix = rows.T.reshape(n, 2, 2) / size.view(n, 1, 1)
        grid = functional.affine_grid(
            functional.pad(matrix, (0, 1)), [n, 4, PATCH, PATCH], align_corners=False
        )
        layer = functional.grid_sample(
            self._emoji[torch.from_numpy(labels)], grid, align_corners=False
        )
        colour = scene.colour_matrix(self._uniform(n, -0.5, 0.5), self._uniform(n, 0.3, 1.3))
        rgb = torch.bmm(colour, layer[:, :3].flatten(2)).view(n, 3, PATCH, PATCH).clamp_(min=0)
        gain = self._uniform(n, 0.6, 1.1).view(n, 1, 1, 1)
        mask = layer[:, 3] > 0.5
        return torch.cat([rgb * gain, layer[:, 3:].clamp(0, 1)], 1).numpy(), _extents(mask)

    def _place(self, inner: np.ndarray, placed: list[np.ndarray]) -> np.ndarray | None:
        """Upper left corner (x, y) of a patch that hides no earlier one; None after some tries."""
        for _ in range(TRIES):
            low, high = -inner[:2], SCENE_SIZE - inner[2:]
            corner = self.rng.integers(low.astype(int), high.astype(int) + 1)
            box = inner + np.tile(corner, 2)
            if all(_covered(other, box) <= MOST_COVERED for other in placed):
                return corner
        return None

    @staticmethod
    def _lay(light: np.ndarray, layer: np.ndarray, corner: np.ndarray) -> None:
        x, y = int(corner[0]), int(corner[1])
        left, top = max(0, x), max(0, y)
        right, bottom = min(SCENE_SIZE, x + PATCH), min(SCENE_SIZE, y + PATCH)
        part = layer[:, top - y : bottom - y, left - x : right - x]
        below = light[:, top:bottom, left:right]
        below *= 1 - part[3:]
        below += part[:3]

    def _backgrounds(self, n: int) -> np.ndarray:
        which = self.rng.integers(0, TEXTURES, (n, 2))
        corner = self.rng.integers(0, TEXTURE_SIZE, (n, 2, 2))
        steps = np.arange(SCENE_SIZE)
        rows = ((corner[..., 0, None] + steps) % TEXTURE_SIZE)[..., :, None]
        columns = ((corner[..., 1, None] + steps) % TEXTURE_SIZE)[..., None, :]
        textures = self._textures[which[..., None, None], rows, columns][:, :, None]
        colours = self.rng.random((n, 2, 3, 1, 1), dtype=np.float32) ** 2
        colours = (colours + colours.mean(2, keepdims=True)) / 2
        mix = 1 / (1 + np.exp(-1.5 * textures[:, 0]))
        contrast = self.rng.uniform(0.1, 0.35, (n, 1, 1, 1)).astype(np.float32)
        shade = np.clip(1 + contrast * textures[:, 1], 0.05, 2.0)
        return (colours[:, 0] * (1 - mix) + colours[:, 1] * mix) * shade

    def _photograph(self, light: Tensor) -> camera.Planes:
        n, half = len(light), SCENE_SIZE // 2
        light = light * self._uniform(n, 0.6, 1.4).view(n, 1, 1, 1)
        sigma = self._uniform(n, 0.5, 3.0).view(n, 1, 1)
        luma = torch.from_numpy(self.rng.standard_normal((n, SCENE_SIZE, SCENE_SIZE), np.float32))
        none = torch.zeros(n, 2, half, half)  # noise of colour would only cost bytes
        return camera.expose(camera.respond(light), luma * sigma, none)


def _covered(box: np.ndarray, by: np.ndarray) -> float:
    """The share of `box` that lies inside `by`."""
    width, height = np.minimum(box[2:], by[2:]) - np.maximum(box[:2], by[:2])
    return max(0.0, width) * max(0.0, height) / math.prod(box[2:] - box[:2])


def _extents(mask: Tensor) -> np.ndarray:
    """left, top, right, bottom of the true pixels of each mask [n, H, W]: float64 [n, 4]."""
    found = []
    for axis in (1, 2):  # columns, then rows
        line = mask.any(axis).numpy()
        found.append((line.argmax(1), line.shape[1] - line[:, ::-1].argmax(1)))
    (left, right), (top, bottom) = found
    return np.stack([left, top, right, bottom], 1).astype(np.float64)
