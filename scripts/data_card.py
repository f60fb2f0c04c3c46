"""Bring the table of files in data/README.md up to date with data/manifest.json."""

import re

from ptq_course.classroom.integrity import DATA, read_manifest

START, END = "<!-- table: python scripts/data_card.py -->", "<!-- end of table -->"


def table(files: dict[str, dict]) -> str:
    """The files with size, licence and SHA-256 as a Markdown table."""
    rows = ["| file | bytes | licence | SHA-256 |", "|---|---|---|---|"]
    for name, entry in files.items():
        rows.append(f"| `{name}` | {entry['bytes']:,} | {entry['licence']} | `{entry['sha256']}` |")
    return "\n".join(rows)


def main() -> None:
    """Rewrite the table between its two markers."""
    card = DATA / "README.md"
    text = card.read_text(encoding="utf-8")
    block = f"{START}\n{table(read_manifest()['files'])}\n{END}"
    pattern = re.escape(START) + ".*?" + re.escape(END)
    card.write_text(re.sub(pattern, lambda _: block, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
