"""Execute notebooks so that doing it twice gives the same bytes, and record on what they were run.

    python scripts/execute_notebooks.py                       every notebook of notebooks/
    python scripts/execute_notebooks.py notebooks/02_*.ipynb  only these

Each runs top to bottom in a cold kernel of the course's own environment. One that raises, prints to
stderr or exceeds the cell timeout is not written. notebooks/fingerprint.json records processor and
library versions: `python course.py test` compares outputs strictly only where they match. A second
run beside the first would write the same files, and is refused.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bootstrap import fingerprint
from bootstrap.commands import hand_over
from bootstrap.environment import child_variables, current
from bootstrap.lock import LockedError, locked

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager
    from nbformat import NotebookNode

LOCK = ".executing.lock"  # beside the fingerprint
BUDGET = 60  # seconds a notebook, on the reference machine
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
UNSET = ("MPLBACKEND", "DEEP")  # would change what a notebook draws or computes
# tqdm's elapsed time and speed, as its widget shows them: "10/10 [00:00&lt;00:00, 97.9it/s]"
PROGRESS_TIMES = re.compile(r"\s*\[\d+:\d+[^\]\"]*(?:s/it|it/s|/s)[^\]\"]*\]")


class NotebookError(Exception):
    """A notebook that did not run cleanly; its text says in which cell and how."""


def execute(path: Path, timeout: int = 300) -> NotebookNode:
    """The notebook of `path`, run in a cold kernel and normalised. Nothing is written.

    Raises NotebookError where a cell raises, takes over `timeout` seconds, or prints to stderr.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, CellTimeoutError, DeadKernelError

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    with tempfile.TemporaryDirectory() as profile:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            km=own_kernel(),
            record_timing=False,
            store_widget_state=True,
            resources={"metadata": {"path": str(path.resolve().parent)}},
        )
        client.owns_km = True  # else the kernel that we gave it would outlive its notebook
        try:
            client.execute(env=kernel_variables(profile))
        except (CellControlSignal, CellTimeoutError, DeadKernelError) as problem:
            raise NotebookError(f"{path.name}: {problem}") from problem
    check_stderr(notebook, path)
    return normalised(notebook)


def own_kernel() -> KernelManager:
    """A manager of the running interpreter's own kernel, whatever kernels the user registered."""
    import ipykernel.kernelspec
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernel(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            described = ipykernel.kernelspec.get_kernel_dict()
            return KernelSpec(resource_dir=ipykernel.kernelspec.RESOURCES, **described)

    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=OwnKernel())


def kernel_variables(profile: str) -> dict[str, str]:
    """Environment variables of the kernel: fixed threads and hash seed, no personal profile."""
    variables = child_variables(current()) | fingerprint.KERNEL_VARIABLES | {"IPYTHONDIR": profile}
    return {name: value for name, value in variables.items() if name not in UNSET}


def check_stderr(notebook: NotebookNode, path: Path) -> None:
    """Refuse what a reader would take for a failure: warnings and text progress bars."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise NotebookError(f"{path.name}: cell {number} prints to stderr:\n{output.text}")


def normalised(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what differs from run to run: versions, times, random widget ids."""
    import nbformat

    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = merged(cell.outputs)
    widgets = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    text = json.dumps(notebook, ensure_ascii=False)
    for number, model_id in enumerate(widgets):  # in the order in which they were created
        text = text.replace(model_id, f"{number:032x}")
    fixed = cast("NotebookNode", nbformat.from_dict(json.loads(text)))
    state = fixed.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for model in state.values():
        if isinstance(model["state"].get("value"), str):
            model["state"]["value"] = PROGRESS_TIMES.sub("", model["state"]["value"])
    return fixed


def merged(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Outputs in which what was printed in several pieces, as chance had it, is one piece."""
    whole: list[NotebookNode] = []
    for output in outputs:
        printed = output.output_type == "stream"
        if printed and whole and whole[-1].get("name") == output.name:
            whole[-1].text += output.text
        else:
            whole.append(output)
    return whole


def write(notebook: NotebookNode, path: Path) -> None:
    """Put the notebook in the place of the old one, in one step, the same bytes everywhere."""
    import nbformat

    from ptq_classroom.kit import learner_file  # here: the Python that starts this may lack it

    learner_file.write(path, (nbformat.writes(notebook) + "\n").encode("utf-8"))


def main(arguments: list[str]) -> int:
    """Command line; 1 where a notebook failed."""
    environment = current()
    if Path(sys.prefix).resolve() != environment.folder.resolve():
        words = [str(Path(word).resolve()) if Path(word).exists() else word for word in arguments]
        return hand_over(environment, [str(Path(__file__).resolve()), *words])
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    parser.add_argument("--timeout", type=int, default=300, help="seconds a cell (default 300)")
    options = parser.parse_args(arguments)
    try:
        with locked(fingerprint.FILE.with_name(LOCK)):
            return executed(options.notebooks, options.timeout)
    except LockedError as other:
        print(
            f"Process {other.process or '(unknown)'} executes notebooks here, and both would write "
            "the same files. Wait until it is done, or end it."
        )
        return 1


def executed(notebooks: list[Path], timeout: int) -> int:
    """Execute these notebooks, or all, and record on what; 1 where one failed."""
    every = sorted(fingerprint.FILE.parent.glob("*.ipynb"))
    chosen = notebooks or every
    now = fingerprint.here()
    changed = fingerprint.differences(fingerprint.recorded(), now)
    others = {path.resolve() for path in every} - {path.resolve() for path in chosen}
    if fingerprint.FILE.exists() and changed and others:
        print("The other notebooks were executed elsewhere: " + "; ".join(changed))
        print("One fingerprint speaks for all of them: execute all, without naming any.")
        return 1
    failed = run(chosen, timeout)
    if failed:
        print(
            f"{len(failed)} of {len(chosen)} failed and were left as they were: {', '.join(failed)}"
        )
        return 1
    if chosen:
        fingerprint.record(now)
    return 0


def run(chosen: list[Path], timeout: int) -> list[str]:
    """Execute and write one after the other; the names of those that failed."""
    failed = []
    for path in chosen:
        start = time.monotonic()
        try:
            write(execute(path, timeout), path)
        except NotebookError as problem:
            print(f"FAILED {problem}", flush=True)
            failed.append(path.name)
            continue
        seconds = time.monotonic() - start
        over = f"  (budget: {BUDGET} s)" if seconds > BUDGET else ""
        print(f"{seconds:6.1f} s  {path.name}{over}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
