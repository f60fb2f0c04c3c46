"""A wheelhouse for a room without internet: one download, then any number of set-ups from it.

OUT/wheels/       every library as a wheel; those of another kind of machine may lie beside them
OUT/bundle.json   the kinds of machine it serves, and the SHA-256 of each wheel
OUT/course.zip    the course itself
OUT/README.txt    what to do with it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from . import pins, setup
from .environment import ROOT, Environment, pyproject, requirements
from .pip import SetupError, wheels
from .words import fitted

LIST = "bundle.json"
NEED_GB = 1.5  # 0.8 GB of wheels on Linux, and what pip unpacks on the way
LEFT_OUT = {".git", ".venv", "my_course", "__pycache__", ".hypothesis", ".pytest_cache"}
README = """\
This folder sets up the PTQ course on machines without internet.

1. Unpack course.zip to a folder of your own, and open a terminal there.
2. python course.py lab --from "PATH OF THIS FOLDER"

(On Windows type py where it says python.) It serves:
{kinds}
On another kind of machine that has a network, run there
    python course.py bundle "PATH OF THIS FOLDER"
and it serves that kind too. After the first start the course needs neither this
folder nor a network: python course.py lab
"""


def kind() -> str:
    """This kind of machine: a wheel serves one system, processor family and Python."""
    system = {"win32": "Windows", "darwin": "macOS", "linux": "Linux"}.get(
        sys.platform, sys.platform
    )
    return f"{system} {pins.machine()}, Python {sys.version_info[0]}.{sys.version_info[1]}"


def make(environment: Environment, out: Path) -> None:
    """Fill `out` with all that a set-up on this kind of machine fetches; what is there is kept.

    Raises SetupError where the disk is too small, `out` lies in the course's own folder, or pip
    cannot fetch; a repeated call continues.
    """
    out = out.absolute()
    if out == ROOT or ROOT in out.parents:
        raise SetupError(
            f"{out} lies inside the course, which goes into the bundle itself. "
            "Name a folder outside of it, such as ../ptq-bundle."
        )
    try:
        (out / "wheels").mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SetupError(f"The folder {out} cannot be made: {problem}") from problem
    if setup.free_gb(out) < NEED_GB:
        raise SetupError(
            f"The disk of {out} has {setup.free_gb(out):.1f} GB free; {NEED_GB:g} GB are needed."
        )
    if environment.managed:
        setup.make_venv(environment)  # its pip fetches; nothing is installed
    fetch(environment, out / "wheels")
    say("the course itself")
    zip_course(out / "course.zip")
    kinds = sorted({kind(), *known(out).get("kinds", [])})
    files = {path.name: digest(path) for path in sorted((out / "wheels").glob("*.whl"))}
    text = json.dumps({"kinds": kinds, "wheels": files}, indent=1) + "\n"
    (out / "README.txt").write_text(
        README.format(kinds="".join(f"    {name}\n" for name in kinds)), encoding="utf-8"
    )
    partial = out / f"{LIST}.part"
    partial.write_text(text, encoding="utf-8")
    partial.replace(out / LIST)  # last: without it the bundle is not taken for complete
    size = sum(path.stat().st_size for path in (out / "wheels").glob("*.whl")) / 1e6
    say(f"{len(files)} wheels, {size:.0f} MB, for {'; '.join(kinds)}. Next, on each machine:")
    print(f'    python course.py lab --from "{out}"')


def fetch(environment: Environment, folder: Path) -> None:
    """Wheels of PyTorch, alone; then of all other libraries and what builds the course's entry."""
    say(f"PyTorch {pins.TORCH}, the large one")
    wheels(environment, setup.torch_arguments(), folder, progress=True)
    say("the other libraries, as pyproject.toml lists them")
    wanted = [*requirements(), *pyproject()["build-system"]["requires"], f"torch=={pins.TORCH}"]
    wanted = [text for text in wanted if not text.startswith("torch>")]
    here = ["--find-links", folder.as_uri()]  # finds that PyTorch, whose build without CUDA is
    constraints = setup.constraints(environment)  # a later version to pip than the one with it
    try:
        wheels(environment, [*constraints, *here, *wanted], folder)
    except setup.NoVersionError:
        if not constraints:
            raise
        say("not all recorded versions exist for this system; taking the newest that are allowed")
        wheels(environment, [*here, *wanted], folder)
    say("the sentence encoder of chapter 12 (about 80 MB)")
    wheels(environment, setup.encoder_arguments(), folder)


def zip_course(file: Path) -> None:
    """The files of the course: those that git tracks, or all but caches where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False,
    ) if (ROOT / ".git").exists() and shutil.which("git") else None  # fmt: skip
    if listed and listed.returncode == 0:
        names = [Path(os.fsdecode(name)) for name in listed.stdout.split(b"\0") if name]
    else:
        names = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        names = [name for name in names if not LEFT_OUT.intersection(name.parts)]
    partial = file.with_suffix(".part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(names):
            if (ROOT / name).is_file():
                archive.write(ROOT / name, Path("ptq-course", name).as_posix())
    partial.replace(file)


def variables(folder: Path) -> dict[str, str]:
    """What makes every pip of a set-up take its wheels from a bundle, and ask no index.

    Raises SetupError where `folder` is no bundle, serves other machines, or a wheel is damaged.
    """
    folder = folder.absolute()
    listed = known(folder)
    if not listed:
        raise SetupError(
            f"{folder} is no finished bundle: it has no readable {LIST}.\n"
            f'Make it with a network: python course.py bundle "{folder}"'
        )
    if kind() not in listed["kinds"]:
        raise SetupError(
            f"The bundle serves {'; '.join(listed['kinds'])}. This is {kind()}.\n"
            "Run `python course.py bundle` on a machine of this kind that has a network, with\n"
            "the same folder: what is in it stays."
        )
    say(f"the libraries come from {folder}; are its wheels whole?")
    for name, expected in listed["wheels"].items():
        path = folder / "wheels" / name
        if not path.is_file() or digest(path) != expected:
            raise SetupError(
                f"The bundle's {path} is {'damaged' if path.is_file() else 'missing'}. "
                "Copy the folder again."
            )
    # As an address: pip splits this variable at spaces, which a path may have.
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (folder / "wheels").as_uri()}


def known(folder: Path) -> dict[str, Any]:
    """What a bundle's list says; empty where there is none, or none that can be read."""
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
        fits = isinstance(listed["kinds"], list) and isinstance(listed["wheels"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return listed if fits else {}


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(text: str) -> None:
    """One piece of progress, in order with what pip prints."""
    print(fitted(text, before="[bundle] "), flush=True)
