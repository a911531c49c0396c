"""How a body is read, by its media type and the kinds of the inputs that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from python_multipart.multipart import parse_options_header

from penstock.backends.errors import UnsupportedMedia

from .declared import Tensor
from .text import UTF_8, charset_named

Form = Literal["raw", "generic", "json", "multipart"]

SHOWN_CHARACTERS = 64
"""The most characters of a media type that an error shows."""

JSON_TYPES = frozenset({"application/json", "text/json"})

HTML_FORM = "application/x-www-form-urlencoded"

GENERIC_TYPES = frozenset(
    {
        "",
        "*/*",
        "application/octet-stream",
        "binary/octet-stream",  # not registered; S3 gives it to every object without a type
        HTML_FORM,  # curl's default
    }
)
"""The types of clients that send a file as it is: often none, or a wrong one."""

RAW_TYPES = {
    "image": ("image/*",),
    "bytes": ("*/*",),
    "text": ("text/*",),
    "integer": ("text/*",),
    "number": ("text/*",),
    "boolean": ("text/*",),
}
"""The media types of a body that is the value itself, by its kind. The other kinds are JSON."""


class Media(NamedTuple):
    """What a Content-Type says. `form` is how to read the body.

    `charset` is that of a text, by Python's name. `boundary` is that of a form with files.
    `is_html_form`: fields without files, or whatever curl sends without a type.
    """

    form: Form
    charset: str = UTF_8
    boundary: bytes = b""
    is_html_form: bool = False


def type_of(content_type: bytes | None) -> str:
    """Return a media type in lower case, without its parameters; "" if there is none."""
    if content_type is None:
        return ""
    return content_type.partition(b";")[0].strip().lower().decode("latin-1")


def is_json(media_type: str) -> bool:
    return media_type in JSON_TYPES or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


def raw_types(expected: Tensor) -> tuple[str, ...]:
    """Return the media types, some of them `audio/*`, of a body that is this input itself."""
    return expected.media_types or RAW_TYPES.get(expected.kind, ())


def fits(media_type: str, patterns: Sequence[str]) -> bool:
    """Return whether a media type is one of these, such as `audio/*`."""
    return any(
        pattern in {"*/*", media_type}
        or (pattern.endswith("/*") and media_type.startswith(pattern[:-1]))
        for pattern in patterns
    )


def media_of(
    content_type: bytes | None,
    tensors: Sequence[Tensor],
    *,
    streamed: bool = False,
    several: bool = False,
) -> Media:
    """Return how a body of this media type is read as these inputs, or as one that is streamed.

    `several`: it holds several items, so it is a form or JSON even if the input takes these types.

    Raises `UnsupportedMedia` for one that they don't take, and for an unknown charset.
    """
    media_type = type_of(content_type)
    only = tensors[0] if len(tensors) == 1 else None
    if only is not None and not several and fits(media_type, only.media_types):
        return Media("raw", _charset(content_type) if only.kind == "text" else UTF_8)
    if media_type in GENERIC_TYPES:
        return Media("generic", is_html_form=media_type == HTML_FORM)
    if media_type == "multipart/form-data":
        assert content_type is not None
        return Media("multipart", boundary=boundary_of(content_type))
    if media_type == "application/json":
        return Media("json")
    if only is not None and fits(media_type, raw_types(only)):
        return Media("raw", UTF_8 if only.kind == "bytes" else _charset(content_type))
    if is_json(media_type):
        return Media("json")
    raise UnsupportedMedia(
        f"the media type {media_type[:SHOWN_CHARACTERS]!r} is not understood; "
        f"{what_to_send(tensors, streamed=streamed)}"
    )


def what_to_send(tensors: Sequence[Tensor], *, streamed: bool = False) -> str:
    """Return what a client should do whose body these inputs can't be read from."""
    if len(tensors) != 1:
        names = ", ".join(f"{tensor.name!r} ({tensor.kind})" for tensor in tensors)
        return (
            f"the pipeline takes several inputs, {names}: send multipart/form-data with a field "
            "for each, or application/json with an object"
        )
    (only,) = tensors
    if only.kind == "image" and not only.media_types:
        return (
            "send the image itself (image/* or application/octet-stream), multipart/form-data or "
            "application/json"
        )
    others = () if streamed else ("multipart/form-data", "application/json")
    types = ", ".join((*raw_types(only), *others))
    return f"input {only.name!r} is of kind {only.kind}: send it as one of {types}"


def check_part(content_type: bytes | None, expected: Tensor, name: str) -> None:
    """Check the media type of a field of a form. Raises `UnsupportedMedia`.

    Only where the file lists types: clients guess those of fields by the names of files.
    """
    if not expected.media_types or (media_type := type_of(content_type)) in GENERIC_TYPES:
        return
    if not fits(media_type, expected.media_types):
        raise UnsupportedMedia(
            f"the field {name!r} has the media type {media_type[:SHOWN_CHARACTERS]!r}, expected "
            f"one of {', '.join(expected.media_types)}"
        )


def boundary_of(content_type: bytes) -> bytes:
    """Return the boundary of a form; b"" if there is none."""
    # Not by email.message, which raises, and takes quadratic time.
    return parse_options_header(content_type)[1].get(b"boundary", b"")


def charset_of(content_type: bytes | None) -> str:
    """Return Python's name of the charset of a text, UTF-8 if none is given.

    Raises LookupError for one that is not decoded.
    """
    if content_type is None or b"charset" not in content_type.lower():
        return UTF_8
    given = parse_options_header(content_type)[1].get(b"charset", b"").decode("latin-1").strip()
    return charset_named(given) if given else UTF_8


def _charset(content_type: bytes | None) -> str:
    try:
        return charset_of(content_type)
    except LookupError as error:
        raise UnsupportedMedia(
            f"the charset {str(error.args[0])[:SHOWN_CHARACTERS]!r} is not understood; "
            "send the text in UTF-8"
        ) from None
