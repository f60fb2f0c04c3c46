"""Figures and widget of chapter 06: the plotted arrays and the pure frame."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.container import ErrorbarContainer
from torch import nn
from torch.nn.modules import module as global_hooks

from ptq_classroom.chapters.ch06 import exercises as checks
from ptq_classroom.chapters.ch06 import figures, widget
from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.exercises import get
from ptq_classroom.kit.prediction import Prediction
from ptq_course.diagnosis.comparison import Comparison, compare
from ptq_course.diagnosis.scores import Variant, Variants
from ptq_course.diagnosis.walks import LayerError
from ptq_course.grids.affine import IntGrid
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.quantizer import PTQQuantizer


def test_rules_over_bits_plots_changes_with_their_intervals():
    table = {("minmax", 8): (-0.03, -0.05, -0.01), ("minmax", 4): (-0.9, -0.92, -0.85)}
    table |= {("kl", 8): (-0.01, -0.02, 0.0), ("kl", 4): (-0.05, -0.07, -0.03)}
    fig, alt = figures.rules_over_bits({"net": table})
    eight, four = fig.axes
    for ax, bits in ((eight, 8), (four, 4)):
        (drawn,) = ax.containers
        assert isinstance(drawn, ErrorbarContainer)
        values = [100 * table[rule, bits][0] for rule in ("minmax", "kl")]
        assert list(drawn.lines[0].get_xdata()) == pytest.approx(values)
        caps = sorted(x for line in drawn.lines[1] for x in line.get_xdata())
        ends = sorted(100 * end for rule in ("minmax", "kl") for end in table[rule, bits][1:])
        assert caps == pytest.approx(ends)
        assert ax.get_title(loc="left") == f"net, {bits} bits"
    assert [t.get_text() for t in eight.get_yticklabels()] == ["min-max", "KL"]
    assert eight.get_xlim()[0] > -20, "8 bits have an axis of their own"
    assert alt.startswith("At 4 bits the least is lost with KL on net (-5.0).")
    assert "min-max: net -3.0, -90.0; KL: net -1.0, -5.0" in alt


def test_ablation_plots_every_version_but_the_reference():
    rows = (
        Variant("FP32", 0.93),
        Variant("W8A32", 0.92, -0.01, -0.02, 0.0, 12, 2),
        Variant("W32A8", 0.90, -0.03, -0.05, -0.01, 40, 10),
    )
    fig, alt = figures.ablation(Variants(rows), Prediction("06.0", -2.0))
    ax = fig.axes[0]
    points = ax.containers[0].lines[0]
    assert list(points.get_xdata()) == pytest.approx([-1, -3])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["W8A32", "W32A8"]
    assert "W32A8 -3 [-5, -1]" in alt
    labels = {t.get_text(): (t.xy[0], t.get_ha()) for t in ax.texts if t.get_text()[0] in "+-"}
    assert labels["-1.0"] == (pytest.approx(-2), "right"), "away from the line of zero"
    assert any(list(line.get_xdata()) == [-2.0, -2.0] for line in ax.lines)


def test_layer_errors_plots_both_numbers():
    layers = (
        LayerError("a", "Linear", 40.0, 30.0, 28.0, 28.0),
        LayerError("b", "Linear", 40.0, 30.0, float("inf"), 25.0),
        LayerError("c", "Linear", 40.0, 30.0, 12.0, 11.0),
    )
    fig, alt = figures.layer_errors({"one": Comparison(layers, 5, 11.0)})
    ax = fig.axes[0]
    widths = [bar.get_width() for bar in ax.patches]
    assert widths[0] == 28.0
    assert np.isnan(widths[1])
    assert list(ax.lines[0].get_xdata()) == [28.0, 25.0, 11.0]
    assert "worst by itself c with 12 dB" in alt


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(200, 8)
    x[0] *= 50  # one loud example widens min-max's range
    quantizer = PTQQuantizer(model).observe([x], progress=False)
    return model, quantizer, x, widget.explorer(quantizer, model, x, ("minmax", "percentile"))


def test_frames_hold_what_compare_measured(case):
    model, quantizer, x, _ = case
    fork = quantizer.fork().compute_qparams("minmax")
    made = widget.frames(fork, model, x)
    rows = compare(model, fork.convert(), [x], progress=False).layers
    assert [(f.name, f.isolated, f.cumulative) for f in made] == [
        (r.name, r.isolated_db, r.cumulative_db) for r in rows
    ]
    first = made[0]
    assert first.scale == pytest.approx(fork.scales["0"])
    values = x.flatten()
    codes = first.levels / first.scale
    assert np.allclose(codes, np.round(codes), atol=1e-3)
    inside = (values > first.edges[0]) & (values < first.edges[-1])
    assert first.exact.sum() == pytest.approx(inside.float().mean().item(), abs=0.01)
    assert 0.9 < first.shares.sum() <= 1.0
    assert first.reach[1] - first.reach[0] == pytest.approx(255 * first.scale)
    assert first.reach[1] > first.edges[-1]


def test_the_frame_moves_the_artists(case):
    *_, explorer = case
    picture = explorer.artists
    readout, alt = explorer.set(layer=2, rule="percentile")
    shown = picture.by_rule["percentile"][1]
    assert readout.startswith("2, percentile")
    assert f"isolated {shown.isolated:.1f} dB" in readout
    assert "Input of 2 with percentile" in alt
    assert picture.reach.get_text() == "the grid: {:.3g} to {:.3g}".format(*shown.reach)
    assert len(picture.stems.get_segments()) == len(shown.levels)
    assert list(picture.dots.get_xdata()) == [f.cumulative for f in picture.by_rule["percentile"]]
    assert [bar.get_width() for bar in picture.bars] == [
        f.isolated for f in picture.by_rule["percentile"]
    ]
    other, _ = explorer.set(layer=1, rule="minmax")
    assert other != readout


def test_a_loud_example_leaves_fewer_codes(case):
    *_, explorer = case
    by_rule = explorer.artists.by_rule
    assert len(by_rule["minmax"][0].levels) < len(by_rule["percentile"][0].levels)
    assert by_rule["minmax"][0].isolated < by_rule["percentile"][0].isolated


def test_a_frame_is_quick(case):
    *_, explorer = case
    explorer.set(layer=1, rule="minmax")
    times = []
    for layer in (2, 1, 2, 1, 2):
        start = time.process_time()
        explorer.artists.frame(layer, "minmax")
        times.append(time.process_time() - start)
    assert min(times) < 0.1


def test_the_quantizer_keeps_its_decisions(case):
    model, _, x, _ = case
    quantizer = PTQQuantizer(model).observe([x], progress=False).compute_qparams("percentile")
    before = dict(quantizer.scales)
    widget.explorer(quantizer, model, x, ("minmax",))
    assert quantizer.scales == before


# --- checks ---------------------------------------------------------------------------------------


def test_a_hook_on_all_modules_is_found_and_taken_off():
    def collect(model, batches):
        nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
        return checks.collect(model, batches)

    before = dict(global_hooks._global_forward_hooks)
    result = examine(get("06.1"), collect)
    assert result.failure.cause == checks.GLOBAL_HOOKS
    assert dict(global_hooks._global_forward_hooks) == before


def test_a_pre_hook_on_all_modules_is_found_and_taken_off():
    def answer(model, batches):
        nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: None)
        return checks.collect(model, batches)

    before = dict(global_hooks._global_forward_pre_hooks)
    failure = examine(get("06.1"), answer).failure
    assert failure
    assert failure.cause == checks.GLOBAL_HOOKS
    assert dict(global_hooks._global_forward_pre_hooks) == before


def test_a_replaced_forward_is_found():
    def answer(model, batches):
        ranges = checks.collect(model, batches)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.forward = module.forward
        return ranges

    failure = examine(get("06.1"), answer).failure
    assert failure
    assert failure.cause == checks.PATCHED
    assert "stem" in str(failure)


def test_gradients_switched_off_are_found_and_switched_on_again():
    def answer(model, batches):
        torch.set_grad_enabled(False)
        return checks.collect(model, batches)

    failure = examine(get("06.1"), answer).failure
    assert failure
    assert failure.cause == checks.GRADIENTS
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("names", [["conv", "layer2"], ["layer2", "conv"]])
def test_equally_bad_layers_may_come_in_any_order(names):
    decibels = {"conv": 12.0, "layer1": 30.1, "layer2": 12.0}
    checks._same_report(("weights", names), ("weights", ["conv", "layer2"]), decibels)
    with pytest.raises(AssertionError, match="worst layers"):
        checks._same_report(("weights", ["conv"] * 2), ("weights", names), decibels)


def test_tensors_with_gradients_are_compared_without_a_warning(recwarn):
    def collect(model, batches):
        seen, handles = {}, []
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                keep = lambda m, i, o, name=name: seen.setdefault(name, []).append(i[0])  # noqa: E731
                handles.append(module.register_forward_hook(keep))
        for batch in batches:
            model(batch)
        for handle in handles:
            handle.remove()
        flat = {n: torch.cat([x.flatten() for x in xs]) for n, xs in seen.items()}
        return {n: (x.min(), x.max()) for n, x in flat.items()}

    assert examine(get("06.1"), collect).status == "passed"
    assert not [str(w.message) for w in recwarn]


@pytest.mark.parametrize("id", ["06.1", "06.2", "06.3"])
def test_nothing_returned_is_named(id):
    assert "`return` missing" in examine(get(id), lambda *given: None).failure.cause


def test_evaluate_wants_what_make_returns():
    def ablation_table(make, evaluate):
        return {"W8A32": evaluate((8, None))}

    failure = examine(get("06.2"), ablation_table).failure
    assert "wants one version, as make(...) builds it" in failure.headline


def test_one_name_is_shown_as_it_was_returned():
    (one_name,) = [wrong for wrong, cause in get("06.3").diagnoses if cause.startswith("one name")]
    failure = examine(get("06.3"), one_name).failure
    assert failure.got == "conv"


# --- the notebook, with other people's functions --------------------------------------------------

NOTEBOOK = Path(exercises.__file__).resolve().parents[2] / "notebooks" / "06_static_ptq.ipynb"
OWN = {e.function: e for e in map(get, ("01.1", "01.2", "05.1", "06.1"))}


def cell(beginning: str) -> str:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    (found,) = [source for source in sources if source.startswith(beginning)]
    return found


def by_own_functions(functions):
    """The network that the notebook's cell makes of these functions, and an input."""
    model = checks._Small().eval()
    inputs = [torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(7))]
    names = {
        "copy": copy, "torch": torch, "IntGrid": IntGrid, "inputs": inputs,
        "learner": SimpleNamespace(function=functions.get),
        "quantizer": SimpleNamespace(float_model=model),
    }  # fmt: skip
    for beginning in ('names = ("qparams"', "mine = copy.deepcopy"):
        exec(cell(beginning), names)
    with torch.no_grad():
        return names["mine"](inputs[0]), model(inputs[0])


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, i) for name, e in OWN.items() for i in range(len(e.accepted))],
)
def test_every_accepted_answer_quantizes_the_network(name, number, recwarn):
    reference = {name: e.reference for name, e in OWN.items()}
    expected, exact = by_own_functions(reference)
    assert 25 < sqnr_db(exact, expected) < 60, "quantized, and not broken"
    got, _ = by_own_functions(reference | {name: OWN[name].accepted[number]})
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)
    assert not [str(w.message) for w in recwarn]
