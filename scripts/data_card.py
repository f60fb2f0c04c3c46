"""Bring the tables in data/README.md up to date with data/manifest.json."""

import re

from ptq_classroom.pictures.integrity import DATA, read_manifest

START, END = "<!-- table: python scripts/data_card.py -->", "<!-- end of table -->"


def linked(licence: str) -> str:
    """The licence's name with a link to its text, which stands beside the card or one folder up."""
    above = {"MIT": "../LICENSE", "CC-BY-4.0": "../LICENSE-notebooks.md"}
    return f"[{licence}]({above.get(licence, f'LICENSE-{licence}.txt')})"


def table(files: dict[str, dict]) -> str:
    """The files with size, licence and SHA-256 as a Markdown table."""
    rows = ["| file | bytes | licence | SHA-256 |", "|---|---|---|---|"]
    for name, entry in files.items():
        licence = linked(entry["licence"])
        rows.append(f"| `{name}` | {entry['bytes']:,} | {licence} | `{entry['sha256']}` |")
    return "\n".join(rows)


def networks(files: dict[str, dict]) -> str:
    """FP32 top-1 of each network on the test split, in all and by mode, as a Markdown table."""
    rows = [
        "| network | multiply-adds | FP32 top-1 | normal | flash | night |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in files.items():
        if "fp32_accuracy" in entry:
            modes = [entry["fp32_accuracy_by_mode"][mode] for mode in ("normal", "flash", "night")]
            shares = " | ".join(
                f"{100 * share:.2f} %" for share in (entry["fp32_accuracy"], *modes)
            )
            rows.append(f"| `{name}` | {entry['multiply_adds']:,} | {shares} |")
    return "\n".join(rows)


def detectors(files: dict[str, dict]) -> str:
    """mAP of the detector on the test scenes, as a Markdown table."""
    rows = ["| detector | multiply-adds | mAP at 0.5 | mAP at 0.5 to 0.95 |", "|---|---|---|---|"]
    for name, entry in files.items():
        if "map50" in entry:
            shares = f"{100 * entry['map50']:.1f} % | {100 * entry['map']:.1f} %"
            rows.append(f"| `{name}` | {entry['multiply_adds']:,} | {shares} |")
    return "\n".join(rows)


def main() -> None:
    """Rewrite the tables between their two markers."""
    card = DATA / "README.md"
    text = card.read_text(encoding="utf-8")
    files = read_manifest()["files"]
    block = f"{START}\n{table(files)}\n\n{networks(files)}\n\n{detectors(files)}\n{END}"
    pattern = re.escape(START) + ".*?" + re.escape(END)
    card.write_text(
        re.sub(pattern, lambda _: block, text, flags=re.DOTALL), encoding="utf-8", newline="\n"
    )


if __name__ == "__main__":
    main()
