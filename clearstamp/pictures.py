"""Pictures: text and image files as tensors, signals developed like photographs, and many images on one sheet."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from torch import Tensor

from clearstamp.errors import StampError

Shape = tuple[int, int, int]
"""``(C, H, W)``."""


def draw_text(text: str, shape: Shape, *, dark: bool = False) -> Tensor:
    """A secret ``[C, H, W]`` showing `text` in DejaVu Sans Bold, broken into lines so as to be as large as possible."""
    check_shape(shape)
    channels, height, width = shape
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
    return torch.from_numpy(np.asarray(canvas, np.float32) / 255).expand(channels, -1, -1).clone()


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
def font_file() -> Path:
    """DejaVu Sans Bold, which comes with matplotlib."""
    import matplotlib  # takes a while

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(), size)


@cache
def drawable() -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(font_file()).get_charmap()))


def open_image(path: str | Path, shape: Shape) -> Tensor:
    """A secret ``[C, H, W]`` in [0, 1] from an image file, transparent parts on white, resized to `shape`."""
    check_shape(shape)
    channels, height, width = shape
    try:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
    except (OSError, UnidentifiedImageError) as error:
        raise StampError("not a readable image file", got=f"{type(error).__name__}: {error}", where=path) from error
    flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    pixels = np.asarray(flat.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels.reshape(height, width, -1).astype(np.float32) / 255).permute(2, 0, 1).contiguous()


def check_shape(shape: Shape) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < 8:
        raise StampError("not an image shape", got=tuple(shape), expected="(C, H, W) with C 1 or 3, H and W at least 8")


def develop(images: Tensor, *, low: float = 0.02, high: float = 0.98) -> Tensor:
    """Raw signals ``[k, C, H, W]`` to pictures of the same shape in [0, 1], as a photograph is developed.

    Stretches each image's levels so that its quantiles `low` and `high` become 0 and 1; a flat image becomes 0.5
    throughout. Every image is developed by itself, without its secret, so that nothing can be read into it.
    """
    if not 0 <= low < high <= 1:
        raise StampError("quantiles out of order", got=f"low={low}, high={high}", expected="0 <= low < high <= 1")
    values = images.detach().flatten(1)
    limits = torch.quantile(values.float(), torch.tensor([low, high], device=values.device), dim=1)
    black, white = (limit.reshape(-1, 1, 1, 1).to(images.dtype) for limit in limits)
    flat = white - black <= torch.finfo(images.dtype).eps * white.abs()
    pictures = ((images.detach() - black) / torch.where(flat, 1.0, white - black)).clamp(0, 1)
    return torch.where(flat, 0.5, pictures)


def montage(images: Tensor, columns: int = 11, gap: int = 2) -> np.ndarray:
    """Images ``[k, C, H, W]``, clamped to [0, 1], side by side on white: uint8 ``[h, w]`` or ``[h, w, 3]``."""
    pixels = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    count, height, width, channels = pixels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for place, image in enumerate(pixels):
        y, x = (place // columns) * (height + gap), (place % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image
    return sheet.squeeze(2) if channels == 1 else sheet
