"""Render the emoji atlas that the picture generator draws from: data/emoji_atlas.npz.

Run once by a maintainer; learners never need the font. The glyphs come from Noto Color Emoji
(Debian package fonts-noto-color-emoji; artwork Apache-2.0, font SIL OFL 1.1), whose only bitmap
size is 109. Every glyph is cropped to its ink, centred in a square and reduced to 96 pixels.

    python scripts/make_atlas.py [--font NotoColorEmoji.ttf] [--sheet sheet.png]
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ptq_classroom.pictures import archive
from ptq_classroom.pictures.classes import EMOJI
from ptq_classroom.pictures.integrity import DATA, record

SIZE = 96
BITMAP_SIZE = 109
DEFAULT_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"


def render(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """One glyph as uint8 [96, 96, 4], straight (not premultiplied) alpha, centred on its ink."""
    canvas = Image.new("RGBA", (2 * BITMAP_SIZE, 2 * BITMAP_SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((40, 40), character, font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise SystemExit(
            f"the font has no glyph for U+{ord(character):04X}; install Noto Color Emoji"
        )
    glyph = canvas.crop(box)
    side = max(glyph.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    pixels = np.asarray(square, dtype=np.float32)
    premultiplied = pixels.copy()
    premultiplied[..., :3] *= pixels[..., 3:] / 255  # else transparent pixels bleed into the edge
    small = np.stack(
        [
            np.asarray(Image.fromarray(plane).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
            for plane in premultiplied.transpose(2, 0, 1)
        ],
        axis=-1,
    ).clip(0, 255)
    small[..., :3] /= np.maximum(small[..., 3:], 1) / 255
    return small.round().clip(0, 255).astype(np.uint8)


def contact_sheet(images: np.ndarray, columns: int = 12) -> Image.Image:
    """All classes at 48 pixels on grey, for a person to judge."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * 56, rows * 56), (128, 128, 128))
    for index, pixels in enumerate(images):
        small = Image.fromarray(pixels, "RGBA").resize((48, 48), Image.Resampling.LANCZOS)
        sheet.paste(small, (index % columns * 56 + 4, index // columns * 56 + 4), small)
    return sheet


def main() -> None:
    """Render every class and enter the file in the manifest."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--font", default=DEFAULT_FONT)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet (PNG)")
    arguments = parser.parse_args()
    font = ImageFont.truetype(arguments.font, BITMAP_SIZE)
    entries = [(*entry, group) for group, members in EMOJI.items() for entry in members]
    images = np.stack([render(character, font) for character, _, _ in entries])
    archive.save(
        DATA / "emoji_atlas.npz",
        {
            "images": images,
            "names": np.array([name for _, name, _ in entries]),
            "groups": np.array([group for _, _, group in entries]),
            "characters": np.array([character for character, _, _ in entries]),
        },
    )
    record(
        "emoji_atlas.npz",
        licence="Apache-2.0",
        classes=len(images),
        command="python scripts/make_atlas.py",
    )
    print(f"emoji_atlas.npz: {len(images)} classes")
    if arguments.sheet:
        contact_sheet(images).save(arguments.sheet)


if __name__ == "__main__":
    main()
