"""Mean average precision, and how sure a difference of two is.

Everingham, Van Gool, Williams, Winn, Zisserman, "The PASCAL Visual Object Classes (VOC) Challenge",
2010; the thresholds and the 101 recalls are those of Lin, Maire, Belongie and others, "Microsoft
COCO: Common Objects in Context", 2014. The result is that of pycocotools, which a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptq_classroom.pictures.boxes import Detections, iou
from ptq_classroom.pictures.detection import Scenes

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
RECALLS = np.linspace(0, 1, 101)


def average_precision(
    hits: np.ndarray, objects: float | np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The area under precision over recall, one for each row of ``weights``: float64 [B].

    hits: bool [M], detections of one class, best score first: does it show an object? objects: how
    many there are, a number or [B]. weights: [B, M], how often each detection counts (ones, or in a
    bootstrap the number of times that its picture was drawn).
    """
    right = np.cumsum(weights * hits, 1)
    precision = right / np.maximum(np.cumsum(weights, 1), 1e-12)
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # never rises again
    recall = right / np.maximum(np.asarray(objects, float).reshape(-1, 1), 1e-12)
    total = np.zeros(len(weights))
    for row, (r, p) in enumerate(zip(recall, precision, strict=True)):
        at = np.searchsorted(r, RECALLS, side="left")
        total[row] = np.append(p, 0.0)[at].mean()
    return total


@dataclass(frozen=True, eq=False)
class Matches:
    """Detections matched with objects, enough to compute mAP for any choice of pictures.

    hits: class -> bool [thresholds, M], best score first; scene: class -> int [M]; objects:
    class -> int [N], how many are in each picture. Only classes that occur.
    """

    hits: dict[int, np.ndarray]
    scene: dict[int, np.ndarray]
    objects: dict[int, np.ndarray]
    thresholds: tuple[float, ...]

    def mean(self, counts: np.ndarray | None = None) -> np.ndarray:
        """mAP at each threshold, [thresholds]; or [B, thresholds] where picture n counts [B, N]."""
        once = counts is None
        counts = np.ones((1, len(next(iter(self.objects.values()))))) if once else counts
        total, classes = np.zeros((len(counts), len(self.thresholds))), np.zeros((len(counts), 1))
        for label, objects in self.objects.items():
            weights, there = counts[:, self.scene[label]], counts @ objects
            of_class = [average_precision(h, there, weights) for h in self.hits[label]]
            total += np.stack(of_class, 1) * (there > 0)[:, None]
            classes += (there > 0)[:, None]  # a draw may hold no object of a class
        mean = total / np.maximum(classes, 1)
        return mean[0] if once else mean


def match(found: Detections, scenes: Scenes, thresholds: tuple[float, ...] = THRESHOLDS) -> Matches:
    """Give each detection, best first, the free object of its class that it overlaps most."""
    hits, where, objects = {}, {}, {}
    levels = np.array(thresholds)
    for label in sorted(set(scenes.labels.tolist())):
        mine, real = found.labels == label, scenes.labels == label
        scores, scene, boxes = found.scores[mine], found.scene[mine], found.boxes[mine]
        order = torch.argsort(scores, descending=True, stable=True)
        scene, boxes = scene[order], boxes[order]
        truth, home = scenes.boxes[real], scenes.scene[real]
        overlap = iou(boxes[:, None], truth[None]).double()
        overlap = torch.where(scene[:, None] == home[None], overlap, -1.0).numpy()
        hits[label] = _greedy(overlap, levels)
        where[label] = scene.numpy()
        objects[label] = np.bincount(home.numpy(), minlength=len(scenes))
    return Matches(hits, where, objects, tuple(thresholds))


def _greedy(overlap: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """bool [levels, M]: which of the detections (rows, best first) get an object (columns)."""
    hits = np.zeros((len(levels), len(overlap)), bool)
    free = np.ones((len(levels), overlap.shape[1]), bool)
    for row, values in enumerate(overlap):
        columns = np.flatnonzero(values >= levels[0])
        if len(columns) == 0:
            continue
        fits = free[:, columns] & (values[columns] >= levels[:, None])
        best = np.where(fits, values[columns], -1.0).argmax(1)
        got = fits.any(1)
        hits[got, row] = True
        free[got, columns[best[got]]] = False
    return hits


def mean_average_precision(found: Detections, scenes: Scenes) -> tuple[float, float]:
    """mAP at an overlap of 0.5, and its mean over 0.5, 0.55, ..., 0.95; both in [0, 1]."""
    values = match(found, scenes).mean()
    return float(values[0]), float(values.mean())


def draws(matches: Matches, count: int = 400, seed: int = 0) -> np.ndarray:
    """mAP at the first threshold in `count` draws of the pictures with replacement: [count].

    One seed, one list of draws: rows of several networks belong together, and may be subtracted.
    mAP is no mean over pictures, so there is no score of each picture to subtract. (Efron,
    "Bootstrap Methods: Another Look at the Jackknife", 1979.)
    """
    pictures = len(next(iter(matches.objects.values())))
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(pictures, np.full(pictures, 1 / pictures), count).astype(float)
    return _first_only(matches).mean(counts)[:, 0]


def bootstrap(
    before: Matches, after: Matches, count: int = 400, seed: int = 0
) -> tuple[float, float, float]:
    """Change of mAP at the first threshold, after minus before, with its 95 % interval."""
    low, high = np.quantile(draws(after, count, seed) - draws(before, count, seed), [0.025, 0.975])
    change = _first_only(after).mean()[0] - _first_only(before).mean()[0]
    return float(change), float(low), float(high)


def _first_only(matches: Matches) -> Matches:
    hits = {label: rows[:1] for label, rows in matches.hits.items()}
    return Matches(hits, matches.scene, matches.objects, matches.thresholds[:1])


def f1_by_scene(found: Detections, scenes: Scenes, least: float = 0.4) -> Tensor:
    """One score for each picture, float64 [N] in [0, 1]: F1 of what is found with at least a score.

    Right detections (overlap 0.5) count twice, over all detections and all objects. Unlike mAP it
    is a mean over pictures, so that a paired interval needs nothing but these scores.
    """
    sure = found.scores >= least
    kept = Detections(
        found.boxes[sure], found.scores[sure], found.labels[sure], found.scene[sure], found.count
    )
    matches, right = match(kept, scenes, (0.5,)), np.zeros(len(scenes))
    for label, hits in matches.hits.items():
        right += np.bincount(matches.scene[label][hits[0]], minlength=len(scenes))
    shown = np.bincount(kept.scene.numpy(), minlength=len(scenes))
    there = np.bincount(scenes.scene.numpy(), minlength=len(scenes))
    return torch.from_numpy(2 * right / np.maximum(shown + there, 1))
