"""Check the types (pyright, basic mode), and that no folder has more errors than it had.

    python scripts/check_types.py           # compare with tests/pyright_ratchet.json
    python scripts/check_types.py --write   # enter there what has fallen

The numbers may only fall; a folder that is not in the file has none. basedpyright is pyright with
its own node inside the wheel: pip brings all of it, and nothing is fetched when it runs.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RATCHET = ROOT / "tests" / "pyright_ratchet.json"


def found() -> dict[str, list[str]]:
    """The errors of each folder, one line each, as `file:line: message (rule)`."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    try:
        report = json.loads(done.stdout)["generalDiagnostics"]
    except (ValueError, KeyError):
        raise SystemExit(f"basedpyright gave no report:\n{done.stdout}{done.stderr}") from None
    errors: dict[str, list[str]] = {}
    for entry in report:
        if entry["severity"] == "error":
            file = Path(entry["file"]).relative_to(ROOT)
            line = entry["range"]["start"]["line"] + 1
            text = f"{file.as_posix()}:{line}: {entry['message']} ({entry.get('rule', 'syntax')})"
            errors.setdefault(folder_of(file), []).append(text)
    return errors


def folder_of(file: Path) -> str:
    """The folder that a file counts for: a room, a package of tests, a part of the classroom."""
    return "/".join(file.parts[:-1][:2]) or "."


def compare(before: dict[str, int], now: dict[str, int]) -> tuple[list[str], dict[str, int]]:
    """(the folders with more errors than before, what the file should say)."""
    risen = sorted(folder for folder in now if now[folder] > before.get(folder, 0))
    lowest = {folder: min(count, now.get(folder, 0)) for folder, count in before.items()}
    return risen, {folder: count for folder, count in sorted(lowest.items()) if count}


def main() -> int:
    """Compare, and say what to do; 1 where a number has risen.

    A number that has fallen is named but is no failure: a mended type in one folder lowers the
    numbers of the folders that use it.
    """
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--write", action="store_true", help="enter what has fallen")
    write = parser.parse_args().write
    errors = found()
    now = {folder: len(lines) for folder, lines in errors.items()}
    first = write and not RATCHET.exists()
    before = now if first else json.loads(RATCHET.read_text(encoding="utf-8"))
    risen, lowest = compare(before, now)
    for folder in risen:
        print("\n".join(errors[folder]))
        print(f"{folder}: {now[folder]} errors, {before.get(folder, 0)} are allowed: mend the new")
    if write:
        RATCHET.write_text(json.dumps(lowest, indent=1) + "\n", encoding="utf-8", newline="\n")
    elif lowest != before:
        fallen = ", ".join(name for name in before if lowest.get(name) != before[name])
        print(f"Fewer errors than allowed in {fallen}: run python scripts/check_types.py --write")
    print(f"types: {sum(now.values())} errors, {sum(lowest.values())} are allowed")
    return bool(risen)


if __name__ == "__main__":
    sys.exit(main())
