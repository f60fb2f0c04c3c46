"""my_course/my_ptq.py: what passes is kept, the file is valid Python at all times."""

from __future__ import annotations

import ast
import inspect
import linecache
from pathlib import Path

import numpy as np
import pytest
import torch

from ptq_course.affine import IntGrid
from ptq_course.classroom import check, learner
from ptq_course.classroom.exercises import everything
from ptq_course.classroom.expect import expect_close
from ptq_course.classroom.values import snapshot

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
    folder.mkdir(parents=True)
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
    assert "from ptq_course.affine import IntGrid as IntGrid" in text
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
    assert learner.function("quantize").__module__ == "ptq_course.classroom.checks.ch01"
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
