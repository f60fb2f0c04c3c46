"""The encoder: padding is not seen, its weights are the published ones, it quantizes whole."""

from __future__ import annotations

import pytest
import torch

from ptq_classroom.text import weights
from ptq_classroom.text.encoder import Encoder
from ptq_classroom.text.phrases import tokens
from ptq_course import PTQQuantizer, QConfig
from ptq_course.errors import DataIntegrityError

there = pytest.mark.skipif(not weights.folders(), reason=f"not installed: {weights.REMEDY}")


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Encoder(words=50, width=16, layers=2, heads=4, inner=32, longest=12).eval()


def test_padding_changes_nothing(small):
    sentence = torch.randint(1, 50, (2, 5), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([sentence, torch.zeros(2, 4, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        assert torch.allclose(small(sentence), small(padded), atol=1e-6)
        assert torch.allclose(small(sentence).norm(dim=1), torch.ones(2), atol=1e-6)


def test_every_linear_layer_is_quantized(small):
    sentence = torch.randint(1, 50, (4, 6), generator=torch.Generator().manual_seed(2))
    quantizer = PTQQuantizer(small, config=QConfig.onnxruntime()).observe(
        [sentence], progress=False
    )
    layers = quantizer.compute_qparams("minmax").convert().quantized_layers()
    assert set(layers) >= {n for n, m in small.named_modules() if isinstance(m, torch.nn.Linear)}


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(weights, "folders", lambda: [tmp_path])
    with pytest.raises(DataIntegrityError, match=r"tokenizer\.json is not the published one.*pip"):
        weights.read("tokenizer.json")
    with pytest.raises(DataIntegrityError, match=r"model\.safetensors is not on this machine"):
        weights.read("model.safetensors")


def test_the_hubs_cache_is_looked_into(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / weights.HUB / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert weights.folders()[-1] == snapshot


@there
def test_paraphrases_are_nearer_than_strangers():
    encoder = weights.load_encoder()
    sentences = ["The cat sleeps.", "A kitten is napping.", "Shares fell on Monday."]
    with torch.no_grad():
        vectors = encoder(tokens(sentences)[0])
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.5
    assert vectors[0] @ vectors[2] < 0.2
