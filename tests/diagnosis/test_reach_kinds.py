"""reach on other networks and metrics: transformers, detectors, one number, named inputs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptq_course.diagnosis import ladder, remedies
from ptq_course.diagnosis.reach import reach
from ptq_course.diagnosis.scores import OfSet, against, score, top1_on
from ptq_course.diagnosis.sensitivity import one_at_a_time
from ptq_course.diagnosis.widening import Widening
from ptq_course.errors import QuantizationError
from ptq_course.improve import adaround as adaround_module
from ptq_course.improve.adaround import AdaRound
from ptq_course.simulation.qconfig import QConfig
from tests.networks import answering, batches, taught_by

CALIBRATION = batches(2, 32)
QUIET: dict[str, Any] = {"timed": False, "progress": False}


@pytest.fixture(scope="module")
def network():
    return answering(CALIBRATION, 0)


@pytest.fixture(scope="module")
def evaluate(network):
    x = torch.cat([x for x, _ in batches(2, 200, seed=1)])
    return top1_on(taught_by(network, [(x, None)]))


def of_set(evaluate):
    """The same mean, as a metric of the set."""

    def mean(model) -> OfSet:
        scores = evaluate(model).double()
        return OfSet(len(scores), lambda counts: (counts * scores).sum(1) / counts.sum(1))

    return mean


class TestOneNumber:
    def test_the_drop_decides_and_the_log_says_what_is_missing(self, network, evaluate):
        def number(model) -> float:
            return evaluate(model).mean().item()

        config = QConfig(weight_bits=3)
        result = reach(network, CALIBRATION, number, drop=35, config=config, **QUIET)
        assert result.reached
        assert result.log.best.change.score >= 0.65
        assert all(step.change.score < 0.65 for step in result.log if step is not result.log.best)
        assert result.validation.score == pytest.approx(number(result.model))
        assert result.test is None
        assert not result.confirmed
        assert "one number" in str(result)
        assert "held-out" not in str(result)
        assert "one number" in result._repr_html_()

    def test_goes_on_after_an_interruption(self, tmp_path, network, evaluate):
        calls = []

        def number(model) -> float:
            calls.append(model)
            return evaluate(model).mean().item()

        settings = {"config": QConfig(weight_bits=3), "resume": tmp_path / "it.json", **QUIET}
        first = reach(network, CALIBRATION, number, drop=35, **settings)
        assert len(calls) == 1 + len(first.log)  # FP32, and each candidate once
        calls.clear()
        again = reach(network, CALIBRATION, number, drop=35, **settings)
        assert len(calls) == 1
        assert [s.change for s in again.log] == [s.change for s in first.log]

    def test_other_kinds_of_scores_later(self, network, evaluate):
        answers = iter([0.5, torch.ones(10)])
        with pytest.raises(QuantizationError, match="one number for FP32 and 10 scores for as it"):
            reach(network, CALIBRATION, lambda _: next(answers), **QUIET)


class TestOfSet:
    def test_a_mean_over_examples_gives_what_the_examples_give(self, network, evaluate, tmp_path):
        config = QConfig(weight_bits=3)
        path = tmp_path / "it.json"
        whole = reach(
            network, CALIBRATION, of_set(evaluate), drop=90, config=config, resume=path, **QUIET
        )
        plain = reach(network, CALIBRATION, evaluate, drop=90, config=config, **QUIET)
        step, other = whole.log[0].change, plain.log[0].change
        assert step.score == pytest.approx(other.score)
        assert step.difference == pytest.approx(other.difference)
        assert step.interval == pytest.approx(other.interval, abs=0.02)
        assert whole.reached
        assert whole.test is not None
        assert whole.test.interval is not None
        assert "held-out test part, 200 examples" in str(whole)
        again = reach(
            network, CALIBRATION, of_set(evaluate), drop=90, config=config, resume=path, **QUIET
        )
        assert again.test == whole.test

    def test_in_tables(self, network, evaluate):
        table = one_at_a_time(network, CALIBRATION, of_set(evaluate), bits=2, progress=False)
        assert all(row.interval is not None for row in table.rows)
        assert "interval can be given" not in str(table)
        assert "None" not in str(table)

    def test_pairs_make_the_interval_narrow(self):
        noise = torch.rand(300, generator=torch.Generator().manual_seed(0)).double()

        def shifted(by: float) -> OfSet:
            return OfSet(300, lambda c: (c * (noise + by)).sum(1) / c.sum(1))

        first, second = (score(lambda _, by=by: shifted(by), nn.Identity(), "x") for by in (0, -1))
        found = against(first, second, "x")
        assert found.interval == pytest.approx((-1, -1))

    @pytest.mark.parametrize("of", [
        lambda counts: 0.5,
        lambda counts: torch.zeros(3),
        lambda counts: torch.full((len(counts),), torch.nan),
    ])  # fmt: skip
    def test_what_it_must_not_give(self, network, of):
        with pytest.raises(QuantizationError, match="finite numbers, one a draw; for FP32"):
            reach(network, CALIBRATION, lambda _: OfSet(10, of), **QUIET)
        with pytest.raises(QuantizationError, match="examples must be"):
            OfSet(0, of)


class Words(nn.Module):
    """Tokens, and how much each counts, to classes: an Embedding, attention, LayerNorm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm1 = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.act, self.fc = nn.GELU(), nn.Linear(16, 4)

    def forward(self, tokens: Tensor, weight: Tensor) -> Tensor:
        x = self.words(tokens)
        y = self.norm1(x)
        scores = self.query(y) @ self.key(y).transpose(1, 2) / 4
        x = x + self.out(torch.softmax(scores, -1) @ self.value(y))
        x = x + self.down(self.act(self.up(self.norm2(x))))
        return self.fc((x * weight.unsqueeze(2)).mean(1))


def sentences(count: int, seed: int) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return [
        {"tokens": torch.randint(20, (40, length), generator=random),
         "weight": torch.rand(40, length, generator=random)}
        for length in range(5, 5 + count)
    ]  # fmt: skip


def test_a_transformer_with_an_embedding_and_dicts_of_different_lengths():
    torch.manual_seed(0)
    model, calibration = Words().eval(), sentences(2, 0)
    with torch.no_grad():
        model.norm1.weight[:2] *= 20  # channels that stick out
        test = [{**b, "labels": model(**b).argmax(1)} for b in sentences(5, 1)]
    config = QConfig(weight_bits=3)
    result = reach(model, calibration, top1_on(test), drop=0, config=config, **QUIET)
    names = [step.name for step in result.log]
    assert "SmoothQuant" in names
    assert "AdaRound" in names
    assert not any("refused" in note for note in result.log.notes)
    by_hand: dict[str, Any] = {"model": model, "calibration": calibration}
    exec(remedies.IMPORTS, by_hand)
    x = {k: v for k, v in test[0].items() if k != "labels"}
    for step in (result.log.best, next(s for s in result.log if s.name == "AdaRound")):
        made = eval(step.line, by_hand)
        assert step.recipe is not None
        assert made.config == step.recipe.config
    assert torch.equal(eval(result.line, by_hand)(**x), result.model(**x))


def test_a_detector_with_boxes_and_scores_in_one_tensor():
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            raw = torch.sigmoid(self.head(torch.relu(self.stem(x)))).flatten(2).transpose(1, 2)
            return torch.cat([raw[:, :, :4] * 96, raw[:, :, 4:]], 2)

    torch.manual_seed(0)
    model = Detector().eval()
    x = torch.randn(60, 3, 12, 12)
    with torch.no_grad():
        truth = model(x)

    def near(found: Tensor) -> OfSet:
        """The share of boxes and scores that are near, weighed by pictures: a metric of the set."""
        scale = torch.tensor([96.0] * 4 + [1.0])
        hits = ((found - truth).abs() / scale < 0.001).flatten(1).double()
        sums = hits.sum(1)
        return OfSet(60, lambda c: (c * sums).sum(1) / (c.sum(1) * hits.shape[1]))

    result = reach(model, [x[:32], x[32:]], lambda m: near(m(x)), drop=10, **QUIET)
    assert result.log[0].change.significant
    assert result.log.best.change.difference is not None
    assert len(result.log) > 1


@pytest.fixture(scope="module")
def smooth():
    """Five layers on inputs that depend on each other: better rounding shows in the output."""
    torch.manual_seed(0)
    sizes = [24, 32, 32, 32, 32, 8]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
    x = torch.randn(400, 4) @ torch.randn(4, 24) + 0.1 * torch.randn(400, 24)
    return nn.Sequential(*layers[:-1]).eval(), x


@pytest.fixture(scope="module")
def error(smooth):
    """Minus the squared error of the output."""
    model, x = smooth
    with torch.no_grad():
        expected = model(x[200:])
    return lambda version: -(version(x[200:]) - expected).square().mean(1)


@pytest.fixture
def counted(monkeypatch):
    """How often a layer was given better codes."""
    calls: list[int] = []
    real = adaround_module.adaround

    def counting(problem, *rest):
        calls.append(1)
        return real(problem, *rest)

    monkeypatch.setattr(adaround_module, "adaround", counting)
    return calls


def test_codes_are_made_once_however_many_layers_are_widened(counted, smooth, error):
    config, (network, x) = QConfig(weight_bits=3), smooth
    result = reach(network, [x[:200]], error, drop=0, config=config, **QUIET)
    recipes = [step.recipe for step in result.log if step.recipe is not None]
    rounded = [r for r in recipes if "AdaRound(alone=True)" in r.steps]
    assert len(rounded) > 4
    assert 5 < len(counted) <= 2 * 5  # five layers at two widths, not five for each network
    by_hand: dict[str, Any] = {"model": network, "calibration": [x[:200]]}
    exec(remedies.IMPORTS, by_hand)
    for step in (rounded[0], rounded[-1]):
        expected = eval(step.line, by_hand)(x)
        assert torch.equal(remedies.Workshop(network, [x[:200]], False).build(step)(x), expected)
    assert torch.equal(eval(result.line, by_hand)(x), result.model(x))


def test_what_takes_minutes_is_left_out_while_layers_are_chosen(monkeypatch, smooth, error):
    monkeypatch.setitem(remedies.STEPS, "AdaRound()", AdaRound)
    monkeypatch.setattr(remedies, "COSTLY", {"AdaRound()"})
    rung = ("slow", lambda best: replace(best, steps=("AdaRound()", *best.steps)))
    monkeypatch.setattr(ladder, "ROUNDING", [rung])
    config, (network, x) = QConfig(weight_bits=3), smooth
    result = reach(network, [x[:200]], error, drop=3e-6, config=config, **QUIET)
    assert result.reached
    widened = [s for s in result.log if s.recipe is not None and s.recipe.config.layer_bits]
    slow = [s for s in widened if s.recipe is not None and "AdaRound()" in s.recipe.steps]
    assert len(widened) > len(slow)
    assert all(step.name.endswith(", slow") for step in slow)
    assert len({s.line for s in result.log}) == len(result.log)


def test_rounding_is_not_tried_where_activations_make_the_noise(network, evaluate):
    config = QConfig(weight_bits=8, activation_bits=3)
    result = reach(network, CALIBRATION, evaluate, drop=0, config=config, **QUIET)
    assert "not tried: AdaRound. Rounded weights make less than 10%" in str(result)
    assert "AdaRound" not in [step.name for step in result.log]


def test_one_call_of_a_layer_in_fp16_and_the_other_in_8_bits():
    """Calls are widened one by one, and the path alone would stand for all of them."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.fc = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.twice(torch.relu(self.twice(x)))))

    torch.manual_seed(1)
    model, x = Twice().eval(), [torch.randn(50, 8)]
    config = QConfig(weight_bits=3, activation_bits=None, layer_bits={"twice__call2": 8})
    widening = Widening(None)  # pyright: ignore[reportArgumentType]
    recipe = widening._config(remedies.Recipe(config, "minmax"), ["twice"], None)
    assert recipe.config.float_layers == ("twice__call1",)
    layers = remedies.Workshop(model, x, False).build(recipe).quantized_layers()
    assert {
        name: layer.weight_qtensor.require_qparams().grid.bits for name, layer in layers.items()
    } == {
        "twice__call2": 8,
        "fc": 3,
    }


def test_errors_of_evaluate_are_not_taken_for_a_remedy_that_refuses(network, evaluate):
    calls = []

    def failing(model):
        calls.append(model)
        if len(calls) == 3:
            raise QuantizationError("the camera is off")
        return evaluate(model)

    with pytest.raises(QuantizationError, match="the camera is off"):
        reach(network, CALIBRATION, failing, drop=0, **QUIET)


def test_a_distance_to_fp32_is_no_share_though_fp32_scores_zero(smooth, error):
    model, x = smooth
    result = reach(model, [x[:200]], error, drop=0.02, config=QConfig(weight_bits=8), **QUIET)
    assert result.log.limit == 0.02
    assert result.reached == (result.validation.low is not None and result.validation.low >= -0.02)
    assert "point" not in str(result)


def test_codes_that_depend_on_other_layers_are_not_alone():
    with pytest.raises(QuantizationError, match="needs the quantized network's inputs"):
        AdaRound(compensate=True, alone=True)


@pytest.fixture(scope="module")
def learned(smooth, error):
    network, x = smooth
    config = QConfig(weight_bits=3)
    return reach(network, [x[:200]], error, drop=0, config=config, learn=200, **QUIET)


class TestReconstruction:
    def test_comes_after_adaround_and_before_layers_are_widened(self, learned):
        names = [step.name for step in learned.log]
        at = names.index("reconstruction")
        assert names[at - 1] == "AdaRound"
        assert all(name.startswith(("INT8", "FP16")) for name in names[at + 1 :])
        step = learned.log[at]
        assert step.kept
        assert step.bytes == learned.log[at - 1].bytes
        assert step.gained.significant
        assert not any("reconstruction" in note for note in learned.log.notes)

    def test_layers_are_chosen_without_it(self, learned):
        recipes = [step.recipe for step in learned.log if step.recipe is not None]
        widened = [r for r in recipes if r.config.layer_bits]
        assert sum(r.learned == 0 for r in widened) > sum(r.learned > 0 for r in widened)

    def test_its_line_makes_the_network(self, learned, smooth):
        network, x = smooth
        by_hand: dict[str, Any] = {"model": network, "calibration": [x[:200]]}
        exec(remedies.IMPORTS, by_hand)
        step = next(s for s in learned.log if s.name == "reconstruction")
        assert ", 200, start=improved(q, calibration, [AdaRound(alone=True)" in step.line
        again = remedies.Workshop(network, [x[:200]], False).build(step.recipe)
        assert torch.equal(eval(step.line, by_hand)(x), again(x))
        alone = replace(step.recipe, steps=())
        again = remedies.Workshop(network, [x[:200]], False).build(alone)
        assert torch.equal(eval(alone.line, by_hand)(x), again(x))

    def test_is_offered_where_it_was_not_asked_for(self, smooth, error):
        network, x = smooth
        result = reach(network, [x[:200]], error, drop=0, config=QConfig(weight_bits=3), **QUIET)
        assert "not tried: reconstruction" in str(result)
        assert "learn=1000" in str(result)

    def test_learns_ranges_where_activations_make_the_noise(self, network, evaluate):
        config = QConfig(weight_bits=8, activation_bits=3)
        result = reach(network, CALIBRATION, evaluate, drop=0, config=config, learn=20, **QUIET)
        names = [step.name for step in result.log]
        assert "AdaRound" not in names
        assert "reconstruction" in names

    @pytest.mark.parametrize("steps", [-1, 1.5, "many", True])
    def test_bad_steps(self, network, evaluate, steps):
        with pytest.raises(QuantizationError, match="learn must be"):
            reach(network, CALIBRATION, evaluate, learn=steps, **QUIET)
