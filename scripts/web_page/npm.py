"""Scripts from npm that the page serves itself: fetched once, pinned, checked, kept in build/npm.

Standard library only. A package is what its SHA-512 says, or it is refused; without a network there
is none, and the page says what it lacks.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from web_page.errors import PageError

REGISTRY = "https://registry.npmjs.org/"
SECONDS = 30  # for the registry to answer


@dataclass(frozen=True)
class Package:
    """A package's name, version and SHA-512, and which of its files or folders are wanted."""

    name: str
    version: str
    sha512: str  # base64, as `npm view NAME dist.integrity` prints it
    wanted: tuple[str, ...]

    @property
    def short(self) -> str:
        """The name without its scope."""
        return self.name.rpartition("/")[2]


MATHJAX = Package(
    "mathjax",
    "3.2.2",
    "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
    ("LICENSE", "es5/tex-chtml.js", "es5/input/tex/extensions/", "es5/output/chtml/fonts/"),
)
WIDGETS = Package(  # embed.js is whole by itself: it needs no requirejs
    "@jupyter-widgets/html-manager",
    "1.0.15",
    "5thBIV6ymNgmPVOHvzx+gGy8ZSKmSazhtGw4/c4xJDVzRhG9PTeQsRjF3FUTopvFi//SABeNz1yp47bCrJ3CQA==",
    ("dist/embed.js", "dist/embed.js.LICENSE.txt"),
)
AXE = Package(  # for the tests only: it finds what keeps people out
    "axe-core",
    "4.14.1",
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    ("axe.min.js", "LICENSE"),
)


def fetch(package: Package, cache: Path) -> Path | None:
    """The folder with the package's wanted files; None where the network does not give them.

    Raises PageError for bytes that are not those of the pinned version.
    """
    folder = cache / f"{package.short}-{package.version}"
    if folder.is_dir():
        return folder
    try:
        with urllib.request.urlopen(address(package), timeout=SECONDS) as answer:
            data = answer.read()
    except OSError:  # no network, no such host, refused, too slow
        return None
    check(package, data)
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    unpack(data, package.wanted, fresh)
    try:
        fresh.rename(folder)  # whole or not at all
    except OSError:  # another build was faster
        shutil.rmtree(fresh)
    return folder


def address(package: Package) -> str:
    """Where the registry has this version."""
    file = f"{package.short}-{package.version}.tgz"
    return f"{registry().rstrip('/')}/{package.name}/-/{file}"


def registry() -> str:
    """The registry that npm is told to use here, by variable or settings; else the public one."""
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if os.environ.get(name):
            return os.environ[name]
    if npm := shutil.which("npm"):
        try:
            command = [npm, "config", "get", "registry"]
            said = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return REGISTRY
        if said.returncode == 0 and said.stdout.strip().startswith("http"):
            return said.stdout.strip()
    return REGISTRY


def check(package: Package, data: bytes) -> None:
    """Raise PageError unless the bytes are those of the pinned version."""
    found = base64.b64encode(hashlib.sha512(data).digest()).decode("ascii")
    if found != package.sha512:
        raise PageError(
            [
                f"npm package {package.name} {package.version}: its SHA-512 is {found}, "
                f"expected {package.sha512}. Ask another registry (npm config set registry ...)."
            ]
        )


def unpack(data: bytes, wanted: tuple[str, ...], folder: Path) -> None:
    """Write the wanted files of a package's archive; plain files inside the folder only."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]  # all of it lies in "package/"
            inside = ".." not in Path(name).parts
            chosen = any(name == w or (w.endswith("/") and name.startswith(w)) for w in wanted)
            content = archive.extractfile(member) if chosen and inside else None
            if content is not None:
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
