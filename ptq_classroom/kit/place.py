"""Where the course lies: its data and notebooks belong to the repository, not to the wheel."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "PTQ_COURSE"
REMEDY = (
    "an installation from a wheel has neither data/ nor notebooks/: clone the repository of the "
    f"course and work in its folder, or set {VARIABLE} to that folder"
)


def course_folder() -> Path:
    """The folder that holds data/ and notebooks/.

    The one that PTQ_COURSE names, else the one around this package, else the working folder or one
    above it. Where none is found, the one around this package: what is missing there is for the
    caller to say, with `REMEDY`.
    """
    around = Path(__file__).resolve().parents[2]
    if named := os.environ.get(VARIABLE):
        return Path(named).absolute()
    here = Path.cwd()
    return next((place for place in (around, here, *here.parents) if _is_it(place)), around)


def _is_it(place: Path) -> bool:
    return (place / "data" / "manifest.json").is_file() and (place / "notebooks").is_dir()
