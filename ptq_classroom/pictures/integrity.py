"""What ships in data/, told from a damaged copy by the SHA-256 sums in data/manifest.json."""

import hashlib
import io
import json
from functools import cache
from pathlib import Path

from ptq_classroom.kit import place
from ptq_course.errors import DataIntegrityError

DATA = place.course_folder() / "data"
REMEDY = "restore it with `git checkout -- data` or see data/README.md for the script that makes it"


def sha256(data: bytes) -> str:
    """The SHA-256 of `data`, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@cache
def read_manifest(folder: Path = DATA) -> dict:
    """data/manifest.json: {"files": {name: {"sha256", "bytes", ...}}}.

    Raises DataIntegrityError where it is missing, no JSON, or JSON of another form.
    """
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise DataIntegrityError(f"{folder} is not there; {place.REMEDY}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataIntegrityError(f"{path} cannot be read ({error}); {REMEDY}") from error
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise DataIntegrityError(f"{path} is damaged: it lists no files; {REMEDY}")
    for name, entry in files.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise DataIntegrityError(f"{path} is damaged: {name!r} has no SHA-256; {REMEDY}")
    return manifest


def facts(name: str, folder: Path | None = None) -> dict:
    """What the manifest says of data/`name`; `DataIntegrityError` where it says nothing."""
    folder = DATA if folder is None else folder
    entry = read_manifest(folder)["files"].get(name)
    if entry is None:
        raise DataIntegrityError(f"{folder / name} is not listed in manifest.json; {REMEDY}")
    return dict(entry)


def verified(name: str, folder: Path | None = None) -> io.BytesIO:
    """The bytes of data/`name`, once their SHA-256 is the manifest's; else `DataIntegrityError`."""
    folder = DATA if folder is None else folder
    path = folder / name
    entry = facts(name, folder)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataIntegrityError(f"{path} cannot be read ({error}); {REMEDY}") from error
    found = sha256(data)
    if found != entry["sha256"]:
        raise DataIntegrityError(
            f"{path} is damaged: its SHA-256 begins {found[:12]}, the manifest says "
            f"{entry['sha256'][:12]}; {REMEDY}"
        )
    return io.BytesIO(data)


def record(name: str, folder: Path | None = None, **about: object) -> None:
    """Enter data/`name` as it is now into the manifest, with what is known `about` it."""
    folder = DATA if folder is None else folder
    path = folder / "manifest.json"
    read_manifest.cache_clear()
    manifest = read_manifest(folder) if path.exists() else {"files": {}}
    data = (folder / name).read_bytes()
    manifest["files"][name] = {"sha256": sha256(data), "bytes": len(data), **about}
    manifest["files"] = dict(sorted(manifest["files"].items()))
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8", newline="\n")
    read_manifest.cache_clear()
