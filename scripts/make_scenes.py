"""Draw the detector's scenes, data/scenes_test.npz and data/scenes_calibration.npz, and list them.

Run by a maintainer; the files ship as bytes, because the same seed may give a few other bytes on
another processor.

    python scripts/make_scenes.py            # write
    python scripts/make_scenes.py --check    # draw again, compare with what ships, write nothing
"""

import argparse
import hashlib

import numpy as np
import torch

from ptq_classroom.pictures import archive
from ptq_classroom.pictures.camera import Planes
from ptq_classroom.pictures.detection import DETECTED, SceneGenerator, Scenes
from ptq_classroom.pictures.integrity import DATA, read_manifest, record

SPLITS = {"scenes_test": (300, 2_000_011), "scenes_calibration": (100, 2_000_012)}  # scenes, seed


def digest(scenes: Scenes) -> str:
    """SHA-256 of the pixels."""
    return hashlib.sha256(scenes.images.numpy().tobytes()).hexdigest()


def stored(scenes: Scenes, planes: Planes) -> dict[str, np.ndarray]:
    """The arrays of the file; boxes are whole pixels, counts say how many each scene has."""
    return {
        **archive.pack(planes),
        "boxes": scenes.boxes.numpy().astype(np.uint8),
        "labels": scenes.labels.numpy().astype(np.uint8),
        "counts": torch.bincount(scenes.scene, minlength=len(scenes)).numpy().astype(np.uint8),
    }


def main() -> None:
    """Write the scenes, or compare them with what ships."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    arguments = parser.parse_args()
    for name, (count, seed) in SPLITS.items():
        scenes, planes = SceneGenerator(seed).draw(count)
        if arguments.check:
            same = digest(scenes) == read_manifest()["files"][f"{name}.npz"]["pixels_sha256"]
            print(f"{name}: drawn again, {'the same' if same else 'other'} pictures")
            continue
        archive.save(DATA / f"{name}.npz", stored(scenes, planes))
        record(
            f"{name}.npz",
            licence="Apache-2.0",
            scenes=count,
            objects=len(scenes.labels),
            classes=len(DETECTED),
            seed=seed,
            pixels_sha256=digest(scenes),
            command="python scripts/make_scenes.py",
        )
        size = (DATA / f"{name}.npz").stat().st_size
        print(f"{name}: {count} scenes, {len(scenes.labels)} objects, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
