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
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantized import QuantizedModel
from ptq_course.simulation.quantizer import PTQQuantizer

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


def test_the_advice_is_one_procedure_with_its_gain(outlier_case):
    """Whatever is advised was tried, and the same calls give the same gain."""
    model, found = outlier_case
    answer, evaluate = found["range rule"], teacher(model)
    quantizer = PTQQuantizer(model).observe(FLASH, progress=False)
    before = evaluate(quantizer.compute_qparams("minmax").convert())
    after = evaluate(quantizer.compute_qparams("search").convert())
    best = quantizer.searched.best
    assert answer.numbers["search"].best == best
    assert answer.verdict == f"yes, {best} is better"
    gain = answer.numbers["gain"]
    assert gain.difference == pytest.approx((after - before).mean().item())
    assert found.advice.startswith(f"let a search choose the range rule, here {best} ({gain})")
    # ... and no other rule leaves less noise in the outputs of a typical example.
    x = torch.cat([x for x, _ in FLASH])

    def noise(rule, **options):
        y = model(x).double()
        error = y - quantizer.compute_qparams(rule, **options).convert()(x)
        power, error = y.square().sum(1), error.square().sum(1)
        return (error / (error + power)).mean().item()

    reached = noise(best.rule, **best.options)
    assert reached == pytest.approx(best.noise, abs=0.02)
    assert reached <= min(noise(rule) for rule in ("minmax", "percentile", "kl", "mse")) + 0.02


def test_a_searched_rule_is_not_advised_again():
    model = make()
    found = diagnose(
        model, FLASH, teacher(model), runtime=False, thorough=True, progress=False
    )  # fmt: skip
    assert found["range rule"].verdict == "no"
    assert "It is the rule in use" in found["range rule"].finding
    assert "range rule" not in found.advice


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
        quantized = PTQQuantizer(make()).calibrate(DATA, progress=False).convert()
        with pytest.raises(QuantizationError, match="quantized already"):
            diagnose(quantized, DATA, lambda _: 1.0, progress=False)
