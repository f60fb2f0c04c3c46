"""Overlap and non-maximum suppression, against pixels counted and a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_classroom.pictures.boxes import areas, corners, detections, iou, suppress

SIDES = st.integers(0, 12)
BOX = st.tuples(SIDES, SIDES, SIDES, SIDES).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3])]
)


def pixels(box):
    left, top, right, bottom = box
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


@given(BOX, BOX)
def test_iou_is_that_of_the_pixels(a, b):
    both, either = len(pixels(a) & pixels(b)), len(pixels(a) | pixels(b))
    got = iou(torch.tensor(a).float(), torch.tensor(b).float()).item()
    assert got == pytest.approx(both / either if either else 0.0)


def test_iou_broadcasts_and_boxes_inside_out_are_empty():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 4, 4], [3, 3, 1, 1]])
    assert iou(a[:, None], a[None]).tolist() == [[1, 0.25, 0], [0.25, 1, 0], [0, 0, 0]]
    assert areas(a).tolist() == [4, 16, 0]


def test_corners():
    assert corners(torch.tensor([10.0, 20, 4, 6])).tolist() == [8, 17, 12, 23]


def plain_suppression(boxes, labels, threshold):
    kept = []
    for i, box in enumerate(boxes):
        rivals = [j for j in kept if labels[j] == labels[i]]
        if all(iou(box, boxes[j]) <= threshold for j in rivals):
            kept.append(i)
    return kept


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.5, 0.8]))
def test_suppression_is_the_greedy_loop(seed, threshold):
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(3, 9, 2, generator=g) * 10
    boxes = torch.cat([low, low + 2 + 6 * torch.rand(3, 9, 2, generator=g)], 2)
    labels = torch.randint(0, 2, (3, 9), generator=g)
    kept = suppress(boxes, labels, threshold)
    for picture in range(3):
        expected = plain_suppression(boxes[picture], labels[picture].tolist(), threshold)
        assert kept[picture].nonzero().flatten().tolist() == expected


def test_a_suppressed_box_suppresses_nothing():
    chain = torch.tensor([[[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]])
    assert suppress(chain, torch.zeros(1, 3), 0.4).tolist() == [[True, False, True]]


def test_detections_are_sorted_scored_and_cut():
    output = torch.zeros(2, 144, 7)
    output[0, 3] = torch.tensor([20.0, 20, 10, 10, 0.5, 0.2, 0.8])
    output[0, 9] = torch.tensor([60.0, 60, 10, 10, 0.9, 0.9, 0.1])
    output[1, 0] = torch.tensor([60.0, 60, 10, 10, 0.1, 0.1, 0.0])  # 0.01: below the least score
    found = detections(output)
    assert found.scores.tolist() == pytest.approx([0.81, 0.4])
    assert found.labels.tolist() == [0, 1]
    assert found.scene.tolist() == [0, 0]
    assert found.count == 2
    assert found.boxes[1].tolist() == [15, 15, 25, 25]
    assert found.within(0, 0.5)[1].tolist() == pytest.approx([0.81])
    with pytest.raises(ValueError, match="5 \\+ classes"):
        detections(torch.zeros(144, 7))
