"""One changed byte in data/ is an error that names the file."""

import hashlib
import json
import shutil

import pytest

from ptq_classroom.pictures import datasets, integrity, models
from ptq_classroom.pictures.integrity import DATA, read_manifest, record, verified
from ptq_course.errors import DataIntegrityError

KINDS = (".npz", ".safetensors", ".tsv")
FILES = sorted(read_manifest()["files"])


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A private copy of data/ that the loaders read; whatever they cached is forgotten again."""
    folder = tmp_path / "data"
    shutil.copytree(DATA, folder)
    monkeypatch.setattr(integrity, "DATA", folder)
    datasets.load_split.cache_clear()
    yield folder
    datasets.load_split.cache_clear()


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", FILES)
def test_manifest_describes_every_file(name):
    data = (DATA / name).read_bytes()
    entry = read_manifest()["files"][name]
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert len(data) == entry["bytes"]
    assert entry["licence"]
    by_hand = name == "phrases.tsv"
    assert entry["command"].startswith("written by hand" if by_hand else "python scripts/")


def test_every_data_file_is_in_the_manifest_and_on_the_card():
    shipped = {path.name for path in DATA.iterdir() if path.suffix in KINDS}
    assert shipped == set(FILES)
    card = (DATA / "README.md").read_text(encoding="utf-8")
    for name in FILES:
        assert name in card
        assert read_manifest()["files"][name]["sha256"] in card, f"the card's sum of {name} is old"


@pytest.mark.parametrize("at", [0, 1000, -1])
@pytest.mark.parametrize("name", ["test", "calibration"])
def test_a_changed_byte_in_a_split_names_the_file_and_the_remedy(copy, name, at):
    flip(copy / f"{name}.npz", at)
    with pytest.raises(DataIntegrityError, match=rf"{name}\.npz is damaged.*git checkout"):
        datasets.load_split(name)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_a_changed_byte_in_a_network_names_the_file(copy, name):
    flip(copy / f"{name}.safetensors", -4)
    with pytest.raises(DataIntegrityError, match=rf"{name}\.safetensors is damaged"):
        models.load_model(name)


def test_a_missing_file_and_an_unlisted_one_are_named(copy):
    (copy / "resnet.safetensors").unlink()
    with pytest.raises(DataIntegrityError, match=r"resnet\.safetensors cannot be read"):
        models.load_model("resnet")
    with pytest.raises(DataIntegrityError, match=r"other\.npz is not listed"):
        verified("other.npz")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("{}", "lists no files"),
        ("[]", "lists no files"),
        ("null", "lists no files"),
        ('{"files": ["test.npz"]}', "lists no files"),
        ('{"files": {"test.npz": null}}', r"'test\.npz' has no SHA-256"),
        ('{"files": {"test.npz": {}}}', r"'test\.npz' has no SHA-256"),
        ('{"files": {"test.npz": {"sha256": 5}}}', r"'test\.npz' has no SHA-256"),
    ],
)
def test_a_damaged_manifest_is_named(copy, text, found):
    (copy / "manifest.json").write_text(text)
    read_manifest.cache_clear()
    with pytest.raises(DataIntegrityError, match=rf"manifest\.json.* {found}.*git checkout"):
        verified("test.npz")


def test_record_enters_a_file_and_verified_accepts_it(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    record("a.bin", tmp_path, licence="MIT")
    assert verified("a.bin", tmp_path).read() == b"abc"
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["files"]["a.bin"]["bytes"] == 3
    assert manifest["files"]["a.bin"]["licence"] == "MIT"
    (tmp_path / "a.bin").write_bytes(b"abd")
    with pytest.raises(DataIntegrityError, match=r"a\.bin is damaged"):
        verified("a.bin", tmp_path)
