"""Checks of chapter 00: flips, an interval around a difference, the ten lines, a decision."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    defended,
    made_scores,
    no_rival_is_better,
    same_decision,
    unpaired,  # noqa: F401  (a wrong answer's)
)
from ptq_classroom.kit.decisions import interval as interval_between
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import expect, expect_close, roughly, several
from ptq_classroom.kit.values import as_array
from ptq_course.simulation.quantizer import PTQQuantizer

# 00.1 ------------------------------------------------------------------------------------------


def flips(fp: Tensor, q: Tensor, labels: Tensor) -> tuple[int, int]:
    """(lost, gained): images that only `fp` gets right, and images that only `q` gets right."""
    right_before = fp.argmax(dim=1) == labels
    right_after = q.argmax(dim=1) == labels
    lost = (right_before & ~right_after).sum().item()
    gained = (~right_before & right_after).sum().item()
    return lost, gained


def _scores(classes: list[int], count: int, seed: int) -> Tensor:
    """Logits [N, count] whose largest entry is at `classes`, without ties."""
    scores = torch.rand(len(classes), count, generator=torch.Generator().manual_seed(seed)) - 0.5
    scores[torch.arange(len(classes)), torch.tensor(classes)] = 2.0
    return scores


def _networks() -> Iterator[tuple[str, dict[str, Any]]]:
    def case(label: str, fp: list[int], q: list[int], truth: list[int], count: int) -> tuple:
        seed = 1000 * len(fp) + count
        inputs = {"fp": _scores(fp, count, seed), "q": _scores(q, count, seed + 1)}
        return label, {**inputs, "labels": torch.tensor(truth)}

    yield case("five images, two lost", [0, 1, 2, 3, 0], [0, 2, 2, 1, 0], [0, 1, 2, 3, 2], 4)
    yield case("wrong before and wrong after", [1, 1, 2, 0], [2, 1, 0, 0], [0, 1, 2, 1], 3)
    yield case("nothing changes", [0, 1, 2], [0, 1, 2], [0, 2, 2], 3)
    yield case("only gained", [1, 2, 0, 0, 1], [1, 1, 0, 2, 1], [1, 1, 0, 2, 0], 3)
    label, given = case("every logit is negative", [0, 1, 2, 2], [0, 2, 1, 2], [0, 1, 1, 0], 3)
    yield label, {**given, "fp": given["fp"] - 5, "q": given["q"] - 5}
    yield case("as many images as classes", [0, 1, 2, 3], [0, 3, 2, 3], [0, 1, 2, 1], 4)
    yield case("the first is lost, the last is gained", [0, 1, 2, 0], [1, 1, 2, 2], [0, 1, 1, 2], 3)
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 10, 200)
    fp = np.where(rng.random(200) < 0.9, truth, rng.integers(0, 10, 200))
    q = np.where(rng.random(200) < 0.8, truth, rng.integers(0, 10, 200))
    yield case("200 images of 10 classes", fp.tolist(), q.tolist(), truth.tolist(), 10)


def _flips_loop(fp: Tensor, q: Tensor, labels: Tensor) -> tuple[int, int]:
    lost = gained = 0
    for before, after, truth in zip(fp, q, labels.tolist(), strict=True):
        was, now = int(before.argmax()) == truth, int(after.argmax()) == truth
        lost += was and not now
        gained += now and not was
    return lost, gained


def _flips_numpy(fp: Tensor, q: Tensor, labels: Tensor) -> tuple[np.int64, np.int64]:
    change = (q.numpy().argmax(1) == labels.numpy()).astype(int)
    change -= fp.numpy().argmax(1) == labels.numpy()
    return (change == -1).sum(), (change == 1).sum()


def _flips_stacked(fp: Tensor, q: Tensor, labels: Tensor) -> Tensor:
    before, after = fp.argmax(dim=1) == labels, q.argmax(dim=1) == labels
    return torch.stack([(before & ~after).sum(), (~before & after).sum()])


def _flips_array(fp: Tensor, q: Tensor, labels: Tensor) -> np.ndarray:
    return np.array(_flips_numpy(fp, q, labels))


def _flips_sets(fp: Tensor, q: Tensor, labels: Tensor) -> list[int]:
    before = {i for i, k in enumerate(fp.topk(1).indices.flatten().tolist()) if k == labels[i]}
    after = {i for i, k in enumerate(q.topk(1).indices.flatten().tolist()) if k == labels[i]}
    return [len(before - after), len(after - before)]


FLIPS = Exercise(
    id="00.1", title="Count the flips", minutes=6, difficulty=1,
    signature="flips(fp, q, labels)", reference=flips, cases=_networks, returns=("lost", "gained"),
    accepted=(_flips_loop, _flips_numpy, _flips_sets, _flips_stacked, _flips_array),
    diagnoses=(
        ("return lost, gained => return gained, lost", "lost and gained are the other way round"),
        ("return lost, gained => return max(lost - gained, 0), max(gained - lost, 0)",
         "only the difference is left: count both directions"),
        ("(~right_before & right_after) => (~right_before & (fp.argmax(dim=1) != "
         "q.argmax(dim=1)))",
         "an image that was wrong and became wrong in another way is not gained"),
        ("return lost, gained => return lost / len(labels), gained / len(labels)",
         "divided by the number of images: the count itself is asked for"),
        ("fp.argmax(dim=1) => fp.argmax()",
         "q.argmax(dim=1) => q.argmax()",
         "argmax without dim=1 finds one class for the whole batch"),
        ("(right_before & ~right_after) => (~right_after)",
         "(~right_before & right_after) => (~right_before)",
         "these are all wrong images, not those that only one network gets wrong"),
    ),
    hints=(
        ("Where to begin", "fp.argmax(dim=1) gives one class an image. Compare with labels."),
        ("Two masks",
         "right_before and right_after are True or False for each image. An image is lost where "
         "the first is True and the second is not: `a & ~b`."),
        ("From a mask to a number", "mask.sum().item() counts the places that are True."),
    ),
)  # fmt: skip


# 00.2 ------------------------------------------------------------------------------------------


def interval(fp_right: Tensor, q_right: Tensor) -> tuple[float, float]:
    """95 % interval of mean(q_right) - mean(fp_right), by drawing the images anew 2,000 times."""
    differences = q_right.double() - fp_right.double()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(differences), (2000, len(differences)), generator=generator)
    means = differences[drawn].mean(dim=1)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = means.quantile(ends).tolist()
    return low, high


def _rights() -> Iterator[tuple[str, dict[str, Any]]]:
    rng = np.random.default_rng(2)
    shapes = ((3200, 0.90, 0.06, 0.02), (2400, 0.80, 0.02, 0.08), (4000, 0.70, 0.05, 0.05))
    for n, accuracy, lost, gained in shapes:
        before = rng.random(n) < accuracy
        chance = rng.random(n)
        after = np.where(before, chance >= lost / accuracy, chance < gained / (1 - accuracy))
        label = f"{n} images, {100 * accuracy:.0f} % right before"
        rights = {"fp_right": torch.from_numpy(before), "q_right": torch.from_numpy(after)}
        yield label, {name: right.double() for name, right in rights.items()}


UNPAIRED = "the two networks drew different images: draw once, and use the draw for both"
NO_WIDTH = "drawn without putting back: every draw is then the whole set once more"
SMALL = "each draw holds fewer images than there are: draw as many as you were given"
TOO_NARROW = "5 % cut off at each end leaves 90 %: cut off 2.5 %"
ONE_SIGMA = "one standard deviation each way holds 68 %: 95 % needs nearly two"
SIGN = "the sign: it is accuracy after (q) minus accuracy before (fp)"
ONE_PICTURE = "this is the spread of one picture; the mean of N varies less, by the root of N"
NO_MEANS = "quantiles of the pictures' differences: take the mean of each draw first"
EXTREMES = "the smallest and the largest draw: cut off 2.5 % at each end"
TURNED = "the lower end comes first"
PERCENT = "in points of a hundred: give shares of 1"


def _like_the_reference(got: Any, expected: tuple, fp_right: Tensor, q_right: Tensor) -> None:
    """Two numbers, in order, where the reference has them; chance may move an end a little."""
    ends = _ends_of(got)
    if ends is None:
        expect_close(got, expected, ("low", "high"))
        ends = tuple(expected)
    low, high = ends
    shown = {"where": "the interval", "expected": [round(end, 4) for end in expected], "got": got}
    for name, end in (("low", low), ("high", high)):
        expect(math.isfinite(end), f"{name} is not a number, but {end}", **shown)
    expect(low <= high, "the interval is turned round", cause=TURNED, **shown)
    width, middle = expected[1] - expected[0], sum(expected) / 2
    near = 0.88 < (high - low) / width < 1.12 and abs((low + high) / 2 - middle) < 0.08 * width
    expect(near, "the interval is off", **shown)


def _ends_of(got: Any) -> tuple[float, float] | None:
    """(low, high) as floats, or None where `got` does not hold two numbers."""
    try:
        low, high = (as_array(end) for end in several(got, 2) or ())
        return float(low.item()), float(high.item())
    except (TypeError, ValueError):
        return None


def _near(got: Any, wrong: Any) -> bool:
    """Whether an answer is this wrong one, give or take 7 % of the wrong one's width."""
    found, known = _ends_of(got), _ends_of(wrong)
    if found is None or known is None:
        return False
    room = max(0.07 * (known[1] - known[0]), 1e-6)
    return all(abs(a - b) < room for a, b in zip(found, known, strict=True))


def _draws(count: int, size: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, (2000, size))


def _means(fp_right: Tensor, q_right: Tensor) -> np.ndarray:
    differences = (q_right - fp_right).numpy()
    return differences[_draws(len(differences), len(differences))].mean(1)


def _ends(means: np.ndarray, cut: float = 0.025) -> tuple[float, float]:
    return float(np.quantile(means, cut)), float(np.quantile(means, 1 - cut))


def _interval_numpy(fp_right: Tensor, q_right: Tensor) -> tuple[float, float]:
    return _ends(_means(fp_right, q_right))


def _interval_both(fp_right: Tensor, q_right: Tensor) -> list[Tensor]:
    drawn = torch.from_numpy(_draws(len(fp_right), len(fp_right), 7))
    means = q_right[drawn].mean(1) - fp_right[drawn].mean(1)
    means = means.sort().values
    return [means[50], means[1950]]


def _interval_one_tensor(fp_right: Tensor, q_right: Tensor) -> Tensor:
    means = torch.from_numpy(_means(fp_right, q_right))
    return means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype))


def _interval_one_array(fp_right: Tensor, q_right: Tensor) -> np.ndarray:
    return np.percentile(_means(fp_right, q_right), [2.5, 97.5])


def _interval_normal(fp_right: Tensor, q_right: Tensor) -> tuple[float, float]:
    differences = q_right - fp_right
    middle, half = differences.mean(), 1.96 * differences.std() / len(differences) ** 0.5
    return (middle - half).item(), (middle + half).item()


INTERVAL = Exercise(
    id="00.2", title="The interval, by drawing again", minutes=10, difficulty=3,
    signature="interval(fp_right, q_right)", reference=interval, cases=_rights,
    compare=_like_the_reference, agree=_near,
    accepted=(_interval_numpy, _interval_both, _interval_one_tensor, _interval_one_array,
        _interval_normal),
    diagnoses=(
        ("differences[drawn].mean(dim=1) => q_right[drawn].mean(dim=1) - "
         "fp_right[drawn.flip(0)].mean(dim=1)",
         UNPAIRED),
        ("torch.randint(len(differences), (2000, len(differences)), generator=generator) => "
         "torch.randperm(len(differences))[None]",
         NO_WIDTH),
        ("(2000, len(differences)) => (2000, 50)", SMALL),
        ("[0.025, 0.975] => [0.05, 0.95]", TOO_NARROW),
        ("means.quantile(ends) => (means.mean() + means.std() * torch.tensor([-1, 1]))", ONE_SIGMA),
        ("q_right.double() - fp_right.double() => fp_right.double() - q_right.double()", SIGN),
        ("return low, high => return 100 * low, 100 * high", PERCENT),
        ("means.quantile(ends) => (differences.mean() + 1.96 * differences.std() * "
         "torch.tensor([-1, 1]))",
         ONE_PICTURE),
        ("means.quantile => differences.quantile", NO_MEANS),
        ("means.quantile(ends) => (means.mean() + 3.43 * means.std() * torch.tensor([-1, 1]))",
         EXTREMES),
        ("return low, high => return high, low", TURNED),
    ),
    hints=(
        ("One draw",
         "torch.randint(n, (n,)) gives n places among n, some of them twice: that is a test set "
         "as it might have been."),
        ("Paired",
         "Subtract first: differences = q_right - fp_right has one number an image. A draw then "
         "takes both networks along."),
        ("2,000 draws",
         "Keep the mean of each draw. The interval runs from the 2.5 % to the 97.5 % quantile of "
         "these means: torch.quantile."),
    ),
)  # fmt: skip


# 00.3 ------------------------------------------------------------------------------------------


def quantize_network(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """The network in 8 bits, its ranges by min-max over all batches."""
    quantizer = PTQQuantizer(model, bits=8)
    quantizer.calibrate(batches, ranges="minmax", progress=False)
    return quantizer.convert()


LOOK = torch.linspace(-6, 6, 4 * 3 * 6 * 6).reshape(4, 3, 6, 6)


def _small_networks() -> Iterator[tuple[str, dict[str, Any]]]:
    for seed, hidden in ((301, 4), (302, 6)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = nn.Conv2d(3, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 5, 1)
            batches = [torch.randn(8, 3, 6, 6) * size for size in (1.0, 3.0, 2.0)]
        batches[1][0, 0, 0, 0] = 40.0  # min-max keeps it, other rules clip it
        batches[2][1, 1, 2, 2] = -60.0  # so that no batch can be left out
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        yield f"a network with {hidden} channels", {"model": model, "batches": batches}


def _outputs(got: Any) -> Any:
    """What a network answers on one fixed batch; anything else as it is."""
    if not isinstance(got, nn.Module):
        return got
    with torch.no_grad():
        return got(LOOK)


def _same_network(got: Any, expected: nn.Module, **_: Any) -> None:
    expect(
        isinstance(got, nn.Module),
        "the function should return the converted network",
        where="the network",
        expected="a module that can be called on pictures",
        got=type(got).__name__,
    )
    expect_close(_outputs(got), _outputs(expected), "the answers", rtol=1e-4, atol=1e-5)


def _same_answers(got: Any, wrong: Any) -> bool:
    if isinstance(got, nn.Module) and isinstance(wrong, nn.Module):
        return roughly(_outputs(got), _outputs(wrong))
    return type(got) is type(wrong)


def _in_two_steps(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    collected = PTQQuantizer(model).observe(batches, progress=False)
    return collected.compute_qparams("minmax").convert()


def _chained(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    prepared = PTQQuantizer(model, bits=8)
    return prepared.calibrate(iter(batches), ranges="minmax", progress=False).convert()


QUANTIZE_NETWORK = Exercise(
    id="00.3", title="The ten lines, by yourself", minutes=5, difficulty=1,
    signature="quantize_network(model, batches)", reference=quantize_network,
    cases=_small_networks, compare=_same_network, agree=_same_answers,
    returns="the network", accepted=(_in_two_steps, _chained),
    diagnoses=(
        ("return quantizer.convert() => return model",
         "this is the network as it was: return what `convert` gives"),
        ("return quantizer.convert() => return quantizer",
         "prepared and calibrated, but never converted: the last step is missing"),
        ("bits=8 => bits=4", "these are 4 bits: 8 are asked for"),
        ("(batches, ranges => (batches[:1], ranges",
         "only the first batch was watched: calibrate on all of them"),
        ('ranges="minmax" => ranges="percentile"', "another rule: name min-max in `ranges`"),
    ),
    hints=(
        ("Where to begin", "Section 4 has the lines: prepare, calibrate, convert."),
        ("It complains about the batches",
         "A list of tensors is fine: quantizer.calibrate(batches, ranges=\"minmax\")."),
    ),
)  # fmt: skip


# 00.4 ------------------------------------------------------------------------------------------


def choose_version(scores: Scores, baseline: str) -> tuple:
    """The version with the most right answers, and its interval against the baseline."""
    choice = max(scores, key=lambda name: scores[name].mean().item())
    low, high = interval_between(scores[baseline], scores[choice])
    return choice, low, high


def _versions() -> Iterator[tuple[str, dict[str, Any]]]:
    for i, (label, accuracies) in enumerate({
        "the last one is clearly best": {"minmax": 0.88, "percentile": 0.90, "kl": 0.93},
        "the first one is clearly best": {"minmax": 0.93, "percentile": 0.90, "kl": 0.85},
        "two are hard to tell apart": {"minmax": 0.85, "percentile": 0.91, "kl": 0.911},
        "nothing beats the baseline": {"minmax": 0.85, "percentile": 0.93, "kl": 0.88},
        "several beat the baseline": {"minmax": 0.82, "percentile": 0.87, "kl": 0.93, "mse": 0.89},
    }.items()):  # fmt: skip
        scores = made_scores(3000, accuracies, 400 + i)
        baseline = ("percentile", "percentile", "minmax", "percentile", "minmax")[i]
        yield label, {"scores": scores, "baseline": baseline}


def _choose_numpy(scores: Scores, baseline: str) -> list:
    names = sorted(scores, key=lambda name: -scores[name].sum())
    return [names[0], *_ends(_means(scores[baseline], scores[names[0]]))]


def _choose_the_runner_up(scores: Scores, baseline: str) -> tuple:
    """Defends the second where the best does not surely beat it."""
    best, second = sorted(scores, key=lambda name: -scores[name].sum())[:2]
    low, _ = interval_between(scores[second], scores[best])
    choice = best if low > 0 else second
    return choice, _interval_normal(scores[baseline], scores[choice])


CHOOSE_VERSION = Exercise(
    id="00.4", title="Which version do you ship?", minutes=6, difficulty=2,
    signature="choose_version(scores, baseline)", reference=choose_version, cases=_versions,
    compare=partial(defended, objection=no_rival_is_better), agree=same_decision,
    returns=("version", "low", "high"), accepted=(_choose_numpy, _choose_the_runner_up),
    diagnoses=(
        *((change.replace("interval(", "interval_between("), cause)
          for change, cause in WRONG_INTERVALS),
        ("max(scores, key => min(scores, key", "this is the version with the fewest right answers"),
        ("max(scores, key=lambda name: scores[name].mean().item()) => baseline",
         "the baseline is one of the versions, but not the best of them"),
        ("max(scores, key => max((name for name in scores if name != baseline), key",
         "the baseline was left out: it is one of the versions, and may be the best of them"),
        ("max(scores, key=lambda name: scores[name].mean().item()) => list(scores)[-1]",
         "the last one in the list: let the scores decide"),
    ),
    hints=(
        ("Which one?", "The mean of a row is its accuracy. `max(scores, key=...)` finds a name."),
        ("The interval",
         "Your `interval` gives it: the baseline's row first, then that of your choice."),
    ),
)  # fmt: skip


EXERCISES = [FLIPS, INTERVAL, QUANTIZE_NETWORK, CHOOSE_VERSION]
