"""my_course/my_ptq.py: what passes is kept, the file is valid Python at all times."""

from __future__ import annotations

import ast
import inspect
import linecache
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ptq_classroom import check
from ptq_classroom.kit import learner, learner_file
from ptq_classroom.kit.exercises import everything
from ptq_classroom.kit.expect import expect_close
from ptq_classroom.kit.values import snapshot
from ptq_course.grids.affine import IntGrid

QPARAMS = """
def qparams(lo, hi, grid: IntGrid = IntGrid(8)):
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = max((hi - lo) / (grid.levels - 1), TINY)
    return scale, nearest(grid.qmin - lo / scale)
"""
WRAP = '''
def wrap(value, bits):
    """Mine."""
    return (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
'''
HELPER = """
def nearest(value):
    return math.floor(value + 0.5)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "with space" / "my_course"
    (folder.parent / "ptq_course").mkdir(parents=True)
    (folder.parent / "course.py").touch()
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class Cells:
    """A namespace whose functions have a source, as in a notebook."""

    def __init__(self):
        self.space = {"__name__": "__main__", "IntGrid": IntGrid, "torch": torch, "np": np}
        self.count = 0

    def run(self, source: str):
        self.count += 1
        name = f"<cell {id(self)} {self.count}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), self.space)
        return self.space


def test_a_passing_function_is_saved_and_found(here: Path, capsys):
    check("prep.2", Cells().run(WRAP)["wrap"])
    text = (here / "my_ptq.py").read_text(encoding="utf-8")
    assert '"""Mine."""' in text
    ast.parse(text)
    mine = learner.function("wrap")
    assert mine(130, 8) == -126
    assert mine.__doc__ == "Mine."
    said = capsys.readouterr().out
    assert "saved into my_course/my_ptq.py" in said
    assert "wrap (prep.2): yours, from my_ptq.py" in said


def test_saving_again_changes_nothing_and_a_new_version_replaces(here: Path):
    cells = Cells()
    check("prep.2", cells.run(WRAP)["wrap"])
    first = (here / "my_ptq.py").read_bytes()
    check("prep.2", cells.run(WRAP)["wrap"])
    assert (here / "my_ptq.py").read_bytes() == first
    check("prep.2", cells.run(WRAP.replace("Mine.", "Better."))["wrap"])
    text = (here / "my_ptq.py").read_text(encoding="utf-8")
    assert text.count("def wrap") == 1
    assert "Better." in text
    assert list(here.iterdir()) == [here / "my_ptq.py"]


def test_imports_helpers_and_constants_come_along(here: Path):
    cells = Cells()
    cells.run("import math\nTINY = 1e-9\n")
    cells.run(HELPER)
    check("prep.2", cells.run(WRAP)["wrap"])
    check("01.1", cells.run(QPARAMS)["qparams"])
    text = (here / "my_ptq.py").read_text(encoding="utf-8")
    assert "from ptq_course.grids.affine import IntGrid as IntGrid" in text
    assert "TINY = 1e-09" in text
    assert "import math as math" in text or "import math\n" in text
    assert "def nearest" in text
    assert learner.function("qparams")(-1.0, 3.0, IntGrid(8, signed=False))[1] == 64
    space: dict = {}
    exec(compile(text, "my_ptq.py", "exec"), space)  # the whole file also imports
    assert space["wrap"](128, 8) == -128


def test_names_of_torch_and_types(here: Path):
    cells = Cells()
    cells.run(
        "from torch import clamp as hold, round as nearest\nfrom torch.nn import functional as F"
    )
    cells.run("wide, ends = torch.float64, (0, 1)")
    cells.run(
        "def quantize(x, scale, zero_point, grid):\n"
        "    y = F.pad(x.to(wide), (ends[0], ends[0])) / scale\n"
        "    return hold(nearest(y) + zero_point, grid.qmin, grid.qmax).to(grid.dtype)\n"
    )
    check("01.2", cells.space["quantize"])
    text = (here / "my_ptq.py").read_text(encoding="utf-8")
    for line in ("from torch import clamp as hold", "wide = torch.float64", "ends = (0, 1)",
                 "import torch.nn.functional as F"):  # fmt: skip
        assert line in text


def test_an_answer_under_another_name(here: Path):
    cells = Cells()
    check("prep.2", cells.run(WRAP.replace("def wrap", "def my_wrap"))["my_wrap"])
    assert learner.function("wrap")(128, 8) == -128


SAVER = """
import os, sys, time
from ptq_classroom.kit import exercises, learner
replace = os.replace
os.replace = lambda *places: (time.sleep(0.3), replace(*places))  # a disk that takes its time
mine = [exercises.get(id) for id in sys.argv[2:]]
print("ready", flush=True)
sys.stdin.readline()  # all start at the same moment
for exercise in mine:
    learner.save(exercise, exercise.reference)
"""


def test_notebooks_that_save_at_once_lose_nothing(here: Path):
    pairs = [("prep.1", "prep.2", "01.1"), ("01.2", "08.1", "08.2")]
    command = [sys.executable, "-W", "ignore", "-c", SAVER, str(here)]
    root = Path(learner.__file__).resolve().parents[2]
    variables = os.environ | {"PYTHONPATH": str(root)}
    running = [
        subprocess.Popen(
            [*command, *ids], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=here,
            env=variables,
        )
        for ids in pairs
    ]  # fmt: skip
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        said.append(process.communicate(timeout=120)[0])
        assert process.returncode == 0
    text = (here / "my_ptq.py").read_text(encoding="utf-8")
    assert [id for ids in pairs for id in ids if f"# >>> {id}\n" not in text] == [], said
    assert ["not saved" in each for each in said] == [False, False]
    assert list(here.iterdir()) == [here / "my_ptq.py"]


@pytest.mark.parametrize("hours", [0, -1000, 1000])
def test_a_lock_that_a_dead_notebook_left_delays_nothing(here: Path, monkeypatch, capsys, hours):
    """Whatever its date; the clock of a machine may have been wrong."""
    lock = here / ".my_ptq.py.lock"
    lock.touch()
    when = time.time() + hours * 3600
    os.utime(lock, (when, when))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    check("prep.2", Cells().run(WRAP)["wrap"])
    assert "saved into" in capsys.readouterr().out
    assert list(here.iterdir()) == [here / "my_ptq.py"]


HOLDS = """
import sys, time
from pathlib import Path
from ptq_classroom.kit import learner_file
with learner_file.alone(Path("my_ptq.py")):
    Path(f".my_ptq.py.{sys.argv[1]}.tmp").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_notebook_that_hangs_is_named_and_one_that_is_killed_holds_nothing(
    here: Path, monkeypatch, capsys
):
    root = Path(learner.__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, "999999999"], cwd=here, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        monkeypatch.setattr(learner_file, "WAIT", 0.2)
        check("prep.2", Cells().run(WRAP)["wrap"])
        assert "perhaps a notebook that hangs" in capsys.readouterr().out
    finally:
        holder.kill()  # kill -9
        holder.wait()
    check("prep.2", Cells().run(WRAP)["wrap"])
    assert "saved into" in capsys.readouterr().out
    learner_file.remove_leftovers(here)
    assert list(here.iterdir()) == [here / "my_ptq.py"]


def test_leftovers_of_the_dead_go_and_what_is_being_written_stays(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    kept = [f".x.{os.getpid()}.tmp", "notes.tmp", "a.partial", "table.12.txt", "x.999999999.tmp2"]
    gone = [".x.999999999.tmp", "net.onnx.999999999.partial", "sub/y.1234567890123.partial"]
    for name in [*kept, *gone]:
        (tmp_path / name).touch()
    learner_file.remove_leftovers(tmp_path)
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == sorted(kept)


def test_a_folder_that_cannot_be_written_is_said_in_one_line(here: Path, capsys):
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    here.chmod(0o555)
    try:
        check("prep.2", Cells().run(WRAP)["wrap"])
    finally:
        here.chmod(0o755)
    said = capsys.readouterr().out
    assert said.count("\n") == 2
    assert "✓ prep.2 wrap passes\n  (not saved into my_ptq.py: Permission denied" in said


def test_a_file_that_another_program_holds_is_said_in_one_line(here: Path, monkeypatch, capsys):
    def refuses(part, path):
        raise PermissionError(13, "The process cannot access the file", str(path))

    monkeypatch.setattr(os, "replace", refuses)
    check("prep.2", Cells().run(WRAP)["wrap"])
    said = capsys.readouterr().out
    assert "open in another program" in said
    assert said.count("\n") == 2
    assert list(here.iterdir()) == []


def test_a_folder_of_that_name_elsewhere_is_not_the_copy(here: Path, monkeypatch):
    assert learner.home() == here
    (here.parent / "course.py").unlink()
    assert learner.home() is None
    monkeypatch.setenv("PTQ_MY_COURSE", str(here))
    assert learner.home() == here


def test_functions_under_a_decorator_are_saved(here: Path, capsys):
    cells = Cells()
    cells.run(
        "import functools\n"
        "def loud(fn):\n"
        "    @functools.wraps(fn)\n"
        "    def inner(*args):\n"
        "        return fn(*args)\n"
        "    return inner\n"
    )
    cells.run("@torch.no_grad()\n@loud" + WRAP)
    check("prep.2", cells.space["wrap"])
    assert "saved into" in capsys.readouterr().out
    text = (here / "my_ptq.py").read_text(encoding="utf-8")
    assert "@torch.no_grad()\n@loud\ndef wrap" in text
    assert learner.function("wrap")(130, 8) == -126


def test_classes_and_numpy_numbers_come_along(here: Path, capsys):
    cells = Cells()
    cells.run(
        "import numpy as np\nfrom dataclasses import dataclass\nfrom typing import NamedTuple"
    )
    cells.run("two, huge = np.int64(2), float('inf')\nsame = np.float32(1.0)\nyes = np.bool(True)")
    cells.run("@dataclass\nclass Ring:\n    size: int\n\n    def half(self):\n"
              "        return self.size // two")  # fmt: skip
    cells.run("class Pair(NamedTuple):\n    low: int\n    high: int\n")
    cells.run("class Bits(Pair):\n    pass\n")
    cells.run("def wrap(value, bits):\n    ring = Ring(2**bits)\n    ends = Bits(-ring.half(), 0)\n"
              "    assert yes and same < huge\n"
              "    return (value - ends.low) % ring.size + ends.low\n")  # fmt: skip
    check("prep.2", cells.space["wrap"])
    assert "saved into" in capsys.readouterr().out
    assert learner.function("wrap")(130, 8) == -126
    space: dict = {}
    exec((here / "my_ptq.py").read_text(encoding="utf-8"), space | {"__name__": "__main__"})


def test_a_class_that_is_defined_again_is_taken_as_it_is_now(here: Path):
    cells = Cells()
    for step in (3, 1):
        cells.run(f"class Step(tuple):\n    size = {step}\n")
    cells.run(
        WRAP.replace("return (", "return Step.size * (").replace("bits - 1", "bits - Step.size")
    )
    check("prep.2", cells.space["wrap"])
    assert learner.function("wrap")(130, 8) == -126


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("wrap = lambda value, bits: real(value, bits)", "a lambda cannot be saved"),
        ("wrap = functools.partial(real)", "this is a partial"),
        ("def make(h):\n    def wrap(value, bits):\n        return real(value, bits) + h\n"
         "    return wrap\nwrap = make(0)", "inside another function and uses its h"),
        ("def hide(fn):\n    def inner(*args):\n        return fn(*args)\n    return inner\n"
         "wrap = hide(real)", "write functools.wraps into your decorator"),
        ("class Wrap:\n    def __call__(self, value, bits):\n        return real(value, bits)\n"
         "wrap = Wrap()", "this is a Wrap"),
        ("later = eval('lambda v, b: real(v, b)')\nlater.__name__ = 'later'\n"
         "def wrap(value, bits):\n    return later(value, bits)",
         "source of `later` cannot be found"),
        ("table = torch.zeros(1)\ndef wrap(value, bits):\n    table\n    return real(value, bits)",
         "uses `table` of the notebook, a Tensor"),
        ("odd = type('Odd', (), {})\ndef wrap(value, bits):\n    odd\n    return real(value, bits)",
         "source of the class `Odd` cannot be found"),
    ],
)  # fmt: skip
def test_each_refusal_has_a_text_of_its_own(here: Path, capsys, source, reason):
    cells = Cells()
    cells.run("import functools" + WRAP.replace("wrap", "real"))
    check("prep.2", cells.run(source)["wrap"])
    said = capsys.readouterr().out
    assert "(not saved into my_ptq.py: " in said
    assert reason in said


def test_checking_once_more_for_the_file_prints_and_warns_nothing(here: Path, recwarn, capsys):
    cells = Cells()
    cells.run("import warnings")
    cells.run(WRAP.replace('"""Mine."""', 'print("seen"); warnings.warn("seen", stacklevel=1)'))
    cells.space["wrap"](1, 8)
    check("prep.2", cells.space["wrap"])
    once = capsys.readouterr().out.count("seen"), len(recwarn)
    check("prep.2", cells.space["wrap"], strict=True)
    again = capsys.readouterr().out.count("seen"), len(recwarn)
    assert once[0] == again[0] + 1
    assert "my_ptq.py" not in {Path(str(w.filename)).name for w in recwarn}


def test_what_cannot_be_saved_says_why(here: Path, capsys):
    cells = Cells()
    cells.run("table = [object()]")
    cells.run("def wrap(value, bits):\n    table\n    h = 2 ** (bits - 1)\n"
              "    return (value + h) % (2 * h) - h\n")  # fmt: skip
    check("prep.2", cells.space["wrap"])
    check("prep.2", lambda value, bits: (value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1))
    cells.run("def half(bits):\n    return helper_of_helper(bits)")
    cells.run("def wrap(value, bits):\n    h = eval('half')(bits)\n"
              "    return (value + h) % (2 * h) - h\n")  # fmt: skip
    cells.run("def helper_of_helper(bits):\n    return 2 ** (bits - 1)")
    check("prep.2", cells.space["wrap"])
    said = capsys.readouterr().out
    assert said.count("✓ prep.2") == 3
    assert "uses `table` of the notebook" in said
    assert "written with `def`" in said
    assert "without the notebook around it, raised NameError" in said
    assert not (here / "my_ptq.py").exists()


def test_a_broken_file_is_left_alone(here: Path, capsys):
    (here / "my_ptq.py").write_text("def half(:\n", encoding="utf-8")
    check("prep.2", Cells().run(WRAP)["wrap"])
    assert "not saved" in capsys.readouterr().out
    assert (here / "my_ptq.py").read_text(encoding="utf-8") == "def half(:\n"


def test_failing_and_strict_checks_save_nothing(here: Path):
    check("prep.2", Cells().run("def wrap(value, bits):\n    return value\n")["wrap"])
    check("prep.2", Cells().run(WRAP)["wrap"], strict=True)
    assert not (here / "my_ptq.py").exists()


def test_outside_my_course_nothing_is_written(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    check("prep.2", Cells().run(WRAP)["wrap"])
    assert list(tmp_path.iterdir()) == []
    learner.function("wrap")
    assert "wrap (prep.2): the course's version" in capsys.readouterr().out


def test_reference_fills_the_gaps(here: Path, capsys):
    check("prep.2", Cells().run(WRAP)["wrap"])
    assert learner.function("quantize").__module__ == "ptq_classroom.chapters.ch01.exercises"
    assert "yours has not passed" in capsys.readouterr().out
    with pytest.raises(KeyError, match="no exercise builds 'nothing'"):
        learner.function("nothing")


def test_errors_in_the_file_point_at_its_lines(here: Path):
    check("prep.2", Cells().run(WRAP)["wrap"])
    path = here / "my_ptq.py"
    line = path.read_text(encoding="utf-8").splitlines().index("def wrap(value, bits):") + 1
    assert inspect.unwrap(learner.function("wrap")).__code__.co_firstlineno == line


# results as the cells behind need them ------------------------------------------------------------


def kind(value):
    """The types that a cell may rely on: of tuples those of each part."""
    return tuple(map(kind, value)) if type(value) is tuple else type(value)


@pytest.mark.parametrize("exercise", [e for e in everything() if e.cases], ids=lambda e: e.id)
def test_every_accepted_answer_returns_the_type_of_the_reference(exercise):
    for right in (exercise.reference, *exercise.accepted):
        converted = learner.conforming(exercise, right)
        for label, inputs in exercise.cases():
            expected = exercise.reference(*snapshot(tuple(inputs.values())))
            got = converted(*snapshot(tuple(inputs.values())))
            assert kind(got) == kind(expected), (right.__name__, label)
            if exercise.compare:
                exercise.compare(got, expected, **inputs)
            else:
                expect_close(got, expected, exercise.returns, exercise.rtol, exercise.atol)


@pytest.mark.parametrize(
    ("name", "answer", "args", "expected"),
    [
        ("make_p", lambda h, i: [8, 5], ([8, 3, 2], 2), np.ndarray),
        ("make_p", lambda h, i: torch.tensor([8, 5]), ([8, 3, 2], 2), np.ndarray),
        ("make_p", lambda h, i: np.array([8, 5], object), ([8, 3, 2], 2), np.ndarray),
        ("kl", lambda p, q: torch.tensor([0.5]), (1, 2), float),
        ("kl", lambda p, q: np.float32(0.5), (1, 2), float),
        ("qdq_pairs", lambda ops, merge: torch.tensor(4.0), ({}, ()), int),
        ("suspects", lambda model: {"b", "a"}, (None,), list),
        ("suspects", lambda model: np.array(["a", "b"]), (None,), list),
        ("suspects", lambda model: (name for name in "ab"), (None,), list),
        ("channel_scales", lambda w, axis: [0.5, 1.0], (None, 0), torch.Tensor),
        ("channel_scales", lambda w, axis: (torch.tensor(0.5),) * 2, (None, 0), torch.Tensor),
    ],
)
def test_results_are_converted(name: str, answer, args, expected: type):
    exercise = next(e for e in everything() if e.function == name)
    assert type(learner.conforming(exercise, answer)(*args)) is expected


def test_parts_of_a_tuple_are_converted_and_floating_types_agree():
    exercise = next(e for e in everything() if e.function == "fold_bn")
    doubled = learner.conforming(exercise, lambda w: [w.double().numpy(), w.double()])
    parts = doubled(torch.ones(2))
    assert [p.dtype for p in parts] == [torch.float32] * 2
    assert [p.dtype for p in doubled(torch.ones(2).double())] == [torch.float64] * 2


def test_what_cannot_be_converted_is_left_as_it_is():
    exercise = next(e for e in everything() if e.function == "make_p")
    assert learner.conforming(exercise, lambda h, i: "none")([1], 1) == "none"


def test_a_saved_answer_is_converted(here: Path):
    source = (
        "def channel_scales(w, axis):\n"
        "    return [float(np.abs(c.numpy()).max() / 127) or 1.0 for c in w.unbind(axis)]\n"
    )
    check("05.1", Cells().run(source)["channel_scales"])
    scales = learner.function("channel_scales")(torch.tensor([[1.27, 0.0], [0.0, -2.54]]), 0)
    torch.testing.assert_close(scales, torch.tensor([0.01, 0.02]))
