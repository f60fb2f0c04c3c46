"""mAP against pycocotools; the bootstrap against drawing scenes by hand."""

import numpy as np
import pytest
import torch

from ptq_classroom.pictures import average_precision as ap
from ptq_classroom.pictures import coco
from ptq_classroom.pictures.boxes import Detections
from ptq_classroom.pictures.detection import Scenes


def made(seed, pictures=30, classes=3, ties=False):
    """Random objects, and detections that are near some of them."""
    rng = np.random.default_rng(seed)
    scene = np.sort(rng.integers(0, pictures, 3 * pictures))
    low = rng.uniform(0, 60, (len(scene), 2))
    boxes = np.hstack([low, low + rng.uniform(8, 36, low.shape)])
    labels = rng.integers(0, classes, len(scene))
    chosen = np.sort(rng.integers(0, len(scene), 5 * pictures))
    near = boxes[chosen] + rng.normal(0, 3, (len(chosen), 4)) * rng.choice(
        [0.2, 1, 4], (len(chosen), 1)
    )
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)  # no box inside out
    wrong = rng.random(len(chosen)) < 0.2
    named = np.where(wrong, rng.integers(0, classes, len(chosen)), labels[chosen])
    scores = rng.random(len(chosen)) / (1 + np.abs(near - boxes[chosen]).mean(1))
    scores = np.round(scores, 1) if ties else scores
    order = np.lexsort((-scores, scene[chosen]))
    images = torch.zeros(pictures, 3, 1, 1, dtype=torch.uint8)
    scenes = Scenes(images, torch.tensor(boxes).float(), torch.tensor(labels), torch.tensor(scene))
    found = Detections(
        torch.tensor(near[order]).float(), torch.tensor(scores[order]).float(),
        torch.tensor(named[order]), torch.tensor(scene[chosen][order]), pictures,
    )  # fmt: skip
    return found, scenes


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_map_is_that_of_pycocotools(seed, ties):
    found, scenes = made(seed, ties=ties)
    expected = coco.mean_average_precision(found, scenes)
    assert ap.mean_average_precision(found, scenes) == pytest.approx(expected, abs=1e-9)
    assert 0.05 < expected[0] < 0.95, "the case must not be trivial"


def test_perfect_and_empty_detections():
    _, scenes = made(0)
    perfect = Detections(
        scenes.boxes, torch.ones(len(scenes.boxes)), scenes.labels, scenes.scene, len(scenes)
    )
    assert ap.mean_average_precision(perfect, scenes) == pytest.approx((1, 1))
    nothing = Detections(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), torch.zeros(0).long(), len(scenes)
    )
    assert ap.mean_average_precision(nothing, scenes) == (0, 0)
    assert coco.mean_average_precision(nothing, scenes) == (0, 0)


def test_average_precision_by_hand():
    hits = np.array([True, False, True])  # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1
    area = ap.average_precision(hits, 2, np.ones((1, 3)))[0]
    assert area == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


def test_a_second_detection_of_the_same_object_is_wrong():
    box = torch.tensor([[0.0, 0, 10, 10]])
    scenes = Scenes(torch.zeros(1, 3, 1, 1), box, torch.tensor([0]), torch.tensor([0]))
    twice = Detections(
        box.repeat(2, 1), torch.tensor([0.9, 0.8]), torch.zeros(2).long(), torch.zeros(2).long(), 1
    )
    assert ap.match(twice, scenes).hits[0][0].tolist() == [True, False]


def test_counting_a_scene_twice_is_having_it_twice():
    found, scenes = made(1, pictures=12)
    matches = ap.match(found, scenes, (0.5,))
    counts = np.ones(12)
    counts[3], counts[7] = 2, 0
    rows = [*range(12), 3]
    rows.remove(7)
    again = [(s, found.scene == s, scenes.scene == s) for s in rows]
    where = [torch.full((int(d.sum()),), i) for i, (_, d, _) in enumerate(again)]
    home = [torch.full((int(t.sum()),), i) for i, (_, _, t) in enumerate(again)]
    drawn = Detections(
        torch.cat([found.boxes[d] for _, d, _ in again]),
        torch.cat([found.scores[d] for _, d, _ in again]),
        torch.cat([found.labels[d] for _, d, _ in again]),
        torch.cat(where), 12,
    )  # fmt: skip
    truth = Scenes(
        scenes.images,
        torch.cat([scenes.boxes[t] for _, _, t in again]),
        torch.cat([scenes.labels[t] for _, _, t in again]),
        torch.cat(home),
    )
    expected = ap.mean_average_precision(drawn, truth)[0]
    assert matches.mean(counts[None])[0, 0] == pytest.approx(expected, abs=0.01)


def test_the_bootstrap_is_paired_and_sees_a_loss():
    found, scenes = made(2)
    matches = ap.match(found, scenes)
    assert ap.bootstrap(matches, matches) == (0, 0, 0)
    worse = Detections(found.boxes + 4, found.scores, found.labels, found.scene, found.count)
    change, low, high = ap.bootstrap(matches, ap.match(worse, scenes))
    assert low < change < high < 0
    assert ap.bootstrap(matches, ap.match(worse, scenes)) == (change, low, high)
