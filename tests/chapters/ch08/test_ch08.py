"""Figures and widget of chapter 08: the plotted arrays and the pure frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ptq_classroom.chapters.ch08 import figures, widget
from ptq_classroom.chapters.ch08.exercises import NOT_EXACT, add_int, to_multiplier
from ptq_classroom.kit import exercises
from ptq_classroom.kit.examine import examine
from ptq_classroom.kit.prediction import Prediction
from ptq_course.integer import agreement, to_integer
from ptq_course.simulation.quantizer import PTQQuantizer


@pytest.fixture(scope="module")
def networks():
    """A small residual network on pictures of 48 x 48, quantized and in integers."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, 4)
            self.second = nn.Conv2d(8, 8, 3, padding=1)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            x = torch.relu(self.first(x))
            return self.fc((x + self.second(x)).mean((2, 3)))

    x = torch.rand(8, 3, 48, 48)
    quantized = PTQQuantizer(Net()).observe([x], progress=False).compute_qparams().convert()
    return quantized, to_integer(quantized), x


@pytest.fixture(scope="module")
def picture(networks):
    pictures = torch.randint(0, 256, (6, 3, 48, 48), generator=torch.Generator().manual_seed(1))
    return widget.NarrowAccumulator(networks[1], pictures.to(torch.uint8), "second")


def test_patch_shows_codes_differences_and_products():
    x = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    w = torch.full((3, 3, 3), 2, dtype=torch.int8)
    fig, alt = figures.patch(x, w, 5)
    assert len(fig.axes) == 12
    drawn = [np.asarray(ax.images[0].get_array()) for ax in fig.axes]
    assert (drawn[3] == x[0].numpy().astype(int) - 5).all()
    assert (drawn[11] == 2 * (x[2].numpy().astype(int) - 5)).all()
    assert f"add up to {2 * (sum(range(27)) - 5 * 27)}" in alt
    assert fig.axes[0].texts[4].get_text() == "4"


def test_disagreement_draws_shares(networks):
    quantized, integer, x = networks
    table = agreement(integer, quantized, x)
    fig, alt = figures.disagreement(table)
    alone, whole = fig.axes[0].lines[:2]
    shares = [1 - row.equal / row.codes for row in table.cumulative.values()]
    assert whole.get_xdata() == pytest.approx(np.maximum(shares, figures.LOWEST_SHARE))
    assert (np.asarray(alone.get_xdata()) >= figures.LOWEST_SHARE).all()
    assert f"each of {len(shares)} operations" in alt
    ax = fig.axes[0]
    assert ax.get_xticks()[0] == figures.LOWEST_SHARE < 1 / min(row.codes for row in
                                                             table.isolated.values())  # fmt: skip
    assert ax.get_xticklabels()[0].get_text() == "none"
    assert ax.get_xlim()[1] > max(shares)


def test_accumulator_bits_are_those_of_the_table(networks):
    table = networks[1].accumulators()
    fig, alt = figures.accumulator_bits(table, Prediction("08.0", 27, "bits"))
    layers = [row for row in table.rows if row.name in ("first", "second", "fc")]
    assert [bar.get_width() for bar in fig.axes[0].patches] == [row.bits for row in layers]
    assert fig.axes[0].lines[-1].get_xdata()[0] == 27
    assert f"to {max(row.bits for row in layers)}" in alt


def test_wrong_codes_counts_steps():
    fig, alt = figures.wrong_codes({"good": [0, 0, 0, 0], "bad": [0, 0, -1, 1]})
    assert [bar.get_height() for bar in fig.axes[1].patches] == [25, 50, 25]
    assert "good 0 percent, bad 50 percent" in alt


def test_narrow_registers():
    acc = torch.tensor([-129, -128, 0, 127, 128, 300], dtype=torch.int32)
    assert widget.narrowed(acc, 8, widget.WRAPS).tolist() == [127, -128, 0, 127, -128, 44]
    assert widget.narrowed(acc, 8, widget.CLAMPS).tolist() == [-128, -128, 0, 127, 127, 127]
    for overflow in (widget.WRAPS, widget.CLAMPS):
        assert torch.equal(widget.narrowed(acc, 32, overflow), acc)


def test_wide_registers_change_nothing(picture):
    readout, alt = picture.frame(bits=32, multiplier_bits=31, overflow=widget.WRAPS)
    assert "0.00 % of the sums do not fit" in readout
    assert "0.00 % of the codes changed" in readout
    assert "100.0 % of the decisions stay" in readout
    assert "32 bits" in alt
    assert (picture.steps.get_data().values == picture.before).all()


def test_narrow_registers_lose_sums(picture):
    def lost(bits, overflow):
        readout, _ = picture.frame(bits=bits, multiplier_bits=31, overflow=overflow)
        return float(readout.split(": ")[1].split(" %")[0])

    largest = int(picture.acc.abs().max())
    assert lost(largest.bit_length() + 1, widget.WRAPS) == 0
    assert lost(largest.bit_length() - 2, widget.WRAPS) > 0
    assert picture.limits[1].get_xdata()[0] == 1 << (largest.bit_length() - 3)
    assert lost(8, widget.WRAPS) == lost(8, widget.CLAMPS) > 10


def test_the_lower_axis_holds_every_count(picture):
    for bits in (8, 32):
        picture.frame(bits=bits, multiplier_bits=31, overflow=widget.CLAMPS)
        highest = max(picture.steps.get_data().values.max(), picture.before.max())
        assert picture.bottom.get_ylim()[1] == pytest.approx(1.1 * highest)


def test_the_readout_says_what_was_measured(picture):
    found = picture.measure(8, 31, widget.WRAPS)
    readout, _ = picture.frame(8, 31, widget.WRAPS)
    assert found.lost == (widget.narrowed(picture.acc, 8, widget.WRAPS) != picture.acc).double(
    ).mean()  # fmt: skip
    assert f"{100 * found.lost:.2f} % of the sums" in readout
    assert f"{100 * found.changed:.2f} % of the codes" in readout
    assert f"{100 * found.same:.1f} % of the decisions" in readout


def test_a_short_multiplier_changes_codes(picture):
    readout, _ = picture.frame(bits=32, multiplier_bits=2, overflow=widget.WRAPS)
    assert float(readout.split("bits: ")[-1].split(" %")[0]) > 10


def test_the_rest_of_the_network_is_computed_again(picture, networks):
    """Handed the exact codes it gives the network's logits; handed others it does not."""
    assert torch.equal(picture._rest(picture.codes).argmax(1), picture.decisions)
    other = picture._rest(torch.zeros_like(picture.codes))
    assert not torch.equal(other, picture._rest(picture.codes))


def test_the_explorer_answers_to_its_controls(networks):
    pictures = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    explorer = widget.explorer(networks[1], pictures, "second")
    assert explorer.set(bits=8, multiplier_bits=31) != explorer.set(bits=32)


def failure(id, answer):
    result = examine(exercises.get(id), answer)
    assert result.status == "failed"
    return result.failure


@pytest.mark.parametrize(
    "malformed",
    [
        (float("nan"), 3), (2**30, float("inf")), (None, None), None, 5, "ab", {"m": 1, "shift": 2},
        (2**30, 10**9), (2**30, -(10**9)), (10**400, 3), torch.ones(3), torch.ones(2, 2),
        (torch.ones(2), torch.ones(2)), [], (2**30, 1j),
    ],
    ids=repr,
)  # fmt: skip
def test_malformed_pairs_are_explained(malformed):
    assert str(failure("08.3", lambda r: malformed))


@pytest.mark.parametrize(
    ("convert", "cause"),
    [
        (lambda m, shift: m, "return two numbers, m and shift"),
        (lambda m, shift: (m + 0.25, shift), "m was not rounded"),
        (lambda m, shift: (int(np.float32(m)), shift), NOT_EXACT),
        (lambda m, shift: (m / 2**31, shift), "multiply it by 2^31"),
    ],
)
def test_pairs_that_are_nearly_right_get_their_own_cause(convert, cause):
    assert cause in failure("08.3", lambda r: convert(*to_multiplier(r))).cause


@pytest.mark.parametrize("convert", [list, torch.tensor, np.array, lambda v: np.array(v, float)])
def test_a_pair_may_be_any_two_numbers(convert):
    assert examine(exercises.get("08.3"), lambda r: convert(to_multiplier(r))).status == ("passed")


@pytest.mark.parametrize(
    ("convert", "said"),
    [
        (lambda y: y[:150], "has shape [150]"),
        (lambda y: y.reshape(3, 100), "has shape [3, 100]"),
        (lambda y: y.double().masked_fill(y > 100, float("nan")), "got nan"),
        (lambda y: y.double() * float("inf"), "wrong codes"),
        (lambda y: "codes", "should hold numbers"),
        (lambda y: None, "is None"),
    ],
)
def test_sums_of_a_wrong_kind_are_explained(convert, said):
    assert said in str(failure("08.4", lambda *args: convert(add_int(*args))))


def test_two_codes_in_a_hundred_may_be_one_step_off():
    def off(step, count):
        def answer(*args):
            y = add_int(*args).int()
            flat = y.view(-1)
            middle = torch.nonzero((flat > 9) & (flat < 246)).flatten()[:count]
            flat[middle] += step
            return y

        return answer

    assert examine(exercises.get("08.4"), off(1, 6)).status == "passed"  # of 300
    assert failure("08.4", off(1, 7))
    assert failure("08.4", off(2, 1))


@pytest.mark.parametrize("id", ["08.1", "08.2"])
def test_codes_in_floating_point_are_not_integers(id):
    exercise = exercises.get(id)
    for kind in (lambda y: y.double(), lambda y: y.double().numpy()):
        cause = failure(id, lambda *args, kind=kind: kind(exercise.reference(*args))).cause
        assert "floating point" in cause
