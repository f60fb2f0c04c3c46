"""A course that was moved starts with the network really cut, and nothing that works is deleted."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from bootstrap import fingerprint, setup
from bootstrap.environment import Environment
from course_folder import in_one_line

pytestmark = pytest.mark.slow

COURSE = ("course.py", "pyproject.toml", "README.md", "LICENSE", "LICENSE-notebooks.md")
PACKAGES = ("scripts", "ptq_course", "ptq_classroom")


def without_network():
    """The words that start a program without a network; skips where the system does not let us."""
    for words in (["unshare", "-n"], ["unshare", "-rn"]):
        if shutil.which("unshare") and not subprocess.run([*words, "true"]).returncode:
            return words
    pytest.skip("this system does not let a test cut the network (unshare -n)")


@pytest.fixture(scope="module")
def moved(root, tmp_path_factory):
    """A course with a set-up environment that has just been moved to a folder named in Chinese.

    Its libraries are this environment's, seen through a path file: pip never touches those.
    """
    folder = tmp_path_factory.mktemp("moved") / "量化 course"
    (folder / "notebooks").mkdir(parents=True)
    for name in COURSE:
        shutil.copy(root / name, folder)
    for name in PACKAGES:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    record_versions(folder, fingerprint.here()["versions"])
    made = Environment(folder / ".venv", managed=True)
    subprocess.run([sys.executable, "-m", "venv", str(made.folder)], check=True)
    for old in libraries(made).glob("setuptools*"):
        shutil.rmtree(old)  # older than the one that a set-up brings
    real = sysconfig.get_path("purelib")
    if not real.isascii():
        pytest.skip("this environment itself lies in a folder with another alphabet")
    (libraries(made) / "real.pth").write_text(f"{real}\n")
    (libraries(made) / "torch").symlink_to(Path(real) / "torch")
    return made


def libraries(made):
    (found,) = made.folder.glob("lib/python*/site-packages")
    return found


def record_versions(folder, versions):
    text = json.dumps({"processor": {}, "versions": versions})
    (folder / "notebooks" / "fingerprint.json").write_text(text)


def start(made):
    """`course.py setup` without a network, in a terminal that knows ASCII only."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [*without_network(), sys.executable, str(made.folder.parent / "course.py"), "setup"]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=kept | {"LC_ALL": "C", "PIP_CONFIG_FILE": os.devnull},
    )


def test_a_moved_course_starts_and_is_complete(moved, tmp_path):
    done = start(moved)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything is in place" in done.stdout
    assert moved.complete
    code = "import ptq_course; print(ascii(ptq_course.__file__))"
    variables = {"LC_ALL": "C", "PATH": os.environ["PATH"]}
    command = [str(moved.python), "-c", code]
    place = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert place.stdout.strip() == ascii(str(moved.folder.parent / "ptq_course" / "__init__.py"))
    assert start(moved).stdout == "Everything is in place. Next: python course.py lab\n"


def test_an_update_that_cannot_be_fetched_leaves_the_course_running(moved):
    versions = fingerprint.here()["versions"]
    record_versions(moved.folder.parent, versions | {"numpy": "9.9.9"})
    done = start(moved)
    record_versions(moved.folder.parent, versions)
    assert done.returncode == 0, done.stdout + done.stderr
    said = in_one_line(done.stdout)
    assert "The package index could not be reached. What is installed serves: going on" in said
    assert not moved.stamp_file.exists()  # the next start asks again


def test_a_library_that_is_missing_is_a_matter_of_the_network(moved):
    """Though pip then says that there is no such version."""
    file = moved.folder.parent / "pyproject.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('    "tqdm', '    "no-such-library>=1",\n    "tqdm'))
    done = start(moved)
    file.write_text(text)
    assert done.returncode == 1
    assert "The package index could not be reached" in in_one_line(done.stderr)


def test_the_file_of_an_earlier_version_that_stopped_python_is_removed(moved):
    pointer = libraries(moved) / "ptq_course_place.pth"
    pointer.write_text(f"{moved.folder.parent}\n", encoding="utf-8")
    moved.stamp_file.unlink(missing_ok=True)
    done = start(moved)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not pointer.exists()
    assert moved.complete


def test_an_environment_whose_python_does_not_start_is_never_emptied(moved):
    """In this terminal: in another one it works."""
    stops = libraries(moved) / "other.pth"
    stops.write_text("/somewhere/量化\n", encoding="utf-8")
    moved.stamp_file.unlink(missing_ok=True)
    done = start(moved)
    stops.unlink()
    assert done.returncode == 1
    said = in_one_line(done.stderr)
    assert "does not start" in said
    assert "'ascii' codec can't decode" in said
    assert (libraries(moved) / "real.pth").exists()
    assert setup.answers(moved)


@pytest.mark.parametrize("damage", ["dangling", "no record", "no pip"])
def test_a_python_that_is_gone_is_replaced_and_the_libraries_stay(moved, damage):
    other = moved.folder / "real.pth"  # brings a pip, too
    (libraries(moved) / "real.pth").rename(other)
    if damage == "dangling":
        for link in moved.python.parent.glob("python*"):
            link.unlink()
            link.symlink_to("/no/such/python")
    elif damage == "no record":
        (moved.folder / "pyvenv.cfg").unlink()
    else:
        for part in libraries(moved).glob("pip*"):
            shutil.rmtree(part)
    assert not (moved.usable and setup.answers(moved))
    setup.make_venv(moved)
    assert moved.usable
    assert setup.answers(moved)
    other.rename(libraries(moved) / "real.pth")
