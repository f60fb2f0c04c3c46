"""hint, solution, reset, predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ptq_classroom import hint, predict, reset, solution
from ptq_classroom.kit import helpers
from ptq_classroom.kit.authoring import NotebookBuilder
from ptq_classroom.kit.show import figure

STUB = "def wrap(value, bits):\n    raise NotImplementedError"


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("notebooks", "ptq_course", "my_course"):
        (tmp_path / name).mkdir()
    nb = NotebookBuilder("prep", "Self-test")
    nb.exercise("prep.2", STUB)
    nb.solution("prep.2", "def wrap_solution(value, bits):\n    return 42")
    nb.write(tmp_path / "notebooks" / "prep_self_test.ipynb")
    monkeypatch.chdir(tmp_path / "my_course")
    monkeypatch.setenv("PTQ_COURSE", str(tmp_path))
    return tmp_path


def test_hints_one_after_the_other(capsys, monkeypatch):
    monkeypatch.setattr(helpers, "_given", {})
    hint("prep.2")
    hint("prep.2")
    hint("prep.2")
    said = capsys.readouterr().out
    assert "Hint 1 of 2 for prep.2 wrap: What happens to 128" in said
    assert "Hint 2 of 2 for prep.2 wrap: Where to begin" in said
    assert 'solution("prep.2")' in said
    hint("prep.2", 1)
    assert "Hint 1 of 2" in capsys.readouterr().out
    hint("prep.2", 7)
    assert "hints 1 to 2" in capsys.readouterr().out


def test_solution_comes_from_the_committed_notebook(course: Path, capsys):
    solution("prep.2")
    assert "return 42" in capsys.readouterr().out
    solution("prep.1")
    assert "No notebook holds a solution cell for prep.1" in capsys.readouterr().out


def test_reset_offers_a_new_cell(course: Path, capsys, monkeypatch):
    cells = []

    class Shell:
        def set_next_input(self, text):
            cells.append(text)

    monkeypatch.setattr(helpers.cells, "notebook", Shell)
    reset("prep.2")
    assert cells == [STUB]
    assert "in the cell below" in capsys.readouterr().out
    monkeypatch.setattr(helpers.cells, "notebook", lambda: None)
    reset("prep.2")
    assert STUB in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said", "kept"),
    [
        ({"guess": None}, "no prediction made: 02.3 (a number)", None),
        (
            {"guess": None, "unit": "%", "low": 0, "high": 100},
            "no prediction made: 02.3 (a number from 0 to 100, in %)",
            None,
        ),
        ({"guess": 4, "unit": "dB"}, "kept: you predict 4 dB for 02.3", 4.0),
        ({"guess": np.float32(0.5)}, "kept: you predict 0.5 for 02.3", 0.5),
        ({"guess": 140, "high": 100}, "140 is outside the possible range", None),
        ({"guess": "many"}, "'many' is not a number", None),
        ({"guess": float("nan")}, "is not a finite number", None),
        ({"guess": "kl", "choices": ("kl", "mse")}, "kept: you predict kl", "kl"),
        ({"guess": "max", "choices": ("kl", "mse")}, "give one of kl, mse", None),
    ],
)
def test_predict(arguments, said, kept, capsys):
    prediction = predict("02.3", **arguments)
    assert said in capsys.readouterr().out
    assert prediction.guess == kept


def test_prediction_is_drawn_into_a_figure():
    _, ax = figure()
    predict("02.3", None).draw(ax)
    assert len(ax.lines) == 0
    predict("02.3", 3.0).draw(ax)
    predict("02.3", 5.0).draw(ax, axis="y")
    assert list(ax.lines[0].get_xdata()) == [3.0, 3.0]
    assert list(ax.lines[1].get_ydata()) == [5.0, 5.0]
    assert [t.get_text() for t in ax.texts] == ["your guess", "your guess"]


def test_prediction_is_compared(capsys):
    predict("02.3", 3.0, unit="%").compare(4.5)
    predict("02.3", None, unit="%").compare(4.5)
    predict("02.3", "kl", choices=("kl", "mse")).compare("mse")
    said = capsys.readouterr().out
    assert "you said 3 %, measured 4.5 %: off by 1.5 points" in said
    assert "measured 4.5 % (no prediction to compare)" in said
    assert "you said kl, measured mse: not so" in said


@pytest.mark.parametrize("helper", [hint, solution, reset])
def test_an_unknown_exercise_is_said_and_no_traceback(helper, capsys):
    helper("01.9")
    assert "no exercise '01.9'; chapter 01 has 01.1" in capsys.readouterr().out
    helper("98.1")
    assert "no exercises for chapter '98'" in capsys.readouterr().out


def test_reset_says_that_the_saved_function_stays(course: Path, capsys):
    reset("prep.2")
    assert "still holds" not in capsys.readouterr().out
    (course / "course.py").touch()
    saved = course / "my_course" / "my_ptq.py"
    saved.write_text("# >>> prep.2\ndef wrap(): ...\n# <<< prep.2\n", encoding="utf-8")
    reset("prep.2")
    assert "my_ptq.py still holds the version that passed" in capsys.readouterr().out
    assert "wrap" in saved.read_text(encoding="utf-8")
