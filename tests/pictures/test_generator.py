"""The generator: seeded and balanced; difficulty, shifts and planted modes do what they say."""

import numpy as np
import pytest
import torch

from ptq_classroom.pictures import camera, scene
from ptq_classroom.pictures.atlas import load_atlas
from ptq_classroom.pictures.classes import CLASS_NAMES, EMOJI, GROUPS
from ptq_classroom.pictures.conditions import DIFFICULTIES, RARE_MODES, SHIFTS
from ptq_classroom.pictures.generator import EmojiGenerator


def drawn(n=96, mode="normal", **arguments):
    return EmojiGenerator(3, **arguments).draw(n, torch.arange(n) % 48, [mode] * n)


def light(images):
    return torch.from_numpy(camera.light_of_codes())[images.int()]


def test_classes_are_forty_to_sixty_in_coarse_groups_with_few_faces():
    assert 40 <= len(CLASS_NAMES) <= 60
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES)
    characters = [character for members in EMOJI.values() for character, _ in members]
    assert len(set(characters)) == len(CLASS_NAMES)
    assert len(GROUPS["face"]) <= 12
    assert len(GROUPS) >= 4
    atlas = load_atlas()
    assert atlas.shape == (len(CLASS_NAMES), 4, 48, 48)
    assert (atlas[:, 3].mean((1, 2)) > 0.1).all(), "an emoji that is hardly there"
    assert (atlas[:, :3] <= atlas[:, 3:] + 1e-6).all(), "not premultiplied"


def test_same_seed_same_bytes_and_another_seed_others():
    first, second = EmojiGenerator(5), EmojiGenerator(5)
    for n in (3, 70):
        (a, a_labels), (b, b_labels) = first.batch(n), second.batch(n)
        assert torch.equal(a, b)
        assert torch.equal(a_labels, b_labels)
    assert not torch.equal(EmojiGenerator(5).batch(3)[0], EmojiGenerator(6).batch(3)[0])
    assert not torch.equal(first.batch(3)[0], first.batch(3)[0]), "the stream must go on"


def test_batch_has_the_promised_shapes_and_types():
    images, labels = EmojiGenerator(1).batch(7)
    assert images.shape == (7, 3, 48, 48)
    assert images.dtype == torch.uint8
    assert labels.shape == (7,)
    assert labels.dtype == torch.int64


def test_classes_and_modes_come_in_their_shares():
    pictures = EmojiGenerator(2).draw(6000)
    counts = torch.bincount(pictures.labels, minlength=48)
    assert counts.min() > 0.6 * 125
    assert counts.max() < 1.4 * 125
    modes = np.array(pictures.modes)
    for mode, share in RARE_MODES.items():
        assert 0.6 * share < (modes == mode).mean() < 1.4 * share
    assert 0.03 <= sum(RARE_MODES.values()) <= 0.05


def test_pictures_of_one_class_vary():
    images = EmojiGenerator(1).draw(40, torch.zeros(40, dtype=torch.int64)).images.float()
    distance = torch.cdist(images.flatten(1), images.flatten(1))
    assert distance[~torch.eye(40, dtype=torch.bool)].min() > 500


def test_textures_have_a_one_over_f_spectrum():
    texture = scene.natural_textures(np.random.default_rng(0), 16, 128)
    assert np.allclose(texture.std((1, 2)), 1, atol=1e-3)
    amplitude = np.abs(np.fft.rfft2(texture))
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128)[None])
    band = (frequency > 0.03) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[band]), np.log(amplitude.mean(0)[band]), 1)[0]
    assert slope == pytest.approx(-1, abs=0.1)


def test_flash_pictures_hold_light_far_above_white_and_night_pictures_hardly_any():
    normal, flash, night = (
        light(drawn(mode=mode).images).flatten(1) for mode in ("normal", "flash", "night")
    )
    assert (flash.amax(1) > 8).float().mean() > 0.95
    assert normal.quantile(0.999) < 4
    assert flash.median() < 2 * normal.median(), "only a spot is hot"
    assert night.median() < 0.15 * normal.median()


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_is_repeatable_and_changes_the_pictures(shift):
    shifted = EmojiGenerator(3, shift=shift).batch(48)
    again = EmojiGenerator(3, shift=shift).batch(48)
    assert torch.equal(shifted[0], again[0])
    assert not torch.equal(shifted[0], EmojiGenerator(3).batch(48)[0])


def test_dark_and_bright_scale_the_light():
    plain = light(drawn().images).mean()
    assert light(drawn(shift="dark").images).mean() < 0.3 * plain
    assert light(drawn(shift="bright").images).mean() > 2.5 * plain


def test_flash_shift_makes_every_picture_a_flash():
    pictures = EmojiGenerator(3, shift="flash").draw(50)
    assert set(pictures.modes) == {"flash"}


def roughness(images):
    luma = images.double().mean(1)
    return (luma[..., 1:] - luma[..., :-1]).abs().mean()


def test_noisy_blurred_and_grayscale():
    plain = drawn().images
    assert roughness(drawn(shift="noisy").images) > 1.3 * roughness(plain)
    blurred = drawn(shift="blurred", difficulty="easy").images
    assert roughness(blurred) < 0.8 * roughness(drawn(difficulty="easy").images)
    gray = drawn(shift="grayscale").images.int()
    assert (gray.amax(1) == gray.amin(1)).all()
    assert (plain.int().amax(1) - plain.int().amin(1)).float().mean() > 10


def test_class_skew_prefers_few_classes_and_leaves_none_certain():
    labels = EmojiGenerator(3, shift="class-skewed").draw(3000).labels
    counts = torch.bincount(labels, minlength=48).sort(descending=True).values
    assert counts[:10].sum() > 0.8 * 3000
    assert counts[0] < 0.4 * 3000


def test_harder_pictures_show_less_of_the_emoji():
    standard, hard, easy = (DIFFICULTIES[name] for name in ("standard", "hard", "easy"))
    assert easy.noise[1] < standard.noise[1] < hard.noise[1]
    assert easy.occlusion < standard.occlusion < hard.occlusion
    assert roughness(drawn(difficulty="easy").images) < roughness(drawn(difficulty="hard").images)


def test_camera_inverts_its_own_response():
    codes = torch.arange(256)
    light_in = torch.from_numpy(camera.light_of_codes()).float()
    assert torch.allclose(camera.respond(light_in), codes.float(), atol=0.02)
    inputs = camera.to_input(codes.to(torch.uint8))
    assert (inputs[1:] > inputs[:-1]).all()
    assert inputs[0] == pytest.approx(-camera.MEAN / camera.STD)
    assert inputs[-1] == pytest.approx((camera.PEAK - camera.MEAN) / camera.STD)


def test_developing_a_flat_grey_gives_its_steps_back():
    codes = torch.full((1, 3, 48, 48), 100.0)
    planes = camera.expose(codes, torch.zeros(1, 48, 48), torch.zeros(1, 2, 24, 24))
    assert (camera.develop(planes) == 100).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"difficulty": "brutal"}, "standard"),
        ({"shift": "foggy"}, "grayscale"),
        ({"rare": {"fog": 0.1}}, "flash"),
        ({"rare": {"flash": 0.9, "night": 0.9}}, "at most 1 together"),
        ({"rare": {"flash": -0.1}}, "0 to 1"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        EmojiGenerator(0, **arguments)


def test_wrong_counts_and_types_are_refused():
    with pytest.raises(ValueError, match="n >= 1"):
        EmojiGenerator(0).batch(0)
    with pytest.raises(ValueError, match="as many labels"):
        EmojiGenerator(0).draw(3, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="uint8"):
        camera.to_input(torch.zeros(1, 3, 48, 48))
