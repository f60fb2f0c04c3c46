"""Where a `ptq_classroom` finds the course's data and notebooks."""

import shutil

import pytest

from ptq_classroom.kit import place
from ptq_classroom.pictures import integrity
from ptq_course.errors import DataIntegrityError


@pytest.fixture
def from_a_wheel(tmp_path, monkeypatch):
    """The package where no course is around it; returns a course elsewhere."""
    monkeypatch.delenv(place.VARIABLE, raising=False)
    monkeypatch.setattr(
        place, "__file__", str(tmp_path / "site" / "ptq_classroom" / "kit" / "x.py")
    )
    course = tmp_path / "course"
    (course / "notebooks").mkdir(parents=True)
    (course / "data").mkdir()
    (course / "data" / "manifest.json").write_text("{}")
    return course


def test_a_repository_is_its_own_course(root, tmp_path, monkeypatch):
    monkeypatch.delenv(place.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert place.course_folder() == root
    assert integrity.DATA.name == "data"


def test_a_wheel_takes_the_working_folder_s_course_or_the_named_one(from_a_wheel, monkeypatch):
    monkeypatch.chdir(from_a_wheel / "notebooks")
    assert place.course_folder() == from_a_wheel
    monkeypatch.chdir(from_a_wheel.parent)
    assert place.course_folder() == from_a_wheel.parent / "site"
    monkeypatch.setenv(place.VARIABLE, str(from_a_wheel))
    assert place.course_folder() == from_a_wheel


def test_what_is_missing_is_said_with_its_remedy(from_a_wheel, monkeypatch):
    shutil.rmtree(from_a_wheel)
    integrity.read_manifest.cache_clear()
    with pytest.raises(DataIntegrityError, match=r"clone the repository.*PTQ_COURSE"):
        integrity.read_manifest(from_a_wheel / "data")
