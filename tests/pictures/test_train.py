"""Training can be interrupted anywhere and goes on to the same weights."""

import argparse

import pytest
import torch
import train
from safetensors.torch import save_file
from torch import nn

from ptq_classroom.pictures.camera import to_input
from ptq_classroom.pictures.generator import EmojiGenerator


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHUNK", 32)
    return argparse.Namespace(
        arch="resnet",
        images=96,
        batch=16,
        lr=0.05,
        weight_decay=1e-4,
        smoothing=0.05,
        freeze=0.6,
        seed=3,
        fresh=False,
        work=tmp_path / "work",
        output=None,
    )


def chunks_of(file):
    """How far the run was that wrote this checkpoint."""
    state = train.read_state(file)
    assert state is not None
    return state[0]["chunks"]


def test_an_interrupted_run_ends_with_the_same_weights(arguments, tmp_path, monkeypatch):
    whole, _ = train.train(arguments)
    arguments.work = tmp_path / "other"
    generator = train.EmojiGenerator
    drawn = []

    def broken(seed):
        drawn.append(seed)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return generator(seed=seed)

    monkeypatch.setattr(train, "EmojiGenerator", broken)
    with pytest.raises(KeyboardInterrupt):
        train.train(arguments)
    (file,) = (arguments.work / "resnet").glob("state-*")
    assert chunks_of(file) == 1
    resumed, _ = train.train(arguments)
    assert len(drawn) == 4, "the first chunk is not learned from twice"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not whole.training


@pytest.mark.parametrize("damage", [0, 5, 100, -1, "no progress"])
def test_a_damaged_checkpoint_starts_from_the_one_before_it(
    arguments, tmp_path, monkeypatch, damage
):
    whole, _ = train.train(arguments)
    arguments.work = tmp_path / "other"
    drawn = []
    generator = train.EmojiGenerator

    def counting(seed):
        drawn.append(seed)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return generator(seed=seed)

    monkeypatch.setattr(train, "EmojiGenerator", counting)
    with pytest.raises(KeyboardInterrupt):
        train.train(arguments)
    later = arguments.work / "resnet" / "state-0.safetensors"  # after two chunks
    assert chunks_of(later) == 2
    if damage == "no progress":
        save_file({"x": torch.zeros(1)}, later)
    else:
        later.write_bytes(later.read_bytes()[:damage])
    resumed, _ = train.train(arguments)
    assert len(drawn) == 5, "the second chunk is learned from again, the first is not"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_run_whose_checkpoints_are_all_damaged_starts_anew(arguments, capsys):
    whole, _ = train.train(arguments)
    for file in (arguments.work / "resnet").glob("state-*"):
        file.write_bytes(b"")
    (arguments.work / "resnet" / ".state-0.safetensors.999999999.tmp").touch()
    again, _ = train.train(arguments)
    assert capsys.readouterr().out.count("is damaged") == 2
    assert torch.equal(again.state_dict()["fc.weight"], whole.state_dict()["fc.weight"])
    assert len(list((arguments.work / "resnet").glob("*state*"))) == 2


def test_other_settings_do_not_continue_a_run(arguments):
    train.train(arguments)
    arguments.lr = 0.1
    with pytest.raises(SystemExit, match="other settings"):
        train.train(arguments)
    arguments.fresh = True
    train.train(arguments)


def test_the_learning_rate_rises_then_falls_to_zero():
    rates = [train.learning_rate(step, 100, 0.2) for step in range(101)]
    assert max(rates) == pytest.approx(0.2)
    assert rates.index(max(rates)) == 20
    assert rates[0] < 0.01
    assert rates[100] == pytest.approx(0, abs=1e-9)


def test_batch_norm_is_estimated_over_all_pictures():
    net = nn.Sequential(nn.BatchNorm2d(3))
    images = EmojiGenerator(1).batch(96)[0]
    train.estimate_batch_norm(net, images, 32)
    inputs = to_input(images)
    assert torch.allclose(net[0].running_mean, inputs.mean((0, 2, 3)), atol=1e-4)
    variances = torch.stack([part.var((0, 2, 3)) for part in inputs.split(32)])
    assert torch.allclose(net[0].running_var, variances.mean(0), rtol=1e-3)


@pytest.mark.parametrize(
    ("words", "recorded"),
    [
        ("--arch resnet", "--arch resnet"),
        ("--arch mobilenet --seed 0 --batch 128 --fresh --work /tmp/x", "--arch mobilenet"),
        ("--lr 0.1 --arch resnet --weight-decay 0.001 --freeze 0.5 --output x",
         "--arch resnet --lr 0.1 --weight-decay 0.001 --freeze 0.5"),
    ],
)  # fmt: skip
def test_the_recorded_command_is_the_one_that_was_given(words, recorded):
    parser = train.arguments_of_a_run()
    said = train.command(parser, parser.parse_args(words.split()))
    assert said == f"python scripts/train.py {recorded}"
    again = parser.parse_args(said.split()[2:])
    assert again.lr == parser.parse_args(words.split()).lr
