"""Chapter 15: the exercise against the runtime itself, files that break rules, figures."""

from __future__ import annotations

import importlib.util

import onnx
import pytest
import torch
from matplotlib.patches import Rectangle
from networks import InvertedResidual, Residual

from ptq_classroom.chapters.ch15 import chains, figures, runtimes, small_files, widget
from ptq_classroom.chapters.ch15.exercises import _graphs, repair_residual, unfused
from ptq_classroom.chapters.ch15.own_functions import with_ranges
from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import examine
from ptq_course import PTQQuantizer, QConfig
from ptq_course.deploy.onnx import export
from ptq_course.deploy.session import session
from ptq_course.deploy.tensorrt import RULES, check_tensorrt

FLOATING = ("Conv", "FusedConv", "Gemm", "FusedGemm")


def quantized(network, x, config=None):
    maker = PTQQuantizer(network.eval(), config=config).observe([x], progress=False)
    return maker.compute_qparams("minmax").convert()


@pytest.fixture(scope="module")
def x():
    torch.manual_seed(0)
    return torch.randn(16, 3, 12, 12)


@pytest.fixture(scope="module")
def right(x, tmp_path_factory):
    """A right file for TensorRT, and its path."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("right") / "right.onnx"
    export(quantized(Residual(), x, QConfig.tensorrt()), x[:2], path, target="tensorrt")
    return onnx.load(path), path


@pytest.mark.parametrize(
    ("label", "inputs"), list(_graphs()), ids=lambda v: v if v is str(v) else ""
)
def test_what_the_exercise_calls_unfused_the_runtime_leaves_in_floating_point(
    label, inputs, tmp_path
):
    """The reference's rule is that of ONNX Runtime."""
    model = inputs["onnx_model"]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "small.onnx")
    executed = session(tmp_path / "small.onnx").operators
    assert sum(executed.get(name, 0) for name in FLOATING) == len(unfused(model))


def test_a_decoded_value_that_two_nodes_share_costs_kernels(tmp_path):
    """Why our files repeat DequantizeLinear, and why the exercise's rule can leave this out."""
    left = {}
    for shared in (True, False):
        g = small_files.Graph()
        x = g.pair("x")
        y = g.pair(g.conv(g.pair(g.conv(x))))
        model = g.model(g.pair(g.add("Add", x if shared else g.pair("x"), y)))
        onnx.save(model, tmp_path / "block.onnx")
        executed = session(tmp_path / "block.onnx").operators
        left[shared] = executed.get("Conv", 0), "QLinearAdd" in executed
        assert unfused(model) == []
    assert left == {True: (1, False), False: (0, True)}


@pytest.mark.parametrize("network", [Residual, InvertedResidual])
def test_an_exported_file_has_nothing_unfused(network, x, tmp_path):
    path = export(quantized(network(), x), x[:2], tmp_path / "file.onnx")
    assert unfused(onnx.load(path)) == []


def test_the_right_file_breaks_no_rule_and_each_mistake_breaks_its_own(right, tmp_path):
    model, path = right
    assert check_tensorrt(path) == []
    assert list(small_files.MISTAKES) == list(RULES)
    before = model.SerializeToString()
    for rule in RULES:
        onnx.save(small_files.broken(model, rule), tmp_path / "broken.onnx")
        assert rule in {breach.rule for breach in check_tensorrt(tmp_path / "broken.onnx")}
    assert model.SerializeToString() == before


def test_the_repair_gives_the_right_file_back(right, x, tmp_path):
    model, path = right
    bad = small_files.broken(model, "residual")
    onnx.save(bad, tmp_path / "bad.onnx")
    assert [b.rule for b in check_tensorrt(tmp_path / "bad.onnx")] == ["residual"]
    onnx.save(repair_residual(bad, small_files.scales_of(model)), tmp_path / "mended.onnx")
    assert check_tensorrt(tmp_path / "mended.onnx") == []
    assert torch.equal(session(tmp_path / "mended.onnx")(x), session(path)(x))


def test_a_repair_in_place_is_noticed():
    def in_place(onnx_model, scales):
        onnx_model.CopyFrom(repair_residual(onnx_model, scales))
        return onnx_model

    result = examine(exercises.get("15.2"), in_place)
    assert result.status == "failed"
    assert result.failure is not None
    assert "deepcopy" in result.failure.cause


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="no OpenVINO")
def test_openvino_rounds_a_residual_sum_once(x, tmp_path):
    torch.manual_seed(1)
    simulated = quantized(Residual(), x)
    path = export(simulated, x[:2], tmp_path / "file.onnx")
    theirs = session(path, runtime="openvino")(x)
    names = runtimes.before_sums(simulated)
    assert len(names) == 1
    once = runtimes.without(simulated, names)
    with torch.no_grad():
        far, near = simulated(x) - theirs, once(x) - theirs
    assert near.abs().max() < 1e-6 < far.abs().mean()
    assert runtimes.before_sums(simulated) == names, "the given one is left alone"


def test_own_functions_fill_a_network_that_is_exported(x, tmp_path):
    torch.manual_seed(0)
    network = Residual()
    mine = quantized(network, x)
    reference = [exercises.get(id).reference for id in ("01.1", "01.2", "05.1", "06.1")]
    qparams, quantize, channel_scales, collect = reference
    with torch.no_grad():
        ranges = collect(PTQQuantizer(network.eval()).float_model, [x])
        before = mine(x)
        assert with_ranges(mine, ranges, qparams, quantize, channel_scales) == 4
        after = mine(x)
    assert torch.nn.functional.cosine_similarity(before, after).min() > 0.99
    run = session(export(mine, x[:2], tmp_path / "mine.onnx"))
    torch.testing.assert_close(run(x), after, atol=0.02, rtol=0)
    doubled = with_ranges(
        mine, ranges, lambda lo, hi, g: (2 * qparams(lo, hi, g)[0], 0), quantize, channel_scales
    )
    with torch.no_grad():
        assert doubled == 4
        assert not torch.equal(mine(x), after), "the functions that are given are used"


def bars(fig):
    return [bar for bar in fig.axes[0].patches if isinstance(bar, Rectangle)]


def test_the_figure_counts_nodes():
    fig, alt = figures.before_and_after({"Conv": 2, "QuantizeLinear": 5}, {"QLinearConv": 2})
    assert [bar.get_width() for bar in bars(fig)] == [5, 2]
    assert "in the file 7 nodes, 5 of them Q or DQ; executed 2 nodes, 0" in alt


def test_differences_and_changes_are_drawn():
    fig, alt = figures.differences({"a": 0.5, "b": 0.125}, "mean")
    assert [bar.get_width() for bar in bars(fig)] == [0.5, 0.125]
    assert "a 0.5, b 0.125" in alt
    fig, alt = figures.changes({"one": (-0.02, -0.03, -0.01), "two": (0.0, -0.005, 0.005)})
    assert [bar.get_width() for bar in bars(fig)] == pytest.approx([-2, 0])
    assert "one may break the limit of -1: -2.0 (-3.0 to -1.0); two keeps the limit" in alt


def test_the_two_blocks_say_the_finding_first():
    fig, alt = figures.two_blocks()
    assert alt.startswith("OpenVINO rounds a residual block once, ONNX Runtime twice")
    circles = [sum(t.get_text() == "Q" for t in ax.texts) for ax in fig.axes]
    assert circles == [2, 1]


@pytest.fixture(scope="module")
def rows():
    return widget.measure(rounds=1)


def test_a_chain_that_is_rounded_where_kernels_ask_is_run_in_integers(rows):
    """Counted by the runtime itself, and foretold by the reference of exercise 15.1."""
    for behind, operator in widget.BEHIND.items():
        for directly in (True, False):
            left = unfused(chains.quantized(operator, directly))
            integer, floating, boundary = rows[behind, directly].nodes
            relu = operator == "Relu"  # folded into the grid, which the exercise leaves out
            assert len(left) == (0 if directly else chains.LENGTH)
            assert (integer >= chains.LENGTH) == (directly or relu)
            assert (floating >= chains.LENGTH) == (
                operator == "Gelu" or (not directly and not relu)
            )
            assert boundary >= 2


def test_the_chains_files_are_valid_and_alike(rows):
    for operator in chains.BEHIND:
        for model in (chains.floating(operator), chains.quantized(operator, True)):
            onnx.checker.check_model(model, full_check=True)
            assert [n.op_type for n in model.graph.node].count("Conv") == chains.LENGTH
    assert set(rows) == {(b, d) for b in widget.BEHIND for d in (True, False)}
    assert all(time > 0 for one in rows.values() for time in one.times.values())


def test_the_widget_draws_what_was_found():
    nodes, times = {False: (0, 12, 20), True: (6, 6, 14)}, {1: 0.5, 8: 1.8, 32: 9.0}
    found = {
        (behind, directly): widget.Found(counts, times)
        for behind in widget.BEHIND
        for directly, counts in nodes.items()
    }
    made = widget.explorer(found)
    artists = made.artists
    assert isinstance(artists, widget.OneRow)
    readout, alt = made.set(behind="GELU", directly=False, batch=32)
    assert [bar.get_width() for bar in artists.nodes] == [0, 12, 20]
    assert artists.time.get_width() == widget.MOST_TIME  # the number beside it is the time
    assert artists.told.get_text().strip() == "9.0 times"
    assert "0 nodes in integers, 12 in floating point, 20 Q and DQ" in readout
    assert "~9.0 times FP32's time" in alt
    made.set(directly=True, batch=1)
    assert [bar.get_width() for bar in artists.nodes] == [6, 6, 14]
    assert artists.time.get_width() == 0.5
