"""Running pip, and saying in plain words why it failed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from . import pins
from .environment import ROOT, Environment, child_variables

_SPACE = ("no space left on device", "errno 28", "not enough space on the disk", "disk quota")
_CERTIFICATE = ("certificate_verify_failed", "certificate verify failed", "sslerror")
_NETWORK = (
    "name resolution",
    "getaddrinfo",
    "nodename nor servname",
    "failed to establish a new connection",
    "network is unreachable",
    "connection refused",
    "connection reset",
    "connecttimeout",
    "connection timed out",
    "read timed out",
    "proxyerror",
    "max retries exceeded",
    "incompleteread",
    "connection broken",
    "remotedisconnected",
)
_NO_WHEEL = ("no matching distribution found", "could not find a version")
_CONFLICT = ("resolutionimpossible", "conflicting dependencies")
_LONG_PATH = ("long path support", "winerror 206", "filename or extension is too long")
_AGAIN = "Then run the same command again: it continues where it stopped."


_LARGE = re.compile(r"^\s*Downloading .*\([\d.]+ [MG]B\)")


class SetupError(Exception):
    """A setup that cannot go on; its text says why and what to do."""


class NetworkError(SetupError):
    """The package index could not be reached, or not trusted."""


class NoVersionError(SetupError):
    """No build of a wanted version fits this system, or the versions exclude one another."""


def install(
    environment: Environment,
    arguments: list[str],
    progress: bool = False,
    patient: bool = True,
) -> None:
    """Run `pip install` in the environment."""
    work(environment, ["install", *arguments], progress, patient)


def wheels(
    environment: Environment, arguments: list[str], folder: Path, progress: bool = False
) -> None:
    """Run `pip wheel`: what `install` would fetch, built where it has to be, goes into `folder`."""
    work(environment, ["wheel", "--wheel-dir", str(folder), *arguments], progress, patient=True)


def work(environment: Environment, words: list[str], progress: bool, patient: bool) -> None:
    """Run one command of pip in the environment; all that it says goes to `.venv/setup.log`.

    On the terminal: pip's own progress where asked for (for one large download), otherwise a line
    for each download of a megabyte and more. Not `patient`: an index that does not answer is asked
    twice, not six times. Raises SetupError, with the cause in plain words, where pip fails.
    """
    command = [str(environment.python), "-m", "pip", *words]
    variables = child_variables(environment)
    variables.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_USER="0", PYTHONUNBUFFERED="1")
    # By a variable, which pip's own helpers hear of as well. Never 0: why an index was not reached
    # pip says only when it tries again; without, it says that there is no such version.
    wanted = variables.get("PIP_RETRIES", "5") if patient else "1"
    variables["PIP_RETRIES"] = "1" if wanted == "0" else wanted
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdout=None if progress else subprocess.PIPE,
        stderr=subprocess.PIPE if progress else subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    said = []
    with running, open(environment.folder / "setup.log", "a", encoding="utf-8") as log:
        for line in (running.stderr if progress else running.stdout) or ():
            log.write(line)
            said.append(line)
            if _LARGE.search(line):
                print("        " + line.strip(), flush=True)
            if line.startswith("Installing collected packages:"):
                print(f"        installing {line.count(',') + 1} of them", flush=True)
    if running.returncode:
        complaints = "".join(said)
        raise _kind(complaints)(explain(complaints, words))


def _kind(complaints: str) -> type[SetupError]:
    text = complaints.lower()
    if any(sign in text for sign in _SPACE):
        return SetupError
    if any(sign in text for sign in (*_CERTIFICATE, *_NETWORK)):
        return NetworkError  # pip then also says that it found no version
    return NoVersionError if any(sign in text for sign in (*_NO_WHEEL, *_CONFLICT)) else SetupError


def explain(complaints: str, arguments: list[str]) -> str:
    """What pip's messages mean for a student, and the remedy."""
    text = complaints.lower()
    if any(sign in text for sign in _SPACE):
        return (
            "The disk is full (pip also unpacks into the system's temporary folder).\n"
            f"Make room, or point TMPDIR (on Windows TEMP) to a larger disk. {_AGAIN}"
        )
    if any(sign in text for sign in _LONG_PATH):
        return (
            "Windows refused a path of more than 260 characters. Move the course to a folder with\n"
            'a short path, such as C:\\ptq, or enable long paths (search "Windows long paths").\n'
            f"{_AGAIN}"
        )
    if any(sign in text for sign in _CERTIFICATE):
        return (
            "A certificate was not accepted: usual behind the proxy of a school or company.\n"
            "Ask for its certificate file and point PIP_CERT to it, or use another network.\n"
            f"{_AGAIN}"
        )
    if any(sign in text for sign in _NETWORK):
        return (
            "The package index could not be reached. Check the network (and HTTPS_PROXY, where\n"
            f"a proxy is needed); the setup is the only step that needs it. {_AGAIN}"
        )
    if any(sign in text for sign in _NO_WHEEL):
        return (
            f"No build of {arguments[-1]!r} fits this system and Python {sys.version.split()[0]}.\n"
            f"The course runs on 64-bit CPython {pins.named(pins.PYTHONS)} on Linux\n"
            "(glibc 2.28 or newer), Apple-silicon Macs and Windows; elsewhere use a hub (README)."
        )
    errors = [line.strip() for line in complaints.splitlines() if "error" in line.lower()]
    last = errors or [line.strip() for line in complaints.splitlines() if line.strip()]
    reason = "\n".join(f"    {line}" for line in last[-3:])
    return f"pip failed (all that it said is in .venv/setup.log):\n{reason}\n{_AGAIN}"
