"""Scripts from npm: the pinned bytes or none, whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import urllib.error

import pytest
from web_page import npm
from web_page.errors import PageError


def archive(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


DATA = archive(
    {
        "package/LICENSE": b"free",
        "package/es5/a.js": b"a",
        "package/es5/fonts/b.woff": b"b",
        "package/es5/big.js": b"not wanted",
        "package/../../outside.js": b"never",
    }
)
WANTED = ("LICENSE", "es5/a.js", "es5/fonts/", "../outside.js")


def package(data: bytes = DATA) -> npm.Package:
    sha512 = base64.b64encode(hashlib.sha512(data).digest()).decode()
    return npm.Package("@scope/thing", "1.2.3", sha512, WANTED)


@pytest.fixture
def asked(monkeypatch):
    """The addresses that were asked; each answers DATA."""
    seen = []
    monkeypatch.setenv("npm_config_registry", "https://registry.example/npm/")
    monkeypatch.setattr(
        npm.urllib.request,
        "urlopen",
        lambda address, timeout: seen.append(address) or io.BytesIO(DATA),
    )
    return seen


def test_what_is_wanted_of_a_package_is_fetched_once(asked, tmp_path):
    for _ in range(2):
        folder = npm.fetch(package(), tmp_path / "cache")
        assert folder
        found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        assert found == ["LICENSE", "es5/a.js", "es5/fonts/b.woff"]
    assert asked == ["https://registry.example/npm/@scope/thing/-/thing-1.2.3.tgz"]
    assert not list(tmp_path.rglob("outside.js"))


def test_other_bytes_are_refused_and_leave_nothing(asked, tmp_path):
    with pytest.raises(PageError, match=r"@scope/thing 1\.2\.3: its SHA-512 is"):
        npm.fetch(package(b"another"), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "problem", [urllib.error.URLError("no host"), TimeoutError(), ConnectionResetError()]
)
def test_without_a_network_there_is_none(monkeypatch, tmp_path, problem):
    def fails(address, timeout):
        raise problem

    monkeypatch.setattr(npm, "registry", lambda: npm.REGISTRY)
    monkeypatch.setattr(npm.urllib.request, "urlopen", fails)
    assert npm.fetch(package(), tmp_path / "cache") is None
    assert not (tmp_path / "cache").exists()


def test_the_registry_is_the_one_that_npm_uses(monkeypatch):
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    assert npm.registry() == npm.REGISTRY
    monkeypatch.setattr(npm.shutil, "which", lambda name: "/no/such/npm")
    assert npm.registry() == npm.REGISTRY  # npm that does not start
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://other.example")
    assert npm.registry() == "https://other.example"


def test_every_package_is_pinned_by_version_and_sha512():
    for one in (npm.MATHJAX, npm.WIDGETS, npm.AXE):
        assert len(base64.b64decode(one.sha512)) == 64
        assert one.version.replace(".", "").isdigit()
        assert any("LICENSE" in name for name in one.wanted)
