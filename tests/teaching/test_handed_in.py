"""A student's function is found with what it needs, and nothing else is run."""

import json

import pytest

from ptq_classroom.teaching import answers


def notebook(*cells):
    rows = []
    for source in cells:
        source, _, id = source.partition(" @") if " @" in source else (source, "", "")
        meta = {"ptq": {"exercise": id}, "tags": ["stub"]} if id else {}
        rows.append({"cell_type": "code", "metadata": meta, "source": source})
    return json.dumps({"cells": rows}).encode()


def made(*cells, function="f", id="01.1"):
    found = answers.read("x.ipynb", notebook(*cells))
    return answers.find(found, id, function, alone=False)


def test_helpers_imports_and_constants_come_along():
    answer = made(
        "import math as m\nSMALL = 1e-9\nx = 1 / 0",
        "def helper(v):\n    return max(v, SMALL)",
        "def f(v):\n    x = m.sqrt(v)\n    return helper(x) @01.1",
    )
    assert len(answer.parts) == 4
    assert answer.run(None)(4.0) == 2.0


def test_what_is_not_needed_is_not_run():
    answer = made(
        "raise SystemExit", "while True:\n    pass", "print(f(1))", "this is no Python",
        "def f(v):\n    return v\nf(1 / 0) @01.1", "%timeit f(2)",
    )  # fmt: skip
    assert len(answer.parts) == 1
    assert answer.run(None)(3) == 3


def test_the_last_definition_counts_and_a_reassignment_too():
    assert made("def f():\n    return 1 @01.1", "def f():\n    return 2 @01.1").run(None)() == 2
    assert made("def f():\n    return 1\nf.x = 5\ng = f\nf = lambda: g.x @01.1").run(None)() == 5


def test_the_notebooks_own_call_for_the_learners_version_is_no_answer():
    answer = made("def f():\n    return 1 @01.1", 'f = learner.function("f")')
    assert answer.run(None)() == 1


def test_a_cell_that_lost_its_key_is_found_by_the_name():
    assert made("def f():\n    return 4").run(None)() == 4


def test_recursion_defaults_and_classes():
    answer = made(
        "class Node:\n    size = 3",
        "def f(n, node=Node):\n    return node.size if n == 0 else f(n - 1) @01.1",
    )
    assert answer.run(None)(2) == 3


def test_a_helper_that_fails_is_said_when_it_is_needed():
    answer = made("table = 1 / 0", "def f(v):\n    return table if v else 7 @01.1")
    f = answer.run(None)
    assert f(0) == 7
    with pytest.raises(NameError, match="table"):
        f(1)


@pytest.mark.parametrize(("cells", "said"), [
    (("def f(:\n    pass @01.1",), "syntax error in line 1"),
    (("def g():\n    pass @01.1",), "there is no function f"),
    ((), "there is no function f"),
])  # fmt: skip
def test_no_answer_says_why(cells, said):
    with pytest.raises(answers.NoAnswer, match=said):
        made(*cells)


@pytest.mark.parametrize(("data", "said"), [
    (b"\xff\xfe", "not a text file"),
    (b"nothing", "no JSON"),
    (b"[1]", "cells are broken"),
    (b'{"cells": [7]}', "cells are broken"),
    (b"[" * 100_000, "no JSON"),
])  # fmt: skip
def test_a_file_that_is_no_notebook_says_so(data, said):
    with pytest.raises(answers.NoAnswer, match=said):
        answers.read("x.ipynb", data)


def test_blocks_of_my_ptq_do_not_mix():
    text = ("# >>> 01.1\nk = 1\ndef f():\n    return k\n# <<< 01.1\n\n"
            "# >>> 01.2\nk = 2\ndef g():\n    return k\n# <<< 01.2\n")  # fmt: skip
    cells = answers.read("my_ptq.py", text.encode())
    assert answers.exercises_in(cells) == ["01.1", "01.2"]
    assert answers.find(cells, "01.1", "f", alone=True).run(None)() == 1
    assert answers.find(cells, "01.2", "g", alone=True).run(None)() == 2


def test_suspicious_names_are_listed_and_ordinary_ones_are_not():
    answer = made("def f():\n    import gc, sys\n    return eval('ptq_course')\n @01.1")
    assert answer.suspicious == ["eval", "gc", "ptq_course", "sys"]
    assert (
        made("def f(signal):\n    'os and sys'\n    return signal.modules @01.1").suspicious == []
    )
