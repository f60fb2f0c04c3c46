"""`import ptq_course` stays light: what it does not need it does not load.

What is asserted is the list of loaded modules, the same on every machine; the time is measured,
as a ratio, by benchmarks/import_time.py.
"""

import subprocess
import sys

HEAVY = {
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "ipywidgets",
    "IPython",
    "scipy",
    "pandas",
    "PIL",
    "ptq_classroom",
    "ptq_course.deploy",
}


def loaded_by(statement, tmp_path):
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    return set(done.stdout.split())


def test_the_package_loads_nothing_heavy(tmp_path):
    assert loaded_by("import ptq_course", tmp_path) & HEAVY == set()


def test_the_classroom_loads_nothing_heavy(tmp_path):
    heavy = HEAVY - {"ptq_classroom"}
    assert loaded_by("import ptq_classroom", tmp_path) & heavy == set()


def test_the_measurement_sees_what_is_loaded(tmp_path):
    assert "matplotlib" in loaded_by("import matplotlib", tmp_path)
