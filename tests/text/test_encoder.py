"""The encoder: padding is not seen, its weights are the published ones, it quantizes whole."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from ptq_classroom.pictures.integrity import sha256
from ptq_classroom.text import evaluate, weights
from ptq_classroom.text.encoder import Encoder
from ptq_classroom.text.phrases import Phrases, load_phrases, tokens
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


def test_another_file_of_the_name_does_not_hide_the_published_one(tmp_path, monkeypatch):
    for folder, text in (("a", b"another"), ("b", b"published")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tokenizer.json").write_bytes(text)
    monkeypatch.setitem(weights.SHA256, "tokenizer.json", sha256(b"published"))
    monkeypatch.setattr(weights, "folders", lambda: [tmp_path / "a", tmp_path / "b"])
    assert weights.read("tokenizer.json") == b"published"


@pytest.mark.parametrize(
    ("variables", "cache"),
    [
        ({"HF_HUB_CACHE": "{}/own", "HF_HOME": "{}/home"}, "own"),
        ({"HF_HUB_CACHE": "", "HF_HOME": "{}/home"}, "home/hub"),
        ({"HF_HOME": "~/models"}, "user/models/hub"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/huggingface/hub"),
        ({}, "user/.cache/huggingface/hub"),
    ],
)
def test_the_file_is_read_from_the_hubs_cache(tmp_path, monkeypatch, variables, cache):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(tmp_path / "user"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    monkeypatch.setattr(weights, "PACKAGE", "a-package-that-is-not-installed")
    monkeypatch.setitem(weights.SHA256, "tokenizer.json", sha256(b"published"))
    assert weights.folders() == []
    snapshot = tmp_path / cache / weights.HUB / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_bytes(b"published")
    assert weights.folders() == [snapshot]
    assert weights.read("tokenizer.json") == b"published"


PYTORCHS = {  # names of the published file -> of torch.nn.TransformerEncoderLayer
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}


KINDS_OF_TABLES = ("word", "position", "token_type")


class OfPyTorch(nn.Module):
    """A second implementation: PyTorch's own layers, the published file read by its own names."""

    def __init__(self, config: dict, published: dict[str, Tensor]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        assert config["hidden_act"] == "gelu"
        layers = []
        for number in range(config["num_hidden_layers"]):
            own = {
                name.removeprefix(f"encoder.layer.{number}."): value
                for name, value in published.items()
                if name.startswith(f"encoder.layer.{number}.")
            }
            layer = nn.TransformerEncoderLayer(
                width, config["num_attention_heads"], config["intermediate_size"], dropout=0.0,
                activation="gelu", layer_norm_eps=eps, batch_first=True, norm_first=False,
            )  # fmt: skip
            state = {}
            for kind in ("weight", "bias"):
                three = [own[f"attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
                state[f"self_attn.in_proj_{kind}"] = torch.cat(three)
                state |= {f"{new}.{kind}": own[f"{old}.{kind}"] for new, old in PYTORCHS.items()}
            layer.load_state_dict(state)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        tables = [published[f"embeddings.{kind}_embeddings.weight"] for kind in KINDS_OF_TABLES]
        self.words, self.positions, self.kinds = (nn.Embedding.from_pretrained(t) for t in tables)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.norm.load_state_dict(
            {kind: published[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
        )
        self.pad = config["pad_token_id"]

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1]).expand_as(tokens)
        x = self.words(tokens) + self.positions(places) + self.kinds(torch.zeros_like(tokens))
        x, padding = self.norm(x), tokens == self.pad
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        means = [row[~out].mean(0) for row, out in zip(x, padding, strict=True)]
        return nn.functional.normalize(torch.stack(means), dim=1)


@there
def test_the_encoder_agrees_with_pytorchs_own_layers():
    config = json.loads((weights.folders()[0] / "config.json").read_text(encoding="utf-8"))
    other = OfPyTorch(config, load(weights.read("model.safetensors"))).eval()
    ours = weights.load_encoder()
    batches = tokens(load_phrases("test").sentences[:96], batch=16)
    assert all(batch.eq(0).any() for batch in batches)  # sentences of unequal length in each
    with torch.no_grad():
        for batch in batches:
            assert torch.allclose(ours(batch), other(batch), atol=1e-5, rtol=0)


@there
def test_similarities_are_those_of_the_documentation():
    """The example of Sentence Transformers' documentation, which prints them for this model."""
    sentences = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    printed = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    with torch.no_grad():
        vectors = weights.load_encoder()(tokens(sentences)[0])
    assert torch.allclose(vectors @ vectors.T, torch.tensor(printed), atol=1e-4)


@there
def test_a_paraphrase_is_nearer_than_the_other_sentences():
    every = load_phrases("test")
    pairs = Phrases(every.first[::3], every.second[::3], every.topics[::3])
    vectors = evaluate.embed(weights.load_encoder(), pairs)
    first, second = vectors.chunk(2)
    near = first @ second.T
    others = near[~torch.eye(len(pairs), dtype=torch.bool)]
    assert near.diagonal().mean() > others.mean() + 0.5
    assert near.diagonal().quantile(0.05) > others.quantile(0.95)
    assert evaluate.found(vectors).mean() > 0.9
