"""Checks of chapter 05: a scale for each channel, codes for each group, what scales cost."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ptq_classroom.kit.cheapest import (
    HINTS,
    WRONG_CHOICES,
    by_standard_error,
    first_that_fits,
    limit_cases,
)
from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    cheapest_within,
    defended,
    interval,
    same_decision,
    unpaired,  # noqa: F401 (of a wrong answer)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure, expect_close
from ptq_classroom.kit.values import as_array

# 05.1 ------------------------------------------------------------------------------------------


def channel_scales(w: Tensor, axis: int) -> Tensor:
    """One symmetric 8-bit scale for each channel along `axis`: [number of channels]."""
    others = [d for d in range(w.dim()) if d != axis]
    largest = w.abs().amax(dim=others)
    return torch.where(largest > 0, largest / 127, 1.0)


def _weights() -> Iterator[tuple[str, dict[str, Any]]]:
    rows = torch.tensor([[1.27, -0.5, 0.2], [0.1, -2.54, 0.3]])
    yield "a Linear [2, 3], axis 0", {"w": rows, "axis": 0}
    g = torch.Generator().manual_seed(501)
    spread = torch.tensor([1.0, 5.0, 0.2, 20.0])
    square = torch.randn(4, 4, generator=g) * spread[:, None]
    yield "a square Linear [4, 4], axis 0", {"w": square, "axis": 0}
    conv = torch.randn(4, 3, 2, 2, generator=g) * spread.reshape(-1, 1, 1, 1)
    yield "a convolution [4, 3, 2, 2], axis 0", {"w": conv, "axis": 0}
    up = torch.randn(3, 4, 2, 2, generator=g) * spread.reshape(1, -1, 1, 1)
    yield "a transposed convolution [3, 4, 2, 2], axis 1", {"w": up, "axis": 1}
    dead = torch.tensor([[0.0, 0.0], [0.635, -0.2], [-0.1, -1.27]])
    yield "a channel of zeros", {"w": dead, "axis": 0}
    quiet = torch.tensor([[1e-5, -3e-5], [0.5, 0.2], [-2e-3, 1e-3]])
    yield "a channel so quiet that it is almost zeros", {"w": quiet, "axis": 0}
    some = torch.tensor([[0.0, 1.27, -1.27], [0.0, 0.0, -0.381], [0.2, 0.0, 0.3]])
    yield "some zeros, and a channel that adds up to 0", {"w": some, "axis": 0}
    yield "a Linear [3, 3], axis 1", {"w": some * torch.tensor([1.0, 4.0, 0.5]), "axis": 1}
    last = torch.randn(2, 3, 4, generator=g) * spread
    yield "channels last [2, 3, 4], axis 2", {"w": last, "axis": 2}


TINY = "a channel of zeros got a tiny scale; any would do, but 1 is asked for"


def _row_shape(got: Any, expected: Tensor, w: Tensor, axis: int) -> None:
    try:
        expect_close(got, expected, "the scales", rtol=1e-5, atol=0)
    except Failure as failure:
        if failure.index and not w.select(axis, failure.index[0]).any():
            found = torch.as_tensor(as_array(failure.got)).float()
            others = ~_zeros(w, axis)
            if (
                torch.allclose(found[others], expected[others], 1e-5)
                and 0 < found[~others].max() < 1
            ):
                failure.cause = TINY
        raise


def _zeros(w: Tensor, axis: int) -> Tensor:
    return (w.transpose(0, axis).flatten(1) == 0).all(1)


def _by_channel(w: Tensor, axis: int) -> Tensor:
    scales = []
    for channel in w.unbind(axis):
        largest = max(channel.max().item(), -channel.min().item())
        scales.append(largest / 127 if largest else 1.0)
    return torch.tensor(scales)


def _by_rows(w: Tensor, axis: int) -> list[float]:
    rows = w.transpose(0, axis).reshape(w.shape[axis], -1).double()
    return [float(row.norm(p=float("inf"))) / 127 or 1.0 for row in rows]


CHANNEL_SCALES = Exercise(
    id="05.1", title="A scale for each channel", minutes=7, difficulty=2,
    signature="channel_scales(w, axis)", reference=channel_scales, cases=_weights,
    compare=_row_shape, returns="the scales",
    accepted=(_by_channel, _by_rows),
    diagnoses=(
        ("w.abs().amax => w.amax",
         "largest > 0 => largest != 0",
         "the maximum, not the largest magnitude: negative weights count too"),
        ("torch.where(largest > 0, largest / 127, 1.0) => (largest.max() / "
         "127).expand(len(largest))",
         "one scale for the whole tensor: every channel has its own largest |w|"),
        ("dim=others => dim=axis",
         "reduced over `axis` itself: keep that dimension, and reduce over all the others"),
        ("w.abs().amax(dim=others) => w.abs().reshape(w.shape[axis], -1).amax(1)",
         "reshape goes through memory from axis 0 on: move the axis to the front first"),
        ("d != axis => d != 0",
         "axis 0 whatever was asked for: a transposed convolution has axis 1"),
        ("/ 127 => / 128", "divided by 128: the narrow grid of weights ends at 127"),
        ("torch.where(largest > 0, largest / 127, 1.0) => largest / 127",
         "a channel of zeros got the scale 0: nothing can be divided by it"),
        ("torch.where(largest > 0, largest / 127, 1.0) => largest.clamp(min=1e-8) / 127", TINY),
        ("largest > 0 => largest > 1e-4",
         "a quiet channel is taken for zeros: only where all values are 0 is the scale 1"),
        ("largest > 0 => (w.transpose(0, axis).flatten(1) != 0).all(1)",
         "some zeros do not make a channel of zeros: all of its values must be 0"),
        ("largest > 0 => w.sum(dim=others) != 0",
         "values that add up to 0 are no zeros: ask whether the largest |w| is 0"),
        ("largest / 127, 1.0 => (largest + 1e-8) / 127, 1.0",
         "a small number was added to every scale: only a channel of zeros needs another one"),
        ("largest / 127, 1.0 => 127 / largest, 1.0",
         "this is the inverse, codes for each unit: the scale is the largest |w| over 127"),
        ("dim=others) => dim=others, keepdim=True)",
         "the reduced dimensions were kept with size 1: one number for each channel, [channels]"),
        ("/ 127 => / 255", "divided by 255: the narrow grid has 127 steps on each side of zero"),
        ("w.abs().amax(dim=others) => w.amax(dim=others).clamp(min=0) - "
         "w.amin(dim=others).clamp(max=0)",
         "/ 127 => / 255",
         "this is the affine scale; the symmetric one has its range around 0"),
    ),
    hints=(
        ("Which dimensions do I reduce over?",
         "All but `axis`. amax takes a list of dimensions: w.abs().amax(dim=[1, 2, 3])."),
        ("I want to loop over the channels",
         "w.unbind(axis) gives them one by one, whatever the axis."),
        ("A channel of zeros", "Any positive scale decodes it exactly; take 1."),
    ),
)  # fmt: skip


# 05.2 ------------------------------------------------------------------------------------------


def group_quantize(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """4-bit codes [out, in] of w and one scale for each `group` neighbours: [out, in / group]."""
    groups = w.reshape(len(w), -1, group)
    largest = groups.abs().amax(dim=2)
    scales = torch.where(largest > 0, largest / 7, 1.0)
    codes = torch.round(groups / scales[:, :, None]).clamp(-7, 7)
    return codes.reshape(w.shape), scales


def _matrices() -> Iterator[tuple[str, dict[str, Any]]]:
    row = torch.tensor([[0.7, -0.2, 0.06, 0.14], [3.5, 1.0, -0.35, 0.14]])
    yield "two rows of two groups", {"w": row, "group": 2}
    g = torch.Generator().manual_seed(502)
    w = torch.randn(4, 12, generator=g) * torch.rand(4, 12, generator=g).mul(3).exp()
    yield "groups of 3", {"w": w, "group": 3}
    yield "groups of 4", {"w": w, "group": 4}
    yield "one group for the whole row", {"w": w, "group": 12}
    yield "a square matrix", {"w": w[:, :4] * torch.tensor([1.0, 9.0, 0.1, 3.0]), "group": 2}
    halves = torch.tensor([[7.0, 0.5, 1.5, 2.5], [-7.0, -0.5, -1.5, -2.5]])
    yield "codes halfway between two integers", {"w": halves, "group": 4}
    dead = w.clone()
    dead[1, 4:8] = 0
    yield "a group of zeros", {"w": dead, "group": 4}
    quiet = torch.tensor([[1e-5, -3e-5, 0.5, 0.2], [0.7, -0.3, 2e-6, 7e-6]])
    yield "a group so quiet that it is almost zeros", {"w": quiet, "group": 2}
    some = torch.tensor([[0.0, 0.7, -0.7, 0.0, 1.4, 0.2]])
    yield "one row: some zeros, and a group that adds up to 0", {"w": some, "group": 3}


def _codes_and_scales(got: Any, expected: tuple[Tensor, Tensor], **_: Any) -> None:
    expect_close(got, expected, ("codes", "scales"), rtol=1e-5, atol=0)


Grouped = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def _group_loop(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    codes = torch.zeros(w.shape, dtype=torch.int8)
    scales = torch.ones(len(w), w.shape[1] // group)
    for i in range(len(w)):
        for j in range(w.shape[1] // group):
            part = slice(j * group, (j + 1) * group)
            if w[i, part].any():
                scales[i, j] = w[i, part].abs().max() / 7
            codes[i, part] = torch.round(w[i, part] / scales[i, j]).to(torch.int8)
    return codes, scales


def _group_repeat(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    tops = torch.stack([part.abs().amax(dim=1) for part in w.split(group, dim=1)], dim=1)
    scales = tops.masked_fill(tops == 0, 7.0) / 7
    return (w / scales.repeat_interleave(group, dim=1)).round().int(), scales


GROUP_QUANTIZE = Exercise(
    id="05.2", title="A scale for each group", minutes=9, difficulty=3,
    signature="group_quantize(w, group)", reference=group_quantize, cases=_matrices,
    compare=_codes_and_scales, returns=("codes", "scales"),
    accepted=(_group_loop, _group_repeat),
    diagnoses=(
        ("groups.abs().amax(dim=2) => groups.abs().amax(dim=(1, 2))[:, None].expand(-1, "
         "groups.shape[1])",
         "one scale for the whole row: each group has its own largest |w|"),
        ("w.reshape(len(w), -1, group) => w.reshape(len(w), group, -1)",
         "dim=2 => dim=1",
         "scales[:, :, None] => scales[:, None]",
         "these groups take every n-th weight; a group is a run of neighbours: reshape to [out, "
         "in / group, group]"),
        ("largest / 7 => largest / 127",
         ".clamp(-7, 7) => .clamp(-127, 127)",
         "127 is the largest code of 8 bits; with 4 bits it is 7"),
        ("largest / 7 => largest / 8",
         ".clamp(-7, 7) => .clamp(-8, 7)",
         "divided by 8: the narrow 4-bit grid is [-7, 7]"),
        ("largest / 7 => largest / 8",
         ".clamp(-7, 7) => .clamp(-8, 8)",
         "8 is no code of the narrow 4-bit grid: divide by 7 and clamp to [-7, 7]"),
        ("largest / 7 => largest / 7.5",
         "divided by 7.5, half of all steps: the largest code is 7"),
        ("groups.abs().amax => groups.amax",
         "largest > 0 => largest != 0",
         "the maximum, not the largest magnitude of the group"),
        ("torch.round(groups / scales[:, :, None]) => (groups / scales[:, :, None]).int()",
         "cut off instead of rounded: .int() goes towards zero, round first"),
        ("torch.round => torch.floor", "floor instead of round: every code went down"),
        ("torch.round(groups / scales[:, :, None]) => torch.floor(0.5 + groups / scales[:, :, "
         "None])",
         "halfway codes went up: torch.round takes the even neighbour"),
        ("w.reshape(len(w), -1, group) => w.T.reshape(w.shape[1], -1, group)",
         "return codes.reshape(w.shape), scales => return codes.reshape(w.T.shape).T, scales.T",
         "the groups run along the outputs: a group is a run of neighbours in one row"),
        ("codes.reshape => (codes * scales[:, :, None]).reshape",
         "these are the decoded weights; asked for are the integer codes"),
        ("w.reshape(len(w), -1, group) => w.reshape(len(w), group, -1)",
         "`group` is the length of a group, not the number of groups in a row"),
        ("torch.round(groups / scales[:, :, None]) => groups.sign() * torch.floor(0.5 + "
         "groups.abs() / scales[:, :, None])",
         "halfway codes went away from zero: torch.round takes the even neighbour"),
        ("largest > 0 => largest > 1e-4",
         "a quiet group is taken for zeros: only where all values are 0 is the scale 1"),
        ("torch.where(largest > 0, largest / 7, 1.0) => largest.clamp(min=1e-8) / 7",
         "a group of zeros got a tiny scale; any would do, but 1 is asked for"),
        ("largest > 0 => (groups != 0).all(dim=2)",
         "some zeros do not make a group of zeros: all of its values must be 0"),
        ("largest > 0 => groups.sum(dim=2) != 0",
         "values that add up to 0 are no zeros: ask whether the largest |w| is 0"),
        ("largest / 7, 1.0 => largest / 7 + 1e-8, 1.0",
         "a small number was added to every scale: only a group of zeros needs another one"),
        ("return codes.reshape(w.shape), scales => return codes.reshape(w.shape), scales[:, :, "
         "None]",
         "the scales kept a last dimension of size 1: [out, in / group] is asked for"),
        ("return codes.reshape(w.shape), scales => return scales, codes.reshape(w.shape)",
         "the codes come first, then the scales"),
        ("torch.where(largest > 0, largest / 7, 1.0) => largest / 7",
         "a group of zeros was divided by its scale 0"),
    ),
    hints=(
        ("How do I get at the groups?",
         "w.reshape(out, in // group, group) puts each run of neighbours into a row of its own. "
         "Reduce over the last dimension."),
        ("The shapes do not broadcast",
         "scales are [out, in / group]; give them a last dimension of 1 before dividing."),
    ),
)  # fmt: skip


# 05.3 ------------------------------------------------------------------------------------------


def bits_per_weight(bits: int, group: int, scale_bits: int) -> float:
    """Memory of one weight in bits, its share of the group's scale included."""
    return bits + scale_bits / group


def _sizes() -> Iterator[tuple[str, dict[str, Any]]]:
    for bits, group, scale_bits in ((4, 32, 16), (4, 64, 32), (8, 9, 32), (3, 8, 16), (2, 1, 16)):
        label = f"{bits} bits, groups of {group}, scales of {scale_bits} bits"
        yield label, {"bits": bits, "group": group, "scale_bits": scale_bits}


def _bits_of_a_group(bits: int, group: int, scale_bits: int) -> float:
    return (group * bits + scale_bits) / group


def _bits_of_many(bits: int, group: int, scale_bits: int) -> Tensor:
    storage = torch.full((1000 * group,), bits, dtype=torch.float64)
    return (storage.sum() + 1000 * scale_bits) / storage.numel()


BITS_PER_WEIGHT = Exercise(
    id="05.3", title="What a scale costs", minutes=3, difficulty=1,
    signature="bits_per_weight(bits, group, scale_bits)", reference=bits_per_weight, cases=_sizes,
    returns="the bits per weight",
    accepted=(_bits_of_a_group, _bits_of_many),
    diagnoses=(
        ("/ group =>", "a scale for every weight: the weights of a group share one"),
        ("bits + scale_bits / group => bits * group + scale_bits",
         "these are the bits of the whole group: divide by its length"),
        ("+ scale_bits / group =>", "the scales are not free: each group stores one"),
        ("/ group => // group", "// drops the fraction: a share of a scale may be half a bit"),
        ("/ group => * group",
         "multiplied by the length: a longer group shares its scale among more"),
        ("scale_bits / group => group / scale_bits",
         "upside down: the scale's bits are divided by the length of the group"),
        ("bits + scale_bits / group => (bits + scale_bits) / group",
         "only the scale is shared; each weight has a code of its own"),
    ),
    hints=(
        ("Where do I begin?",
         "How many bits does one whole group take? Divide them among its weights."),
        ("Is it a whole number?", "No. 4 bits in groups of 32 with 16-bit scales take 4.5."),
    ),
)  # fmt: skip


# 05.4 ------------------------------------------------------------------------------------------


def choose_granularity(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The smallest version that surely loses at most two points, with its interval."""
    limit = 0.02
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


CHOOSE_GRANULARITY = Exercise(
    id="05.4", title="Choose bits and granularity", minutes=7, difficulty=3,
    signature="choose_granularity(scores, baseline)", reference=choose_granularity,
    cases=functools.partial(limit_cases, ("4 bits", "6 bits", "8 bits", "FP32"), 0.02, 540),
    compare=functools.partial(defended, objection=cheapest_within(0.02)), agree=same_decision,
    accepted=(first_that_fits(0.02), by_standard_error(0.02)),
    diagnoses=(*WRONG_INTERVALS, *WRONG_CHOICES), hints=HINTS,
)  # fmt: skip


EXERCISES = [CHANNEL_SCALES, GROUP_QUANTIZE, BITS_PER_WEIGHT, CHOOSE_GRANULARITY]
