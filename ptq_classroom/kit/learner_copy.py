"""`python -m ptq_classroom.kit.learner_copy`: make or extend my_course/, the learner's own copy.

From each file of notebooks/ (without outputs, solutions and answers; pictures copied as they are):
- not there yet: it is added;
- unchanged since the last time: nothing happens;
- changed in the course and never touched by the learner (byte for byte as made): it is replaced;
- changed in the course and touched by the learner: theirs stays, the new one comes beside it as
  `03_kl_calibration.new.ipynb`.
Nothing that a learner wrote is ever overwritten or deleted. What a file will hold is recorded
before it is written: a start that was killed leaves no copy that passes for the learner's own work.
Standard library only, and loaded by its file: it starts fast.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from pathlib import Path

FILES = runpy.run_path(str(Path(__file__).with_name("learner_file.py")))
RECORD = ".course_state.json"
LEFT_OUT = {"solution", "quiz-answers", "elsewhere"}  # the last installs the course on Colab
NOT_COPIED = {"fingerprint.json"}  # on which machine the committed outputs were made


def make(root: Path) -> list[str]:
    """Bring root/my_course up to date with root/notebooks; returns what was done, one line each."""
    source, target = root / "notebooks", root / "my_course"
    target.mkdir(exist_ok=True)
    FILES["remove_leftovers"](target)
    with FILES["alone"](target / RECORD):
        return _make(source, target)


def _make(source: Path, target: Path) -> list[str]:
    record = _read_record(target / RECORD)
    done, changed = [], {}
    for path in sorted(p for p in source.rglob("*") if p.is_file() and not _hidden(p, source)):
        name = path.relative_to(source).as_posix()
        try:
            if new := _changed(path, target / name, record.get(name, {})):
                changed[name] = new
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            done.append(f"skipped  {name}: no notebook any more, perhaps after a merge ({reason})")
    if not changed:
        return done
    for name, (_, data) in changed.items():
        known = record.setdefault(name, {"current": "", "made": []})
        known["made"] = sorted({*known["made"], _digest(data)})
    _write_record(target / RECORD, record)  # killed from here on, a copy is still known as ours
    for name, (stamp, data) in changed.items():
        if line := _bring(target / name, name, data, record[name]):
            done.append(line)
        record[name] |= {"stamp": stamp, "current": _digest(data)}
    _write_record(target / RECORD, record)
    return sorted(done, key=lambda line: line.split()[1])


def learner_version(text: str) -> str:
    """A notebook's text without outputs, execution counts, widget states, solutions and answers."""
    notebook = json.loads(text)
    notebook["cells"] = [
        cell
        for cell in notebook["cells"]
        if not LEFT_OUT & set(cell.get("metadata", {}).get("tags", ()))
    ]
    for cell in notebook["cells"]:
        cell.get("metadata", {}).pop("execution", None)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    notebook["metadata"].pop("widgets", None)
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _changed(path: Path, copy: Path, known: dict) -> tuple[list[int], bytes] | None:
    """(the file's stamp, what the learner's copy should hold); None where nothing has changed."""
    state = path.stat()
    stamp = [state.st_size, state.st_mtime_ns]
    if copy.exists() and known.get("stamp") == stamp:
        return None
    data = path.read_bytes()
    if path.suffix == ".ipynb":
        data = learner_version(data.decode("utf-8")).encode("utf-8")
    return stamp, data


def _bring(copy: Path, name: str, data: bytes, known: dict) -> str:
    """Bring one file over, if needed; returns a line about what was done, or ""."""
    made = known["made"]  # digests of every version that was put into my_course/, and of this one
    if not copy.exists():
        FILES["write"](copy, data)
        return f"added    {name}"
    if _digest(data) in (known["current"], there := _digest(copy.read_bytes())):
        return ""  # only outputs or solutions changed in the course
    if there in made:
        FILES["write"](copy, data)
        return f"updated  {name} (you had not changed it)"
    beside = _beside(copy, made)
    FILES["write"](beside, data)
    return f"kept     {name}; the course's new version is beside it: {beside.name}"


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


def _write_record(path: Path, record: dict) -> None:
    FILES["write"](path, json.dumps(record, indent=1, sort_keys=True).encode())


def main() -> int:
    """Bring my_course/ of this course folder up to date and print what was done."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "notebooks").is_dir():  # installed from a wheel
        from ptq_classroom.kit import place

        root = place.course_folder()
        if not (root / "notebooks").is_dir():
            print(f"no notebooks/ in {root}; {place.REMEDY}", file=sys.stderr)
            return 1
    done = make(root)
    print("\n".join(done) if done else "my_course/ is up to date")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
