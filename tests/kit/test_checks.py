"""Every exercise of every chapter: wrong answers fail with their cause named, right ones pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ptq_classroom.chapters.ch00 import exercises as ch00
from ptq_classroom.chapters.ch01 import exercises as ch01
from ptq_classroom.chapters.ch02 import exercises as ch02
from ptq_classroom.kit import checking, exercises
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.exercises import Exercise, everything
from ptq_classroom.kit.values import same, snapshot

ALL = everything()
Q = torch.tensor([0.025, 0.975], dtype=torch.float64)
ids = pytest.mark.parametrize("exercise", ALL, ids=lambda e: e.id)


def stub(*args, **kwargs):
    raise NotImplementedError


def test_there_are_exercises():
    assert [e.id for e in ALL][:2] == ["prep.1", "prep.2"]
    assert {"01.1", "01.2"} <= {e.id for e in ALL}


def test_ids_and_function_names_are_unique():
    assert len({e.id for e in ALL}) == len({e.function for e in ALL}) == len(ALL)


@ids
def test_enough_material(exercise: Exercise):
    assert len(exercise.diagnoses) >= 3
    assert len(exercise.accepted) >= 2
    assert len(exercise.hints) >= 2
    assert 1 <= exercise.difficulty <= 5
    assert 1 <= exercise.minutes <= 30
    assert exercise.cases or exercise.check
    assert exercises.get(exercise.id) is exercise
    causes = [cause for _, cause in exercise.diagnoses]
    assert len(set(causes)) == len(causes)


@pytest.mark.parametrize(
    ("exercise", "wrong", "cause"),
    [(e, wrong, cause) for e in ALL for wrong, cause in e.diagnoses],
    ids=[f"{e.id}-{i}" for e in ALL for i in range(len(e.diagnoses))],
)
@pytest.mark.filterwarnings("ignore")
def test_wrong_answer_fails_with_its_cause(exercise: Exercise, wrong, cause: str):
    result = examine(exercise, wrong)
    assert result.status == "failed"
    assert result.failure.cause == cause
    assert result.failure.inputs, "the message must show the generated input"
    said = " ".join(str(result.failure).split())
    assert f"likely cause {cause}" in said, "the learner must be able to read it"


@pytest.mark.parametrize(
    ("exercise", "right"),
    [(e, right) for e in ALL for right in (e.reference, *e.accepted)],
    ids=[f"{e.id}-{i}" for e in ALL for i in range(1 + len(e.accepted))],
)
def test_right_answer_passes(exercise: Exercise, right):
    result = examine(exercise, right)
    assert result.status == "passed", str(result.failure)


@ids
def test_stub_is_not_attempted(exercise: Exercise, capsys: pytest.CaptureFixture):
    checking.check(exercise.id, stub)
    assert "not attempted yet" in capsys.readouterr().out


@ids
def test_an_empty_answer_is_told_to_return(exercise: Exercise):
    result = examine(exercise, lambda *args: None)
    assert result.status == "failed"


@ids
def test_cases_are_the_same_in_every_run(exercise: Exercise):
    if exercise.cases:
        first, second = list(exercise.cases()), list(exercise.cases())
        assert [label for label, _ in first] == [label for label, _ in second]
        assert all(same(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


@ids
def test_reference_leaves_its_inputs_alone(exercise: Exercise):
    for _, inputs in exercise.cases() if exercise.cases else ():
        before = snapshot(inputs)
        exercise.reference(*inputs.values())
        assert exercise.may_change_inputs or same(before, inputs)


def cause_of(id: str, answer) -> tuple[str, str]:
    failure = examine(exercises.get(id), answer).failure
    return failure.headline, failure.cause


def drawn_means(fp_right, q_right, draws: int = 2000):
    differences = q_right - fp_right
    places = torch.randint(
        len(differences), (draws, len(differences)), generator=torch.Generator().manual_seed(5)
    )
    return differences[places].mean(1)


@pytest.mark.parametrize(
    ("answer", "headline", "cause"),
    [
        (lambda a, b: (None, None), "low is None", ""),
        (lambda a, b: None, "should return 2 values: low, high", "is a `return` missing?"),
        (lambda a, b: ("a", "b"), "low should hold numbers", ""),
        (lambda a, b: (b - a, b.mean()), "low has shape", ""),
        (lambda a, b: (float("nan"), float("nan")), "low is not a number, but nan", ""),
        (lambda a, b: (-1.0, float("inf")), "high is not a number, but inf", ""),
        (lambda a, b: drawn_means(a, b).mean(), "should return 2 values", ""),
        (lambda a, b: drawn_means(a, b).quantile(Q.flip(0)), "turned round", "lower end comes"),
        (lambda a, b: drawn_means(a, b, 20).quantile(Q), "the interval is off", ""),
        (lambda a, b: (b - a).quantile(Q), "the interval is off", "mean of each draw first"),
        (lambda a, b: drawn_means(a, b).aminmax(), "the interval is off", "cut off 2.5 %"),
        (lambda a, b: (b.mean() - a.mean() - 0.1, b.mean() - a.mean() + 0.1), "is off", ""),
    ],
)
def test_an_interval_gets_the_right_cause_or_none(answer, headline: str, cause: str):
    said, why = cause_of("00.2", answer)
    assert headline in said
    assert cause in why if cause else why == ""


@pytest.mark.parametrize(
    ("id", "answer", "cause"),
    [
        ("00.1", lambda fp, q, t: torch.tensor(ch00.flips(q, fp, t)), "the other way round"),
        ("00.1", lambda fp, q, t: (fp.argmax(1) != t).sum(), ""),
        ("00.1", lambda fp, q, t: torch.tensor(ch00.flips(fp, q, t))[:, None], ""),
        (
            "01.1",
            lambda lo, hi, g: torch.tensor(ch01.qparams(lo, hi, g)[::-1]),
            "scale comes first",
        ),
        ("01.1", lambda lo, hi, g: (None, None), ""),
        (
            "01.1",
            lambda lo, hi, g: (1.0, 0.5) if lo == hi == 0 else ch01.qparams(lo, hi, g),
            "never rounded",
        ),
        ("02.1", lambda batches, bits: [ch02.minmax_scale(batches, bits)], ""),
        ("02.1", lambda batches, bits: [batches[-1].abs().max().item() / 127], ""),
        ("02.2", lambda c, e, p: np.array([ch02.hist_percentile(c, e, p)]), ""),
        (
            "prep.6",
            lambda x, m, v, g, b, eps: F.batch_norm(x, m, v, g, b, training=True, eps=eps),
            "train mode",
        ),
    ],
)
def test_a_cause_fits_what_was_returned(id: str, answer, cause: str):
    _, why = cause_of(id, answer)
    assert cause in why if cause else why == ""
