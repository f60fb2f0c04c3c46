"""The ratchet of the type checker: what counts as a rise, as a fall, and where a file counts."""

import json
from pathlib import Path

import check_types
import pytest


@pytest.mark.parametrize(
    ("before", "now", "risen", "lowest"),
    [
        ({"a": 2}, {"a": 2}, [], {"a": 2}),
        ({"a": 2}, {"a": 3}, ["a"], {"a": 2}),
        ({"a": 2, "b": 1}, {"a": 1}, [], {"a": 1}),
        ({"a": 2}, {"a": 2, "new": 1}, ["new"], {"a": 2}),
        ({"a": 2}, {"b": 1}, ["b"], {}),
    ],
)
def test_numbers_only_fall(before, now, risen, lowest):
    assert check_types.compare(before, now) == (risen, lowest)


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("ptq_course/grids/affine.py", "ptq_course/grids"),
        ("ptq_course/deploy/onnx/ops.py", "ptq_course/deploy"),
        ("ptq_course/errors.py", "ptq_course"),
        ("course.py", "."),
    ],
)
def test_where_a_file_counts(file, folder):
    assert check_types.folder_of(Path(file)) == folder


def test_a_made_error_is_found_and_a_fall_is_named(tmp_path, monkeypatch, capsys):
    """With a checker that reports one error: 0 are allowed, then 2, then 1."""
    monkeypatch.setattr(check_types, "RATCHET", tmp_path / "ratchet.json")
    monkeypatch.setattr(check_types, "found", lambda: {"a": ["a/x.py:3: no such name (rule)"]})
    monkeypatch.setattr("sys.argv", ["check_types.py"])
    seen = []
    for allowed in ({}, {"a": 2}, {"a": 1}):
        check_types.RATCHET.write_text(json.dumps(allowed))
        seen.append((check_types.main(), capsys.readouterr().out))
    assert [status for status, _ in seen] == [1, 0, 0]  # a fall is named, no failure
    assert "a/x.py:3: no such name" in seen[0][1]
    assert "--write" in seen[1][1]
    check_types.RATCHET.write_text(json.dumps({"a": 2}))
    monkeypatch.setattr("sys.argv", ["check_types.py", "--write"])
    assert check_types.main() == 0
    assert json.loads(check_types.RATCHET.read_text()) == {"a": 1}


def test_the_ratchet_names_folders_that_exist(root):
    counted = json.loads(check_types.RATCHET.read_text(encoding="utf-8"))
    assert all((root / folder).is_dir() and count > 0 for folder, count in counted.items())
