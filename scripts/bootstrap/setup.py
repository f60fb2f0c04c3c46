"""Setting up: make `.venv`, install PyTorch first and alone, then the rest; the stamp comes last.

Every step can be repeated: a setup that stopped half-way continues where it was.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import fingerprint, pins
from .environment import EXTRAS, ROOT, Environment, ask, child_variables, requirements, stamp
from .pip import NetworkError, NoVersionError, SetupError, install

NEED_GB = 3.0  # on Linux 1.8 GB of libraries, and what pip unpacks on the way
NEED_GB_WITH_TORCH = 1.0
NEED_GB_CUDA = 8.0
LOADS = """
import torch, numpy, onnx, onnxruntime, onnxscript, matplotlib, safetensors, tqdm, PIL
import jupyterlab, ipywidgets, nbval, nbclient, pathlib, sys, ptq_course
place = pathlib.Path(ptq_course.__file__).resolve().parents[1]
assert place == pathlib.Path(sys.argv[1]).resolve(), f"ptq_course is taken from {place}"
"""
# Prints where libraries live if all that is wanted (the arguments) is there, else fails.
SATISFIED = """
import sys, sysconfig
from importlib import metadata
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
for wanted in map(Requirement, sys.argv[1:]):
    assert wanted.specifier.contains(metadata.version(wanted.name), prereleases=True), wanted
print(sysconfig.get_path("purelib"))
"""
LIBRARY_FOLDERS = ("lib/python*/site-packages", "Lib/site-packages")
POINTER = "ptq_course_place.pth"  # where the course lies, if pip could not be asked to say so
# JupyterLab would ask on its first screen whether to fetch news; the course needs no network.
LAB_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "checkForUpdates": False,
        "doNotDisturbMode": False,
        "fetchNews": "false",
    }
}


def torch_arguments() -> list[str]:
    """PyTorch alone, or pip would ask PyTorch's own index for every one of its dependencies."""
    index = ["--extra-index-url", pins.TORCH_INDEX]
    return ["--no-deps", "--retries", "1", *index, f"torch=={pins.TORCH}"]


def rest_arguments() -> list[str]:
    """Everything else, from pyproject.toml; finds PyTorch already there."""
    return ["-e", f".[{EXTRAS}]"]


def install_rest(environment: Environment, latest: bool, patient: bool) -> None:
    """Everything but PyTorch, in the versions that the notebooks were executed with.

    With these their outputs can be compared digit by digit. Where one of them has no build for this
    system, and with `latest`, pip takes the newest versions that pyproject.toml allows.
    """
    versions = {} if latest else fingerprint.library_versions()
    if versions:
        lines = [f"{name}=={version}" for name, version in sorted(versions.items())]
        file = write_list(environment, "constraints.txt", lines)
        try:
            install(environment, ["-c", file, *rest_arguments()], patient=patient)
            return
        except NoVersionError:
            say("not all of the versions that the notebooks were made with exist for this system;")
            say("taking the newest that pyproject.toml allows: outputs are not compared then")
    install(environment, rest_arguments(), patient=patient)


def install_once_more(environment: Environment) -> None:
    """The same versions again over what is there, which repairs a damaged file.

    Not by the list of pyproject.toml: pip would then take PyTorch, and with it CUDA, once more too.
    """
    own = [word for name in ("torch", "ptq-course", "pip") for word in ("--exclude", name)]
    listed = ask(environment, "-m", "pip", "list", "--format=freeze", *own) or ""
    if lines := [line for line in listed.splitlines() if "==" in line]:
        file = write_list(environment, "installed.txt", lines)
        install(environment, ["--force-reinstall", "--no-deps", "-r", file])


def write_list(environment: Environment, name: str, lines: list[str]) -> str:
    """A file for pip in the environment's folder; returns its place."""
    file = environment.folder / name
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(file)


def setup(environment: Environment, again: bool = False, latest: bool = False) -> None:
    """Bring the environment to what pyproject.toml asks for; where complete, do nothing.

    Where the index cannot be reached and everything needed is there (the folder was moved, or an
    update asks for other versions), the course starts with what there is, and a later start asks
    again. `again` repeats every step and installs over what is there.
    """
    if not environment.managed or (environment.complete and not (again or latest)):
        return
    start = time.monotonic()
    check_disk(environment)
    environment.stamp_file.unlink(missing_ok=True)
    make_venv(environment)
    libraries = None if again or latest else where_all_is_there(environment)
    try:
        install_all(environment, again, latest, patient=libraries is None)
    except NetworkError as problem:
        if libraries is None or not loads_from_here(environment, libraries):
            raise
        say(f"note: {str(problem).partition('. ')[0]}.")
        say("What is installed serves: going on with it. Connected, the next start completes it.")
        return
    say("do they load?")
    check_loads(environment)
    write_lab_settings(environment)
    environment.stamp_file.write_text(stamp(environment), encoding="utf-8")
    say(f"done in {time.monotonic() - start:.0f} s")


def install_all(environment: Environment, again: bool, latest: bool, patient: bool) -> None:
    """PyTorch first and alone, then the other libraries and the course itself.

    Not `patient` with an index that does not answer, where it can be done without.
    """
    say(f"PyTorch {pins.TORCH}, the large one (about 200 MB, the build without CUDA)")
    once_more = ["--force-reinstall"] if again else []
    install(environment, [*once_more, *torch_arguments()], progress=True)
    check_build(environment)
    say("the other libraries, as pyproject.toml lists them")
    install_rest(environment, latest, patient)
    if again:
        say("once more what was there already, in case a file of it is damaged")
        install_once_more(environment)
    for libraries in LIBRARY_FOLDERS:
        for pointer in environment.folder.glob(f"{libraries}/{POINTER}"):
            pointer.unlink()  # pip itself has now said where the course lies


def where_all_is_there(environment: Environment) -> Path | None:
    """The folder of the libraries if all that pyproject.toml asks for is in it, else None."""
    answer = ask(environment, "-c", SATISFIED, *requirements())
    return Path(answer.strip()) if answer else None


def loads_from_here(environment: Environment, libraries: Path) -> bool:
    """Point the environment to this folder without pip; whether everything loads then."""
    try:
        (libraries / POINTER).write_text(f"{ROOT}\n", encoding="utf-8")
        check_loads(environment)
    except (OSError, SetupError):
        return False
    return True


def say(text: str) -> None:
    """One line of progress, in order with what pip prints."""
    print(f"[setup] {text}", flush=True)


def free_gb(folder: object = ROOT) -> float:
    """Free space on the disk of a folder, in GB of 10^9 bytes."""
    return shutil.disk_usage(str(folder)).free / 1e9


def needed_gb(environment: Environment) -> float:
    """Free space that a setup wants before it starts, in GB."""
    return NEED_GB if torch_build(environment) is None else NEED_GB_WITH_TORCH


def torch_build(environment: Environment) -> str | None:
    """The full version of an installed PyTorch, such as "2.13.0+cpu"; None where there is none."""
    for folder in LIBRARY_FOLDERS:
        for file in environment.folder.glob(f"{folder}/torch/version.py"):
            found = re.search(r"__version__ = ['\"](.+?)['\"]", file.read_text(encoding="utf-8"))
            return found.group(1) if found else "unknown"
    return None


def check_build(environment: Environment) -> None:
    """Notice where pip fell back on the CUDA build, whose dependencies are gigabytes."""
    build = torch_build(environment) or ""
    on_linux = sys.platform.startswith("linux") and pins.machine() == "x86_64"
    if not on_linux or "+cpu" in build:
        return
    say(f"note: PyTorch's own index did not answer and pip took the build {build!r}, made for")
    say(f"GPUs: it works, but its other libraries take about {NEED_GB_CUDA:.0f} GB")
    if free_gb() < NEED_GB_CUDA:
        raise SetupError(
            f"The disk has {free_gb():.1f} GB free, too little for that. Delete .venv\n"
            f"and run this command again where {pins.TORCH_INDEX} answers."
        )


def check_disk(environment: Environment) -> None:
    """Stop before the first download where it would fill the disk."""
    free, needed = free_gb(), needed_gb(environment)
    if free < needed:
        raise SetupError(
            f"The disk of this folder has {free:.1f} GB free; the setup needs {needed:.0f} GB.\n"
            "Make room (or move the folder to a larger disk) and run the same command again."
        )


def make_venv(environment: Environment) -> None:
    """Make `.venv`, keep one that works, make anew one whose Python is gone or unfit."""
    if environment.usable and ask(environment, "-m", "pip", "--version", late="not known"):
        return  # also where a busy machine gave no answer in time: nothing is thrown away for that
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            "This Python comes without `venv`. On Debian or Ubuntu install it with\n"
            f"    sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv\n"
            "and run the same command again."
        )
    state = "made anew (its Python is gone or unfit)" if environment.folder.exists() else "made"
    say(f"the environment .venv is {state}, with Python {sys.version.split()[0]}")
    command = [sys.executable, "-m", "venv", "--clear", str(environment.folder)]
    made = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    if made.returncode or not environment.usable:
        reason = (made.stderr or made.stdout).strip()
        raise SetupError(f"The environment {environment.folder} could not be made:\n{reason}")


def check_loads(environment: Environment) -> None:
    """Import the libraries once, so that a broken one is found here and not in a lesson."""
    loaded = subprocess.run(
        [str(environment.python), "-c", LOADS, str(ROOT)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=environment.folder,  # not here, where the package would be found without any setup
        env=child_variables(environment),
    )
    if loaded.returncode == 0:
        return
    reason = (loaded.stderr.strip().splitlines() or ["no reason given"])[-1]
    remedy = "Run `python course.py setup --again`; if it stays, delete .venv and run setup."
    if "DLL" in reason or "WinError" in reason:
        remedy = "Install the Microsoft Visual C++ Redistributable (x64), then run setup again."
    raise SetupError(f"A library was installed but does not load: {reason}\n{remedy}")


def write_lab_settings(environment: Environment) -> None:
    """JupyterLab's defaults for this environment only."""
    file = environment.folder / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(LAB_SETTINGS, indent=2), encoding="utf-8")
