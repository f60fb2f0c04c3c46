"""Boxes: overlap, and what of a detector's 144 answers remains.

Boxes are left, top, right, bottom in pixels, [..., 4], unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 48  # the best cells of a picture that are looked at
LEAST = 0.02  # the least score of a detection
SUPPRESS = 0.5  # two boxes of one class that overlap more are one object


def corners(boxes: Tensor) -> Tensor:
    """Centre x, centre y, width, height to left, top, right, bottom: [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    return torch.cat([centre - half, centre + half], -1)


def areas(boxes: Tensor) -> Tensor:
    """Area of each box, [...]; 0 where it is turned inside out."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] with boxes [..., 4], broadcast: [...] in [0, 1].

    `iou(a[:, None], b[None])` compares each with each. Two empty boxes have 0.
    """
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    union = areas(a) + areas(b) - inside
    return torch.where(union > 0, inside / union.clamp(min=1e-12), 0.0)


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in N pictures, one row a box, pictures in ascending order, best first in each.

    boxes: float32 [M, 4]; scores: float32 [M]; labels: int64 [M]; scene: int64 [M], which picture.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    scene: Tensor
    count: int  # N, pictures without any detection included

    def within(self, index: int, least: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of one picture with at least that score."""
        rows = (self.scene == index) & (self.scores >= least)
        return self.boxes[rows], self.scores[rows], self.labels[rows]


def suppress(boxes: Tensor, labels: Tensor, threshold: float = SUPPRESS) -> Tensor:
    """Non-maximum suppression: which boxes remain, a mask [N, K].

    boxes: [N, K, 4] and labels: [N, K] of N pictures, best first in each. Greedy, in each class: a
    box remains unless a better one that remained overlaps it by more than the threshold. (Neubeck,
    Van Gool, "Efficient Non-Maximum Suppression", 2006.)
    """
    rivals = iou(boxes[:, :, None], boxes[:, None]) > threshold
    rivals &= labels[:, :, None] == labels[:, None]
    kept = torch.ones(labels.shape, dtype=torch.bool)
    for k in range(1, labels.shape[1]):
        kept[:, k] = ~(rivals[:, k, :k] & kept[:, :k]).any(1)
    return kept


def detections(output: Tensor, threshold: float = SUPPRESS, least: float = LEAST) -> Detections:
    """A detector's output [N, cells, 5 + classes] to what it found (see `detector.Decode`).

    A cell's score is the probability of an object times that of its likeliest class.
    """
    if output.dim() != 3 or output.shape[2] < 6:
        raise ValueError(f"detections wants [N, cells, 5 + classes], got {tuple(output.shape)}")
    likeliest, labels = output[:, :, 5:].max(2)
    scores, order = (output[:, :, 4] * likeliest).sort(dim=1, descending=True, stable=True)
    order, scores = order[:, :CANDIDATES], scores[:, :CANDIDATES]
    labels = labels.gather(1, order)
    chosen = output[:, :, :4].gather(1, order[:, :, None].expand(-1, -1, 4))
    boxes = corners(chosen)
    kept = suppress(boxes, labels, threshold) & (scores >= least)
    scene = torch.arange(len(output))[:, None].expand_as(kept)[kept]
    return Detections(boxes[kept], scores[kept], labels[kept], scene, len(output))
