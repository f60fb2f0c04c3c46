"""Where the course's libraries live, and whether they are complete.

Usually that is `.venv` beside course.py, made by `setup`. Inside an environment that already has
the course installed (conda, Binder and JupyterHub make one from environment.yml) that one is used
and never changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import pins

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = "test"  # one installation serves both commands
# The threads of GNU OpenMP spin while they wait, which beside other busy programs makes both many
# times slower (measured: 0.5 s became 132 s); a short spin costs a tenth on an idle machine.
SPIN_COUNT = "1000"


@dataclass(frozen=True)
class Environment:
    """An environment of Python: its folder, and whether `setup` may write to it."""

    folder: Path
    managed: bool

    @property
    def python(self) -> Path:
        """The environment's interpreter (for one that is not managed: the running one)."""
        if not self.managed:
            return Path(sys.executable)
        if os.name == "nt":
            return self.folder / "Scripts" / "python.exe"
        return self.folder / "bin" / "python"

    @property
    def stamp_file(self) -> Path:
        """Written when a setup is complete, and not before."""
        return self.folder / "ptq-course.stamp"

    @property
    def version(self) -> tuple[int, int] | None:
        """The (major, minor) of its Python by the environment's own record; None without one."""
        try:
            lines = (self.folder / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        pairs = dict(line.replace(" ", "").split("=", 1) for line in lines if "=" in line)
        parts = (pairs.get("version") or pairs.get("version_info") or "").split(".")
        return (int(parts[0]), int(parts[1])) if len(parts) > 1 else None

    @property
    def usable(self) -> bool:
        """Whether its interpreter is there and is one that serves."""
        return self.python.exists() and self.version is not None and pins.serves(self.version)

    @property
    def complete(self) -> bool:
        """Whether the last setup ended well and nothing that it depends on has changed since."""
        if not self.managed:
            return True
        try:
            return self.usable and self.stamp_file.read_text(encoding="utf-8") == stamp(self)
        except OSError:
            return False


def stamp(environment: Environment) -> str:
    """A hash of what a setup depends on: dependencies, pins, Python, and the folder's place.

    The place counts because an editable installation points to it: a moved folder is set up again.
    """
    root = environment.folder.parent
    executed_with = root / "notebooks" / "fingerprint.json"
    parts = [
        hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest(),
        executed_with.read_text(encoding="utf-8") if executed_with.exists() else "",
        pins.TORCH,
        pins.TORCH_INDEX,
        EXTRAS,
        str(environment.version),
        str(root),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def requirements() -> list[str]:
    """What pyproject.toml asks for, with the set-up's extras and those that they name in turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted, extras = list(project["dependencies"]), [EXTRAS]
    while extras:
        for text in project["optional-dependencies"][extras.pop()]:
            if own := re.fullmatch(r"ptq-course\[(.+)\]", text):
                extras += own.group(1).split(",")
            else:
                wanted.append(text)
    return wanted


def installed_here(root: Path = ROOT) -> bool:
    """Whether the running interpreter's own environment has this very folder installed."""
    site = sysconfig.get_path("purelib")
    for distribution in metadata.distributions(name="ptq-course", path=[site]):
        recorded = json.loads(distribution.read_text("direct_url.json") or "{}")
        if recorded.get("url") == root.as_uri():
            return True
    return False


def current(root: Path = ROOT) -> Environment:
    """The environment that the course uses, whether or not it is complete."""
    own = root / ".venv"
    inside_own = Path(sys.prefix).resolve() == own.resolve()
    if not inside_own and installed_here(root):
        return Environment(Path(sys.prefix), managed=False)
    return Environment(own, managed=True)


def child_variables(environment: Environment) -> dict[str, str]:
    """Variables for programs of this environment: its own kernel and programs come first.

    UTF-8 everywhere, as Windows would print and read in a code page; threads that wait do not spin.
    """
    variables = {"GOMP_SPINCOUNT": SPIN_COUNT, "PYTHONUTF8": "1", **os.environ}
    for name in ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__"):
        variables.pop(name, None)
    variables["JUPYTER_PREFER_ENV_PATH"] = "1"
    kernels = [str(environment.folder / "share" / "jupyter"), variables.get("JUPYTER_PATH", "")]
    variables["JUPYTER_PATH"] = os.pathsep.join(filter(None, kernels))
    programs = [str(environment.python.parent), variables.get("PATH", "")]
    variables["PATH"] = os.pathsep.join(filter(None, programs))
    return variables


def ask(environment: Environment, *arguments: str, late: str | None = None) -> str | None:
    """What this environment's Python prints for these arguments, or None where it fails.

    `late` where it has not answered after two minutes: a busy machine, not a broken environment.
    """
    try:
        answer = subprocess.run(
            [str(environment.python), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=120,
            cwd=ROOT,
            env=child_variables(environment),
        )
    except subprocess.TimeoutExpired:
        return late
    except OSError:
        return None
    return answer.stdout if answer.returncode == 0 else None
