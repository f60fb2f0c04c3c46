"""A course's folder of its own for each test, and no program really started."""

import pytest
from bootstrap import commands, doctor, environment, progress, setup
from bootstrap import pip as pip_module
from bootstrap.environment import Environment
from course_folder import write_project


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course's folder, with spaces in its name, that the commands take for theirs."""
    folder = tmp_path / "my ptq course"
    (folder / "notebooks").mkdir(parents=True)
    write_project(folder)
    for module in (environment, commands, pip_module, setup, doctor, progress):
        monkeypatch.setattr(module, "ROOT", folder)
    monkeypatch.setattr(commands, "NOTEBOOKS", folder / "notebooks")
    monkeypatch.setattr(commands, "COPY", folder / "my_course")
    monkeypatch.setattr(commands, "current", lambda: Environment(folder / ".venv", managed=True))
    return folder


@pytest.fixture
def handed(course, monkeypatch):
    """What would be run in place of course.py."""
    seen = []
    monkeypatch.setattr(commands, "setup", lambda made: None)
    monkeypatch.setattr(commands, "hand_over", lambda made, words: seen.append(words) or 0)
    return seen
