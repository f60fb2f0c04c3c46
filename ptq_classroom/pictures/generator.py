"""An endless, seeded stream of emoji pictures, drawn a whole batch at a time.

Each picture is one emoji (turned, scaled, stretched, recoloured, perhaps mirrored) on a background
whose amplitude spectrum falls like 1/f, as in photographs (Field, "Relations between the
statistics of natural images and the response properties of cortical cells", 1987), under uneven
light, partly covered, noisy.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ptq_classroom.pictures import camera, scene
from ptq_classroom.pictures.atlas import load_atlas
from ptq_classroom.pictures.classes import CLASS_NAMES
from ptq_classroom.pictures.conditions import DIFFICULTIES, RARE_MODES, SHIFTS, Difficulty, Shift

IMAGE_SIZE = 48
TEXTURES, TEXTURE_SIZE = 32, 128
CHUNK = 64  # pictures drawn at a time: what fits the cache


class Pictures(NamedTuple):
    """A batch: images uint8 [N, 3, 48, 48], labels int64 [N], modes (N names), stored planes."""

    images: Tensor
    labels: Tensor
    modes: list[str]
    planes: camera.Planes


def _pick(table: dict, key: str | None, default: object, what: str) -> object:
    if key is None:
        return default
    if key not in table:
        raise ValueError(f"unknown {what} {key!r}; choose one of {', '.join(table)}")
    return table[key]


class EmojiGenerator:
    """Endless pictures. The same arguments give the same pictures on the same machine.

    `difficulty` is a name in DIFFICULTIES or a `Difficulty`, `shift` a name in SHIFTS or a
    `Shift`, `rare` the shares of the planted modes (default RARE_MODES). The shipped splits are
    stored as bytes because floating-point results may differ in the last digit between processors.
    """

    def __init__(
        self,
        seed: int = 0,
        difficulty: str | Difficulty = "standard",
        shift: str | Shift | None = None,
        rare: dict[str, float] | None = None,
    ) -> None:
        if not isinstance(difficulty, Difficulty):
            difficulty = _pick(DIFFICULTIES, difficulty, None, "difficulty")
        if not isinstance(shift, Shift):
            shift = _pick(SHIFTS, shift, Shift(), "shift")
        self.difficulty, self.shift = difficulty, shift
        self.rare = dict(RARE_MODES if rare is None else rare)
        if unknown := set(self.rare) - set(RARE_MODES):
            raise ValueError(f"unknown rare mode {sorted(unknown)}; choose from {list(RARE_MODES)}")
        if any(share < 0 for share in self.rare.values()) or sum(self.rare.values()) > 1:
            raise ValueError(f"shares of rare modes are 0 to 1 and at most 1 together: {self.rare}")
        if shift.flash is not None:
            self.rare = {"flash": shift.flash}
        self.rng = np.random.default_rng([seed, 48])
        self._emoji = load_atlas()  # premultiplied linear light [classes, 4, 48, 48]
        self._textures = torch.from_numpy(scene.natural_textures(self.rng, TEXTURES, TEXTURE_SIZE))
        weights = np.exp(-shift.skew * np.arange(len(CLASS_NAMES)) / len(CLASS_NAMES))
        self.class_weights = self.rng.permutation(weights / weights.sum())

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """`n` new pictures: uint8 [n, 3, 48, 48] and labels int64 [n]."""
        pictures = self.draw(n)
        return pictures.images, pictures.labels

    def draw(
        self, n: int, labels: Tensor | None = None, modes: list[str] | None = None
    ) -> Pictures:
        """`n` new pictures with their modes; labels and modes may be prescribed (a fixed split)."""
        given = [len(prescribed) for prescribed in (labels, modes) if prescribed is not None]
        if n < 1 or any(length != n for length in given):
            raise ValueError(f"draw({n}) wants n >= 1 and as many labels and modes, got {given}")
        if labels is None:
            labels = torch.from_numpy(self.rng.choice(len(CLASS_NAMES), n, p=self.class_weights))
        if modes is None:
            shares = list(self.rare.values())
            names = [*self.rare, "normal"]
            drawn = self.rng.choice(len(names), n, p=[*shares, max(0.0, 1 - sum(shares))])
            modes = [names[i] for i in drawn]
        parts = [
            self._draw(labels[start : start + CHUNK], modes[start : start + CHUNK])
            for start in range(0, n, CHUNK)
        ]
        planes = camera.Planes(*(torch.cat(part) for part in zip(*parts, strict=True)))
        return Pictures(camera.develop(planes), labels, modes, planes)

    # -- one chunk; light is float32 [n, 3, 48, 48], 1.0 is diffuse white --

    def _draw(self, labels: Tensor, modes: list[str]) -> camera.Planes:
        n = len(labels)
        flash = torch.tensor([mode == "flash" for mode in modes])
        night = torch.tensor([mode == "night" for mode in modes])
        light = self._compose(labels)
        light *= self._illumination(n)
        light *= torch.where(night, self._uniform(n, 0.04, 0.12), 1.0).view(n, 1, 1, 1)
        if flash.any():
            light[flash] = self._flash(light[flash])
        light *= self.shift.gain
        if self.shift.blur:
            light = scene.blur(light, self.shift.blur)
        return self._photograph(light, night)

    def _uniform(self, n: int, low: float, high: float) -> Tensor:
        return torch.from_numpy(self.rng.uniform(low, high, n).astype(np.float32))

    def _compose(self, labels: Tensor) -> Tensor:
        n, d = len(labels), self.difficulty
        picture = self._background(n)
        clutter = torch.from_numpy(self.rng.random(n) < d.clutter)
        if clutter.any():
            other = torch.from_numpy(self.rng.integers(0, len(CLASS_NAMES), int(clutter.sum())))
            picture[clutter] = scene.over(self._emoji_layer(other, away=True), picture[clutter])
        picture = scene.over(self._emoji_layer(labels), picture)
        covered = torch.from_numpy(self.rng.random(n) < d.occlusion)
        if covered.any():
            count = int(covered.sum())
            mask = self._bar(count)
            picture[covered] = torch.lerp(picture[covered], self._background(count), mask)
        return picture

    def _background(self, n: int) -> Tensor:
        which = torch.from_numpy(self.rng.integers(0, TEXTURES, (n, 2)))
        corner = torch.from_numpy(self.rng.integers(0, TEXTURE_SIZE, (n, 2, 2)))
        steps = torch.arange(IMAGE_SIZE)
        rows = ((corner[..., 0, None] + steps) % TEXTURE_SIZE)[..., :, None]
        columns = ((corner[..., 1, None] + steps) % TEXTURE_SIZE)[..., None, :]
        first, second = self._textures[which[..., None, None], rows, columns].unbind(1)
        colours = torch.from_numpy(self.rng.random((n, 2, 3, 1, 1), dtype=np.float32)) ** 2
        colours = torch.lerp(colours, colours.mean(2, keepdim=True), 0.5)
        mix = torch.sigmoid(first.unsqueeze(1) * 1.5)
        contrast = self._uniform(n, *self.difficulty.texture).view(n, 1, 1, 1)
        shade = (1 + contrast * second.unsqueeze(1)).clamp_(0.05, 2.0)
        return torch.lerp(colours[:, 0], colours[:, 1], mix) * shade

    def _emoji_layer(self, labels: Tensor, away: bool = False) -> Tensor:
        """Premultiplied [n, 4, 48, 48]: each emoji under its own affine map and colour matrix."""
        n, d = len(labels), self.difficulty
        size = self._uniform(n, *d.size)
        angle = self._uniform(n, -d.rotation, d.rotation) * (math.pi / 180)
        aspect = torch.exp(self._uniform(n, -d.stretch, d.stretch) / 2)
        flip = torch.from_numpy(self.rng.choice(np.float32([-1, 1]), n))
        centre = torch.stack([self._uniform(n, -2 * d.shift, 2 * d.shift) for _ in range(2)], 1)
        if away:  # a piece of a distractor: outside the middle, often cut off by the frame
            direction = self._uniform(n, -math.pi, math.pi)
            centre = torch.stack([direction.cos(), direction.sin()], 1) * 1.1
            size = size * 0.8
        cos, sin = angle.cos(), angle.sin()
        rows = torch.stack([cos / aspect, sin / aspect, -sin * aspect, cos * aspect], 1)
        matrix = rows.view(n, 2, 2) / size.view(n, 1, 1)
        matrix[:, 0] *= flip.view(n, 1)
        offset = -(matrix @ centre.unsqueeze(2))
        grid = functional.affine_grid(
            torch.cat([matrix, offset], 2), [n, 4, IMAGE_SIZE, IMAGE_SIZE], align_corners=False
        )
        layer = functional.grid_sample(self._emoji[labels], grid, align_corners=False)
        colour = scene.colour_matrix(
            self._uniform(n, -d.hue, d.hue) * (math.pi / 180), self._uniform(n, *d.saturation)
        )
        rgb = torch.bmm(colour, layer[:, :3].flatten(2)).view(n, 3, IMAGE_SIZE, IMAGE_SIZE)
        gain = self._uniform(n, 0.6, 1.1).view(n, 1, 1, 1)
        return torch.cat([rgb.clamp_(min=0) * gain, layer[:, 3:].clamp(0, 1)], 1)

    def _ramp(self, n: int) -> Tensor:
        """A coordinate along a random direction, [n, 1, 48, 48], about -1..1."""
        direction = self._uniform(n, -math.pi, math.pi).view(n, 1, 1, 1)
        axis = torch.linspace(-1, 1, IMAGE_SIZE)
        return axis.view(1, 1, -1, 1) * direction.sin() + axis.view(1, 1, 1, -1) * direction.cos()

    def _bar(self, n: int) -> Tensor:
        width = self._uniform(n, *self.difficulty.occluder).view(n, 1, 1, 1)
        position = self._uniform(n, -0.7, 0.7).view(n, 1, 1, 1)
        distance = (self._ramp(n) - position).abs()
        return ((width - distance) * (IMAGE_SIZE / 2)).clamp_(0, 1)

    def _illumination(self, n: int) -> Tensor:
        exposure = self._uniform(n, *self.difficulty.exposure).view(n, 1, 1, 1)
        slope = self._uniform(n, 0.0, 0.5).view(n, 1, 1, 1)
        tint = torch.from_numpy(self.rng.uniform(0.85, 1.15, (n, 3, 1, 1)).astype(np.float32))
        return exposure * (1 + slope * self._ramp(n)) * tint

    def _flash(self, light: Tensor) -> Tensor:
        """Glare of a flash: a hot spot many times brighter than white, and a faint veil."""
        n = len(light)
        axis = torch.arange(IMAGE_SIZE, dtype=torch.float32)
        row, column = (self._uniform(n, 4, IMAGE_SIZE - 4).view(n, 1, 1, 1) for _ in range(2))
        distance = (axis.view(1, 1, -1, 1) - row) ** 2 + (axis.view(1, 1, 1, -1) - column) ** 2
        radius = self._uniform(n, 2.5, 6.0).view(n, 1, 1, 1)
        peak = torch.exp(self._uniform(n, math.log(12.0), math.log(80.0))).view(n, 1, 1, 1)
        return light + peak * torch.exp(-distance / (2 * radius**2)) + 0.002 * peak

    def _photograph(self, light: Tensor, night: Tensor) -> camera.Planes:
        n = len(light)
        codes = camera.respond(light)
        sigma = self._uniform(n, *self.difficulty.noise) * self.shift.noise
        sigma = torch.where(night, sigma.clamp(max=3.0 * self.shift.noise), sigma)
        half = IMAGE_SIZE // 2
        luma = torch.from_numpy(self.rng.standard_normal((n, IMAGE_SIZE, IMAGE_SIZE), np.float32))
        chroma = torch.from_numpy(self.rng.standard_normal((n, 2, half, half), np.float32))
        planes = camera.expose(
            codes, luma * sigma.view(n, 1, 1), chroma * (sigma / 2).view(n, 1, 1, 1)
        )
        if self.shift.gray:
            planes.chroma.zero_()
        return planes
