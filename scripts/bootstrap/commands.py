"""The commands of course.py: lab, test, doctor, setup."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from .environment import EXTRAS, ROOT, Environment, child_variables, current
from .pip import SetupError
from .setup import setup

NOTEBOOKS = ROOT / "notebooks"
COPY = ROOT / "my_course"
KERNEL_START = ROOT / "ptq_classroom" / "kit" / "kernel_start.py"
COPIER = ROOT / "ptq_classroom" / "kit" / "learner_copy.py"
# Options of pytest and its plugins whose value may stand apart and is no place to look for tests.
TAKE_A_VALUE = {
    "-c", "-k", "-m", "-n", "-o", "-p", "-r", "-W", "--basetemp", "--capture", "--color",
    "--confcutdir", "--deselect", "--dist", "--durations", "--durations-min", "--ignore",
    "--ignore-glob", "--import-mode", "--junitxml", "--junit-xml", "--log-level", "--maxfail",
    "--override-ini", "--rootdir", "--tb", "--verbosity", "--nbval-cell-timeout",
    "--nbval-kernel-name", "--nbval-sanitize-with",
}  # fmt: skip


def run(arguments: list[str], help_text: str) -> int:
    """Carry out one command; returns the exit status."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    commands = {"lab": lab, "test": test, "doctor": doctor, "setup": set_up}
    if name in ("help", "-h", "--help"):
        print(help_text.strip())
        return 0
    if name not in commands:
        print(f"course.py does not know {name!r}.\n\n{help_text.strip()}", file=sys.stderr)
        return 2
    try:
        return commands[name](rest)
    except SetupError as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again: it continues where it was.", file=sys.stderr)
        return 130


def set_up(arguments: list[str]) -> int:
    """`setup [--again] [--latest]`"""
    if unknown := [word for word in arguments if word not in ("--again", "--latest")]:
        print(
            f"setup does not know {' '.join(unknown)}; it takes only --again (once more) and\n"
            "--latest (libraries newer than those that the notebooks were executed with).",
            file=sys.stderr,
        )
        return 2
    environment = current()
    if not environment.managed:
        print(
            f"The active environment ({environment.folder}) has the course installed\n"
            f'and is used as it is. To bring it up to date: python -m pip install -e ".[{EXTRAS}]"'
        )
        return 0
    setup(environment, again="--again" in arguments, latest="--latest" in arguments)
    print("Everything is in place. Next: python course.py lab")
    return 0


def lab(arguments: list[str]) -> int:
    """`lab [JupyterLab's arguments]`"""
    environment = ready()
    if any(NOTEBOOKS.glob("*.ipynb")):
        refresh_copy()
    command = ["-m", "jupyterlab", f"--ServerApp.root_dir={ROOT}"]
    if first := next(iter(sorted(COPY.glob("00_*.ipynb"))), None):
        command.append(f"--LabApp.default_url=/lab/tree/{first.relative_to(ROOT).as_posix()}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # a container's only user; the server listens on localhost
    os.environ.setdefault("PYTHONSTARTUP", str(KERNEL_START))  # run by each kernel
    return hand_over(environment, [*command, *arguments])


def test(arguments: list[str]) -> int:
    """`test [pytest's arguments]`: where none names a place, all tests and then every notebook."""
    environment = ready()
    return hand_over(environment, ["-m", "pytest", *everything_unless(arguments)])


def everything_unless(arguments: list[str]) -> list[str]:
    """pytest's arguments: with everything where they name no place; notebooks are run as such."""
    after = [None, *arguments]
    places = [
        word
        for before, word in zip(after, arguments, strict=False)
        if not word.startswith("-") and before not in TAKE_A_VALUE
    ]
    if not places:
        places = ["tests", "notebooks"] if any(NOTEBOOKS.glob("*.ipynb")) else ["tests"]
        return [*places, "--notebooks", *arguments]
    chosen = {"--notebooks", "--nbval", "--nbval-lax"} & {*arguments}
    if not chosen and any(map(is_notebook, places)):
        return ["--notebooks", *arguments]
    return arguments


def is_notebook(place: str) -> bool:
    """Whether a place of pytest's is a notebook, a cell of one, or in their folder."""
    path = Path(place.split("::")[0])
    return path.suffix == ".ipynb" or NOTEBOOKS in (ROOT / path, *(ROOT / path).parents)


def doctor(arguments: list[str]) -> int:
    """`doctor`"""
    from .doctor import examine

    return examine(current())


def ready() -> Environment:
    """The environment of the course, set up where that is still to do."""
    environment = current()
    setup(environment)
    return environment


def refresh_copy() -> None:
    """Make or refresh the learner's copy, never overwriting what the learner wrote.

    The copier is standard library only and is loaded by its file: importing it by name would import
    the package, and PyTorch with it, for nothing.
    """
    try:
        done = runpy.run_path(str(COPIER))["make"](ROOT)
    except OSError as problem:
        raise SetupError(f"The learner's copy my_course/ could not be made: {problem}") from problem
    for line in done:
        print(f"[my_course] {line}")


def hand_over(environment: Environment, arguments: list[str]) -> int:
    """Let the environment's Python take this process's place (on Windows: run and wait)."""
    command = [str(environment.python), *arguments]
    variables = child_variables(environment)
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(ROOT)
    if os.name != "nt":
        os.execve(command[0], command, variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that now runs
    return subprocess.call(command, env=variables)
