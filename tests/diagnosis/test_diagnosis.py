"""diagnose names what was broken on purpose, and every recipe it hands out runs."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from networks import DataDependent, answering, batches, taught_by

from ptq_course.diagnosis import diagnose
from ptq_course.diagnosis.answers import CHAPTERS
from ptq_course.diagnosis.scores import top1_on
from ptq_course.errors import CalibrationError, QuantizationError
from ptq_course.simulation import quantizer as quantizer_module
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer
from ptq_course.simulation.range_search import RangeSearch, Tried

DATA = batches(4, 32)
FLASH = [(torch.cat([x[:-1], x[-1:] * 300]), y) for x, y in DATA]  # one loud picture a batch


def make(seed=0):
    return answering(DATA, seed)


def teacher(model, data=DATA):
    return top1_on(taught_by(model, data))


def damaged():
    """A layer in which a weight that no value reaches sets the scale of all others."""
    model = make()
    with torch.no_grad():
        model.stem_bn.bias[0] = -100
        model.a.weight[:, 0, 0, 0] = 100
    return model


@pytest.fixture(scope="module")
def outlier_case():
    model = make()
    return model, diagnose(model, FLASH, teacher(model), ranges="minmax", progress=False)


def test_outlier_pictures_are_found_out(outlier_case):
    _, found = outlier_case
    assert found["drop"].verdict == "yes"
    assert found["fp32 export"].verdict == "yes"
    assert found["runtime"].verdict == "yes"
    assert found["weights or activations"].verdict.endswith("activations")
    assert found["range rule"].verdict.startswith("yes")
    worst = found["layers"].numbers["worst"]
    assert "stem" in {row.name for row in worst}
    assert found["layers"].verdict in {row.name for row in worst}


def test_the_advice_is_one_procedure_with_its_gain(outlier_case, capsys):
    """What is advised was tried, and the recipe that is handed out gives the same gain."""
    model, found = outlier_case
    answer, evaluate = found["range rule"], teacher(model)
    name = answer.verdict.removeprefix("yes, ").removesuffix(" is better")
    row = answer.numbers["rules"][name]
    assert found.advice.startswith(f"choose ranges='{name.split()[0]}'")
    assert f"({row})" in found.advice
    scope = {"model": model, "calibration": FLASH, "evaluate": evaluate}
    exec(answer.recipe, scope)
    assert str(answer.numbers["search"]) in capsys.readouterr().out
    minmax = PTQQuantizer(model).calibrate(FLASH, ranges="minmax", progress=False).convert()
    gain = evaluate(scope["quantized"]) - evaluate(minmax)
    assert row.difference == pytest.approx(gain.mean().item())
    assert set(answer.numbers["rules"]) == {
        str(next(t for t in answer.numbers["search"].tried if t.rule == rule))
        for rule in ("percentile", "kl", "mse")
    }


@pytest.mark.parametrize("order", [["kl", "percentile", "mse"], ["percentile", "mse", "kl"]])
def test_rules_that_are_not_told_apart_are_told_apart_by_the_search(monkeypatch, order):
    """All score the same: the advice is the one whose outputs are nearest to FP32's."""
    tried = [Tried(rule, {}, 30.0 - n, 1.0) for n, rule in enumerate([*order, "minmax"])]
    monkeypatch.setattr(quantizer_module, "compare_rules", lambda *_, **__: RangeSearch((*tried,)))

    def evaluate(net):
        chosen = getattr(net, "qparams", {}).get("x")
        return torch.full((40,), float(chosen is None or chosen.scale != full["x"].scale))

    model = make()
    full = PTQQuantizer(model).calibrate(FLASH, ranges="minmax", progress=False).qparams
    found = diagnose(model, FLASH, evaluate, ranges="minmax", runtime=False, progress=False)
    better = [name for name, row in found["range rule"].numbers["rules"].items() if row.low > 0]
    assert {"kl", "percentile"} <= set(better)
    first = next(rule for rule in order if rule in better)
    assert found["range rule"].verdict == f"yes, {first} is better"
    assert found.advice.startswith(f"choose ranges={first!r} (+100.0 points")
    assert f"compute_qparams({first!r})" in found["range rule"].recipe


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_verdict_recipe_and_advice_name_the_same_layer(rank):
    """Also where the layer that is worst by its decibels is not the one that costs answers."""
    model = make()

    def diagnosed(evaluate):
        return diagnose(
            model, DATA, evaluate, ranges="minmax", runtime=False, thorough=True, progress=False
        )

    worst = diagnosed(lambda _: torch.ones(40))["layers"].numbers["worst"]
    culprit = worst[rank].name

    def evaluate(net):
        layers = net.quantized_layers() if isinstance(net, QuantizedModel) else {}
        return torch.full((40,), float(culprit not in layers))

    found = diagnosed(evaluate)
    assert found["layers"].verdict == culprit
    assert f"float_layers=({culprit!r},)" in found["layers"].recipe
    assert f"keep {culprit} in floating point" in found.advice


def test_where_no_layer_helps_the_recipe_is_about_the_worst():
    model = make()
    found = diagnose(
        model, DATA, lambda _: torch.ones(40), runtime=False, thorough=True, progress=False
    )
    worst = found["layers"].numbers["worst"][0].name
    assert found["layers"].verdict == worst
    assert f"float_layers=({worst!r},)" in found["layers"].recipe
    assert "repairs nothing" in found["layers"].finding


def test_a_damaged_layer_is_named_first():
    model = damaged()
    found = diagnose(
        model, DATA, teacher(model), runtime=False, thorough=True,
        progress=False,
    )  # fmt: skip
    assert found["layers"].verdict == "a"
    assert found["layers"].numbers["worst"][0].name == "a"
    assert "fp32 export" not in {answer.topic for answer in found.answers}


def test_without_a_drop_it_stops_and_says_so():
    model = make()
    fine = diagnose(model, DATA, lambda _: torch.ones(40), runtime=False, progress=False)
    assert fine["drop"].verdict == "not shown"
    assert [answer.topic for answer in fine.answers] == ["drop"]
    assert "no drop was shown" in fine.advice
    every = diagnose(
        model, DATA, lambda _: torch.ones(40), runtime=False, thorough=True, progress=False
    )
    assert len(every.answers) == 4
    assert every.advice == fine.advice
    with pytest.raises(KeyError, match="layers"):
        fine["layers"]


def test_every_recipe_runs_and_is_short(outlier_case, tmp_path, monkeypatch, capsys):
    model, found = outlier_case
    monkeypatch.chdir(tmp_path)
    for answer in found.answers:
        lines = answer.recipe.strip().splitlines()
        assert len(lines) <= 15
        assert all(len(line) <= 110 for line in lines)
        scope = {"model": copy.deepcopy(model), "calibration": FLASH, "evaluate": teacher(model)}
        exec(compile(answer.recipe, f"<recipe {answer.topic}>", "exec"), scope)
        assert capsys.readouterr().out.strip(), answer.topic
        assert answer.recipe.strip().splitlines()[0].split()[0] in ("from", "import")


def test_the_recipes_repeat_the_measured_numbers(outlier_case, tmp_path, monkeypatch, capsys):
    model, found = outlier_case
    monkeypatch.chdir(tmp_path)
    scope = {"model": model, "calibration": FLASH, "evaluate": teacher(model)}
    exec(found["drop"].recipe, scope)
    assert scope["change"] == pytest.approx(found["drop"].numbers["drop"].difference)
    assert "a real drop" in capsys.readouterr().out
    exec(found["weights or activations"].recipe, scope)
    table = found["weights or activations"].numbers["table"]
    assert scope["table"]["W8A8"] == table["W8A8"]


def test_every_answer_names_a_chapter_and_prints(outlier_case):
    _, found = outlier_case
    assert {answer.topic for answer in found.answers} == set(CHAPTERS)
    text = str(found)
    for answer in found.answers:
        assert answer.question in text
        assert answer.chapter in text
        assert answer.recipe.splitlines()[0] in text
    assert text == repr(found)
    assert "Do first" in found.summary()
    assert " | " not in found.summary()


def test_a_wrong_runtime_is_the_first_advice(monkeypatch):
    import ptq_course.deploy.onnx as onnx

    real = onnx.session

    def saturating(path, *args):
        run = real(path, *args)
        return lambda *inputs: run(*inputs).clamp(-0.5, 0.5)

    model = make()
    monkeypatch.setattr(onnx, "session", saturating)
    found = diagnose(model, FLASH, teacher(model), ranges="minmax", progress=False)
    assert found["fp32 export"].verdict == "no"
    assert found.advice.startswith("repair the FP32 export")


def test_a_refused_export_is_skipped_with_its_reason(monkeypatch):
    import ptq_course.deploy.onnx as onnx

    def refuse(*args, **kwargs):
        raise QuantizationError("ConvTranspose3d has no integer form in ONNX")

    monkeypatch.setattr(onnx, "export", refuse)
    model = make()
    found = diagnose(model, FLASH, teacher(model), ranges="minmax", progress=False)
    assert found["runtime"].verdict == "not checked"
    assert "ConvTranspose3d" in found["runtime"].finding


def test_an_untraced_model_and_one_number():
    torch.manual_seed(0)
    model = DataDependent()
    data = [torch.rand(8, 6), -torch.rand(8, 6)]
    labels = [(x, model(x).argmax(1)) for x in data]
    per_example = top1_on(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = diagnose(
            model, data, lambda net: per_example(net).mean().item(), runtime=False, thorough=True,
            config=QConfig(weight_bits=2, activation_bits=2), progress=False,
        )  # fmt: skip
    assert found["drop"].verdict == "cannot tell"
    assert "one number" in str(found)
    assert "traced" in found.comparison.notes[0]
    assert found["layers"].verdict in ("fc", "other")


def test_the_model_is_not_changed(outlier_case):
    model, _ = outlier_case
    untouched = make()
    for name, value in model.state_dict().items():
        assert torch.equal(value, untouched.state_dict()[name])


class TestErrors:
    def test_data(self):
        model = make()
        with pytest.raises(CalibrationError, match="no batch"):
            diagnose(model, [], teacher(model), progress=False)
        with pytest.raises(CalibrationError, match="only once"):
            diagnose(model, iter(DATA), teacher(model), progress=False)

    def test_evaluate(self):
        with pytest.raises(QuantizationError, match="NaN"):
            diagnose(make(), DATA, lambda _: float("nan"), progress=False)
        with pytest.raises(QuantizationError, match="top1_on"):
            diagnose(make(), DATA, DATA, progress=False)

    def test_a_quantized_model(self):
        quantized = PTQQuantizer(make()).calibrate(DATA, progress=False, ranges="minmax").convert()
        with pytest.raises(QuantizationError, match="quantized already"):
            diagnose(quantized, DATA, lambda _: 1.0, progress=False)
