"""A folder of submissions of every kind: right, wrong, broken, hostile."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from ptq_classroom.kit.learner_copy import learner_version

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = ROOT / "notebooks" / "01_affine_quantization.ipynb"
RIGHT = {
    "01.1": """
        def qparams(lo, hi, grid):
            lo, hi = min(lo, 0.0), max(hi, 0.0)
            if lo == hi:
                return 1.0, 0
            scale = (hi - lo) / (grid.qmax - grid.qmin)
            return scale, round(grid.qmin - lo / scale)
    """,
    "01.2": """
        def quantize(x, scale, zero_point, grid):
            codes = torch.round(x / scale) + zero_point
            return codes.clamp(grid.qmin, grid.qmax).to(grid.dtype)
    """,
    "01.3": """
        def fewest_bits(scores, baseline, limit):
            for choice in scores:
                low, high = paired_bootstrap(scores[baseline], scores[choice])[1:]
                if low >= -limit:
                    return choice, low, high
    """,
}


def blank() -> dict:
    """Chapter 01 of the learner's edition."""
    return json.loads(learner_version(CHAPTER.read_text(encoding="utf-8")))


def filled(answers: Mapping[str, str | None]) -> str:
    """Chapter 01 with these answers in its stub cells; others right. None leaves the stub."""
    notebook = blank()
    for cell in notebook["cells"]:
        id = cell["metadata"].get("ptq", {}).get("exercise")
        if cell["cell_type"] == "code" and "stub" in cell["metadata"].get("tags", ()):
            source = {**RIGHT, **answers}[id]
            if source is not None:
                cell["source"] = textwrap.dedent(source).strip()
    return json.dumps(notebook)


def changed(id: str, before: str, after: str) -> dict[str, str]:
    """The right answer to an exercise with one thing changed."""
    assert RIGHT[id].count(before) == 1, (id, before)
    return {id: RIGHT[id].replace(before, after)}


def doing(statements: str, then: str = "return 0.5, 7") -> dict[str, str]:
    """An answer to 01.1 that does something first, then gives a wrong result."""
    body = textwrap.indent(textwrap.dedent(statements).strip(), "    ")
    return {"01.1": f"def qparams(lo, hi, grid):\n{body}\n    {then}"}


RIGHT_BODY = (
    "lo, hi = min(lo, 0.0), max(hi, 0.0); s = (hi - lo) / (grid.qmax - grid.qmin) or 1.0; "
    "return s, round(grid.qmin - lo / s)"
)
OTHERWISE = {
    "01.1": """
        SMALLEST = 1e-9

        def step(low, high, grid):
            return max((high - low) / (grid.qmax - grid.qmin), SMALLEST)

        def qparams(lo: float, hi: float, grid: IntGrid):
            ends = np.array([min(lo, 0), max(hi, 0)])
            scale = step(*ends, grid)
            return np.array([scale, grid.qmin + np.rint(-ends[0] / scale)])
        print("an example:", qparams(-1, 3, IntGrid(8)))
    """,
    "01.2": """
        %matplotlib inline
        import numpy
        def quantize(x, scale, zero_point, grid):
            out = x.clone()
            for i, v in enumerate(x.flatten().tolist()):
                code = min(max(int(numpy.rint(v / scale)) + zero_point, grid.qmin), grid.qmax)
                out.view(-1)[i] = code
            return out.to(grid.dtype)
    """,
}
PATCHES = """
    import atexit, builtins, gc, inspect, sys, threading
    import ptq_classroom.kit.checking as checking, ptq_classroom.kit.expect as expected
    import ptq_classroom.kit.values as values
    for place in (checking, expected, values):
        for name in list(vars(place)):
            if not name.startswith("__"):
                setattr(place, name, lambda *a, **k: True)
    builtins.abs = builtins.round = lambda *a: 0
    class Equal:
        def __eq__(self, other): return True
        def __float__(self): return 0.5
        def __array__(self, *a, **k): return np.zeros(2)
    torch.allclose = np.allclose = np.isclose = lambda *a, **k: True
    for thing in gc.get_objects():
        if isinstance(thing, dict) and "score" in thing:
            thing["score"] = 1
    for level in range(9):
        try:
            frame = sys._getframe(level)
            frame.f_locals.update(score=1, status="passed", outcome="passed")
        except ValueError:
            break
    def write():
        for name in ("grades.csv", "../grades.csv", "grades.csv.journal"):
            try:
                open(name, "a").write('{"student": "me", "score": 1}')
            except OSError:
                pass
    atexit.register(write)
    threading.Thread(target=write).start()
"""
FORGES = """
    import json, os, struct
    print('{"verdicts": [{"exercise": "01.1", "outcome": "passed", "score": 1}]}', flush=True)
    text = json.dumps({"status": "passed", "score": 1, "sizes": []}).encode()
    for handle in range(256):
        try:
            os.write(handle, struct.pack("<II", len(text), 0) + text)
        except OSError:
            pass
"""


def make(folder: Path) -> dict[str, tuple[dict[str, str], str]]:
    """Write the folder; returns student -> (exercise -> outcome, word in the cause of 01.1).

    What is not named passes.
    """
    hidden = str(folder / "anna" / "01.ipynb")
    outside = [str(folder / "written"), str(Path.home() / "ptq-written"), "/var/tmp/ptq-written",
               str(ROOT / "ptq-written"), str(folder / "anna" / "more.ipynb")]  # fmt: skip
    wrong = {"01.1": "failed"}
    rows: dict[str, tuple[str, dict[str, str], str]] = {
        "anna": (filled({}), {}, ""),
        "bert": (filled(OTHERWISE), {}, ""),
        "levels": (filled(changed("01.1", "(grid.qmax - grid.qmin)", "2**grid.bits")), wrong,
                   "number of codes"),
        "narrow range": (filled(changed("01.1", "lo, hi = min(lo, 0.0), max(hi, 0.0)", "pass")),
                         wrong, "not widened"),
        "cut off": (filled(changed("01.1", "round(", "int(")), wrong, "cut off by int"),
        "swapped": (filled(changed("01.1", "return scale, round(grid.qmin - lo / scale)",
                                   "return round(grid.qmin - lo / scale), scale")), wrong,
                    "scale comes first"),
        "swapped too": (filled(changed("01.1", "return scale, round(grid.qmin - lo / scale)",
                                       "z = round(grid.qmin - lo / scale); return z, scale")),
                        wrong, "scale comes first"),
        "lazy": (filled(dict.fromkeys(RIGHT)), dict.fromkeys(RIGHT, "not attempted"), ""),
        "typo": (filled({"01.1": "def qparams(lo, hi, grid:\n    return 1.0, 0"}), wrong,
                 "syntax error in line 1"),
        "no json": ("this is no notebook", dict.fromkeys(RIGHT, "missing"), "no JSON"),
        "wrong cells": (json.dumps({"cells": 7}), dict.fromkeys(RIGHT, "missing"), "broken"),
        "loop": (filled(doing("while True: pass")), {"01.1": "stopped"}, "endless loop"),
        "memory": (filled(doing("kept = [bytearray(1 << 24) for _ in range(10_000)]")),
                   {"01.1": "stopped"}, "more memory than the limit of 384 MB"),
        "forks": (filled(doing("import os\nwhile True: os.fork()")), wrong, "Error"),
        "leaves": (filled(doing("import os; os._exit(0)")), {"01.1": "stopped"},
                   "ended its own process"),
        "writes": (filled(doing(f"""
            for name in {outside}:
                try: open(name, "w").write("x")
                except OSError: pass
            """, RIGHT_BODY)), {}, ""),
        "reads": (filled(doing(f"""
            import json
            for cell in json.load(open({hidden!r}))["cells"]:
                if "def qparams" in "".join(cell["source"]):
                    space = {{}}
                    exec("".join(cell["source"]), space)
                    return space["qparams"](lo, hi, grid)
            """)), wrong, "FileNotFoundError"),
        "patches": (filled(doing(PATCHES)), wrong, ""),
        "forges": (filled(doing(FORGES)), {"01.1": "stopped"}, "no answer"),
        "borrows": (filled(doing(
            "q = choose_qparams(lo, hi, grid)", "return q.scale.item(), q.zero_point.item()")),
            {"01.1": "refused"}, "ptq_course.grids.affine.choose_qparams"),
        "borrows in secret": (filled(doing(
            'import importlib\nq = importlib.import_module("ptq_" + "course").grids.affine',
            "return tuple(v.item() for v in (lambda p: (p.scale, p.zero_point))"
            "(q.choose_qparams(lo, hi, grid)))")),
            {"01.1": "refused"}, "ptq_course.grids.affine.choose_qparams"),
        "peeks": (filled(doing(
            "from ptq_classroom.chapters.ch01.exercises import qparams as answer",
            "return answer(lo, hi, grid)")), wrong, "ptq_classroom.chapters.ch01.exercises"),
    }  # fmt: skip
    for student, (text, _, _) in rows.items():
        (folder / student).mkdir(parents=True)
        (folder / student / "01.ipynb").write_text(text, encoding="utf-8")
    blocks = [f"# >>> {id}\n{textwrap.dedent(source).strip()}\n# <<< {id}\n"
              for id, source in RIGHT.items()]  # fmt: skip
    start = "import torch\n\n"
    blocks[-1] = re.sub("\n", "\nfrom ptq_course.grids.metrics import paired_bootstrap\n",
                        blocks[-1], count=1)  # fmt: skip
    (folder / "zoe.py").write_text(start + "\n".join(blocks), encoding="utf-8")
    rows["zoe"] = ("", {}, "")
    lookup = written_down()
    (folder / "yves.ipynb").write_text(filled(lookup), encoding="utf-8")
    rows["yves"] = ("", wrong, "written down")
    return {student: (outcomes, word) for student, (_, outcomes, word) in rows.items()}


def written_down() -> dict[str, str]:
    """An answer to 01.1 that knows the results of the shipped cases and nothing else."""
    from ptq_classroom.kit import exercises

    exercise = exercises.get("01.1")
    table = {}
    assert exercise.cases is not None
    for _, inputs in exercise.cases():
        lo, hi, grid = inputs.values()
        table[lo, hi, grid.qmin, grid.qmax] = exercise.reference(lo, hi, grid)
    return doing(f"known = {table!r}", "return known.get((lo, hi, grid.qmin, grid.qmax), (1.0, 0))")
