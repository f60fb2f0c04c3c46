"""The machinery of `check`: what it accepts, and what it says."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from ptq_classroom import check
from ptq_classroom.kit import exercises, expect, values
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure, expect_close
from ptq_classroom.kit.values import as_array, brief, same


def double(x):
    return 2 * x


def _cases():
    yield "small", {"x": torch.tensor([1.0, -2.0, 3.0])}
    yield "matrix", {"x": torch.arange(6.0).reshape(2, 3)}
    yield "scalar", {"x": torch.tensor(4.0)}


def make(**changes) -> Exercise:
    given = {
        "id": "99.1", "title": "Double", "minutes": 3, "difficulty": 1, "signature": "double(x)",
        "reference": double, "cases": _cases, "returns": "the double",
        "hints": (("a", "b"), ("c", "d")), "accepted": (lambda x: x + x,),
        "diagnoses": (
            (lambda x: x**2, "squared"),
            (lambda x: 2 * x + 1, "one too many"),
            (lambda x: x.clamp(min=0) * 2, "negative values were lost"),
        ),
    }  # fmt: skip
    return Exercise(**{**given, **changes})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch):
    def put(exercise: Exercise) -> None:
        monkeypatch.setattr(exercises, "get", lambda id: exercise)

    return put


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: 2 * x,
        lambda x: 2 * x.numpy(),
        lambda x: (2 * x).tolist(),
        lambda x: 2 * x.double(),
        lambda x: (2 * x).bfloat16(),
        lambda x: x.clone().mul_(2).requires_grad_(),
    ],
)
def test_tensors_arrays_and_lists_are_all_accepted(answer):
    assert examine(make(), answer).status == "passed"


def test_message_has_expected_got_element_input_and_cause(registered, capsys):
    registered(make())
    check("99.1", lambda x: x.clamp(min=0) * 2)
    said = capsys.readouterr().out
    for part in (
        "✗ 99.1 double: wrong double (1 of 3 elements)",
        "case         small",
        "input        x = [1, -2, 3]",
        "expected     [2, -4, 6]",
        "got          [2, 0, 6]",
        "at [1]: expected -4, got 0",
        "likely cause negative values were lost",
        'hint("99.1")',
    ):
        assert part in said


def test_a_look_alike_on_one_input_is_not_named():
    def near(x):
        return x.clamp(min=0) * 2 if x.ndim == 1 else x * 7

    failure = examine(make(), near).failure
    assert failure.cause == ""


def two(x):
    return x.sum(), x.max()


def only_the_sum(x):
    return x.sum(), x.sum()


TWO = {
    "signature": "two(x)",
    "reference": two,
    "returns": ("total", "largest"),
    "diagnoses": ((only_the_sum, "the sum twice"), (lambda x: x.sum(), "only the sum")),
}


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: torch.stack(two(x)),
        lambda x: np.array([float(v) for v in two(x)]),
        lambda x: list(two(x)),
    ],
)
def test_one_array_of_the_right_length_holds_several_values(answer):
    assert examine(make(**TWO), answer).status == "passed"


@pytest.mark.parametrize(
    ("answer", "headline", "cause"),
    [
        (lambda x: torch.stack(only_the_sum(x)), "wrong largest", "the sum twice"),
        (lambda x: x.sum(), "should return 2 values", "only the sum"),
        (lambda x: x.sum()[None], "should return 2 values", ""),  # neither of the two
        (lambda x: torch.stack([*two(x), x.min()]), "should return 2 values", ""),
        (lambda x: torch.stack(two(x))[:, None], "should return 2 values", ""),
        (lambda x: (x.sum(), None), "largest is None", ""),
        (lambda x: (None, None), "total is None", ""),
    ],
)
def test_a_wrong_structure_gets_no_cause_of_another_structure(answer, headline: str, cause: str):
    failure = examine(make(**TWO), answer).failure
    assert headline in failure.headline
    assert failure.cause == cause


def test_alike_looks_at_the_structure_alone():
    assert values.alike((1, 2.0), [torch.tensor(5), np.float64(0)])
    assert values.alike({"a": [1, 2]}, {"a": torch.zeros(2)}) is False
    assert values.alike({"a": 1}, {"b": 1}) is False
    assert values.alike(torch.zeros(2), np.ones(2))
    assert values.alike((1, 2), torch.tensor([1, 2])) is False
    assert values.alike([1.0], 1.0) is False
    assert values.alike(torch.zeros(1), 0.0) is False
    assert values.alike(None, 1.0) is False
    assert values.alike(ValueError("a"), ValueError("b"))
    assert values.alike(ValueError("a"), 1) is False


def test_index_of_a_matrix():
    def off(x):
        y = 2 * x
        return y if x.ndim < 2 else y + (torch.arange(6).reshape(2, 3) == 4)

    failure = examine(make(), off).failure
    assert failure.index == (1, 1)
    assert (failure.case, failure.expected[1, 1], failure.got[1, 1]) == ("matrix", 8, 9)


def test_in_place_change_is_noticed():
    failure = examine(make(), lambda x: x.mul_(2)).failure
    assert "changed its input `x` in place" in failure.headline
    assert examine(make(may_change_inputs=True), lambda x: x.mul_(2)).status == "passed"


def test_a_known_wrong_answer_explains_more_than_the_change_in_place():
    def clamps(x):
        return x.clamp_(min=0) * 2

    failure = examine(make(), clamps).failure
    assert "in place" in failure.headline
    assert failure.cause == "negative values were lost"
    also_right = ((lambda x: 2 * x, "stored wrongly"),)  # differs in something else than numbers
    right_numbers = examine(make(diagnoses=also_right), lambda x: x.mul_(2)).failure
    assert "work on a copy" in right_numbers.cause


def test_an_exercise_may_say_when_an_answer_agrees_with_a_wrong_one():
    def roughly(got, wrong):
        return bool((got - wrong).abs().max() < 0.1)

    def nearly(x):
        return x.clamp(min=0) * 2 + 0.01

    assert examine(make(), nearly).failure.cause == ""
    assert examine(make(agree=roughly), nearly).failure.cause == "negative values were lost"


def test_one_number_is_not_a_list_of_one():
    for right in (1, 2.5, np.float64(1), torch.tensor(2.0), np.array(3), None):
        expect.expect_number(right)  # None is left to expect_close, which knows its cause
    for wrong in ([1.0], (1.0,), torch.ones(1), np.ones((1, 1)), "one", {"a": 1}):
        with pytest.raises(Failure, match="scale should be one number"):
            expect.expect_number(wrong, "scale")


def test_the_learners_own_line_is_shown():
    def broken(x):
        return helper(x)

    def helper(x):
        return x.reshape(7)

    failure = examine(make(), broken).failure
    assert "RuntimeError" in failure.headline
    assert failure.location.endswith("in helper: return x.reshape(7)")


def test_under_a_decorator_too():
    @torch.no_grad()
    def broken(x):
        return x.reshape(7)

    failure = examine(make(), broken).failure
    assert failure.location.endswith("in broken: return x.reshape(7)")


def test_an_answer_that_breaks_the_comparison_is_a_wrong_answer():
    def compare(got, expected, x):
        assert got.items() == expected

    def property_of(fn):
        fn(torch.zeros(1)).items()

    failure = examine(make(compare=compare), lambda x: torch.zeros(2)).failure
    assert failure.headline == "the result could not be compared"
    assert (failure.case, list(failure.got)) == ("small", [0, 0])
    failure = examine(make(cases=None, check=property_of), double).failure
    assert failure.headline == "the result could not be compared"
    assert list(failure.got) == [0]
    assert "AttributeError" in failure.cause


def test_a_librarys_not_implemented_is_an_error_not_a_stub():
    def sparse(x):
        return torch.linalg.svd(x.to_sparse())

    result = examine(make(), sparse)
    assert result.status == "failed"
    assert "NotImplementedError" in result.failure.headline


def test_the_stub_of_another_exercise_is_named_not_taken_for_this_one():
    def make_p(hist, i):
        raise NotImplementedError

    def make_q(hist, i, levels):
        return make_p(hist, i) > 0

    def helper(hist, i, levels):
        raise NotImplementedError

    result = examine(exercises.get("03.3"), make_q)
    assert (result.status, result.failure.headline) == (
        "failed",
        "make_p is still a stub: do 03.2 first",
    )
    result = examine(exercises.get("03.3"), lambda hist, i, levels: helper(hist, i, levels))
    assert "NotImplementedError" in result.failure.headline
    assert examine(exercises.get("03.3"), helper).status == "not attempted"


def test_arrays_of_objects_hold_numbers_or_are_shown():
    def listed(hist, i):
        return np.array([*hist[: i - 1], hist[i - 1 :].sum()], dtype=object)

    def text(hist, i):
        return np.array(["3"] * i)

    def nothing(hist, i):
        return np.array([None] * i)

    exercise = exercises.get("03.2")
    assert examine(exercise, listed).status == "passed"
    for wrong in (text, nothing):
        failure = examine(exercise, wrong).failure
        assert "hold numbers" in failure.headline
        assert "array([" in str(failure)
    assert len(brief(np.array(["a long name of a module"] * 50))) == 120
    with pytest.raises(ValueError, match="holds no numbers"):
        as_array(np.array([3, "3"], dtype=object))
    assert as_array(Fraction(9, 2)) == 4.5
    assert same(np.array(["a"]), np.array(["a"]))
    assert not same(np.array(["a"]), np.array(["b"]))


def test_wrong_signature_is_said():
    failure = examine(make(), lambda: 1).failure
    assert failure.headline == "could not be called as double(x)"
    assert "argument" in failure.got


def test_missing_return_and_wrong_types():
    assert "return" in examine(make(), lambda x: None).failure.cause
    assert "hold numbers" in examine(make(), lambda x: "two").failure.headline
    assert "shape" in examine(make(), lambda x: 2 * x.reshape(-1, 1)).failure.headline
    assert examine(make(), lambda x: 2 * x * float("nan")).status == "failed"
    assert "function itself" in examine(make(), 3).failure.headline


def test_strict_raises(registered, capsys):
    def stub(x):
        raise NotImplementedError

    registered(make())
    check("99.1", double, strict=True)
    with pytest.raises(Failure, match="wrong double"):
        check("99.1", lambda x: x, strict=True)
    with pytest.raises(Failure, match="not attempted"):
        check("99.1", stub, strict=True)
    assert "✓ 99.1 double passes" in capsys.readouterr().out


def test_a_function_of_the_course_is_not_taken_for_the_learners(registered, capsys, monkeypatch):
    saved = []
    monkeypatch.setattr("ptq_classroom.kit.learner.save", lambda *args: saved.append(args))
    registered(make())

    def course(x):
        return 2 * x

    course.__module__ = "ptq_course.grids.affine"
    check("99.1", course)
    said = capsys.readouterr().out
    assert "✗ 99.1 double: this is the course's function: run your own cell again" in said
    assert not saved
    check("99.1", course, strict=True)
    check("99.1", double)
    assert len(saved) == 1
    assert capsys.readouterr().out.count("✓ 99.1 double passes") == 2


def test_own_check_and_its_inputs():
    def zero_stays(fn):
        expect.expect(float(fn(torch.zeros(1))) == 0, "zero must stay zero")

    exercise = make(cases=None, check=zero_stays)
    assert examine(exercise, double).status == "passed"
    failure = examine(exercise, lambda x: 2 * x + 1).failure
    assert failure.headline == "zero must stay zero"
    assert failure.cause == "one too many"
    assert torch.equal(failure.inputs["x"], torch.zeros(1))


def test_expect_raises():
    def refuses_negatives(fn):
        expect.expect_raises(ValueError, fn, torch.tensor(-1.0))

    def strict(x):
        if x < 0:
            raise ValueError("negative")
        return 2 * x

    exercise = make(cases=None, check=refuses_negatives)
    assert examine(exercise, strict).status == "passed"
    assert "ValueError was expected" in examine(exercise, double).failure.headline


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        ((1.0, 3), (1.0, 2), "wrong zero_point"),
        ((1.0,), (1.0, 2), "should return 2 values: scale, zero_point"),
        (None, (1.0, 2), "should return 2 values"),
        ([1.0, 2], (1.0, 2), None),
        ((torch.tensor(1.0), np.int8(2)), (1.0, 2), None),
        (float("nan"), float("nan"), None),
        (np.inf, np.inf, None),
        (1.0, np.inf, "wrong"),
        ({"a": 1}, {"a": 1, "b": 2}, "keys a, b"),
        ({"b": 2, "a": [1, 2]}, {"a": [1, 2], "b": 2}, None),
        ([], [], None),
        (True, 1, None),
    ],
)
def test_expect_close(got, expected, message):
    where = ("scale", "zero_point") if isinstance(expected, tuple) else ""
    if message is None:
        expect_close(got, expected, where)
        return
    with pytest.raises(Failure, match=message):
        expect_close(got, expected, where)


def test_integers_and_types():
    expect.expect_integers([1.0, -2.0])
    with pytest.raises(Failure, match="whole numbers"):
        expect.expect_integers([1.5])
    expect.expect_dtype(np.int8(3), torch.int8)
    expect.expect_dtype(3, torch.int8)
    with pytest.raises(Failure, match="stored as float32, not as int8"):
        expect.expect_dtype(torch.tensor(3.0), torch.int8)


def test_unknown_ids_are_named():
    with pytest.raises(KeyError, match="no exercises for chapter '98'"):
        exercises.get("98.1")
    with pytest.raises(KeyError, match=r"chapter 01 has 01.1, 01.2"):
        exercises.get("01.9")
