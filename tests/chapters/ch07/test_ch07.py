"""Data, figures and widget of chapter 07: the plotted arrays, the pure frame, the timed files."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from ptq_classroom.chapters.ch07 import exercises as checks
from ptq_classroom.chapters.ch07 import figures, widget
from ptq_classroom.chapters.ch07 import frames as frames_module
from ptq_classroom.chapters.ch07 import runtime_pieces as pieces
from ptq_classroom.chapters.ch07.frames import KINDS, LENGTH, frame_network, frames
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.exercises import get
from ptq_classroom.kit.prediction import Prediction
from ptq_course.deploy import onnx as deploy
from ptq_course.grids.metrics import sqnr_db
from ptq_course.simulation.dynamic import quantize_dynamic

# --- the construction ----------------------------------------------------------------------------


def test_frames_differ_in_loudness_and_are_the_same_every_time():
    x, kinds, loudness = frames(500, seed=3)
    again, _, _ = frames(500, seed=3)
    assert torch.equal(x, again)
    assert x.shape == (500, LENGTH)
    assert set(kinds.tolist()) == set(range(KINDS))
    assert -60 <= loudness.min() < -55
    assert -5 < loudness.max() <= 0
    level = 20 * torch.log10(x.square().mean(1).sqrt())
    assert np.corrcoef(level, loudness)[0, 1] > 0.99


def test_the_networks_answer_does_not_depend_on_loudness():
    net = frame_network(steps=20, batch=64)
    assert all(m.bias is None for m in net if isinstance(m, nn.Linear))
    x, _, _ = frames(64, seed=4)
    with torch.no_grad():
        torch.testing.assert_close(net(x * 0.01), net(x) * 0.01)


def test_the_network_learns(monkeypatch):
    net = frame_network(steps=120, batch=128)
    x, kinds, _ = frames(400, seed=5)
    with torch.no_grad():
        assert (net(x).argmax(1) == kinds).float().mean() > 3 / KINDS
    assert frames_module.QUIETEST == 60.0


# --- files for measurements ----------------------------------------------------------------------


def test_the_runtimes_dynamic_quantization_agrees_with_ours(tmp_path, caplog):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 6))
    x = torch.randn(64, 32)
    source = deploy.export(net, x[:4], tmp_path / "fp32.onnx")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        path = pieces.dynamic_file(source, tmp_path / "dynamic.onnx")
    assert not caplog.records
    run = deploy.session(path)
    assert "DynamicQuantizeMatMul" in run.operators
    ours = quantize_dynamic(net, granularity="per_tensor")
    with torch.no_grad():
        expected, simulated, got = net(x), ours(x), run(x)
    assert sqnr_db(expected, got) > 30
    assert sqnr_db(simulated, got) > sqnr_db(expected, simulated) - 3


def test_convolutions_get_uint8_weights(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    x = torch.randn(8, 3, 8, 8)
    source = deploy.export(net, x, tmp_path / "fp32.onnx")
    run = deploy.session(pieces.dynamic_file(source, tmp_path / "d.onnx", convolutions=True))
    assert run.operators["ConvInteger"] == 1
    with torch.no_grad():
        assert sqnr_db(net(x), run(x)) > 25


def test_single_operators_compute_what_they_should(tmp_path):
    torch.manual_seed(0)
    weight, x = torch.randn(64, 128), torch.randn(9, 128)
    exact = deploy.session(pieces.product_file(tmp_path, weight))
    torch.testing.assert_close(exact(x), x @ weight.T, atol=1e-4, rtol=1e-4)
    eight = pieces.quantized_rows(weight, 8)
    integer = deploy.session(pieces.integer_product_file(tmp_path, eight))(x)
    assert sqnr_db(x @ eight.dequantize().T, integer) > 35
    four = pieces.quantized_rows(weight, 4, group=32)
    assert four.qparams.scale.shape == (64, 4)
    decoded = deploy.session(pieces.four_bit_product_file(tmp_path, four))(x)
    torch.testing.assert_close(decoded, x @ four.dequantize().T, atol=1e-3, rtol=1e-4)
    fixed = deploy.session(pieces.quantize_file(tmp_path, at_run_time=False))(x)
    assert torch.equal(fixed, torch.clamp(torch.round(x / 0.02) + 128, 0, 255).to(torch.uint8))
    codes, scale, zero_point = deploy.session(pieces.quantize_file(tmp_path, at_run_time=True))(x)
    assert (codes.min(), codes.max()) == (0, 255)
    torch.testing.assert_close((codes.float() - zero_point) * scale, x, atol=scale.item(), rtol=0)


def test_the_profile_names_every_operator_that_runs(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    x = torch.randn(2, 16, 12, 12)
    only_weights = quantize_dynamic(net, weights_only=True)
    path = deploy.export(only_weights, x, tmp_path / "net.onnx")
    seconds = pieces.time_by_operator(path, x, runs=3)
    operators = deploy.session(path).operators
    assert set(seconds) <= set(operators)
    assert "DequantizeLinear" in seconds
    assert list(seconds.values()) == sorted(seconds.values(), reverse=True)
    assert all(0 <= s < 60 for s in seconds.values())
    plain = deploy.export(net, x, tmp_path / "fp32.onnx")
    assert not [o for o in pieces.time_by_operator(plain, x, False, runs=2) if "Reorder" in o]


# --- figures -------------------------------------------------------------------------------------


def test_rows_after_counts_the_values():
    x = torch.tensor([[1.0, -1.0, 0.5], [0.01, -0.01, 0.0]])
    rounded = torch.tensor([[1.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    fig, alt = figures.rows_after(x, torch.tensor([0.0, -40.0]), rounded, x)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["0 dB", "-40 dB"]
    assert "-40 dB: 1 different values with one scale for all" in alt
    frame, tensor, token = fig.axes[1].lines
    assert np.allclose(frame.get_ydata(), x[1])
    assert np.allclose(tensor.get_ydata(), 0)
    assert np.allclose(token.get_ydata(), x[1])


def test_decibels_by_row_draws_both():
    loudness = np.array([-60.0, -30, 0])
    fig, alt = figures.decibels_by_row(loudness, [0.0, 15, 45], [44.0, 45, 46])
    token, tensor = fig.axes[0].lines
    assert list(token.get_ydata()) == [44, 45, 46]
    assert list(tensor.get_ydata()) == [0, 15, 45]
    assert "45 dB for the loudest row, 0 for the quietest" in alt


def test_accuracy_by_loudness_names_every_line_without_overlap():
    series = {"a": [98, 98], "b": [98, 99], "c": [10, 98], "d": [12, 98]}
    fig, alt = figures.accuracy_by_loudness([-60, -30, 0], series)
    ax = fig.axes[0]
    assert [list(line.get_ydata()) for line in ax.lines] == list(series.values())
    places = sorted(t.xyann[1] for t in ax.texts)
    assert np.diff(places).min() > 6
    assert "c 10 and 98" in alt
    assert alt.startswith("On the quietest frames c answers 10 percent right")
    assert ax.spines["bottom"].get_bounds() == (-60, 0), "the axis ends where the data end"


def test_speed_shows_a_guess_only_where_there_is_one():
    speed = {"FP32": [1, 1], "static": [0.9, 2.5], "dynamic": [0.8, 2.4]}
    fig, alt = figures.speed_by_rows([1, 256], speed, {1: Prediction("07.0", None)})
    assert fig.axes[0].get_title(loc="left") == ""
    assert [list(line.get_ydata()) for line in fig.axes[0].lines[:2]] == [[0.9, 2.5], [0.8, 2.4]]
    assert "static ~0.9 at 1 and ~2.5 at 256" in alt
    fig, _ = figures.speed_by_rows([1, 256], speed, {256: Prediction("07.0", "static")})
    assert "static at 256" in fig.axes[0].get_title(loc="left")


# --- widget --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture():
    return widget.TokenSpread()


def test_equal_tokens_need_no_scales_of_their_own(picture):
    readout, _ = picture.frame(spread=0.0, bits=8)
    assert "0 of 24 tokens became all zeros" in readout
    gap = picture.per_token.get_ydata() - picture.per_tensor.get_ydata()
    assert 0 <= gap.mean() < 4


def test_spread_silences_the_last_tokens_of_one_scale(picture):
    readout, alt = picture.frame(spread=60.0, bits=8)
    silent = int(readout.split("· ")[1].split(" of")[0])
    x = widget.tokens(60.0)
    below = x.abs().amax(1) < picture.half.get_ydata()[0]
    assert silent == int(below.sum()) > 0
    assert f"{silent} became all zeros" in alt
    assert picture.per_tensor.get_ydata()[-1] == 0.0
    assert picture.per_token.get_ydata().min() > 40


@pytest.mark.parametrize("bits", [8, 5])
def test_the_first_silence_is_where_a_token_falls_below_half_a_step(picture, bits):
    spread = widget.first_silence(bits)
    picture.frame(spread - 1, bits)
    assert picture.reach.get_ydata().min() > picture.half.get_ydata()[0]
    readout, _ = picture.frame(spread, bits)
    assert picture.reach.get_ydata().min() <= picture.half.get_ydata()[0]
    assert "· 0 of 24" not in readout


def test_a_bit_less_costs_six_decibels_of_room(picture):
    picture.frame(spread=20.0, bits=8)
    before = picture.half.get_ydata()[0]
    picture.frame(spread=20.0, bits=7)
    assert picture.half.get_ydata()[0] / before == pytest.approx(127 / 63)


def test_the_explorer_answers_to_its_sliders():
    explorer = widget.explorer()
    assert explorer.set(spread=10.0, bits=8) != explorer.set(spread=50.0)
    assert len(explorer.artists.reach.get_ydata()) == widget.TOKENS


# --- checks ---------------------------------------------------------------------------------------


def test_a_product_of_decoded_floats_is_not_the_product_of_integers():
    given = checks._cancelling()
    exact = checks._linear_in_float64(**given)
    torch.testing.assert_close(checks.dynamic_linear(**given).double(), exact, rtol=1e-6, atol=0)
    sx, wq, sw = checks.token_scales(given["x"]), given["wq"], given["sw"]
    decoded = torch.round(given["x"] / sx) * sx
    weights = wq.float() * sw[:, None]
    off = (decoded.double() @ weights.double().T / exact - 1).abs()
    assert off.min() > 1e-3, "the rounding of the factors alone shows, in any order of adding"

    def column_by_column(x, wq, sw):
        return torch.stack([(decoded_of(x) * row).sum(1) for row in wq.float() * sw[:, None]], 1)

    def decoded_of(x):
        sx = checks.token_scales(x)
        return torch.round(x / sx) * sx

    assert examine(get("07.2"), column_by_column).failure.cause == checks.FLOATS


@pytest.mark.parametrize("given", [0.0, -1.0, float("inf"), float("nan")])
def test_a_token_of_zeros_may_have_any_scale_that_is_positive_and_finite(given):
    def token_scales(x, silent=3.0):
        scales = checks.token_scales(x)
        return torch.where((x == 0).all(-1, keepdim=True), silent, scales)

    assert examine(get("07.1"), token_scales).status == "passed"
    assert examine(get("07.1"), lambda x: token_scales(x, given)).status == "failed"


@pytest.mark.parametrize(
    ("guess", "said"),
    [("static", "static: right"), ("FP32", "static: not so"), ("dynamic", "dynamic: right")],
)
def test_a_guess_within_a_tenth_of_the_fastest_counts(guess, said, capsys):
    speed = {"FP32": 1.0, "static": 2.0, "dynamic": 1.9}
    figures.compare_fastest(Prediction("07.0", guess), speed)
    assert said in capsys.readouterr().out


def test_no_guess_is_not_compared(capsys):
    figures.compare_fastest(Prediction("07.0", None), {"FP32": 1.0})
    assert capsys.readouterr().out == ""
