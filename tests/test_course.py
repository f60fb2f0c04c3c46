"""course.py: what it says, what it would run, and when it does nothing. pip is replaced."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from bootstrap import commands, doctor, environment, fingerprint, pins, processor, setup
from bootstrap import pip as pip_module
from bootstrap.environment import Environment
from bootstrap.pip import SetupError

NEWEST = ".".join(map(str, pins.PYTHONS[-1]))


# --- an unsupported Python or machine ---------------------------------------------------------


def test_an_old_python_is_told_which_serve():
    said = pins.refusal((3, 8), "linux", "x86_64", path="")
    assert "This is Python 3.8." in said
    assert "3.11, 3.12, 3.13, 3.14" in said
    assert "python3.12 course.py lab" in said


def test_a_python_on_the_path_that_works_is_named_and_a_broken_one_is_not(tmp_path):
    for name, body in (("python3.13", "exit 1"), ("python3.12", "exit 0")):
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
    if os.name == "nt":
        pytest.skip("shell scripts")
    assert pins.found(str(tmp_path)) == ["python3.12"]
    assert "    python3.12 course.py lab" in pins.refusal((3, 9), "linux", "x", path=str(tmp_path))


def test_an_intel_mac_is_sent_to_a_hub():
    said = pins.refusal((3, 12), "darwin", "x86_64")
    assert f"version {pins.TORCH} has no wheel" in said
    assert "environment.yml" in said
    assert pins.refusal((3, 12), "darwin", "arm64") is None


def test_this_python_serves():
    assert pins.refusal(sys.version_info[:2], sys.platform, "anything") is None
    assert not pins.serves((3, 10))
    assert not pins.serves((3, 15))


@pytest.mark.parametrize("name", ["course.py", "scripts/bootstrap/pins.py"])
def test_old_pythons_can_read_far_enough_to_be_told(root, name):
    """No syntax newer than 2.7, which the grammar of today can only be asked about by its nodes."""
    tree = ast.parse((root / name).read_text(encoding="utf-8"), feature_version=(3, 4))
    newer = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.AsyncFunctionDef, ast.Nonlocal)
    assert [node for node in ast.walk(tree) if isinstance(node, newer)] == []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not any(f.returns or f.args.kwonlyargs or f.args.posonlyargs for f in functions)
    assert not any(argument.annotation for f in functions for argument in f.args.args)


@pytest.mark.parametrize("python", ["python2.7", "python3.6", "python3.8", "python3.10"])
def test_an_old_python_of_this_machine_gets_the_message(root, tmp_path, python):
    program = shutil.which(python)
    if program is None or not pins.runs(program):
        pytest.skip(f"no {python} here")
    variables = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [program, str(root / "course.py"), "lab"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables)
    assert done.returncode == 2
    assert done.stderr.startswith(f"This is Python {python.removeprefix('python')}.")


# --- the stamp --------------------------------------------------------------------------------


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course's folder, with spaces in its name, that the commands take for theirs."""
    folder = tmp_path / "my ptq course"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    for module in (environment, commands, pip_module, setup, doctor):
        monkeypatch.setattr(module, "ROOT", folder)
    monkeypatch.setattr(commands, "NOTEBOOKS", folder / "notebooks")
    monkeypatch.setattr(commands, "COPY", folder / "my_course")
    monkeypatch.setattr(commands, "current", lambda: Environment(folder / ".venv", managed=True))
    return folder


def make_usable(folder, version="3.12.4"):
    """A `.venv` that looks as one does after `python -m venv`."""
    made = Environment(folder / ".venv", managed=True)
    made.python.parent.mkdir(parents=True, exist_ok=True)
    made.python.touch()
    (made.folder / "pyvenv.cfg").write_text(f"home = /x\nversion = {version}\n")
    return made


def complete(folder):
    made = make_usable(folder)
    made.stamp_file.write_text(environment.stamp(made))
    return made


def test_the_stamp_holds_until_something_it_depends_on_changes(course, monkeypatch):
    made = complete(course)
    assert made.complete
    with monkeypatch.context() as patch:
        patch.setattr(pins, "TORCH", "9.9.9")
        assert not made.complete
    (course / "pyproject.toml").write_text("[project]\nname = 'y'\n")
    assert not made.complete


@pytest.mark.parametrize("damage", ["stamp", "python", "version", "moved"])
def test_what_makes_an_environment_incomplete(course, damage):
    made = complete(course)
    if damage == "stamp":
        made.stamp_file.unlink()
    elif damage == "python":
        made.python.unlink()
    elif damage == "version":
        (made.folder / "pyvenv.cfg").write_text("version = 3.13.0\n")
    else:
        made = Environment(course.rename(course.with_name("moved")) / ".venv", managed=True)
    assert not made.complete


def test_an_environment_of_an_unfit_python_is_not_usable(course):
    assert make_usable(course).usable
    assert not make_usable(course, version="3.9.1").usable
    assert make_usable(course, version="3.14.0a1").version == (3, 14)


# --- setup ------------------------------------------------------------------------------------


@pytest.fixture
def fake_pip(course, monkeypatch):
    """Records what would be installed; `fail` names the step that fails."""
    calls = []

    def install(made, arguments, progress=False):
        assert not made.stamp_file.exists(), "the stamp must be written last"
        calls.append(arguments)
        if fake.fail and fake.fail in " ".join(arguments):
            raise SetupError("no network")

    def fake():
        return calls

    fake.fail, fake.calls = "", calls
    monkeypatch.setattr(setup, "install", install)
    monkeypatch.setattr(setup, "make_venv", lambda made: make_usable(course))
    monkeypatch.setattr(setup, "check_loads", lambda made: None)
    monkeypatch.setattr(setup, "check_build", lambda made: None)
    return fake


def test_setup_installs_torch_first_and_alone(course, fake_pip, capsys):
    assert commands.run(["setup"], "help") == 0
    torch, rest = fake_pip.calls
    assert torch == [
        "--no-deps",
        "--retries",
        "1",
        "--extra-index-url",
        "https://download.pytorch.org/whl/cpu",
        "torch==2.13.0",
    ]
    assert rest == ["-e", ".[test]"]
    assert Environment(course / ".venv", managed=True).complete
    assert "Everything is in place" in capsys.readouterr().out


def test_a_second_setup_does_nothing_and_again_does_all(course, fake_pip):
    commands.run(["setup"], "help")
    commands.run(["setup"], "help")
    assert len(fake_pip.calls) == 2
    commands.run(["setup", "--again"], "help")
    assert len(fake_pip.calls) == 4


def test_a_setup_that_stopped_half_way_continues(course, fake_pip, capsys):
    fake_pip.fail = "-e"
    assert commands.run(["setup"], "help") == 1
    assert "no network" in capsys.readouterr().err
    assert not Environment(course / ".venv", managed=True).complete
    fake_pip.fail = ""
    assert commands.run(["setup"], "help") == 0
    assert Environment(course / ".venv", managed=True).complete


def test_a_failing_update_leaves_no_stamp_of_the_old_state(course, fake_pip):
    commands.run(["setup"], "help")
    fake_pip.fail = "torch"
    assert commands.run(["setup", "--again"], "help") == 1
    assert not Environment(course / ".venv", managed=True).stamp_file.exists()


def test_setup_refuses_a_word_it_does_not_know(capsys):
    assert commands.run(["setup", "--agian"], "help") == 2
    assert "--agian" in capsys.readouterr().err


def test_too_little_disk_is_said_before_the_download(course, fake_pip, monkeypatch, capsys):
    monkeypatch.setattr(setup, "free_gb", lambda: 1.2)
    assert commands.run(["setup"], "help") == 1
    assert fake_pip.calls == []
    said = capsys.readouterr().err
    assert "1.2 GB free" in said
    assert "needs 3 GB" in said


def test_less_disk_is_needed_once_torch_is_there(course):
    made = make_usable(course)
    assert setup.needed_gb(made) == setup.NEED_GB
    torch = made.folder / "lib" / "python3.12" / "site-packages" / "torch"
    torch.mkdir(parents=True)
    (torch / "version.py").write_text("__version__ = '2.13.0+cpu'\n")
    assert setup.torch_build(made) == "2.13.0+cpu"
    assert setup.needed_gb(made) == setup.NEED_GB_WITH_TORCH


def test_the_gpu_build_is_noticed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(pins, "machine", lambda: "x86_64")
    monkeypatch.setattr(setup, "torch_build", lambda made: "2.13.0+cu130")
    monkeypatch.setattr(setup, "free_gb", lambda: 5.0)
    with pytest.raises(SetupError, match=r"5\.0 GB free, too little"):
        setup.check_build(None)
    monkeypatch.setattr(setup, "free_gb", lambda: 50.0)
    setup.check_build(None)
    assert "made for" in capsys.readouterr().out
    monkeypatch.setattr(setup, "torch_build", lambda made: "2.13.0+cpu")
    setup.check_build(None)
    assert capsys.readouterr().out == ""


def test_a_python_without_venv_is_told_the_package(course, monkeypatch):
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"apt install python3\.\d+-venv"):
        setup.make_venv(Environment(course / ".venv", managed=True))


def test_a_library_that_does_not_load_is_found(course, monkeypatch):
    made = Environment(Path(sys.prefix), managed=False)
    monkeypatch.setattr(setup, "LOADS", "raise ImportError('DLL load failed')")
    with pytest.raises(SetupError, match="Visual C\\+\\+ Redistributable"):
        setup.check_loads(made)
    monkeypatch.setattr(setup, "LOADS", "import json")
    setup.check_loads(made)


# --- pip's failures in plain words ------------------------------------------------------------


@pytest.mark.parametrize(
    ("complaint", "said"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("NewConnectionError: [Errno -2] Name or service not known: name resolution", "network"),
        ("Max retries exceeded with url /simple\nERROR: No matching distribution found", "network"),
        ("SSLError(SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED", "PIP_CERT"),
        ("ERROR: No matching distribution found for torch==2.13.0", "No build of 'torch==2.13.0'"),
        ("ERROR: something else\nmore", "    ERROR: something else"),
    ],
)
def test_why_pip_failed(complaint, said):
    assert said in pip_module.explain(complaint, ["torch==2.13.0"])


@pytest.fixture
def pip_that(course):
    """An environment whose `python -m pip` is a given script (run by this very Python)."""
    if os.name == "nt":
        pytest.skip("shell scripts")

    def make(body):
        made = make_usable(course)
        made.python.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
        made.python.chmod(0o755)
        return made

    return make


def test_pip_is_called_in_the_folder_and_keeps_a_log(course, pip_that, capfd):
    made = pip_that("import os; print('Downloading a.whl (12.5 MB)'); print(os.getcwd(), sys.argv)")
    pip_module.install(made, ["-e", ".[test]"])
    log = (made.folder / "setup.log").read_text()
    assert str(course) in log
    assert "['-m', 'pip', 'install', '-e', '.[test]']" in log.replace(f"'{made.python}', ", "")
    assert "a.whl (12.5 MB)" in capfd.readouterr().out


def test_pip_failing_raises_with_the_reason(pip_that):
    made = pip_that("print('network is unreachable', file=sys.stderr); sys.exit(1)")
    with pytest.raises(SetupError, match="could not be reached"):
        pip_module.install(made, ["x"])
    with pytest.raises(SetupError, match="could not be reached"):
        pip_module.install(made, ["x"], progress=True)


# --- lab and test -----------------------------------------------------------------------------


@pytest.fixture
def handed(course, monkeypatch):
    """What would be run in place of course.py."""
    seen = []
    monkeypatch.setattr(commands, "setup", lambda made: None)
    monkeypatch.setattr(commands, "hand_over", lambda made, words: seen.append(words) or 0)
    return seen


def test_test_runs_everything_when_nothing_is_named(course, handed):
    commands.run(["test"], "help")
    (course / "notebooks" / "00_a.ipynb").write_text("{}")
    commands.run(["test"], "help")
    assert handed == [
        ["-m", "pytest", "tests", "--notebooks"],
        ["-m", "pytest", "tests", "notebooks", "--notebooks"],
    ]


def test_pytest_arguments_go_on_as_they_are(handed):
    commands.run(["test", "tests/test_affine.py", "-k", "two words"], "help")
    assert handed == [["-m", "pytest", "tests/test_affine.py", "-k", "two words"]]


def test_lab_makes_the_copy_and_opens_chapter_00(course, handed, capsys):
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    for name in ("00_start_here", "01_affine"):
        (course / "notebooks" / f"{name}.ipynb").write_text(json.dumps(notebook))
    assert commands.run(["lab", "--no-browser", "--port", "8899"], "help") == 0
    (words,) = handed
    assert words[:3] == ["-m", "jupyterlab", f"--ServerApp.root_dir={course}"]
    assert "--LabApp.default_url=/lab/tree/my_course/00_start_here.ipynb" in words
    assert words[-3:] == ["--no-browser", "--port", "8899"]
    assert (course / "my_course" / "01_affine.ipynb").exists()
    assert "[my_course] added" in capsys.readouterr().out


def test_lab_never_overwrites_what_the_learner_wrote(course, handed):
    source = course / "notebooks" / "00_start_here.ipynb"
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    source.write_text(json.dumps(notebook))
    commands.run(["lab"], "help")
    mine = course / "my_course" / "00_start_here.ipynb"
    mine.write_text("mine")
    source.write_text(json.dumps(notebook | {"metadata": {"changed": 1}}))
    commands.run(["lab"], "help")
    assert mine.read_text() == "mine"


def test_the_environment_s_own_kernel_and_programs_come_first(course, monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "elsewhere")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    made = make_usable(course)
    variables = environment.child_variables(made)
    assert variables["PATH"].split(os.pathsep)[0] == str(made.python.parent)
    kernels = variables["JUPYTER_PATH"].split(os.pathsep)
    assert kernels == [str(course / ".venv" / "share" / "jupyter"), "elsewhere"]
    assert "PYTHONPATH" not in variables


def test_help_and_unknown_commands(capsys):
    assert commands.run([], "the help") == 0
    assert "the help" in capsys.readouterr().out
    assert commands.run(["lap"], "the help") == 2
    assert "'lap'" in capsys.readouterr().err


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "ready", stop)
    assert commands.run(["lab"], "help") == 130
    assert "continues" in capsys.readouterr().err


# --- an environment that conda or a hub made --------------------------------------------------


def test_an_active_environment_with_the_course_is_used_and_never_changed(tmp_path, monkeypatch):
    root, site = tmp_path / "ptq course", tmp_path / "site"
    info = site / "ptq_course-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ptq-course\nVersion: 0.1.0\n")
    (info / "direct_url.json").write_text(json.dumps({"url": root.as_uri(), "dir_info": {}}))
    monkeypatch.setattr(environment.sysconfig, "get_path", lambda name: str(site))
    made = environment.current(root)
    assert not made.managed
    assert made.complete
    assert made.python == Path(sys.executable)
    other = environment.current(tmp_path / "another copy")
    assert other.managed
    assert other.folder == tmp_path / "another copy" / ".venv"


# --- the doctor -------------------------------------------------------------------------------

INTEL_OLD = "model name\t: Intel(R) Core(TM) i5\nflags\t\t: fpu avx avx2\n"
INTEL_NEW = "model name\t: Intel(R) Xeon(R)\nflags\t\t: avx avx2 avx512f avx512_vnni\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("text", "family", "vectors", "exact", "said"),
    [
        (INTEL_OLD, "x86_64", "AVX2", False, "64770"),
        (INTEL_NEW, "x86_64", "AVX-512", True, "exact and fast here"),
        (ARM, "aarch64", "NEON", True, "INT8 sums are exact here"),
        ("", "x86_64", "", None, "If it has no VNNI"),
    ],
)
def test_processors_and_what_they_mean(text, family, vectors, exact, said):
    chip = processor.from_cpuinfo(text, family)
    assert (chip.vectors, chip.dot_product) == (vectors, exact)
    assert said in processor.meaning(chip)


def test_the_doctor_works_before_any_setup(course, capsys):
    shutil.copy(Path(environment.__file__).parents[2] / "pyproject.toml", course)
    assert commands.run(["doctor"], "help") == 0
    said = capsys.readouterr().out
    assert "none yet: `python course.py setup`" in said
    assert re.search(r"^Missing +torch, numpy", said, flags=re.MULTILINE)
    assert "the setup needs 3 GB" in said
    assert re.search(r"^Processor +\S", said, flags=re.MULTILINE)
    assert "Nothing stands in the way" in said


def test_the_doctor_names_what_stands_in_the_way(course, monkeypatch, capsys):
    shutil.copy(Path(environment.__file__).parents[2] / "pyproject.toml", course)
    monkeypatch.setattr(doctor, "free_gb", lambda: 0.5)
    monkeypatch.setattr(pins, "refusal", lambda *arguments: "This is an odd machine.")
    assert commands.run(["doctor"], "help") == 1
    said = capsys.readouterr().out
    assert "- This is an odd machine." in said
    assert "short by 2.5 GB" in said


def test_the_doctor_reports_what_was_measured(capsys):
    facts = {
        "torch": {"threads": 4, "wrong": 0.0},
        "runtime": {"wrong": 0.989, "careful_wrong": 0.0},
        "differences": ["torch 2.12 there, 2.13 here"],
    }
    doctor.about_processor(processor.from_cpuinfo(INTEL_OLD, "x86_64"), facts)
    doctor.about_notebooks(facts)
    said = capsys.readouterr().out
    assert "INT8 matrix product is right everywhere" in said
    assert "product is WRONG in 98.9% of its elements" in said
    assert "torch 2.12 there, 2.13 here" in said


@pytest.mark.slow
def test_the_probe_runs_in_this_environment(root):
    code = "import sys; sys.path.insert(0, sys.argv[1]); from bootstrap import probe; probe.main()"
    command = [sys.executable, "-c", code, str(root / "scripts")]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert facts["problems"] == []
    assert 0 <= facts["runtime"]["wrong"] <= 1
    assert facts["runtime"]["careful_wrong"] == 0


# --- the fingerprint --------------------------------------------------------------------------


def test_fingerprints_match_or_say_how_they_differ(tmp_path):
    here = {"processor": {"capability": "AVX2"}, "versions": {"torch": "2.13.0"}}
    file = tmp_path / "fingerprint.json"
    assert fingerprint.differences(fingerprint.recorded(file), here) == [
        "no fingerprint was recorded with the notebooks"
    ]
    fingerprint.record(here, file)
    assert fingerprint.differences(fingerprint.recorded(file), here) == []
    there = {"processor": {"capability": "AVX512"}, "versions": {"torch": "2.13.0", "numpy": "2"}}
    assert fingerprint.differences(here, there) == [
        "capability AVX2 there, AVX512 here",
        "numpy None there, 2 here",
    ]


# --- for real ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_jupyterlab_starts_on_chapter_00_in_a_path_with_spaces(course, handed):
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (course / "notebooks" / "00_start_here.ipynb").write_text(json.dumps(notebook))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    commands.run(["lab", "--no-browser", f"--port={port}", "--IdentityProvider.token=t"], "help")
    log = open(course / "lab.log", "w+")  # noqa: SIM115  (closed with the server, below)
    command = [sys.executable, *handed[0]]
    server = subprocess.Popen(command, cwd=course, stdout=log, stderr=subprocess.STDOUT)
    try:
        place = f"http://127.0.0.1:{port}/api/contents/my_course/00_start_here.ipynb?token=t"
        answer = wait_for(place, server, seconds=120)
    finally:
        server.terminate()
        server.wait(30)
        log.seek(0)
        said = log.read()
        log.close()
    assert answer["name"] == "00_start_here.ipynb", said
    assert f":{port}/lab/tree/my_course/00_start_here.ipynb" in said


def wait_for(place, server, seconds):
    """The JSON that a server answers with, once it is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(place, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.3)
    return {"name": f"no answer; the server's status is {server.poll()}"}


def test_the_commands_work_from_another_folder(root, tmp_path):
    command = [sys.executable, str(root / "course.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert "python course.py lab" in done.stdout
