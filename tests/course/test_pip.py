"""Running pip, and its failures in plain words."""

import os
import sys

import pytest
from bootstrap import pip as pip_module
from bootstrap.pip import NetworkError, NoVersionError, SetupError
from course_folder import make_usable


@pytest.mark.parametrize(
    ("complaint", "said"),
    [
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("NewConnectionError: [Errno -2] Name or service not known: name resolution", "network"),
        ("Max retries exceeded with url /simple\nERROR: No matching distribution found", "network"),
        ("SSLError(SSLCertVerificationError: CERTIFICATE_VERIFY_FAILED", "PIP_CERT"),
        ("ERROR: No matching distribution found for torch==2.13.0", "No build of 'torch==2.13.0'"),
        (
            "OSError: ... HINT: ... does not have Windows Long Path support enabled.",
            "260 characters",
        ),
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
        script = course / "pip_stand_in.py"
        script.write_text(f"import sys\n{body}\n")
        # Not "#!{sys.executable}": a first line cannot name a path with spaces.
        made.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
        made.python.chmod(0o755)
        return made

    return make


def test_pip_is_called_in_the_folder_and_keeps_a_log(course, pip_that, capfd):
    made = pip_that(
        "import os; print('Downloading a.whl (12.5 MB)'); print(os.getcwd(), sys.argv[1:])"
    )
    pip_module.install(made, ["-e", ".[test]"])
    log = (made.folder / "setup.log").read_text()
    assert str(course) in log
    assert "['-m', 'pip', 'install', '-e', '.[test]']" in log
    assert "a.whl (12.5 MB)" in capfd.readouterr().out


def test_pip_failing_raises_with_the_reason(pip_that):
    made = pip_that("print('network is unreachable', file=sys.stderr); sys.exit(1)")
    with pytest.raises(SetupError, match="could not be reached"):
        pip_module.install(made, ["x"])
    with pytest.raises(SetupError, match="could not be reached"):
        pip_module.install(made, ["x"], progress=True)


@pytest.mark.parametrize(
    ("complaint", "kind"),
    [
        ("ERROR: No matching distribution found for numpy==9", NoVersionError),
        ("ERROR: ResolutionImpossible: for help visit ...", NoVersionError),
        ("Max retries exceeded with url /simple; No matching distribution found", NetworkError),
        ("CERTIFICATE_VERIFY_FAILED; No matching distribution found", NetworkError),
        ("No space left on device; Max retries exceeded", SetupError),
    ],
)
def test_a_version_that_does_not_exist_is_told_from_a_network_that_fails(pip_that, complaint, kind):
    made = pip_that(f"print({complaint!r}); sys.exit(1)")
    with pytest.raises(SetupError) as caught:
        pip_module.install(made, ["numpy==9"])
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("set_by_the_user", "patient", "retries"),
    [(None, True, "5"), (None, False, "1"), ("0", True, "1"), ("3", True, "3"), ("3", False, "1")],
)
def test_pip_always_tries_again_or_it_would_not_say_why(
    course, pip_that, monkeypatch, set_by_the_user, patient, retries
):
    monkeypatch.delenv("PIP_RETRIES", raising=False)
    if set_by_the_user:
        monkeypatch.setenv("PIP_RETRIES", set_by_the_user)
    made = pip_that("import os; print('retries', os.environ['PIP_RETRIES'])")
    pip_module.install(made, ["x"], patient=patient)
    assert f"retries {retries}\n" in (made.folder / "setup.log").read_text()
