"""Names of test files: each its own, or pytest stops before the first test; none a library's."""

import sys
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent


def names():
    return [path.stem for path in TESTS.rglob("*.py") if path.stem != "__init__"]


def test_no_two_test_files_have_one_name():
    counts = Counter(name for name in names() if name != "conftest")
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_file_hides_a_module_of_the_standard_library():
    assert sorted(set(names()) & sys.stdlib_module_names) == []
