"""Knobs of the generator: how hard the pictures are, and how a deployment may differ."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difficulty:
    """Ranges that one picture's parameters are drawn from."""

    size: tuple[float, float] = (0.5, 0.95)  # side of the emoji over the side of the picture
    rotation: float = 30.0  # degrees, both ways
    stretch: float = 0.2  # log of the aspect ratio, both ways
    shift: float = 0.18  # of the picture's side, both ways
    hue: float = 30.0  # degrees, both ways
    saturation: tuple[float, float] = (0.3, 1.3)
    exposure: tuple[float, float] = (0.6, 1.4)
    texture: tuple[float, float] = (0.1, 0.45)  # contrast of the background
    occlusion: float = 0.5  # share of pictures with a bar across them
    occluder: tuple[float, float] = (0.1, 0.3)  # width of that bar over the picture's side
    clutter: float = 0.4  # share of pictures with a piece of another emoji in them
    noise: tuple[float, float] = (2.0, 8.0)  # standard deviation, in byte values


DIFFICULTIES: dict[str, Difficulty] = {
    "easy": Difficulty(
        size=(0.7, 0.95),
        rotation=15.0,
        shift=0.08,
        hue=10.0,
        occlusion=0.0,
        clutter=0.0,
        noise=(1, 3),
    ),
    "standard": Difficulty(),
    "hard": Difficulty(
        size=(0.4, 0.9),
        rotation=60.0,
        stretch=0.3,
        shift=0.25,
        saturation=(0.1, 1.3),
        exposure=(0.4, 1.6),
        texture=(0.2, 0.7),
        occlusion=0.8,
        occluder=(0.15, 0.4),
        clutter=0.8,
        noise=(4.0, 12.0),
    ),
}

# Rare modes planted in every picture stream: share of the pictures.
RARE_MODES: dict[str, float] = {"flash": 0.025, "night": 0.02}


@dataclass(frozen=True)
class Shift:
    """How the pictures of a deployment differ from those of the training set."""

    gain: float = 1.0  # factor on the light
    noise: float = 1.0  # factor on the noise
    blur: float = 0.0  # standard deviation in pixels
    gray: bool = False
    flash: float | None = None  # share of flash pictures, instead of RARE_MODES
    skew: float = 0.0  # class k of a random order gets weight exp(-skew * k / classes)


SHIFTS: dict[str, Shift] = {
    "dark": Shift(gain=0.2),
    "bright": Shift(gain=3.0),
    "flash": Shift(flash=1.0),
    "noisy": Shift(noise=3.0),
    "blurred": Shift(blur=1.5),
    "grayscale": Shift(gray=True),
    "class-skewed": Shift(skew=12.0),
}
