"""Draw page.png: lines of text, one slanted, one upside down, one upright sideways."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LINES = [
    ("Penstock reads this page.", 36, 0, (40, 30)),
    ("Twelve pumps, 3.5 kW each", 28, 0, (40, 100)),
    ("Order no. 2026-0417", 24, 0, (40, 160)),
    ("Total: $1,280.50", 40, 0, (40, 220)),
    ("a line that climbs", 30, 8, (60, 290)),
    ("upside down", 34, 180, (330, 380)),
    ("sideways", 30, 90, (580, 90)),
]
"""Text, height in pixels, angle in degrees counterclockwise, place of the upper left corner."""


def page() -> Image.Image:
    image = Image.new("L", (640, 480), 240)
    for text, size, degrees, place in LINES:
        font = ImageFont.load_default(size)
        left, top, right, bottom = font.getbbox(text)
        line = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
        ImageDraw.Draw(line).text((4 - left, 4 - top), text, 255, font)
        line = line.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
        image.paste(34, place, line)
    return image


if __name__ == "__main__":
    page().save(Path(__file__).parent / "page.png", optimize=True)
