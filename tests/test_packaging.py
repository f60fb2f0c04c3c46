"""What surrounds the code: one list of dependencies, licences, nothing of anyone's machine."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from bootstrap import environment, pins, setup

import ptq_course

TEXT = {".py", ".md", ".toml", ".yml", ".cfg", ".json", ".ipynb", ".sh", ""}


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def conda(root):
    return yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tracked(root):
    """Every file that git tracks or would track; skips outside a clone."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git clone")
    files = [root / name for name in listing.stdout.splitlines()]
    return [file for file in files if file.is_file()]


def test_environment_yml_installs_what_course_py_installs(conda):
    (from_pip,) = (entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert conda["name"] == "ptq-course"
    assert from_pip == [
        f"--extra-index-url {pins.TORCH_INDEX}",
        f"torch=={pins.TORCH}",
        f"-e .[{environment.EXTRAS}]",
    ]
    assert setup.torch_arguments()[-3:] == [
        "--extra-index-url",
        pins.TORCH_INDEX,
        f"torch=={pins.TORCH}",
    ]
    assert setup.rest_arguments() == ["-e", f".[{environment.EXTRAS}]"]


def test_hubs_get_the_encoder_as_course_py_does(root):
    command = " ".join(setup.encoder_arguments())
    assert f"pip install {command}\n" in (root / "postBuild").read_text(encoding="utf-8")


def test_environment_yml_names_nothing_beyond_python_and_pip(conda):
    plain = [entry for entry in conda["dependencies"] if isinstance(entry, str)]
    python, pip = plain
    assert pip == "pip"
    assert tuple(map(int, python.removeprefix("python=").split("."))) in pins.PYTHONS


def test_the_pinned_torch_fits_pyproject(project):
    from packaging.requirements import Requirement

    (wanted,) = (text for text in project["dependencies"] if text.startswith("torch"))
    assert pins.TORCH in Requirement(wanted).specifier


def test_the_pythons_agree(project, root):
    served = [f"{major}.{minor}" for major, minor in pins.PYTHONS]
    assert project["requires-python"] == f">={served[0]}"
    named = [text.rsplit(" ", 1)[1] for text in project["classifiers"] if "Python :: 3" in text]
    assert named == served
    ci = (root / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f"python{version}" in ci for version in served)
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (root / page).read_text(encoding="utf-8")
        assert f"{served[0]} to {served[-1]}" in text


def test_every_dependency_says_what_it_is_for(root):
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    part = text[text.index("dependencies = [") : text.index("[tool.setuptools.packages.find]")]
    lines = [line.strip() for line in part.splitlines() if line.strip().startswith('"')]
    assert len(lines) > 15
    assert [line for line in lines if not re.fullmatch(r'"[^"]+",  # .{10,}', line)] == []


def names(requirements):
    """The libraries that these requirements name; other extras of the course's own left out."""
    found = {re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements}
    return found - {"ptq-course"}


def test_every_dependency_is_bounded_below(project):
    """Or pinned: the type checker, because its errors are counted."""
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    every = [text for names in lists for text in names]
    loose = [text for text in every if ">=" not in text and not text.startswith("ptq-course[")]
    assert names(loose) == {"basedpyright"}
    assert all("==" in text for text in loose)


def test_an_engineer_needs_four_libraries_and_each_extra_holds_the_one_before(project):
    extras = project["optional-dependencies"]
    assert names(project["dependencies"]) == {"torch", "numpy", "safetensors", "tqdm"}
    assert list(extras) == ["onnx", "keras", "openvino", "course", "site", "test"]
    assert "ptq-course[onnx]" in extras["course"]
    assert "ptq-course[course,keras,openvino,site]" in extras["test"]


def test_the_setup_installs_every_extra(project):
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    every = [text for texts in lists for text in texts]
    wanted = environment.requirements()
    assert names(wanted) == names(every)
    assert not any(text.startswith("ptq-course") for text in wanted)


CALLED = {"PIL": "pillow", "IPython": "ipython", "onnx_ir": "onnx-ir"}
IMPORT = re.compile(r"^ *(?:import|from) (\w+)", flags=re.MULTILINE)


def libraries(files):
    """The libraries that these files import anywhere, by the names under which they are installed.

    Without IPython: JupyterLab's kernel brings it, and without a kernel there is no notebook.
    """
    found = {name for file in files for name in IMPORT.findall(file.read_text(encoding="utf-8"))}
    own = {"ptq_course", "ptq_classroom", "IPython"}
    return {CALLED.get(name, name) for name in found - own - set(sys.stdlib_module_names)}


def test_what_the_code_imports_is_declared(project, root):
    """Another library that happens to bring it along may stop doing so."""
    extras = project["optional-dependencies"]
    base = names(project["dependencies"])
    subject = set((root / "ptq_course").rglob("*.py"))
    deploy = root / "ptq_course" / "deploy"
    files = set(deploy.rglob("*.py")) - set((deploy / "checkpoint").rglob("*.py"))
    plots = {file for file in subject if "import matplotlib" in file.read_text(encoding="utf-8")}
    assert libraries(subject - files - plots) == base
    of_keras = set((deploy / "keras").rglob("*.py"))
    second = {deploy / "openvino_session.py"}
    assert libraries(files - of_keras - second) <= base | names(extras["onnx"])
    assert libraries(second) <= base | names(extras["openvino"])
    assert libraries(of_keras) <= base | names(extras["keras"])
    assert libraries(plots) <= base | {"matplotlib"}
    classroom = set((root / "ptq_classroom").rglob("*.py"))
    brought = extras["onnx"] + extras["course"] + extras["keras"]  # chapter 15
    assert libraries(classroom) <= base | names(brought)


def test_what_an_extra_brings_is_imported_where_its_absence_is_said(root):
    """In the subject; inside `deploy/onnx/` its front door has said it."""
    inside = root / "ptq_course" / "deploy" / "onnx"
    bare = []
    for file in (root / "ptq_course").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        guarded = re.sub(r"^( *)with needs\(.*(?:\n\1 +.*)+", "", text, flags=re.MULTILINE)
        if inside not in file.parents:
            brought = r"^ *(?:import|from) (onnx\w*|keras|h5py|openvino|matplotlib)"
            found = re.findall(brought, guarded, re.MULTILINE)
            bare += [f"{file.relative_to(root).as_posix()}: {name}" for name in found]
    assert bare == []


def test_no_lock_file_and_no_private_index(tracked):
    names = {file.name for file in tracked}
    locks = {"poetry.lock", "uv.lock", "Pipfile.lock", "pdm.lock", "conda-lock.yml"}
    assert names & locks == set()
    assert not any(re.fullmatch(r"requirements.*\.txt|pip\.conf", name) for name in names)


PUBLIC_INDEXES = {pins.TORCH_INDEX}
INDEX = re.compile(
    r"""(?:--(?:extra-)?index-url|--find-links|--trusted-host)[ =,"']+([^\s,"'\]]+)"""
)
# Folders of one machine. (Outputs may name a kernel's temporary folder: the sanitizer cuts it out.)
MACHINE = re.compile(r"(?<![\w.])/(?:work|opt|home|root|Users)/[\w.-]+")


def test_no_place_of_anyones_machine(tracked, root):
    found = []
    for file in tracked:
        if file.suffix not in TEXT or file.stat().st_size > 3_000_000:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        name = file.relative_to(root).as_posix()
        found += [f"{name}: index {url}" for url in INDEX.findall(text) if url not in allowed(url)]
        found += [f"{name}: {place}" for place in MACHINE.findall(text)]
    assert found == []


def allowed(url):
    """The indexes a file may name: the public one, or a variable that holds it."""
    return PUBLIC_INDEXES | ({url} if url.startswith(("pins.", "{", "folder.", "(made")) else set())


def test_the_search_for_places_finds_them():
    assert MACHINE.findall("see /" + "home/ada/course and https://x.org/home/y") == [
        "/" + "home/ada"
    ]
    option = "--extra-" + "index-url"
    assert INDEX.findall(f"{option} mirror.example ") == ["mirror.example"]


def test_the_licences(root, project):
    code = (root / "LICENSE").read_text(encoding="utf-8")
    assert code.startswith("MIT License")
    assert "WITHOUT WARRANTY OF ANY KIND" in code
    text = (root / "LICENSE-notebooks.md").read_text(encoding="utf-8")
    for phrase in (
        "CC-BY-4.0",
        "Attribution",
        "No additional restrictions",
        "https://creativecommons.org/licenses/by/4.0/legalcode",
        "not a substitute",
    ):
        assert phrase in text
    assert project["license"] == "MIT AND CC-BY-4.0"
    assert all((root / name).is_file() for name in project["license-files"])


def test_the_licence_of_the_artwork_is_there_in_full_and_named_wherever_it_holds(root):
    text = (root / "data" / "LICENSE-Apache-2.0.txt").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "4. Redistribution." in text
    assert "END OF TERMS AND CONDITIONS" in text
    files = json.loads((root / "data" / "manifest.json").read_text(encoding="utf-8"))["files"]
    derived = {name for name, entry in files.items() if entry["licence"] == "Apache-2.0"}
    scenes = {"scenes_calibration.npz", "scenes_test.npz"}
    assert derived == {"calibration.npz", "emoji_atlas.npz", "test.npz"} | scenes
    assert {entry["licence"] for entry in files.values()} == {"Apache-2.0", "CC-BY-4.0", "MIT"}
    card = (root / "data" / "README.md").read_text(encoding="utf-8")
    rows = [line for line in card.splitlines() if "[Apache-2.0](LICENSE-Apache-2.0.txt)" in line]
    assert {name for name in derived if any(name in row for row in rows)} == derived
    for page in ("LICENSE-notebooks.md", "README.md"):
        assert "data/LICENSE-Apache-2.0.txt" in (root / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "data/README.md", "LICENSE-notebooks.md"]
)
def test_what_the_pages_point_to_is_there(root, name):
    text = (root / name).read_text(encoding="utf-8")
    folder = name.rpartition("/")[0] or "."
    links = [f"{folder}/{place}" for place in re.findall(r"\]\(([^)#:]+)\)", text)]
    folders = "scripts|benchmarks|tests|ptq_course|ptq_classroom|data|docs"
    files = re.findall(rf"`((?:{folders})/[\w./-]+)`", text)
    files += re.findall(r"python ((?:scripts|benchmarks)/[\w./]+\.py)", text)
    wanted = {place for place in [*links, *files] if "NN" not in place}
    assert wanted
    assert {place for place in wanted if not (root / place).exists()} == set()


def test_the_picture_of_the_readme_has_an_alt_text(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert [len(alt) > 30 for alt in re.findall(r"!\[([^\]]*)\]", text)] == [True]


@pytest.mark.parametrize("name", [".ci/run", "postBuild"])
def test_what_is_run_is_executable(root, name):
    index = subprocess.run(
        ["git", "ls-files", "--stage", name], cwd=root, capture_output=True, text=True
    )
    if index.returncode or not index.stdout:
        pytest.skip("not a git clone")
    assert index.stdout.startswith("100755")


def test_the_ci_script_is_a_script_that_bash_accepts(root):
    checked = subprocess.run(["bash", "-n", ".ci/run"], cwd=root, capture_output=True, text=True)
    assert checked.stderr == ""


def test_the_version_stands_in_one_place(root, project, tracked):
    version = project["version"]
    assert ptq_course.__version__ == metadata.version("ptq-course")
    for file in tracked:
        if file.suffix in {".py", ".cff", ".md", ".cfg"}:
            assert f'"{version}"' not in file.read_text(encoding="utf-8").replace("'", '"'), file


def test_a_copy_that_is_not_installed_says_so(monkeypatch):
    def none(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    assert ptq_course._version() == "0+not-installed"


def test_the_hooks_before_a_commit_run_what_ci_runs(root):
    text = (root / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (local,) = yaml.safe_load(text)["repos"]
    hooks = {hook["id"]: hook for hook in local["hooks"]}
    assert list(hooks) == ["ruff", "ruff-format", "pyright"]
    assert {hook["language"] for hook in hooks.values()} == {"system"}  # of the environment
    ci = (root / ".ci" / "run").read_text(encoding="utf-8")
    for command in ("-m ruff check", "-m ruff format", "scripts/check_types.py"):
        assert f'"$runner" {command}' in ci
        assert sum(f"python {command}" in hook["entry"] for hook in hooks.values()) == 1


def test_the_citation_is_complete(root, project):
    said = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "type", "authors", "license"} <= set(said)
    assert " AND ".join(said["license"]) == project["license"]
    assert said["authors"][0]["name"] in (root / "LICENSE").read_text(encoding="utf-8")


def test_the_forms_of_issues_are_forms(root):
    forms = sorted((root / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    forms = [file for file in forms if file.name != "config.yml"]
    assert len(forms) == 3
    for file in forms:
        form = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        asked = [part for part in form["body"] if part["type"] != "markdown"]
        ids = [part["id"] for part in asked]
        assert len(ids) == len(set(ids))
        assert all(part["attributes"]["label"] for part in asked)
        assert any(part.get("validations", {}).get("required") for part in asked)


def test_the_changelog_names_modules_that_exist(root):
    """The right column of its table of moved modules."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## Unreleased$", text, flags=re.MULTILINE)
    rows = [line.split("|") for line in text.splitlines() if line.startswith("  | `ptq_course")]
    assert len(rows) > 8
    for row in rows:
        for name in re.findall(r"`((?:ptq_course|ptq_classroom)[\w.]*)", row[2]):
            place = root.joinpath(*name.replace("chNN", "ch01").strip(".").split("."))
            assert place.is_dir() or place.with_suffix(".py").is_file(), name


def test_git_ignores_what_is_made(root):
    made = [
        ".venv/x",
        "my_course/00.ipynb",
        "a/__pycache__/b.pyc",
        "notebooks/.ipynb_checkpoints/x",
    ]
    answer = subprocess.run(
        ["git", "check-ignore", *made], cwd=root, capture_output=True, text=True
    )
    if answer.returncode == 128:
        pytest.skip("not a git clone")
    assert answer.stdout.split() == made
