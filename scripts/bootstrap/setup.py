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

from . import fingerprint, pins
from .environment import EXTRAS, ROOT, Environment, ask, child_variables, stamp
from .pip import NoVersionError, SetupError, install

NEED_GB = 3.0  # on Linux 1.8 GB of libraries, and what pip unpacks on the way
NEED_GB_WITH_TORCH = 1.0
NEED_GB_CUDA = 8.0
LOADS = (
    "import torch, numpy, onnx, onnxruntime, matplotlib, jupyterlab, ipywidgets, nbval, nbclient"
)
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


def install_rest(environment: Environment, latest: bool = False) -> None:
    """Everything but PyTorch, in the versions that the notebooks were executed with.

    With these their outputs can be compared digit by digit. Where one of them has no build for this
    system, and with `latest`, pip takes the newest versions that pyproject.toml allows.
    """
    versions = {} if latest else fingerprint.library_versions()
    if versions:
        file = environment.folder / "constraints.txt"
        lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
        file.write_text("".join(lines), encoding="utf-8")
        try:
            install(environment, ["-c", str(file), *rest_arguments()])
            return
        except NoVersionError:
            say("not all of the versions that the notebooks were made with exist for this system;")
            say("taking the newest that pyproject.toml allows: outputs are not compared then")
    install(environment, rest_arguments())


def setup(environment: Environment, again: bool = False, latest: bool = False) -> None:
    """Bring the environment to what pyproject.toml asks for; where complete, do nothing."""
    if not environment.managed or (environment.complete and not again):
        return
    start = time.monotonic()
    check_disk(environment)
    environment.stamp_file.unlink(missing_ok=True)
    make_venv(environment)
    say(f"PyTorch {pins.TORCH}, the large one (about 200 MB, the build without CUDA)")
    install(environment, torch_arguments(), progress=True)
    check_build(environment)
    say("the other libraries, as pyproject.toml lists them")
    install_rest(environment, latest)
    say("do they load?")
    check_loads(environment)
    write_lab_settings(environment)
    environment.stamp_file.write_text(stamp(environment), encoding="utf-8")
    say(f"done in {time.monotonic() - start:.0f} s")


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
    for folder in ("lib/python*/site-packages", "Lib/site-packages"):
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
    if environment.usable and ask(environment, "-m", "pip", "--version"):
        return
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            "This Python comes without `venv`. On Debian or Ubuntu install it with\n"
            f"    sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv\n"
            "and run the same command again."
        )
    state = "made anew (its Python is gone or unfit)" if environment.folder.exists() else "made"
    say(f"the environment .venv is {state}, with Python {sys.version.split()[0]}")
    command = [sys.executable, "-m", "venv", "--clear", str(environment.folder)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode or not environment.usable:
        reason = (made.stderr or made.stdout).strip()
        raise SetupError(f"The environment {environment.folder} could not be made:\n{reason}")


def check_loads(environment: Environment) -> None:
    """Import the libraries once, so that a broken one is found here and not in a lesson."""
    command = [str(environment.python), "-c", LOADS]
    loaded = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=child_variables(environment)
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
