"""The doctor: what is installed, what is missing and what this machine can do, in plain words."""

from __future__ import annotations

import json
import os
import re
import sys

from . import pins, processor
from .environment import EXTRAS, ROOT, Environment, ask, requirements
from .setup import free_gb, needed_gb
from .words import fitted

_PROBE = "import sys; sys.path.insert(0, sys.argv[1]); from bootstrap import probe; probe.main()"
_VERSIONS = """
import json, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def examine(environment: Environment) -> int:
    """Print the report; 1 where something stands in the way of the course, else 0."""
    obstacles: list[str] = []
    facts = json.loads(ask(environment, "-c", _PROBE, str(ROOT / "scripts")) or "{}")
    row("Python", f"{sys.version.split()[0]} (the course runs on {pins.named(pins.PYTHONS)})")
    if refusal := pins.refusal(sys.version_info[:2], sys.platform, pins.machine()):
        obstacles.append(refusal)
    about_environment(environment)
    about_libraries(environment, obstacles)
    about_disk(environment, obstacles)
    about_threads(facts)
    about_processor(processor.read(), facts)
    about_notebooks(facts)
    obstacles += [f"A check could not run: {text}" for text in facts.get("problems", [])]
    print()
    if obstacles:
        print("In the way:")
        for obstacle in obstacles:
            print(fitted(obstacle, before="- "))
        return 1
    print("Nothing stands in the way. Next: python course.py lab")
    return 0


def row(name: str, *lines: str) -> None:
    """One entry of the report: its name, then its lines under each other, as far as they fit."""
    print(fitted("\n".join(lines), before=f"{name:<14}"))


def about_environment(environment: Environment) -> None:
    """Which environment the course uses, and in what state it is."""
    if not environment.managed:
        row("Environment", f"the active one, {environment.folder}: the course is installed there")
    elif environment.complete:
        row("Environment", ".venv, complete")
    elif environment.folder.exists():
        row(
            "Environment", ".venv, unfinished or out of date: `python course.py setup` continues it"
        )
    else:
        text = "none yet: `python course.py setup` (or lab, or test) makes .venv, a download of "
        row("Environment", text + "about 600 MB")


def about_libraries(environment: Environment, obstacles: list[str]) -> None:
    """The version of each library, and which are missing."""
    names = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements()]
    answer = ask(environment, "-c", _VERSIONS, *names)
    versions = json.loads(answer) if answer else dict.fromkeys(names)
    present = [f"{name} {version}" for name, version in versions.items() if version]
    missing = [name for name, version in versions.items() if not version]
    row("Libraries", ", ".join(present) or "none yet")
    if missing:
        row("Missing", ", ".join(missing))
    if missing and (environment.complete or not environment.managed):
        remedy = "python course.py setup --again"
        if not environment.managed:
            remedy = f'python -m pip install -e ".[{EXTRAS}]"'
        obstacles.append(f"Libraries are missing: {', '.join(missing)}. Run: {remedy}")


def about_disk(environment: Environment, obstacles: list[str]) -> None:
    """Free space, against what the setup needs where it is still to do."""
    free = free_gb()
    if environment.complete:
        row("Disk", f"{free:.1f} GB free")
        return
    needed = needed_gb(environment)
    row("Disk", f"{free:.1f} GB free; the setup needs {needed:.0f} GB")
    if free < needed:
        obstacles.append(
            f"The disk is short by {needed - free:.1f} GB: make room before the setup."
        )


def about_threads(facts: dict) -> None:
    """Processors and memory that this program may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{usable} processors to compute with"
    if "torch" in facts:
        text += f"; PyTorch uses {facts['torch']['threads']} threads"
    if limit := os.environ.get("OMP_NUM_THREADS"):
        text += f" (OMP_NUM_THREADS={limit} is set)"
    row("Threads", text)
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
        row("Memory", f"{memory:.1f} GB")


def about_processor(chip: processor.Processor, facts: dict) -> None:
    """What the processor is, what that means for INT8, and what was measured."""
    row("Processor", chip.line(), processor.meaning(chip))
    if "torch" in facts:
        row("", f"Measured: PyTorch's INT8 matrix product is {share(facts['torch']['wrong'])}.")
    if "runtime" in facts:
        wrong = facts["runtime"]
        row("", f"Measured: ONNX Runtime's uint8 x int8 product is {share(wrong['wrong'])};")
        row("", f"with its option session.x64quantprecision it is {share(wrong['careful_wrong'])}.")


def share(wrong: float) -> str:
    """A share of wrong elements in words."""
    return "right everywhere" if wrong == 0 else f"WRONG in {wrong:.1%} of its elements"


def about_notebooks(facts: dict) -> None:
    """How `test` will treat the notebooks here, and whether the learner's copy is made."""
    count = len(list((ROOT / "my_course").glob("*.ipynb")))
    row("Your copy", f"my_course/, {count} notebooks" if count else "my_course/ is made by `lab`")
    if "differences" not in facts:
        return
    if not facts["differences"]:
        row("Notebooks", "`test` compares their outputs strictly: this machine is as recorded")
        return
    row(
        "Notebooks",
        "`test` runs every cell and assertion without comparing outputs, as digits may differ "
        "from those recorded:",
        "; ".join(facts["differences"]),
    )
