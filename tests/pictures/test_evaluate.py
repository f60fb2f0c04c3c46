"""`logits` runs modules and sessions alike, and leaves the module as it found it."""

import numpy as np
import pytest
import torch
from torch import nn

from ptq_classroom.pictures.camera import to_input
from ptq_classroom.pictures.datasets import load_split
from ptq_classroom.pictures.evaluate import accuracy, logits


class Mean(nn.Module):
    def forward(self, x):
        assert not self.training
        return x.mean((2, 3))


def test_split_and_pictures_batches_of_any_size_module_and_session_agree():
    split = load_split("test")[:23]
    expected = to_input(split.images).mean((2, 3))
    model = Mean().train()
    for given in (split, split.images):
        for batch_size in (5, 23, 100):
            assert torch.allclose(logits(model, given, batch_size), expected, atol=1e-6)
    assert model.training

    def session(x):
        return x.numpy().mean((2, 3))

    assert torch.allclose(logits(session, split, progress=True), expected, atol=1e-5)


def test_a_reused_output_buffer_is_copied():
    buffer = np.zeros((1, 3), np.float32)

    def session(x):
        buffer[:] = x.numpy().mean((2, 3))
        return buffer

    split = load_split("test")[:3]
    out = logits(session, split, batch_size=1)
    assert torch.allclose(out, to_input(split.images).mean((2, 3)), atol=1e-5)


def test_accuracy():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert accuracy(outputs, torch.tensor([1, 0, 0])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="3 outputs for 2"):
        accuracy(outputs, torch.tensor([1, 0]))


def test_wrong_pictures_are_refused():
    for wrong in (torch.zeros(0, 3, 48, 48, dtype=torch.uint8), torch.zeros(3, 48, 48), "test"):
        with pytest.raises(ValueError, match="non-empty"):
            logits(Mean(), wrong)
