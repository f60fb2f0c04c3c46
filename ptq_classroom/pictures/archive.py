"""Splits and atlas as files: .npz archives whose bytes depend on nothing but the arrays."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch

from ptq_classroom.pictures.camera import Planes


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed .npz without the time of day that numpy.savez stamps into it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, buffer.getvalue(), zipfile.ZIP_DEFLATED, 9)


def pack(planes: Planes) -> dict[str, np.ndarray]:
    """Stored planes as differences to the left neighbour, uint8 modulo 256, to compress better."""
    arrays = {"luma": planes.luma.numpy(), "chroma": planes.chroma.numpy().view(np.uint8)}
    return {name: np.diff(array, axis=-1, prepend=np.uint8(0)) for name, array in arrays.items()}


def unpack(luma: np.ndarray, chroma: np.ndarray) -> Planes:
    """The inverse of `pack`, exact on every machine."""
    sums = [np.cumsum(array, axis=-1, dtype=np.uint8) for array in (luma, chroma)]
    return Planes(torch.from_numpy(sums[0]), torch.from_numpy(sums[1].view(np.int8)))
