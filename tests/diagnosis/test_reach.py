"""reach: the order of the remedies, what decides, the log, and going on after an interruption."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from networks import DataDependent, Net, answering, batches, taught_by
from torch import nn

from ptq_course.diagnosis import remedies
from ptq_course.diagnosis.journal import Journal
from ptq_course.diagnosis.ladder import Ladder
from ptq_course.diagnosis.log import Step
from ptq_course.diagnosis.noise import OutputNoise
from ptq_course.diagnosis.reach import reach
from ptq_course.diagnosis.remedies import Recipe
from ptq_course.diagnosis.runtime import milliseconds
from ptq_course.diagnosis.scores import Variant, top1_on
from ptq_course.diagnosis.widening import Widening
from ptq_course.errors import (
    CalibrationError,
    DataIntegrityError,
    QuantizationError,
    UnsupportedError,
)
from ptq_course.grids.metrics import paired_bootstrap
from ptq_course.improve.equalization import unequalize
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

CALIBRATION = batches(2, 32)
PER_TENSOR = QConfig(weight_granularity="per_tensor")
QUIET: dict[str, Any] = {"timed": False, "progress": False}


@pytest.fixture(scope="module")
def network():
    return answering(CALIBRATION, 0)


@pytest.fixture(scope="module")
def scored(network):
    """400 examples of which the network is surer than of others: its answers are no toss-up."""
    x = torch.cat([x for x, _ in batches(4, 300, seed=1)])
    with torch.no_grad():
        first, second = network(x).topk(2).values.T
    return x[(first - second).argsort(descending=True)[:400].sort()[0]]


@pytest.fixture(scope="module")
def evaluate(network, scored):
    return top1_on(taught_by(network, [(scored, None)]))


@pytest.fixture(scope="module")
def uneven(network):
    """The same function with channels of very different ranges."""
    return unequalize(network, spread=7)


@pytest.fixture(scope="module")
def rescued(uneven, evaluate):
    return reach(uneven, CALIBRATION, evaluate, drop=8, config=PER_TENSOR, **QUIET)


@pytest.fixture(scope="module")
def low(network, evaluate):
    """Two bits, so that every remedy is tried and layers have to be widened."""
    config = QConfig(weight_bits=2)
    return reach(network, CALIBRATION, evaluate, drop=4, config=config, **QUIET)


def by_hand(line, model):
    names = {"model": model, "calibration": CALIBRATION}
    exec(remedies.IMPORTS, names)
    return eval(line, names)


def test_what_is_fine_as_it_comes_is_left_alone(network, evaluate):
    result = reach(network, CALIBRATION, evaluate, drop=15, **QUIET)
    assert result.reached
    assert [step.name for step in result.log] == ["as it comes, minmax ranges"]
    assert result.log[0].kept


def test_remedies_come_in_order_and_end_with_the_first_that_reaches(rescued):
    names = [step.name for step in rescued.log]
    assert names[0] == "as it comes, minmax ranges"
    assert names[1].startswith("range rule searched")
    assert names[2:] == ["bias correction", "equalization"]
    assert rescued.reached
    assert rescued.recipe.prepare == "equalized"
    limits = [-step.change.low <= 0.08 for step in rescued.log]
    assert limits == [False] * (len(names) - 1) + [True]
    assert rescued.log[0].change.score < 0.8 < rescued.validation.score


def test_the_interval_is_that_of_the_validation_part_and_the_test_part_is_the_rest(
    rescued, uneven, evaluate
):
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    test, validation = order[:200].sort()[0], order[200:].sort()[0]
    with torch.no_grad():
        before, after = evaluate(uneven.eval()), evaluate(rescued.model)
    for part, found in ((validation, rescued.validation), (test, rescued.test)):
        expected = paired_bootstrap(before[part], after[part])
        assert (found.difference, found.low, found.high) == expected


def test_scores_of_the_test_part_decide_nothing(rescued, uneven, evaluate):
    held_out = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:200]

    def spoilt(model):
        scores = evaluate(model)
        if hasattr(model, "quantized_layers"):
            scores[held_out] = 0.0
        return scores

    other = reach(uneven, CALIBRATION, spoilt, drop=8, config=PER_TENSOR, **QUIET)
    assert [(s.line, s.change, s.kept) for s in other.log] == [
        (s.line, s.change, s.kept) for s in rescued.log
    ]
    assert other.test is not None
    assert other.test.score == 0.0
    assert (other.reached, other.confirmed) == (True, False)
    assert "not shown to be inside" in str(other)


def test_each_line_makes_the_network_by_hand(rescued, low, uneven, network, scored, evaluate):
    x = scored
    for result, model in ((rescued, uneven), (low, network)):
        assert torch.equal(by_hand(result.line, model)(x), result.model(x))
    kinds = {(s.recipe.prepare, s.recipe.steps): s for s in low.log}
    assert ("AdaRound(alone=True)",) in {steps[:1] for _, steps in kinds}
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))[200:]
    for step in [low.log[0], kinds["", ("CorrectBias()",)], kinds["equalized", ("CorrectBias()",)]]:
        with torch.no_grad():
            scores = evaluate(by_hand(step.line, network))
        assert scores[order].mean().item() == pytest.approx(step.change.score)
    names = {}
    exec(low.log.code, {"model": network, "calibration": CALIBRATION}, names)
    assert names["quantized"].config == low.log[-1].recipe.config


def test_gains_are_against_the_best_before_and_what_is_kept_is_higher(low):
    kept: list[Any] = []
    for step in low.log:
        if kept:
            gain = step.change.score - kept[-1].change.score
            assert step.gained.difference == pytest.approx(gain, abs=1e-9)
        else:
            assert step.gained is None
        if step.kept:
            kept.append(step)
    best = kept[-1]
    assert best is low.log.best
    assert low.validation == best.change


def test_layers_are_widened_where_all_else_is_not_enough(low):
    assert low.reached
    assert low.log.best.name.startswith("INT8: ")
    count = len(low.recipe.config.layer_bits)
    widths = {n: layer.weight_grid.bits for n, layer in low.model.quantized_layers().items()}
    assert sorted(widths.values()) == [2] * (4 - count) + [8] * count
    assert low.log.best.bytes > low.log[0].bytes


class Pretended:
    """In place of the meter: reaches with ``needed`` layers and more; scores rise and fall."""

    def __init__(self, needed: int) -> None:
        self.needed = needed

    def measure(self, name, recipe, workshop, best, spent):
        count = len(recipe.config.layer_bits)
        change = Variant(name, 0.5 + 0.1 * (count % 3), -0.1, -float(count < self.needed), 0.0)
        return Step(name, recipe.line, recipe, change, None, 1, None, 0.0, False)

    def keep(self, step):
        self.kept = step
        return step


@pytest.mark.parametrize("needed", range(1, 10))
def test_the_fewest_layers_of_the_order_are_widened(needed):
    names = [f"layer{i}" for i in range(9)]
    start = Recipe(QConfig(weight_bits=4), "minmax")
    journal, pretended = Journal(None, ""), Pretended(needed)
    no_workshop: Any = None
    meter: Any = pretended
    ladder = Ladder(no_workshop, meter, journal, start, limit=0.5)
    ladder.try_("as it comes", start)
    journal.put(f"order 8 {start.line}", names)
    Widening(ladder).climb()
    assert [name for name, _ in ladder.recipe.config.layer_bits] == names[:needed]
    assert pretended.kept == ladder.best
    assert len(ladder.steps) <= 1 + 5 + 2  # galloping, then bisection


def test_the_log_reads_like_one(rescued):
    text = str(rescued.log)
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["tried", "score", "change"]
    assert lines[2].split()[0] == "FP32"
    assert "reached a drop of at most 8 points with 'equalization'" in text
    assert "held-out test part, 200 examples" in text
    assert f"by hand: {rescued.line}" in text
    assert "equalization" in rescued._repr_html_()
    assert len(rescued.log) == len(list(rescued.log))


def test_nothing_reaches_and_it_says_so(network, evaluate):
    config = QConfig(weight_bits=2, activation_bits=2)
    result = reach(network, CALIBRATION, evaluate, drop=0, config=config, **QUIET)
    assert not result.reached
    assert "NOT reached: a drop of at most 0 points. The best found is" in str(result)
    assert result.validation.score == max(step.change.score for step in result.log)
    assert len(result.recipe.config.float_layers) <= 2  # half of four, else nothing is quantized
    assert any(step.name.startswith("FP16: ") for step in result.log)


def test_scores_that_are_no_shares_have_their_own_unit(network, scored):
    x = scored
    expected = network(x).detach()

    def error(model):
        return -(model(x) - expected).square().mean(1)

    loose = reach(network, CALIBRATION, error, drop=1.0, **QUIET)
    assert len(loose.log) == 1
    assert "points" not in str(loose)


class Interrupted(Exception):
    pass


def test_an_interrupted_call_goes_on_without_measuring_again(
    tmp_path, rescued, uneven, evaluate, scored
):
    path, calls = tmp_path / "reach.json", []

    def stopping(at):
        def scored(model):
            calls.append(model)
            if len(calls) == at:
                raise Interrupted
            return evaluate(model)

        return scored

    settings = {"drop": 8, "config": PER_TENSOR, "resume": path, **QUIET}
    with pytest.raises(Interrupted):
        reach(uneven, CALIBRATION, stopping(4), **settings)
    calls.clear()
    result = reach(uneven, CALIBRATION, stopping(None), **settings)
    assert len(calls) == 1 + len(rescued.log) - 2  # FP32, then what was not measured
    assert [(s.line, s.change, s.gained, s.bytes) for s in result.log] == [
        (s.line, s.change, s.gained, s.bytes) for s in rescued.log
    ]
    x = scored
    assert torch.equal(result.model(x), rescued.model(x))
    calls.clear()
    again = reach(uneven, CALIBRATION, stopping(None), **settings)
    assert len(calls) == 1
    assert torch.equal(again.model(x), rescued.model(x))
    assert again.test == result.test


@pytest.fixture(scope="module")
def written(tmp_path_factory, network, evaluate):
    path = tmp_path_factory.mktemp("journal") / "reach.json"
    reach(network, CALIBRATION, evaluate, drop=15, resume=path, **QUIET)
    return path


class TestJournal:
    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "other", "key": 1}', "\xff"])
    def test_damage_is_named(self, tmp_path, network, evaluate, text):
        path = tmp_path / "reach.json"
        path.write_text(text, encoding="latin-1")
        with pytest.raises(DataIntegrityError, match=r"reach.json is damaged.*delete it"):
            reach(network, CALIBRATION, evaluate, resume=path, **QUIET)

    def test_of_another_model_config_or_data(self, written, network, uneven, evaluate):
        before = written.read_bytes()
        for model, data, options in (
            (uneven, CALIBRATION, {}),
            (network, batches(2, 32, seed=5), {}),
            (network, CALIBRATION, {"config": PER_TENSOR}),
            (network, CALIBRATION, {"seed": 1}),
        ):
            with pytest.raises(QuantizationError, match="was written for another model"):
                reach(model, data, evaluate, resume=written, **options, **QUIET)
        assert written.read_bytes() == before

    def test_of_other_examples(self, written, network, evaluate):
        def other(model):
            return 1 - evaluate(model)

        with pytest.raises(QuantizationError, match="evaluate gives other scores for FP32"):
            reach(network, CALIBRATION, other, resume=written, **QUIET)

    def test_no_folder(self, tmp_path, network, evaluate):
        with pytest.raises(QuantizationError, match="create the folder"):
            reach(network, CALIBRATION, evaluate, resume=tmp_path / "no" / "reach.json", **QUIET)

    def test_another_drop_uses_what_was_measured(self, written, network, evaluate):
        calls = []

        def counted(model):
            calls.append(model)
            return evaluate(model)

        reach(network, CALIBRATION, counted, drop=20, resume=written, **QUIET)
        assert len(calls) == 1
        assert "scores" in next(
            v for k, v in json.loads(written.read_text())["results"].items() if "convert()" in k
        )


def test_the_time_of_an_example_is_measured_where_there_is_a_file():
    model, x = nn.Linear(4, 3), torch.randn(8, 4)
    found = milliseconds(model, [x])
    assert found is not None
    assert 0 < found < 1000
    assert milliseconds(model, [x, x]) is None
    nine_bits = PTQQuantizer(model, bits=9).calibrate([x], progress=False, ranges="minmax")
    assert milliseconds(nine_bits.convert(), [x]) is None


def test_each_kind_of_network_is_timed_once(monkeypatch, uneven, evaluate):
    seen = []

    def timed(model, inputs):
        seen.append(type(model).__name__)
        return float(len(seen))

    monkeypatch.setattr("ptq_course.diagnosis.meter.milliseconds", timed)
    result = reach(uneven, CALIBRATION, evaluate, drop=8, config=PER_TENSOR, progress=False)
    assert len(seen) == 3  # FP32, INT8, and INT8 after equalization
    assert [s.milliseconds for s in result.log] == [2, 2, 2, 3]
    assert "2.00 ms" in str(result)


def test_a_network_without_a_graph():
    torch.manual_seed(0)
    model, data = DataDependent(), [torch.rand(32, 6), -torch.rand(32, 6)]
    evaluate = top1_on(taught_by(model, [(x, None) for x in data]))
    with pytest.warns(UserWarning, match="traced"):
        result = reach(
            model, data, evaluate, drop=0, config=QConfig(weight_bits=2, activation_bits=2), **QUIET
        )
    recipes: list[Any] = [step.recipe for step in result.log]
    assert not any(recipe.steps or recipe.prepare for recipe in recipes)
    assert "could not be traced" in str(result)


def test_a_remedy_that_refuses_is_noted_and_the_next_is_tried(monkeypatch, network, evaluate):
    build = remedies.Workshop.build

    def refusing(self, recipe):
        if recipe.steps:
            raise UnsupportedError("layer 'fc' cannot be improved")
        return build(self, recipe)

    monkeypatch.setattr(remedies.Workshop, "build", refusing)
    result = reach(network, CALIBRATION, evaluate, drop=0, **QUIET)
    assert "bias correction was refused: layer 'fc' cannot be improved" in str(result)
    assert "AdaRound was refused" in str(result)
    assert "equalization" in [step.name for step in result.log]
    broken = QConfig(float_layers=("nose",))
    with pytest.raises(UnsupportedError, match="names 'nose'"):
        reach(network, CALIBRATION, evaluate, config=broken, **QUIET)


def test_layers_are_widened_in_the_order_of_execution_where_noise_gives_none(monkeypatch, scored):
    def both(net, x):
        x = net.first(x.flatten(1)).relu()
        return net.one(x), net.two(x)

    torch.manual_seed(0)
    layers = {"first": nn.Linear(432, 8), "one": nn.Linear(8, 4), "two": nn.Linear(8, 4)}
    model, x = Net(both, **layers), scored[:60]
    expected = model(x)[1].detach()

    def evaluate(net):
        return -(net(x)[1] - expected).square().mean(1)

    def refusing(self, width):
        raise QuantizationError("the outputs cannot be compared")

    monkeypatch.setattr(OutputNoise, "order", refusing)
    config = QConfig(weight_bits=2)
    result = reach(model, CALIBRATION, evaluate, drop=0, config=config, **QUIET)
    assert "in the order of execution: the outputs cannot be compared" in str(result)
    recipes: list[Any] = [step.recipe for step in result.log]
    widened = [recipe.config.layer_bits for recipe in recipes if recipe.config.layer_bits]
    assert [name for name, _ in widened[0]] == ["first"]
    assert [name for name, _ in widened[1]] == ["first", "one"]


def test_weights_alone(network, evaluate, scored):
    config = QConfig(activation_bits=None, weight_bits=3)
    result = reach(network, CALIBRATION, evaluate, drop=0, config=config, **QUIET)
    assert result.log[0].name == "as it comes"
    assert not any("searched" in step.name for step in result.log)
    assert torch.equal(by_hand(result.line, network)(scored), result.model(scored))


@pytest.mark.parametrize(("options", "error", "match"), [
    ({"drop": -1}, QuantizationError, "drop must lie in"),
    ({"drop": "little"}, QuantizationError, "drop must lie in"),
    ({"target": "gpu"}, QuantizationError, "target is one of onnxruntime, tensorrt, arm"),
    ({"target": "arm", "config": QConfig()}, QuantizationError, "config is for 'onnxruntime'"),
    ({"test_share": 1.0}, QuantizationError, "test_share must lie in"),
    ({"seed": -1}, QuantizationError, "seed must be"),
    ({"timed": 1}, QuantizationError, "timed is True or False"),
    ({"evaluate": lambda model: torch.ones(1)}, QuantizationError, "1 examples cannot be split"),
    ({"evaluate": 3}, QuantizationError, "must be a function"),
    ({"calibration": []}, CalibrationError, "gave no batch"),
    ({"calibration": iter([])}, CalibrationError, "only once"),
    ({"config": QConfig(weight_bits=None, activation_bits=None)}, QuantizationError, "nothing"),
])  # fmt: skip
def test_bad_input(network, evaluate, options, error, match):
    given = {"calibration": CALIBRATION, "evaluate": evaluate, **options}
    with pytest.raises(error, match=match):
        reach(network, given.pop("calibration"), given.pop("evaluate"), **{**QUIET, **given})


def test_other_wrong_objects(network, evaluate):
    quantizer: Any = PTQQuantizer(network)
    quantizer.calibrate(CALIBRATION, progress=False, ranges="minmax")
    word: Any = "resnet"
    with pytest.raises(CalibrationError, match="not a quantizer"):
        reach(network, quantizer, evaluate, **QUIET)
    with pytest.raises(QuantizationError, match="quantized already"):
        reach(quantizer.convert(), CALIBRATION, evaluate, **QUIET)
    with pytest.raises(QuantizationError, match=r"nn\.Module"):
        reach(word, CALIBRATION, evaluate, **QUIET)
    sizes = iter([40, 41])
    with pytest.raises(QuantizationError, match="same examples in the same order"):
        reach(network, CALIBRATION, lambda _: torch.ones(next(sizes)), **QUIET)
    assert isinstance(network, nn.Module)
