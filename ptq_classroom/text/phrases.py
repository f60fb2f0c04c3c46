"""320 pairs of sentences that say the same in other words, of eight topics, written for the course.

`data/phrases.tsv` has topic, sentence and paraphrase in each line, forty lines a topic. Every fifth
pair is for calibration, the others are for testing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ptq_classroom.pictures.integrity import verified
from ptq_classroom.text.weights import tokenizer

FILE = "phrases.tsv"
EVERY = 5  # one pair of so many is for calibration
SPLITS = ("calibration", "test")


@dataclass(frozen=True)
class Phrases:
    """Pairs of one split: `first[i]` and `second[i]` say the same, about `topics[i]`."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    topics: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def sentences(self) -> tuple[str, ...]:
        """All first sentences, then all second ones."""
        return self.first + self.second

    @property
    def labels(self) -> Tensor:
        """The topic's number of each of `sentences`, int64."""
        names = sorted(set(self.topics))
        return torch.tensor([names.index(topic) for topic in self.topics] * 2)


@cache
def load_phrases(split: str) -> Phrases:
    """The pairs of "calibration" (64) or "test" (256).

    Raises ValueError for another split, `DataIntegrityError` where the file is not the manifest's.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: choose one of {', '.join(SPLITS)}")
    lines = verified(FILE).read().decode("utf-8").splitlines()
    wanted = [
        line.split("\t")
        for number, line in enumerate(lines)
        if (number % EVERY == 0) == (split == "calibration")
    ]
    topics, first, second = zip(*wanted, strict=True)
    return Phrases(first, second, topics)


def tokens(sentences: tuple[str, ...] | list[str], batch: int = 32) -> list[Tensor]:
    """Token numbers in batches, int64 [N, T], each padded with 0 to its own longest sentence."""
    parts = [list(sentences[i : i + batch]) for i in range(0, len(sentences), batch)]
    return [torch.tensor([e.ids for e in tokenizer().encode_batch(part)]) for part in parts]
