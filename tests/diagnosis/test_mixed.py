"""Mixed precision: the greedy way against brute force, and the network that comes out measured."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import answering, batches, taught_by

from ptq_course.deploy.checkpoint import save, size_report
from ptq_course.diagnosis.allocation import Option, filled, hull, path, total
from ptq_course.diagnosis.mixed import Point, mixed_precision, pareto
from ptq_course.diagnosis.scores import Variant, score, top1_on
from ptq_course.errors import QuantizationError
from ptq_course.simulation.qconfig import QConfig
from ptq_course.simulation.quantizer import PTQQuantizer

DATA = batches(2, 16)
WIDTHS = (8, 4, 2)

problems = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 40)), min_size=1, max_size=3),
    min_size=1, max_size=5,
).map(lambda layers: {
    f"layer{i}": {w: Option(size, loss / 8) for w, (size, loss) in enumerate(options)}
    for i, options in enumerate(layers)
})  # fmt: skip


def every(options):
    names = list(options)
    for widths in product(*(options[name] for name in names)):
        yield dict(zip(names, widths, strict=True))


@given(problems)
def test_no_assignment_of_the_size_of_a_step_loses_less_if_losses_add(options):
    for widths in path(options):
        size, loss = total(options, widths)
        best = min(t.loss for w in every(options) if (t := total(options, w)).bytes <= size)
        assert loss <= best + 1e-9


@given(problems)
def test_the_way_falls_in_bytes_rises_in_loss_and_ends_smallest(options):
    totals = [total(options, widths) for widths in path(options)]
    for before, after in pairwise(totals):
        assert after.bytes < before.bytes
        assert after.loss >= before.loss - 1e-9
    least = sum(min(o.bytes for o in widths.values()) for widths in options.values())
    assert totals[-1].bytes == least
    assert totals[0].loss == pytest.approx(min(total(options, w).loss for w in every(options)))


@given(problems, st.integers(0, 200))
def test_filling_uses_room_keeps_to_the_budget_and_never_loses(options, extra):
    start = path(options)[-1]
    budget = total(options, start).bytes + extra
    widths = filled(options, start, budget)
    assert total(options, widths).bytes <= budget
    assert total(options, widths).loss <= total(options, start).loss + 1e-9
    for name, width in widths.items():  # no single widening is left
        for option in options[name].values():
            more = option.bytes - options[name][width].bytes
            room = budget - total(options, widths).bytes
            assert not (0 < more <= room and option.loss < options[name][width].loss)


def test_a_width_that_is_larger_and_worse_is_never_taken():
    options = {8: Option(80, 0.5), 4: Option(40, 0.2), 2: Option(20, 0.3)}
    assert hull(options) == [4, 2]
    assert hull({8: Option(8, 0.0), 4: Option(4, 0.9), 2: Option(2, 1.0)}) == [8, 2]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_pareto(pairs):
    points = [Point(size, Variant("", score / 9), {}) for size, score in pairs]
    found = pareto(points)
    for point in points:
        dominated = any(
            (o.bytes <= point.bytes and o.score > point.score)
            or (o.bytes < point.bytes and o.score >= point.score)
            for o in points
        )
        assert dominated != any((f.bytes, f.score) == (point.bytes, point.score) for f in found)


@pytest.fixture(scope="module")
def network():
    return answering(DATA, 0)


@pytest.fixture(scope="module")
def quantizer(network):
    config = QConfig(activation_range="minmax")
    return PTQQuantizer(network, config=config).calibrate(DATA, progress=False)


@pytest.fixture(scope="module")
def closeness(network):
    """Minus the squared error of each example's output: smooth, so that little is left to luck."""
    x = torch.cat([batch for batch, _ in DATA])
    expected = network(x)
    return lambda model: -(model(x) - expected).square().mean(1)


def size_of(quantized, tmp_path):
    layers = size_report(save(quantized, tmp_path / "m.safetensors")).layers
    return sum(s.code_bytes + s.scale_bytes + s.bias_bytes for s in layers)


@pytest.fixture(scope="module")
def exhaustive(quantizer, closeness, tmp_path_factory):
    """Bytes and score of all 81 assignments, built and measured without any code of `mixed`."""
    folder, found = tmp_path_factory.mktemp("sizes"), []
    for widths in product(WIDTHS, repeat=4):
        bits = dict(zip(("stem", "a", "b", "fc"), widths, strict=True))
        config = QConfig(layer_bits=bits)
        model = quantizer.fork().compute_qparams("minmax", config=config).convert()
        found.append((size_of(model, folder), closeness(model).double().mean().item(), bits))
    return found


@pytest.mark.parametrize("guide", ["evaluate", "output"])
def test_close_to_brute_force_at_every_budget(network, quantizer, closeness, exhaustive, guide):
    sizes = sorted({size for size, _, _ in exhaustive})
    worst = min(score for _, score, _ in exhaustive)
    for budget in sizes[:: len(sizes) // 4]:
        best = max(score for size, score, _ in exhaustive if size <= budget)
        found = mixed_precision(
            network, quantizer, closeness, widths=WIDTHS, budget=budget, ranges="minmax",
            guide=guide, data=DATA, progress=False,
        )  # fmt: skip
        assert found.reached
        assert found.point.bytes <= budget
        assert found.point.score <= best + 1e-12
        assert best - found.point.score < 0.05 * abs(worst)
        assert any(
            size == found.point.bytes and value == pytest.approx(found.point.score)
            and bits == dict(found.point.widths)
            for size, value, bits in exhaustive
        )  # fmt: skip


def test_the_smallest_that_keeps_the_target_against_brute_force(
    network, quantizer, closeness, exhaustive
):
    target = sorted(score for _, score, _ in exhaustive)[40]
    found = mixed_precision(
        network, quantizer, closeness, widths=WIDTHS, target=target, ranges="minmax", progress=False
    )
    smallest = min(size for size, score, _ in exhaustive if score >= target)
    assert found.reached
    assert found.point.score >= target
    assert smallest <= found.point.bytes <= 1.5 * smallest


def test_what_is_returned_is_what_was_measured(network, quantizer, closeness, tmp_path):
    found = mixed_precision(
        network, quantizer, closeness, widths=WIDTHS, budget=1100, ranges="minmax", progress=False
    )
    assert score(closeness, found.model, "").mean == found.point.score
    assert size_of(found.model, tmp_path) == found.point.bytes
    by_hand = eval(found.line, {
        "PTQQuantizer": PTQQuantizer, "QConfig": QConfig, "model": network, "calibration": DATA,
    })  # fmt: skip
    assert torch.equal(by_hand(DATA[0][0]), found.model(DATA[0][0]))


def test_fp16_layers_stay_in_floating_point_and_the_table_says_what_for(network, quantizer):
    x, y = DATA[0]
    evaluate = top1_on(taught_by(network, [(x, y)]))
    config = QConfig(weight_bits=2, activation_range="minmax")
    found = mixed_precision(
        network, quantizer, evaluate, target=1.0, widths=("fp16", 2), config=config, progress=False
    )
    assert found.reached
    assert found.point.score == 1.0
    kept = {name for name, width in found.point.widths.items() if width == "fp16"}
    assert kept == set(found.config.float_layers)
    assert set(found.model.quantized_layers()).isdisjoint(kept)
    assert "count for size, not for speed" in str(found)
    assert "reached by ->" in found._repr_html_().replace("&gt;", ">")
    assert [p.bytes for p in found.pareto] == sorted(p.bytes for p in found.pareto)


def test_an_unreachable_target_is_said_plainly(network, quantizer):
    evaluate = top1_on(taught_by(network, DATA))
    found = mixed_precision(
        network, quantizer, evaluate, target=1.5, widths=(3, 2), layers=["a", "b"], progress=False
    )
    assert not found.reached
    assert "NOT reached" in str(found)
    assert found.point.score == max(p.score for p in found.points)
    layers: dict[str, Any] = found.model.quantized_layers()
    bits = {n: layer.weight_grid.bits for n, layer in layers.items()}
    assert bits["stem"] == bits["fc"] == 8
    assert {bits["a"], bits["b"]} <= {2, 3}


def test_few_measurements_on_request(network, quantizer, closeness):
    found = mixed_precision(
        network, quantizer, closeness, widths=(8, 7, 6, 5, 4, 3, 2), budget=900, most=4,
        progress=False,
    )  # fmt: skip
    assert 2 <= len(found.points) <= 5  # and the widest


@pytest.mark.parametrize(("options", "match"), [
    ({}, "budget= .*or target="),
    ({"budget": 900, "target": 0.9}, "budget= .*or target="),
    ({"budget": 0.5}, "budget .bytes. must be"),
    ({"target": "high"}, "target is a score"),
    ({"budget": 10}, "narrowest widths that help take"),
    ({"budget": 900, "widths": (8,)}, "at least two"),
    ({"budget": 900, "widths": "fp16"}, "at least two"),
    ({"budget": 900, "widths": (8, "fp8")}, "each 'fp16' or bits"),
    ({"budget": 900, "layers": ["nose"]}, "'nose' is not quantized; there are"),
    ({"budget": 900, "layers": []}, "at least one that may change"),
    ({"budget": 900, "guide": "luck"}, "evaluate, output"),
    ({"budget": 900, "guide": "output"}, "needs data=loader"),
    ({"budget": 900, "config": QConfig(weight_bits=None)}, "weight_bits=None"),
])  # fmt: skip
def test_bad_input(network, quantizer, closeness, options, match):
    with pytest.raises(QuantizationError, match=match):
        mixed_precision(network, quantizer, closeness, progress=False, **options)
