"""A folder that looks as one does after `python -m venv`."""

from bootstrap.environment import Environment


def make_usable(folder, version="3.12.4"):
    """A `.venv` that looks as one does after `python -m venv`."""
    made = Environment(folder / ".venv", managed=True)
    made.python.parent.mkdir(parents=True, exist_ok=True)
    made.python.touch()
    (made.folder / "pyvenv.cfg").write_text(f"home = /x\nversion = {version}\n")
    return made


def write_project(folder, dependencies="[]", test="[]"):
    """A pyproject.toml with these lists."""
    lines = [
        "[build-system]",
        'requires = ["setuptools>=1"]',
        "[project]",
        f"dependencies = {dependencies}",
        f"optional-dependencies.test = {test}",
    ]
    (folder / "pyproject.toml").write_text("\n".join(lines))


def in_one_line(text):
    """What was printed, without the line ends that 80 columns ask for."""
    return " ".join(text.replace("[setup] ", "").split())
