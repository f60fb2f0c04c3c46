"""A wheelhouse for a room without internet: what goes in, and a set-up from it with no network."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from bootstrap import bundle, commands, pins, pip, setup
from bootstrap.environment import Environment
from bootstrap.pip import NoVersionError, SetupError
from course_folder import in_one_line, make_usable
from test_offline import without_network

TINY = "tiny_library-1.0-py3-none-any.whl"


def write_wheel(folder, name="tiny_library", version="1.0"):
    """A wheel of one module, made by hand."""
    info = f"{name}-{version}.dist-info"
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(f"{name}.py", "answer = 42\n")
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return file


@pytest.fixture
def fetched(course, monkeypatch):
    """What pip would fetch, by name; `fetched.refuse` is a word that has no version."""
    calls = []

    def wheels(made, arguments, folder, **options):
        calls.append(arguments)
        if wheels.refuse and wheels.refuse in arguments:
            raise NoVersionError("none fits")
        write_wheel(folder)

    wheels.refuse, wheels.calls = "", calls
    monkeypatch.setattr(bundle, "wheels", wheels)
    monkeypatch.setattr(bundle, "ROOT", course)
    monkeypatch.setattr(setup, "make_venv", lambda made: make_usable(course))
    (course / "course.py").write_text("print()\n")
    (course / "my_course").mkdir()
    (course / "my_course" / "my_ptq.py").write_text("secret\n")
    make_usable(course)
    return wheels


def test_it_holds_the_libraries_the_course_and_a_list(course, fetched, tmp_path, capsys):
    out = tmp_path / "a bundle"
    assert commands.run(["bundle", str(out)], "help") == 0
    torch, rest, encoder = fetched.calls
    assert torch == setup.torch_arguments()
    assert f"torch=={pins.TORCH}" in rest
    assert "setuptools>=1" in rest  # without it, no entry can be built offline
    assert encoder == setup.encoder_arguments()
    listed = json.loads((out / "bundle.json").read_text())
    assert listed["kinds"] == [bundle.kind()]
    assert listed["wheels"] == {TINY: bundle.digest(out / "wheels" / TINY)}
    names = zipfile.ZipFile(out / "course.zip").namelist()
    assert "ptq-course/course.py" in names
    assert not [name for name in names if "my_course" in name or ".venv" in name]
    assert bundle.kind() in (out / "README.txt").read_text()
    assert f'lab --from "{out}"' in capsys.readouterr().out


def test_another_kind_of_machine_adds_to_it(fetched, tmp_path, monkeypatch):
    commands.run(["bundle", str(tmp_path / "b")], "help")
    write_wheel(tmp_path / "b" / "wheels", "theirs")
    monkeypatch.setattr(bundle, "kind", lambda: "Windows amd64, Python 3.12")
    commands.run(["bundle", str(tmp_path / "b")], "help")
    listed = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert len(listed["kinds"]) == 2
    assert set(listed["wheels"]) == {TINY, "theirs-1.0-py3-none-any.whl"}


def test_versions_that_do_not_exist_here_are_replaced_by_the_newest(
    fetched, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(setup, "constraints", lambda made: ["-c", "those.txt"])
    fetched.refuse = "those.txt"
    assert commands.run(["bundle", str(tmp_path / "b")], "help") == 0
    assert [("those.txt" in call) for call in fetched.calls] == [False, True, False, False]
    assert "taking the newest" in in_one_line(capsys.readouterr().out)


def test_a_folder_inside_the_course_and_a_full_disk_are_refused(
    course, fetched, tmp_path, monkeypatch, capsys
):
    assert commands.run(["bundle", str(course / "b")], "help") == 1
    assert "Name a folder outside" in in_one_line(capsys.readouterr().err)
    monkeypatch.setattr(setup, "free_gb", lambda *place: 0.3)
    assert commands.run(["bundle", str(tmp_path / "b")], "help") == 1
    assert "0.3 GB free" in in_one_line(capsys.readouterr().err)
    assert fetched.calls == []


@pytest.mark.parametrize("words", [[], ["a", "b"], ["--out"]])
def test_bundle_wants_one_folder(course, words, capsys):
    assert commands.run(["bundle", *words], "help") == 2
    assert "bundle wants one folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "rest", "folder"),
    [
        ([], [], None),
        (["--from", "x y", "--no-browser"], ["--no-browser"], "x y"),
        (["--port", "1", "--from=x"], ["--port", "1"], "x"),
        (["--from"], [], ""),
    ],
)
def test_the_bundle_is_told_from_what_goes_on(words, rest, folder):
    assert commands.without_bundle(words) == (rest, folder)


@pytest.fixture
def made(tmp_path):
    """A finished bundle with one tiny wheel."""
    folder = tmp_path / "a bundle"
    (folder / "wheels").mkdir(parents=True)
    file = write_wheel(folder / "wheels")
    listed = {"kinds": [bundle.kind()], "wheels": {file.name: bundle.digest(file)}}
    (folder / "bundle.json").write_text(json.dumps(listed))
    return folder


def test_lab_sets_up_from_it_and_hands_the_rest_on(course, made, monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "setup", lambda there: seen.append(dict(os.environ)))
    monkeypatch.setattr(commands, "hand_over", lambda there, words: seen.append(words) or 0)
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "before")  # restored after the test
    assert commands.run(["lab", "--from", str(made), "--no-browser"], "help") == 0
    variables, words = seen
    assert variables["PIP_NO_INDEX"] == "1"
    assert variables["PIP_FIND_LINKS"] == (made / "wheels").as_uri()
    assert " " not in variables["PIP_FIND_LINKS"]
    assert words[-1] == "--no-browser"
    assert not [word for word in words if "bundle" in word]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("not there", "no finished bundle"),
        ("unfinished", "no finished bundle"),
        ("list", "no finished bundle"),
        ("other", "This is"),
        ("wheel", "is damaged"),
        ("gone", "is missing"),
    ],
)
def test_a_bundle_that_does_not_serve_says_why(course, made, monkeypatch, capsys, damage, said):
    monkeypatch.setattr(commands, "setup", lambda there: pytest.fail("set up all the same"))
    wheel = made / "wheels" / TINY
    if damage == "not there":
        shutil.rmtree(made)
    elif damage == "unfinished":
        (made / "bundle.json").unlink()
    elif damage == "list":
        (made / "bundle.json").write_text('{"kinds": 3, "wheels": null}')
    elif damage == "other":
        monkeypatch.setattr(bundle, "kind", lambda: "Windows amd64, Python 3.12")
    elif damage == "wheel":
        wheel.write_bytes(wheel.read_bytes()[:-1])
    else:
        wheel.unlink()
    assert commands.run(["lab", "--from", str(made)], "help") == 1
    assert said in in_one_line(capsys.readouterr().err)
    assert "PIP_NO_INDEX" not in os.environ


def test_pip_installs_from_it_with_the_network_cut(made, tmp_path):
    """The variables as a child gets them, a folder with a space, and a pip without an index."""
    venv.create(tmp_path / "v", with_pip=True)
    there = Environment(tmp_path / "v", managed=True)
    script = (
        "import os, sys, pathlib\n"
        f"sys.path.insert(0, {str(Path(bundle.__file__).parents[1])!r})\n"
        "from bootstrap import bundle, pip\n"
        "from bootstrap.environment import Environment\n"
        f"os.environ.update(bundle.variables(pathlib.Path({str(made)!r})))\n"
        f"pip.install(Environment(pathlib.Path({str(there.folder)!r}), True), ['tiny-library'])\n"
    )
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [*without_network(), sys.executable, "-c", script],
        env=kept | {"PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    asked = subprocess.run(
        [str(there.python), "-c", "import tiny_library; print(tiny_library.answer)"],
        capture_output=True,
        text=True,
    )
    assert asked.stdout == "42\n"


def test_wheels_are_built_into_the_folder(made, tmp_path, course):
    """pip's own command, from a folder of wheels to another one."""
    there = Environment(Path(sys.prefix), managed=True)
    if not there.python.exists():
        pytest.skip("no environment of its own")
    target = tmp_path / "out"
    target.mkdir()
    words = ["--no-index", "--find-links", (made / "wheels").as_uri(), "tiny-library"]
    pip.wheels(there, words, target)
    assert [path.name for path in target.iterdir()] == [TINY]
    with pytest.raises(SetupError):
        pip.wheels(there, ["--no-index", "no-such-library-of-ours"], target)
