"""`python -m ptq_classroom.kit.learner_copy`: make or extend my_course/, the learner's own copy.

From each file of notebooks/ (outputs cleared, solution cells removed; pictures copied as they are):
- not there yet: it is added;
- unchanged since the last time: nothing happens;
- changed in the course and never touched by the learner (byte for byte as made): it is replaced;
- changed in the course and touched by the learner: theirs stays, the new one comes beside it as
  `03_kl_calibration.new.ipynb`.
Nothing that a learner wrote is ever overwritten or deleted. Standard library only: it starts fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

RECORD = ".course_state.json"
NOT_COPIED = {"fingerprint.json"}  # on which machine the committed outputs were made


def make(root: Path) -> list[str]:
    """Bring root/my_course up to date with root/notebooks; returns what was done, one line each."""
    source, target = root / "notebooks", root / "my_course"
    target.mkdir(exist_ok=True)
    record = _read_record(target / RECORD)
    done = []
    before = json.dumps(record, sort_keys=True)
    for path in sorted(p for p in source.rglob("*") if p.is_file() and not _hidden(p, source)):
        name = path.relative_to(source).as_posix()
        try:
            line = _bring(path, target / name, name, record)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            line = f"skipped  {name}: no notebook any more, perhaps after a merge ({reason})"
        if line:
            done.append(line)
    if json.dumps(record, sort_keys=True) != before:
        _write(target / RECORD, json.dumps(record, indent=1, sort_keys=True).encode())
    return done


def learner_version(text: str) -> str:
    """A notebook's text without outputs, execution counts, widget states and solution cells."""
    notebook = json.loads(text)
    notebook["cells"] = [
        cell
        for cell in notebook["cells"]
        if "solution" not in cell.get("metadata", {}).get("tags", ())
    ]
    for cell in notebook["cells"]:
        cell.get("metadata", {}).pop("execution", None)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    notebook["metadata"].pop("widgets", None)
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _bring(path: Path, copy: Path, name: str, record: dict) -> str:
    """Bring one file over, if needed; returns a line about what was done, or ""."""
    state = path.stat()
    stamp = [state.st_size, state.st_mtime_ns]
    known = record.get(name, {})
    if copy.exists() and known.get("stamp") == stamp:
        return ""
    data = path.read_bytes()
    if path.suffix == ".ipynb":
        data = learner_version(data.decode("utf-8")).encode("utf-8")
    new = _digest(data)
    made = known.get("made", [])  # digests of every version that was put into my_course/
    if not copy.exists():
        _write(copy, data)
        line = f"added    {name}"
    elif new == known.get("current") or _digest(copy.read_bytes()) == new:
        line = ""  # only outputs or solutions changed in the course
    elif _digest(copy.read_bytes()) in made:
        _write(copy, data)
        line = f"updated  {name} (you had not changed it)"
    else:
        beside = _beside(copy, made)
        _write(beside, data)
        line = f"kept     {name}; the course's new version is beside it: {beside.name}"
    record[name] = {"stamp": stamp, "current": new, "made": sorted({*made, new})}
    return line


def _beside(copy: Path, made: list[str]) -> Path:
    """A free name for a newer version: x.new.ipynb, x.new2.ipynb, ..."""
    for number in ("", *range(2, 1000)):
        place = copy.with_name(f"{copy.stem}.new{number}{copy.suffix}")
        if not place.exists() or _digest(place.read_bytes()) in made:
            return place
    raise FileExistsError(f"too many versions beside {copy.name}; delete some")


def _hidden(path: Path, base: Path) -> bool:
    return path.name in NOT_COPIED or any(
        part.startswith((".", "__")) for part in path.relative_to(base).parts
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_record(path: Path) -> dict:
    """What is known of earlier copies; of a damaged record only the entries that make sense."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = record.items() if isinstance(record, dict) else ()
    return {name: entry for name, entry in entries if _makes_sense(entry)}


def _makes_sense(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("current"), str)
        and isinstance(entry.get("made"), list)
        and all(isinstance(digest, str) for digest in entry["made"])
    )


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def main() -> int:
    """Bring my_course/ of this course folder up to date and print what was done."""
    from ptq_classroom.kit import place  # here: course.py loads this file without its package

    root = place.course_folder()
    if not (root / "notebooks").is_dir():
        print(f"no notebooks/ in {root}; {place.REMEDY}", file=sys.stderr)
        return 1
    done = make(root)
    print("\n".join(done) if done else "my_course/ is up to date")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
