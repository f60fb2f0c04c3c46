"""The commands of course.py: lab, test, progress, site, doctor, setup, bundle."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

from . import bundle as packed
from .environment import EXTRAS, ROOT, Environment, child_variables, current
from .pip import SetupError
from .setup import KERNEL_START, setup
from .words import fitted, meant

NOTEBOOKS = ROOT / "notebooks"
COPY = ROOT / "my_course"
COPIER = ROOT / "ptq_classroom" / "kit" / "learner_copy.py"
# Options of pytest and its plugins whose value may stand apart and is no place to look for tests.
TAKE_A_VALUE = {
    "-c", "-k", "-m", "-n", "-o", "-p", "-r", "-W", "--basetemp", "--capture", "--color",
    "--confcutdir", "--deselect", "--dist", "--durations", "--durations-min", "--ignore",
    "--ignore-glob", "--import-mode", "--junitxml", "--junit-xml", "--log-level", "--maxfail",
    "--override-ini", "--rootdir", "--tb", "--verbosity", "--nbval-cell-timeout",
    "--nbval-kernel-name", "--nbval-sanitize-with",
}  # fmt: skip


HELP = {
    "lab": """\
python course.py lab [--from BUNDLE] [JupyterLab's arguments]

Sets up what is missing, brings my_course/ up to date without touching what you
wrote there, and opens chapter 00 in JupyterLab. What follows `lab` goes on to
JupyterLab:

    python course.py lab --no-browser --port 8899

    --from BUNDLE   set up without a network, from the folder that
                    `python course.py bundle` made (`test` and `setup` take
                    it too)

All of JupyterLab's own options: python course.py lab --help-all
""",
    "test": """\
python course.py test [pytest's arguments]

Sets up what is missing and runs every test, then every notebook. What follows
`test` goes on to pytest: options alone still run everything, a place runs what
is there:

    python course.py test -x -n 0          one process instead of two
    python course.py test notebooks/03_kl_calibration.ipynb

All of pytest's own options: .venv/bin/python -m pytest --help
""",
    "progress": """\
python course.py progress

Says which exercises are passed, chapter by chapter. Counted is what a passed
check has put into my_course/my_ptq.py.
""",
    "site": """\
python course.py site [OUT]

Builds the course as a web page into the folder OUT (default: build/site):
chapters with their outputs, glossary, reference, search. Open its index.html,
or put the folder on any web server; it loads nothing from the network. The
first build fetches MathJax and the widgets' script from npm's registry (11 MB);
without a network it is built without them and says so.
""",
    "doctor": """\
python course.py doctor

Says what is installed, what is missing, what this processor can do and what
stands in the way of the course. Changes nothing.
""",
    "setup": """\
python course.py setup [--again] [--latest] [--from BUNDLE]

Makes .venv beside course.py with all libraries, in the versions that the
notebooks were executed with; where everything is there it does nothing.

    --again   repeat every step and install over what is there, which repairs
              a damaged library
    --latest  take the newest versions that pyproject.toml allows
    --from    take the libraries from a bundle, without a network
""",
    "bundle": """\
python course.py bundle FOLDER

For a room without internet: fetches all libraries into FOLDER once, together
with the course, so that every machine there sets itself up from it:

    python course.py lab --from FOLDER

A bundle serves machines of the kind it was made on (system, processor, version
of Python). Run it once on each kind of machine, with the same FOLDER.
""",
}
TAKE_A_BUNDLE = ("lab", "test", "setup")
OPTIONS = {"setup": ("--again", "--latest"), "doctor": (), "progress": ()}


def run(arguments: list[str], help_text: str) -> int:
    """Carry out one command; returns the exit status."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if name in ("help", "-h", "--help"):
        name, rest = (rest[0], ["--help"]) if rest else ("", [])
        if not name:
            print(help_text.strip())
            return 0
    commands = {
        "lab": lab,
        "test": test,
        "progress": progress,
        "site": site,
        "doctor": doctor,
        "setup": set_up,
        "bundle": bundle,
    }
    if name not in commands:
        refuse(f"course.py does not know {name!r}.{meant(name, commands)}\n\n{help_text.strip()}")
        return 2
    if rest[:1] in (["--help"], ["-h"]):
        print(HELP[name].strip())
        return 0
    if name in TAKE_A_BUNDLE:
        rest, source = without_bundle(rest)
        if source == "":
            refuse(f"--from wants the folder of a bundle.\n\n{HELP[name].strip()}")
            return 2
    else:
        source = None
    known = OPTIONS.get(name)
    if known is not None and (unknown := [word for word in rest if word not in known]):
        guess = meant(unknown[0], known)
        refuse(f"{name} does not know {' '.join(unknown)}.{guess}\n\n{HELP[name].strip()}")
        return 2
    try:
        if source and not current().complete:
            os.environ.update(packed.variables(Path(source)))
        return commands[name](rest)
    except SetupError as problem:
        refuse(f"\n{problem}")
        return 1
    except KeyboardInterrupt:
        refuse("\nStopped. Run the same command again: it continues where it was.")
        return 130


def without_bundle(arguments: list[str]) -> tuple[list[str], str | None]:
    """The arguments without `--from FOLDER`, and that folder ("" where none follows), or None."""
    for place, word in enumerate(arguments):
        if word == "--from":
            folder = "".join(arguments[place + 1 : place + 2])
            return [*arguments[:place], *arguments[place + 2 :]], folder
        if word.startswith("--from="):
            return [*arguments[:place], *arguments[place + 1 :]], word.removeprefix("--from=")
    return arguments, None


def refuse(text: str) -> None:
    """Say on stderr why it does not go on."""
    print(fitted(text), file=sys.stderr)


def set_up(arguments: list[str]) -> int:
    """`setup [--again] [--latest]`"""
    environment = current()
    if not environment.managed:
        text = f"The active environment ({environment.folder}) has the course installed and is "
        text += f'used as it is. To bring it up to date: python -m pip install -e ".[{EXTRAS}]"'
        print(fitted(text))
        return 0
    setup(environment, again="--again" in arguments, latest="--latest" in arguments)
    print("Everything is in place. Next: python course.py lab")
    return 0


def bundle(arguments: list[str]) -> int:
    """`bundle FOLDER`"""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        refuse(f"bundle wants one folder.\n\n{HELP['bundle'].strip()}")
        return 2
    packed.make(current(), Path(arguments[0]))
    return 0


def progress(arguments: list[str]) -> int:
    """`progress`"""
    from .progress import show

    return show()


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
        return [*places, "--notebooks", *at_once(arguments), *arguments]
    chosen = {"--notebooks", "--nbval", "--nbval-lax"} & {*arguments}
    if not chosen and any(map(is_notebook, places)):
        return ["--notebooks", *arguments]
    return arguments


def at_once(arguments: list[str]) -> list[str]:
    """pytest-xdist's options for two processes, unless the arguments or the machine forbid it.

    A file stays in one process, because a notebook's cells share a kernel; more than two processes
    would not fit the memory of a small laptop.
    """
    alone = ("-n", "--numprocesses", "--dist", "-s", "--capture", "--pdb", "--trace")
    if (os.cpu_count() or 1) < 2 or any(word.startswith(alone) for word in arguments):
        return []
    return ["-n", "2", "--dist", "loadfile"]


def is_notebook(place: str) -> bool:
    """Whether a place of pytest's is a notebook, a cell of one, or in their folder."""
    path = Path(place.split("::")[0])
    return path.suffix == ".ipynb" or NOTEBOOKS in (ROOT / path, *(ROOT / path).parents)


def site(arguments: list[str]) -> int:
    """`site [OUT]`"""
    if len(arguments) > 1 or any(word.startswith("-") for word in arguments):
        refuse(f"site takes one folder, found {' '.join(arguments)}.\n\n{HELP['site'].strip()}")
        return 2
    out = [str(Path(word).resolve()) for word in arguments]  # what runs next leaves this folder
    return hand_over(ready(), [str(ROOT / "scripts" / "build_site.py"), *out])


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
