"""What the doctor says, and the fingerprint that it compares."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bootstrap import commands, doctor, environment, fingerprint, pins, processor
from course_folder import in_one_line

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
    said = in_one_line(capsys.readouterr().out)
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


def test_a_torch_without_its_private_question_for_vnni(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported")
    assert fingerprint.here()["processor"]["vnni"] is None


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
