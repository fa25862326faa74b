"""A picture inside the page: its bytes as a data URI, with its size, what it shows, and a caption."""

from __future__ import annotations

import base64
from typing import Literal

from markupsafe import Markup

from densekd.errors import ArgumentError

Media = Literal["image/png", "image/webp", "image/jpeg", "image/svg+xml"]


def embedded(data: bytes, media: Media, *, width: int, height: int, alt: str, caption: str = "") -> Markup:
    """A `<figure>` that holds the picture itself, so that the page needs no other file.

    The browser knows the size before it has decoded the picture, and shows the page meanwhile. (Loading it only when it
    comes into view saves nothing here, and would leave it out of what is printed.)

    Args:
        data: the picture's file, as it is.
        media: its type.
        width: of the picture, in CSS pixels; a narrower page shows it smaller.
        height: the same.
        alt: what it shows, for those who do not see it. Escaped here, as is the caption.
        caption: a line below it; none where empty.

    Raises:
        ArgumentError: no alternative text, or a size that is not positive.
    """
    if not alt.strip():
        raise ArgumentError("embedded: expected a text in the place of the picture (alt), got none")
    if width < 1 or height < 1:
        raise ArgumentError(f"embedded: expected a width and a height in pixels, got {width} x {height}")
    source = f"data:{media};base64,{base64.b64encode(data).decode('ascii')}"
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else Markup()
    return Markup(
        '<figure class="picture"><img src="{}" width="{}" height="{}" alt="{}" decoding="async">{}</figure>'
    ).format(source, width, height, alt, below)
