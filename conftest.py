"""pytest for the notebooks: `--notebooks` runs all of them as strictly as this machine allows.

Also gives nbval, however it is called, the course's sanitizer, kernel, threads and cell timeout.
"""

from __future__ import annotations

import os

import pytest
from bootstrap import fingerprint

CELL_TIMEOUT = 300.0  # seconds; a whole notebook takes under 60 on the reference machine
NBVAL_DEFAULT_TIMEOUT = 2000


def pytest_addoption(parser):
    parser.addoption(
        "--notebooks",
        action="store_true",
        help="run notebooks: outputs compared where notebooks/fingerprint.json matches this "
        "machine, otherwise their assertions only",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    option = config.option
    if not hasattr(option, "nbval"):  # nbval is not installed
        return
    if option.notebooks:
        config.stash[DIFFERENCES] = fingerprint.differences(
            fingerprint.recorded(), fingerprint.here()
        )
        option.nbval = not config.stash[DIFFERENCES]
        option.nbval_lax = not option.nbval
    if option.nbval or option.nbval_lax:
        os.environ.update(fingerprint.KERNEL_VARIABLES)
        if option.nbval_sanitize_with is None:
            option.nbval_sanitize_with = str(config.rootpath / "tests" / "nbval_sanitize.cfg")
        if option.nbval_cell_timeout == NBVAL_DEFAULT_TIMEOUT:
            option.nbval_cell_timeout = CELL_TIMEOUT
        if option.nbval_kernel_name is None:
            option.nbval_current_env = True


DIFFERENCES = pytest.StashKey[list[str]]()


def pytest_report_header(config):
    if DIFFERENCES not in config.stash:
        return None
    found = config.stash[DIFFERENCES]
    if not found:
        return (
            "notebooks: outputs compared strictly (this machine matches notebooks/fingerprint.json)"
        )
    return [
        "notebooks: every cell and assertion is run; outputs are NOT compared, because digits may",
        "  differ on this machine: " + "; ".join(found),
    ]
