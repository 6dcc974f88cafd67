"""Pictures: text and image files as tensors, signals developed like photographs, and many images on one sheet."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from clearstamp.errors import StampError

__all__ = ["develop", "draw_text", "montage", "open_image"]


Shape = tuple[int, int, int]
"""``(C, H, W)`` of a picture."""


def picture_shape(shape: Sequence[int]) -> Shape:
    """The picture ``(C, H, W)`` as which an input of any shape is seen: the same numbers in the same order.

    An image is its own picture, a volume those of its slices. A series ``(C, T)``, such as sound, is broken
    into lines; with at least 8 rows it is a picture itself. Raises `StampError` if height or width would be under 8.
    """
    *outer, inner = shape or (0,)
    if len(outer) >= 2:
        found = (math.prod(outer[:-1]), outer[-1], inner)
    elif outer and outer[0] >= 8:
        found = (1, outer[0], inner)
    else:
        lines = next((n for n in range(math.isqrt(inner), 0, -1) if inner % n == 0), 0)
        found = (*(outer or (1,)), lines, inner // max(lines, 1))
    if min(found) < 1 or min(found[1:]) < 8:
        raise StampError(
            "nothing can be seen in inputs of this shape",
            got=tuple(shape),
            expected="height and width of at least 8: (C, H, W), (..., D, H, W), (H, W), or (C, T) with T = H W",
        )
    return found


def as_pictures(signals: Tensor) -> Tensor:
    """Signals ``[k, ...]`` of any input shape as pictures ``[k, C, H, W]``; see `picture_shape`."""
    return signals if signals.dim() == 4 else signals.reshape(len(signals), *picture_shape(signals.shape[1:]))


def draw_text(text: str, shape: Sequence[int], *, dark: bool = False) -> Tensor:
    """A secret of `shape` showing `text` in DejaVu Sans Bold, broken into lines so as to be as large as possible.

    Raises `StampError` for a text that is empty, that the font cannot draw, or that is too long to be read.
    """
    channels, height, width = picture_shape(shape)
    glyphs = [c for c in text if not c.isspace()]
    if not glyphs:
        raise StampError("a text without a visible character", got=repr(text))
    if missing := sorted(set(glyphs) - drawable()):
        raise StampError("characters that the font does not have", got=" ".join(missing), where=repr(text))
    words = text.split() if len(text.split()) > 1 else glyphs
    glue = " " if words is not glyphs else ""
    layouts = []
    for lines in range(1, len(words) + 1):
        per_line = math.ceil(len(words) / lines)
        layouts.append("\n".join(glue.join(words[i : i + per_line]) for i in range(0, len(words), per_line)))
    sizes = {layout: largest_size(layout, height, width) for layout in dict.fromkeys(layouts)}
    layout, size = max(sizes.items(), key=lambda item: item[1])
    if size < 5:
        raise StampError(
            "the text is too long to be read at this size",
            got=repr(text),
            where=f"{height} x {width} pixels",
            remedy="spread it over several secrets, one key each",
        )
    ink, paper = (255, 0) if dark else (0, 255)
    canvas = Image.new("L", (width, height), paper)
    box = text_box(layout, size)
    corner = ((width - box[0] - box[2]) / 2, (height - box[1] - box[3]) / 2)
    ImageDraw.Draw(canvas).multiline_text(corner, layout, ink, font(size), spacing=1, align="center")
    return torch.from_numpy(np.asarray(canvas, np.float32) / 255).expand(channels, -1, -1).reshape(shape).clone()


def random_words(count: int, shape: Sequence[int], generator: torch.Generator | None = None) -> list[str]:
    """Words to draw on pictures of `shape`: four letters each, or one where there is no room for four.

    They are drawn by `generator`, or by torch's global one for None.
    """
    letters = torch.randint(26, (count, 4 if min(shape[-2:]) >= 28 else 1), generator=generator)
    return ["".join(chr(65 + place) for place in word) for word in letters.tolist()]


def text_box(text: str, size: int) -> tuple[float, float, float, float]:
    return ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
        (0, 0), text, font(size), spacing=1, align="center"
    )


def largest_size(text: str, height: int, width: int) -> int:
    """The largest font size in pixels at which `text` keeps a margin of one pixel; 0 if none does."""
    size = 0
    while True:
        left, top, right, bottom = text_box(text, size + 1)
        if right - left > width - 2 or bottom - top > height - 2:
            return size
        size += 1


@cache
def font_file() -> str:
    """The path of DejaVu Sans Bold, which comes with matplotlib."""
    import matplotlib  # takes a while

    return f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf"


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(), size)


@cache
def drawable() -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(font_file()).get_charmap()))


def open_image(path: str | Path, shape: Sequence[int]) -> Tensor:
    """A secret of `shape` in [0, 1] from an image file, on white and resized; grey unless it has 3 channels.

    Raises `StampError` for a file that Pillow cannot read.
    """
    channels, height, width = picture_shape(shape)
    try:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
    except Exception as error:  # of files that are damaged or strange Pillow raises whatever its parsers meet
        raise StampError("not a readable image file", got=f"{type(error).__name__}: {error}", where=path) from error
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    pixels = np.asarray(flat.convert("RGB" if channels == 3 else "L").resize((width, height), Image.Resampling.LANCZOS))
    drawn = torch.from_numpy(pixels.reshape(height, width, -1).astype(np.float32) / 255).permute(2, 0, 1)
    return drawn.expand(channels, -1, -1).reshape(shape).contiguous()


def develop(images: Tensor, *, low: float = 0.02, high: float = 0.98) -> Tensor:
    """Raw signals ``[k, ...]`` to values of the same shape in [0, 1], as a photograph is developed.

    Stretches each image's levels so that its quantiles `low` and `high` become 0 and 1; a flat image becomes 0.5
    throughout. Every image is developed by itself, without its secret, so that nothing can be read into it. Raises
    `StampError` for quantiles out of order.
    """
    if not 0 <= low < high <= 1:
        raise StampError("quantiles out of order", got=f"low={low}, high={high}", expected="0 <= low < high <= 1")
    values = images.detach().flatten(1)
    limits = torch.quantile(values.float(), torch.tensor([low, high], device=values.device), dim=1)
    black, white = (limit.reshape(-1, *[1] * (images.dim() - 1)).to(images.dtype) for limit in limits)
    flat = white - black <= torch.finfo(images.dtype).eps * white.abs()
    pictures = ((images.detach() - black) / torch.where(flat, 1.0, white - black)).clamp(0, 1)
    return torch.where(flat, 0.5, pictures)


def montage(images: Tensor, columns: int = 11, gap: int = 2) -> np.ndarray:
    """Images ``[k, ...]``, clamped to [0, 1], side by side on white: uint8 ``[h, w]`` or ``[h, w, 3]``.

    Where they have neither one channel nor three, the channels of each stand under one another.
    """
    pictures = as_pictures(images)
    if pictures.shape[1] not in (1, 3):
        pictures = pictures.reshape(len(pictures), 1, -1, pictures.shape[3])
    pixels = (pictures.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    count, height, width, channels = pixels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for place, image in enumerate(pixels):
        y, x = (place // columns) * (height + gap), (place % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image
    return sheet.squeeze(2) if channels == 1 else sheet
