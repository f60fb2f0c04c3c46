"""The pairs of phrases: how many, how split, none twice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ptq_classroom.text import evaluate
from ptq_classroom.text.phrases import load_phrases, tokens


def test_two_splits_of_320_pairs_with_eight_topics_each():
    calibration, test = load_phrases("calibration"), load_phrases("test")
    assert (len(calibration), len(test)) == (64, 256)
    assert set(Counter(calibration.topics).values()) == {8}
    assert set(Counter(test.topics).values()) == {32}
    assert len(test.labels) == len(test.sentences) == 512
    assert test.labels.unique().tolist() == list(range(8))


def test_no_sentence_stands_twice():
    sentences = load_phrases("calibration").sentences + load_phrases("test").sentences
    plain = [s.lower().strip(".?") for s in sentences]
    assert len(set(plain)) == len(plain) == 640
    assert all(3 <= len(s.split()) <= 16 for s in sentences)


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="calibration, test"):
        load_phrases("training")


def test_tokens_are_padded_with_zeros_to_the_longest_of_a_batch():
    parts = tokens(["one", "one two three four"], batch=2)
    assert len(parts) == 1
    assert parts[0].dtype == torch.int64
    assert (parts[0][0] == 0).any()
    assert not (parts[0][1] == 0).any()


def test_found_and_margins_of_made_up_vectors():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    assert evaluate.found(vectors).tolist() == [0, 0]
    assert evaluate.margins(vectors).tolist() == pytest.approx([-0.2, -0.2], abs=1e-6)
    swapped = vectors[[0, 1, 3, 2]]
    assert evaluate.found(swapped).tolist() == [1, 1]
    assert evaluate.cosines(vectors, 3 * vectors).tolist() == pytest.approx([1.0] * 4)


def test_a_probe_learns_what_is_linear():
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    labels = (x[:, 0] > 0).long()
    classify = evaluate.probe(x, labels, ridge=1e-3)
    assert (classify(x) == labels).double().mean() > 0.9
