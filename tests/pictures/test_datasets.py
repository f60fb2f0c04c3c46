"""The shipped splits: the same bytes everywhere, balanced, verified when loaded."""

import hashlib

import make_splits
import numpy as np
import pytest
import torch

from ptq_classroom.pictures import archive, datasets
from ptq_classroom.pictures.camera import Planes, develop
from ptq_classroom.pictures.conditions import RARE_MODES
from ptq_classroom.pictures.datasets import load_split, loader, to_input
from ptq_classroom.pictures.generator import EmojiGenerator
from ptq_classroom.pictures.integrity import DATA, read_manifest

SIZES = {"test": 4000, "calibration": 1000}


@pytest.mark.parametrize("name", SIZES)
def test_a_split_decodes_to_the_pixels_it_was_made_of(name):
    split = load_split(name)
    assert split.images.shape == (SIZES[name], 3, 48, 48)
    assert split.images.dtype == torch.uint8
    pixels = hashlib.sha256(split.images.numpy().tobytes()).hexdigest()
    assert pixels == read_manifest()["files"][f"{name}.npz"]["pixels_sha256"]


def test_both_splits_fit_in_twelve_megabytes():
    assert sum((DATA / f"{name}.npz").stat().st_size for name in SIZES) <= 12e6


@pytest.mark.parametrize("name", SIZES)
def test_every_thousand_is_balanced_and_holds_the_same_rare_modes(name):
    split = load_split(name)
    for start in range(0, len(split), 1000):
        part = split[start : start + 1000]
        counts = torch.bincount(part.labels, minlength=48)
        assert counts.max() - counts.min() <= 2
        for mode, share in RARE_MODES.items():
            assert (part.modes == mode).sum() == round(1000 * share)
    counts = torch.bincount(split.labels, minlength=48)
    assert counts.max() - counts.min() <= 1


def test_splits_share_no_picture():
    keys = [{image.numpy().tobytes() for image in load_split(name).images} for name in SIZES]
    assert len(keys[0]) == 4000
    assert len(keys[1]) == 1000
    assert not keys[0] & keys[1]


@pytest.mark.parametrize("name", SIZES)
def test_the_script_draws_the_same_pictures_again(name):
    count, seed = make_splits.SPLITS[name]
    labels, modes = make_splits.plan(count, seed)
    split = load_split(name)
    assert np.array_equal(split.labels.numpy(), labels)
    names = [make_splits.MODE_NAMES[code] for code in modes[:64]]
    assert names == split.modes[:64].tolist()
    again = EmojiGenerator(seed).draw(64, torch.from_numpy(labels[:64]), names)
    # Floating point may round another way elsewhere; a changed generator changes everything.
    assert (again.images != split.images[:64]).float().mean() < 1e-3


def test_packing_is_lossless():
    rng = np.random.default_rng(0)
    planes = Planes(
        torch.from_numpy(rng.integers(0, 64, (3, 48, 48), np.uint8)),
        torch.from_numpy(rng.integers(-32, 32, (3, 2, 24, 24), np.int8)),
    )
    back = archive.unpack(**archive.pack(planes))
    assert torch.equal(back.luma, planes.luma)
    assert torch.equal(back.chroma, planes.chroma)
    assert torch.equal(develop(back), develop(planes))


def test_archive_bytes_depend_on_the_arrays_only(tmp_path):
    arrays = {"a": np.arange(5), "names": np.array(["x", "yz"])}
    for name in ("one.npz", "two.npz"):
        archive.save(tmp_path / name, arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as back:
        assert back["names"].tolist() == ["x", "yz"]


def test_splits_are_sliced_and_masked():
    split = load_split("test")
    flash = split[split.modes == "flash"]
    assert len(flash) == 100
    assert set(flash.modes) == {"flash"}
    picked = split[torch.tensor([5, 2])]
    assert torch.equal(picked.images[1], split.images[2])
    assert picked.labels.tolist() == split.labels[[5, 2]].tolist()
    with pytest.raises(TypeError, match="i : i"):
        split[0]


def test_loader_gives_normalised_batches_in_order():
    split = load_split("calibration")
    batches = loader(split, batch_size=64, limit=150)
    assert [len(y) for _, y in batches] == [64, 64, 22]
    inputs = torch.cat([x for x, _ in batches])
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, to_input(split.images[:150]))
    assert len(loader(split, batch_size=300)) == 4
    with pytest.raises(ValueError, match="at least 1"):
        loader(split, batch_size=0)


def test_inputs_are_normalised_but_for_the_planted_glare():
    split = load_split("test")
    ordinary = to_input(split[split.modes == "normal"].images)
    assert ordinary.mean().abs() < 0.1
    assert ordinary.std() == pytest.approx(1, abs=0.15)
    flash = to_input(split[split.modes == "flash"].images)
    assert flash.flatten(1).amax(1).median() > 20


def test_unknown_split_is_refused_by_name():
    with pytest.raises(ValueError, match="calibration"):
        datasets.load_split("train")
