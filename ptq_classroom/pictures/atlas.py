"""The emoji atlas as the generator wants it: linear light, premultiplied by its coverage."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.pictures.classes import CLASS_NAMES
from ptq_classroom.pictures.integrity import verified


@lru_cache(maxsize=1)
def load_atlas() -> Tensor:
    """float32 [classes, 4, 48, 48]: red, green, blue in linear light times alpha, and alpha."""
    with np.load(verified("emoji_atlas.npz")) as archive:
        images, names = archive["images"], archive["names"].tolist()
    if names != CLASS_NAMES:
        raise ValueError("emoji_atlas.npz and classes.py disagree; run scripts/make_atlas.py again")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    light = torch.cat([pixels[:, :3] ** 2 * pixels[:, 3:], pixels[:, 3:]], 1)
    return torch.nn.functional.avg_pool2d(light, 2)
