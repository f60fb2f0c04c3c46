"""`python -m ptq_classroom.teaching.judge`: grade submissions; JSON lines in, JSON lines out.

It holds the expected values and never runs a line that a student wrote: their functions run in
processes of their own (`worker.py`), and what those send is only ever compared.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import Result, examine
from ptq_classroom.teaching import allowed, capstone, seeds, submissions
from ptq_classroom.teaching.processes import Processes
from ptq_classroom.teaching.remote import Ended, RemoteProbe, Student
from ptq_classroom.teaching.sandbox import Limits

OWN_FUNCTION = "the answer calls the course's own function"
WRITTEN_DOWN = "right on the cases that ship with the course only: were the results written down?"
SOURCES = (".ipynb", ".py")
NOTHING = ("missing", "not attempted")


@dataclass
class Verdict:
    """One exercise of one student.

    outcome: passed, failed, not attempted, missing, stopped, refused. cause: the misconception or
    the reason. cases: "fresh" where the run's own cases were asked too, else "shipped".
    """

    exercise: str
    outcome: str
    cause: str = ""
    text: str = ""
    cases: str = "shipped"
    suspicious: list[str] = field(default_factory=list)

    @property
    def score(self) -> int:
        return int(self.outcome == "passed")


class Judge:
    """Grades with one set of limits and one seed."""

    def __init__(self, limits: Limits, seed: int):
        self.limits, self.seed = limits, seed
        self.processes = Processes(limits)

    def scan(self, paths: list[str]) -> dict:
        """Chapters in a submission, and which of its files cannot be read."""
        chapters, notes = set(), []
        for path, said in self._read([path for path in paths if path.endswith(SOURCES)]).items():
            chapters |= {id.split(".")[0] for id in said.get("exercises", ())}
            if "refused" in said:
                notes.append(f"{path.name}: {said['refused']}")
        return {"chapters": sorted(chapters & {*exercises.chapters()}), "notes": notes}

    def fair(self, id: str) -> dict:
        """Seeds for fresh cases of an exercise."""
        return {"fair": seeds.fair(id, self.seed)}

    def grade(self, paths: list[str], fresh: dict[str, list[int]]) -> dict:
        """A verdict for each exercise. fresh: exercise -> what `fair` has found."""
        start = time.monotonic()
        every = [(path, submissions.read(path)) for path in map(Path, paths)]
        files = [pair for pair in every if pair[0].suffix in SOURCES]
        files.sort(key=lambda pair: (pair[0].suffix != ".ipynb", str(pair[0])))
        said = self._read([str(path) for path, _ in files])
        verdicts = []
        for id, each in fresh.items():
            with_key = [pair for pair in files if id in said[pair[0]].get("exercises", ())]
            verdicts.append(self._exercise(exercises.get(id), with_key or files, each))
        rows = [{**asdict(verdict), "score": verdict.score} for verdict in verdicts]
        notes = [self._network(*pair) for pair in every if pair not in files]
        seconds = round(time.monotonic() - start, 1)
        return {"verdicts": rows, "notes": notes, "seconds": seconds}

    def protection(self) -> dict:
        """What protects, tried in a process like the ones that will follow."""
        student = self.processes.start()
        student.end()
        return {"layers": student.layers, "holds": student.holds}

    def _read(self, paths: list[str]) -> dict[Path, dict]:
        """What `Student.read` says of each file, in one process, for nothing of them is run."""
        found: dict[Path, dict] = {}
        student = None
        for path in map(Path, paths):
            student = student or self.processes.start()
            try:
                found[path] = student.read(_name(path), submissions.read(path))
            except Ended:
                found[path] = {"refused": "not a notebook that can be read"}
                student.end()
                student = None
        if student is not None:
            student.end()
        return found

    def _network(self, path: Path, data: bytes) -> str:
        """What a capstone's network is worth on hidden pictures."""
        x, _, _ = capstone.hidden(self.seed)
        student = self.processes.start(Limits(capstone.SECONDS, self.limits.megabytes))
        try:
            said = student.classes(data, capstone.task.NETWORK, x, capstone.SECONDS)
        except Ended:
            said = "its process ended, or took too long"
        finally:
            student.end()
        if isinstance(said, str):
            return f"{path.name}: cannot be scored: {said[:300]}"
        return capstone.verdict(path.name, said, len(data), self.seed)

    def _exercise(self, exercise: exercises.Exercise, files: list, fresh: list[int]) -> Verdict:
        """The best that the files say: a stub in one leaves the word to the next."""
        best = Verdict(exercise.id, "missing", "nothing to grade was handed in")
        for path, data in files:
            verdict = self._try(exercise, path, data, fresh)
            if verdict.outcome not in NOTHING:
                return verdict
            if best.outcome == "missing" and (verdict.outcome != "missing" or verdict.cause):
                best = verdict
        return best

    def _try(
        self, exercise: exercises.Exercise, path: Path, data: bytes, fresh: list[int]
    ) -> Verdict:
        student = self.processes.start()
        verdict = Verdict(exercise.id, "passed")
        try:
            self._judge(exercise, student, path, data, verdict, fresh)
        except Ended as how:
            verdict.outcome, verdict.cause = "stopped", str(how)
        left = student.end()
        if verdict.cause == "time":
            verdict.cause = f"took longer than {self.limits.seconds:g} s: an endless loop?"
        elif verdict.cause == "memory":
            verdict.cause = f"asks for more memory than the limit of {self.limits.megabytes} MB"
        elif verdict.cause == "gone":
            verdict.cause = f"ended its own process: {left or 'it was killed'}"
        if student.uses and verdict.outcome in ("passed", "failed"):
            verdict.outcome, verdict.cause = "refused", f"{OWN_FUNCTION}: {student.uses[0]}"
        return verdict

    def _judge(
        self, exercise: exercises.Exercise, student: Student, path: Path, data: bytes,
        verdict: Verdict, fresh: list[int],
    ) -> None:  # fmt: skip
        said = student.define(exercise, _name(path), data, [*allowed.names(exercise.id)])
        verdict.suspicious = [str(word)[:40] for word in said.get("suspicious", ())][:20]
        if "refused" in said:
            reason = str(said["refused"])
            nothing = reason.startswith(("there is no function", "not a "))
            verdict.outcome = "missing" if nothing else "failed"
            verdict.cause = reason
        elif "raised" in said:
            told = said["raised"]
            verdict.outcome = "failed"
            verdict.cause = f"stops before its function is defined: {told['type']}: {told['text']}"
        else:
            self._examine(exercise, said["function"], verdict, fresh)

    def _examine(
        self, exercise: exercises.Exercise, function: Any, verdict: Verdict, fresh: list[int]
    ) -> None:
        self._enter(_examined(exercise, function, None), verdict)
        if verdict.outcome != "passed":
            return
        results = []
        for seed in fresh:
            verdict.cases = "fresh"
            results.append(_examined(exercise, function, seed))
            if results[-1].status == "passed":
                return
        if results:  # wrong on every fresh seed: one alone might be a near tie
            self._enter(results[0], verdict)
            verdict.cause = f"{WRITTEN_DOWN} {verdict.cause}".strip()

    def _enter(self, result: Result, verdict: Verdict) -> None:
        verdict.outcome = result.status
        failure = result.failure
        if failure is not None:
            verdict.cause = failure.cause or failure.headline
            try:
                verdict.text = str(failure)[:4000]
            except Exception:
                verdict.text = failure.headline


def _examined(exercise: exercises.Exercise, function: Any, seed: int | None) -> Result:
    with seeds.fresh(seed), warnings.catch_warnings(action="ignore"):
        return examine(exercise, function, watch=RemoteProbe)


def _name(path: Path) -> str:
    return "notebook.ipynb" if path.suffix == ".ipynb" else "my_ptq.py"


def _watch_parent(parent: int) -> None:
    """End with the grader. (The kernel's own signal would come when the starting thread ends.)"""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Serve the grader: a line with the settings, then one order a line."""
    import torch

    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that prints may get between the lines
    settings = json.loads(sys.stdin.readline())
    judge = Judge(Limits(settings["seconds"], settings["megabytes"]), settings["seed"])
    try:
        print(json.dumps(judge.protection()), file=out, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            what = order.pop("do")
            try:
                serve = {"scan": judge.scan, "fair": judge.fair, "grade": judge.grade}[what]
                answer = serve(**order)
            except (Exception, Ended) as error:  # a bug of ours: the class goes on
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=out, flush=True)
    finally:
        judge.processes.close()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to tidy up, and PyTorch takes its time


if __name__ == "__main__":
    main()
