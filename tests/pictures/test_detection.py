"""Scenes and detector: what ships is what the scripts make, and as good as the manifest says."""

import hashlib

import make_scenes
import numpy as np
import pytest
import torch
import train_detector
from torch import fx

from ptq_classroom.pictures import coco, detector
from ptq_classroom.pictures.average_precision import mean_average_precision
from ptq_classroom.pictures.boxes import detections
from ptq_classroom.pictures.detection import DETECTED, SCENE_SIZE, SceneGenerator, load_scenes
from ptq_classroom.pictures.integrity import DATA, read_manifest
from ptq_classroom.pictures.models import multiply_adds

SIZES = {"scenes_test": 300, "scenes_calibration": 100}


@pytest.mark.parametrize("name", SIZES)
def test_the_shipped_scenes_are_those_of_the_manifest_and_the_script(name):
    scenes, entry = load_scenes(name), read_manifest()["files"][f"{name}.npz"]
    assert scenes.images.shape == (SIZES[name], 3, SCENE_SIZE, SCENE_SIZE)
    assert hashlib.sha256(scenes.images.numpy().tobytes()).hexdigest() == entry["pixels_sha256"]
    assert len(scenes.labels) == entry["objects"]
    count, seed = make_scenes.SPLITS[name]
    again, _ = SceneGenerator(seed).draw(count)
    assert torch.equal(again.boxes, scenes.boxes)
    assert torch.equal(again.labels, scenes.labels)
    assert (again.images != scenes.images).float().mean() < 1e-3  # other processors round otherwise


def test_both_files_fit_in_three_megabytes_and_share_no_scene():
    assert sum((DATA / f"{name}.npz").stat().st_size for name in SIZES) < 3e6
    first, second = ({i.numpy().tobytes() for i in load_scenes(name).images} for name in SIZES)
    assert not first & second


def test_boxes_lie_in_the_picture_and_every_class_occurs():
    scenes = load_scenes("scenes_test")
    assert scenes.boxes.min() >= 0
    assert scenes.boxes.max() <= SCENE_SIZE
    assert (scenes.boxes[:, 2:] - scenes.boxes[:, :2]).min() >= 8
    counts = torch.bincount(scenes.scene, minlength=len(scenes))
    assert counts.min() >= 1
    assert counts.max() <= 6
    assert torch.bincount(scenes.labels, minlength=len(DETECTED)).min() > 50


def test_a_box_is_where_the_emoji_is():
    """The same scene without its objects differs inside the boxes, hardly outside of them."""
    generator = SceneGenerator(5)
    generator._photograph = lambda light: light  # type: ignore[method-assign]
    light = np.zeros((3, SCENE_SIZE, SCENE_SIZE), np.float32)
    layers, inner = generator._patches(np.array([0, 4, 8]))
    for layer, box in zip(layers, inner, strict=True):
        light[:] = 0
        generator._lay(light, layer, np.array([20, 30]))
        left, top, right, bottom = (int(v) for v in box + np.array([20, 30, 20, 30]))
        inside = light[:, top:bottom, left:right].sum()
        assert inside > 0.95 * light.sum()
        assert layer[3].sum() > 0.3 * (right - left) * (bottom - top)


def test_a_slice_of_scenes_keeps_their_objects():
    scenes = load_scenes("scenes_test")
    part = scenes[10:14]
    assert len(part) == 4
    for i in range(4):
        assert torch.equal(part.objects(i)[0], scenes.objects(10 + i)[0])
    with pytest.raises(ValueError, match="steps of 1"):
        scenes[::2]
    with pytest.raises(ValueError, match="scenes_test"):
        load_scenes("test")


def test_mirrored_twice_is_the_scene_again():
    scenes = load_scenes("scenes_calibration")[:5]
    once = train_detector.mirrored(scenes)
    assert not torch.equal(once.boxes, scenes.boxes)
    assert torch.equal(train_detector.mirrored(once).boxes, scenes.boxes)


def test_targets_belong_to_the_cell_of_the_centre_and_boxes_can_be_said_exactly():
    scenes = load_scenes("scenes_calibration")[:20]
    object_of, cell = train_detector.targets(scenes)
    positive = object_of >= 0
    assert len(scenes.boxes) <= positive.sum() <= 3 * len(scenes.boxes)
    own = object_of[scenes.scene, cell[:, 1] * detector.CELLS + cell[:, 0]]
    assert (own == torch.arange(len(own))).float().mean() > 0.97  # two centres in one cell are rare
    middle = (scenes.boxes[:, :2] + scenes.boxes[:, 2:]) / 2
    offsets = detector.Decode().centres[0][positive.nonzero()[:, 1]]
    share = (middle[object_of[positive]] - offsets) / (2 * detector.STRIDE)
    assert share.min() >= 0
    assert share.max() <= 1, "every cell that learns an object can reach its centre"


def test_decoding_by_hand():
    raw = torch.zeros(1, 6, 12, 12)
    raw[0, 2, 3, 5] = 100.0  # full width in row 3, column 5
    output = detector.Decode()(raw)
    assert output.shape == (1, 144, 6)
    assert output[0, 3 * 12 + 5].tolist() == pytest.approx([44, 28, 96, 24, 0.5, 0.5])


def test_the_network_is_small_and_traceable():
    model = detector.Detector()
    assert multiply_adds(model, SCENE_SIZE) <= 15e6
    x = torch.randn(2, 3, SCENE_SIZE, SCENE_SIZE)
    assert torch.equal(fx.symbolic_trace(model.eval())(x), model(x))


def test_the_shipped_detector_reaches_the_manifests_map():
    entry, scenes = detector.manifest(), load_scenes("scenes_test")
    found = detections(train_detector.outputs(detector.load_detector(), scenes))
    at_half, mean = mean_average_precision(found, scenes)
    assert coco.mean_average_precision(found, scenes) == pytest.approx((at_half, mean), abs=1e-6)
    assert at_half == pytest.approx(entry["map50"], abs=0.005)
    assert mean == pytest.approx(entry["map"], abs=0.005)
    assert at_half > 0.75
    assert entry["command"] == "python scripts/train_detector.py"


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(train_detector, "CHUNK", 8)
    words = ["--scenes", "16", "--batch", "4", "--work", str(tmp_path / "whole")]
    arguments = train_detector.arguments_of_a_run().parse_args(words)
    whole, _ = train_detector.train(arguments)
    arguments.work = tmp_path / "other"
    drawn = []
    generator = train_detector.SceneGenerator

    def broken(seed):
        drawn.append(seed)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return generator(seed)

    monkeypatch.setattr(train_detector, "SceneGenerator", broken)
    with pytest.raises(KeyboardInterrupt):
        train_detector.train(arguments)
    resumed, _ = train_detector.train(arguments)
    assert len(drawn) == 3, "the first chunk is not learned from twice"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
