"""Draw the pictures of the README from the course's own data.

    python scripts/make_pictures.py

Writes docs/five_steps.png: the five steps of post-training quantization, as chapter 00 shows them.
"""

from pathlib import Path

from ptq_classroom.chapters.ch00 import five_steps
from ptq_classroom.kit.show import png

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Draw and save; prints each file with its alt text."""
    DOCS.mkdir(exist_ok=True)
    figure, alt = five_steps.five_steps(*five_steps.material())
    path = DOCS / "five_steps.png"
    path.write_bytes(png(figure))
    print(f"docs/{path.name}: {alt}")


if __name__ == "__main__":
    main()
