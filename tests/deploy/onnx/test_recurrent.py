"""Recurrent layers: integer weights in the simulation, in checkpoints and in files."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ptq_course import PTQQuantizer, QConfig, quantize_dynamic
from ptq_course.deploy import checkpoint, session
from ptq_course.deploy.onnx import export
from ptq_course.grids.metrics import snr_pooled

SEQUENCES = torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(0))


class Speaker(nn.Module):
    """The last output of a recurrent network, as a speaker encoder takes it."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.rnn = kind(12, 96, batch_first=True, **options)
        self.fc = nn.Linear(96 * (2 if options.get("bidirectional") else 1), 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0][:, -1])


def speaker(kind: type[nn.RNNBase] = nn.LSTM, **options: object) -> Speaker:
    torch.manual_seed(1)
    return Speaker(kind, **options).eval()


VERSIONS = {
    "weights": lambda model: PTQQuantizer(model).quantize_weights(),
    "dynamic": lambda model: quantize_dynamic(model, granularity="per_tensor"),
    "static": lambda m: PTQQuantizer(m).calibrate([SEQUENCES], progress=False).convert(),
}
OPERATOR = {
    ("LSTM", "dynamic"): "DynamicQuantizeLSTM", ("LSTM", "weights"): "LSTM",
    ("LSTM", "static"): "LSTM", ("GRU", "weights"): "GRU", ("GRU", "dynamic"): "GRU",
    ("RNN", "weights"): "RNN",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "version"), OPERATOR)
def test_the_file_computes_what_the_simulation_computes(kind, version, tmp_path):
    model = speaker(getattr(nn, kind), num_layers=2, bidirectional=kind == "LSTM")
    with torch.no_grad():
        expected = model(SEQUENCES)
        quantized = VERSIONS[version](model)
        got = quantized(SEQUENCES)
    assert snr_pooled(expected, got) > 30
    small = session.session(export(quantized, SEQUENCES, tmp_path / "small.onnx"))
    large = session.session(export(model, SEQUENCES, tmp_path / "large.onnx"))
    assert small.operators[OPERATOR[kind, version]] == 2
    # Ties of a range taken at run time may fall to the other side; all else is equal.
    assert snr_pooled(got, small(SEQUENCES)) > (35 if version == "dynamic" else 80)
    if version != "static":
        assert small.size < 0.4 * large.size
    batch = torch.randn(7, 9, 12)
    assert small(batch).shape == (7, 5), "the batch is free"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_stays_in_floating_point_is_named(kind):
    model = speaker(kind)
    static = VERSIONS["static"](model)
    assert "quantize_dynamic" in static.left_in_float["rnn"]
    assert list(static.quantized_layers()) == ["fc"]
    weights = VERSIONS["weights"](model)
    assert set(weights.quantized_layers()) == {"rnn.ih_l0", "rnn.hh_l0", "fc"}
    assert "gates" in weights.left_in_float["rnn"]
    if kind is not nn.LSTM:
        assert "only the weights" in VERSIONS["dynamic"](model).left_in_float["rnn.ih_l0"]
    kept = PTQQuantizer(model, config=QConfig(float_layers=("rnn.hh_l0",))).quantize_weights()
    assert set(kept.quantized_layers()) == {"rnn.ih_l0", "fc"}


@pytest.mark.parametrize("version", ["weights", "dynamic"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_checkpoints_hold_the_parts(kind, version, tmp_path):
    model = speaker(kind)
    quantized = VERSIONS[version](model)
    checkpoint.save(quantized, tmp_path / "small.safetensors")
    loaded = checkpoint.load(tmp_path / "small.safetensors", speaker(kind))
    with torch.no_grad():
        assert torch.equal(loaded(SEQUENCES), quantized(SEQUENCES))


class Packed(nn.Module):
    """Sequences of different length, with a first state of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 16, 2, bidirectional=True)
        self.fc = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_full((4, x.shape[1], 16), 0.1)
        packed = pack_padded_sequence(x, torch.tensor([9, 6, 5, 2]))
        y, (h, c) = self.rnn(packed, (state, -state))
        return self.fc(pad_packed_sequence(y)[0]) + h.mean() + c.mean()


@pytest.mark.parametrize("version", ["weights", "dynamic"])
def test_packed_sequences_and_a_first_state(version):
    torch.manual_seed(2)
    model, x = Packed().eval(), SEQUENCES.transpose(0, 1)
    with torch.no_grad():
        assert snr_pooled(model(x), VERSIONS[version](model)(x)) > 30


def test_steps_of_our_own_are_pytorchs():
    """With rounding switched off, the loop that rounds each step gives PyTorch's numbers."""
    model = speaker(num_layers=2, bidirectional=True)
    fine = quantize_dynamic(model, config=QConfig(weight_bits=12, activation_bits=12))
    with torch.no_grad():
        assert snr_pooled(model(SEQUENCES), fine(SEQUENCES)) > 60
