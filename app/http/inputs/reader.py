"""`InputReader`: how the bodies of a pipeline's predict requests become items.

The declared inputs decide. One input is the whole body, or a member of JSON or a field of a form;
several are members or fields by their names. A pipeline that declares none takes one image.
"""

from __future__ import annotations

from typing import Any

from penstock.backends.errors import InvalidRequest, UnsupportedMedia
from penstock.backends.item import Item
from penstock.backends.memory import Reservation
from penstock.pipelines.config.definition import DEFAULT_INPUTS
from penstock.pipelines.pipeline import Pipeline

from ..helper_thread import PARSE_OFF_LOOP_BYTES
from ..json_text import JsonLimits
from . import form_body, json_body
from .declared import Inputs, inputs_of, of_port, set_values
from .json_body import Link
from .media import Form, Media, media_of, what_to_send
from .names import names_of
from .values import Reading, held_bytes, is_plain, keeps_document, value_of_bytes, whole_text

KEPT_MEDIA_TYPES = 64
"""The most Content-Types whose reading is kept. When there are more, all are forgotten."""

PARSE_JSON_OFF_LOOP_BYTES = 1 << 17
"""Bodies of this size or more with values of JSON are parsed on a helper thread: that takes longer
than finding base64 and texts in it.
"""

RAW_KINDS = frozenset({"image", "bytes", "text"})
"""The kinds whose value may be a body that is not JSON."""


class InputReader:
    """Reads the bodies of one pipeline's requests."""

    __slots__ = (
        "_as_is",
        "_as_json",
        "_as_text",
        "_keeps",
        "_many",
        "_media",
        "_one",
        "_plain",
        "_streamed",
        "_unread",
        "inputs",
        "names",
        "takes_headers",
    )

    def __init__(self, pipeline: Pipeline) -> None:
        if pipeline.config.declares_inputs:
            self.inputs = inputs_of(pipeline)
        else:
            self.inputs = Inputs(tuple(of_port(port) for port in DEFAULT_INPUTS), 0, 0, {})
        tensors = self.inputs.tensors
        self.names = names_of(tensors)
        self._one, self._many = self.names.one, self.names.many
        self._media: dict[bytes | None, Media] = {}
        self._streamed = pipeline.config.stream_input is not None
        self._plain = is_plain(tensors)
        self._keeps = keeps_document(tensors)
        # A backend wants the headers of its requests in their items.
        self.takes_headers = any(
            group.spec.takes_headers
            for node in pipeline.config.nodes.values()
            for group in node.instance_groups
        )
        # The item's key for the only input, if that is a body as it is, or as text, or whatever its
        # JSON says.
        self._as_is = self._as_json = self._as_text = ""
        only = self.names.only
        if only is not None:
            key = only.name if only.position is None else "data"
            if only.kind in {"image", "bytes"}:
                self._as_is = key
            elif only.kind == "json" and only.schema is None:
                self._as_json = key
            elif only.kind == "text":
                self._as_text = key
        self._unread = "" if self.takes_headers else self._as_is

    def media_of(self, content_type: bytes | None) -> Media:
        """Return how a body of this media type is read. Raises `UnsupportedMedia`."""
        media = self._media.get(content_type)
        if media is None:
            media = media_of(content_type, self.inputs.tensors, streamed=self._streamed)
            if media.form == "multipart":  # each has a boundary of its own
                return media
            if len(self._media) >= KEPT_MEDIA_TYPES:
                self._media.clear()
            self._media[content_type] = media
        return media

    def media_of_several(self, content_type: bytes | None) -> Media:
        """Return how a body with several items is read. Raises `UnsupportedMedia`."""
        tensors, streamed = self.inputs.tensors, self._streamed
        return media_of(content_type, tensors, streamed=streamed, several=True)

    def as_it_is(self, body: bytes, media: Media) -> Item | None:
        """Return the item of a body that clearly is the value; None: `read` has to look."""
        key, form = self._unread, media.form
        if not (key and body):
            return None
        clear = form == "generic" and body[:1] != b"{" and not media.is_html_form
        return {key: body} if clear or form == "raw" else None

    def takes_long(self, body: bytes, media: Media) -> bool:
        """Return whether reading this body on the event loop would delay other requests notably."""
        size = len(body)
        if size < PARSE_JSON_OFF_LOOP_BYTES:
            return False
        if self._as_is and (
            media.form == "raw" or (media.form == "generic" and not _looks_like_json(body))
        ):
            return False
        return not self._plain or size >= PARSE_OFF_LOOP_BYTES

    def read(
        self, body: bytes, media: Media, memory: Reservation, limits: JsonLimits, most: int
    ) -> Item:
        """Return the item that a body holds. In place of an image there may be a `Link`.

        `memory` has the bytes of the body, and then those of the item alone. `most` bounds the
        fields of a form that are one list. Raises `InvalidRequest`, `UnsupportedMedia`, `TooLarge`,
        `MemoryFull`.
        """
        form = media.form
        if form == "generic":
            form = self._sniffed(body, media)
        if form == "raw" and self._as_is:
            if not body:
                raise self._empty()
            return {self._as_is: body}
        if form == "raw" and self._as_text:
            if not body:
                raise self._empty()
            return {self._as_text: whole_text(body, self.names.shown, memory, media.charset)}
        reading = Reading(memory, limits)
        if form == "raw":
            values = self._raw(body, media, reading)
        elif form == "json":
            document = reading.parse(body, "the body", self._one, plain=self._plain)
            if self._as_json:
                memory.resize(reading.parsed, "an item")
                return {self._as_json: document}
            values = json_body.one_item(document, self.names, reading)
        else:
            values = form_body.one_item(body, media.boundary, self.names, reading, most)
        item = self._item(values)
        memory.resize(self._held(values) + reading.parsed * self._keeps, "an item")
        return item

    def read_many(
        self, body: bytes, media: Media, memory: Reservation, limits: JsonLimits, most: int
    ) -> list[Item]:
        """Return the 1 to `most` items that a body holds. Otherwise as `read`."""
        form = media.form
        if form == "generic":
            form = self._sniffed(body, media)
            if form == "raw" and _looks_like_json(body):
                form = "json"
        if form == "raw":
            names = self.names
            raise UnsupportedMedia(
                f"several {names.noun}s must come as multipart/form-data "
                f"({f'field {names.shown_many!r}' if names.shown else 'fields by name'}) or as "
                f"JSON {names.many}"
            )
        reading = Reading(memory, limits)
        if form == "json":
            document = reading.parse(body, "the body", self._many, plain=self._plain)
            several = json_body.several_items(document, self.names, reading, most)
        else:
            several = form_body.several_items(body, media.boundary, self.names, reading, most)
        items = [self._item(values) for values in several]
        held = sum([self._held(values) for values in several])
        memory.resize(held + reading.parsed * self._keeps, "items")
        return items

    def _sniffed(self, body: bytes, media: Media) -> Form:
        """Decide how to read a body whose type says nothing.

        An image that starts and ends like an object is JSON. Raises `UnsupportedMedia` for the
        fields of an HTML form.
        """
        only = self.names.only
        if only is None:
            if not body.lstrip().startswith((b"{", b"[")):
                raise UnsupportedMedia(
                    "the body is no JSON, and no media type says what else it is: "
                    f"{what_to_send(self.names.tensors)}"
                )
            return "json"
        if only.kind not in RAW_KINDS:
            if not body:
                raise self._empty()
            return "json"
        if only.kind == "image":
            if body.startswith(b"{") and body[-1024:].rstrip()[-1:] == b"}":
                return "json"
            if media.is_html_form and _looks_like_form(body):
                raise UnsupportedMedia(
                    "a form without files holds no image; send multipart/form-data with a field "
                    f"{self.names.shown!r}, or the file itself"
                )
        return "raw"

    def link_in(self, item: Item) -> Link | None:
        """Return the URL that stands for the image of an item, if one does."""
        if not self._as_is:
            return None
        value = item.get(self._as_is)
        return value if type(value) is Link else None

    def with_image(self, item: Item, image: bytes) -> Item:
        """Return an item with the image in place of its URL."""
        return {**item, self._as_is: image}

    def _raw(self, body: bytes, media: Media, reading: Reading) -> dict[str, Any]:
        """Return the only input, which is the whole body."""
        only = self.names.only
        assert only is not None
        if not body:
            raise self._empty()
        return {only.name: value_of_bytes(only, body, only.name, reading, media.charset)}

    def _empty(self) -> InvalidRequest:
        names = self.names
        expected = "an image" if names.is_image else names.listed
        return InvalidRequest(f"the body is empty: expected {expected}")

    def _item(self, values: dict[str, Any]) -> Item:
        """Return the item of these values by input. Raises `InvalidRequest` for its rows."""
        item: Item = {}
        tensors, max_batch_size, max_rows, batch_axes = self.inputs
        if max_batch_size or batch_axes:
            rows = self._rows(values, max_batch_size or max_rows, batch_axes)
            if rows > 1:
                item["request_size"] = rows
        set_values(item, values, tensors)
        return item

    def _rows(self, values: dict[str, Any], most: int, batch_axes: dict[str, int]) -> int:
        rows = 0
        for tensor in self.inputs.tensors:
            value = values.get(tensor.name)
            if value is None or (batch_axes and tensor.name not in batch_axes):
                continue
            size: int = value.shape[batch_axes.get(tensor.name, 0)]
            if not 1 <= size <= most:
                raise InvalidRequest(
                    f"{tensor.name!r} has {size} rows (its shape is {list(value.shape)}, the size "
                    f"of the batch first), expected 1 to {most} (max)"
                )
            if rows not in {0, size}:
                raise InvalidRequest(
                    f"{tensor.name!r} has {size} rows and another input has {rows}: expected as "
                    "many in each"
                )
            rows = size
        return rows

    def _held(self, values: dict[str, Any]) -> int:
        return sum(
            [
                held_bytes(tensor, values[tensor.name])
                for tensor in self.inputs.tensors
                if tensor.name in values
            ]
        )


def _looks_like_json(body: bytes) -> bool:
    return body[:256].lstrip()[:1] in {b"[", b"{"}


def _looks_like_form(body: bytes) -> bool:
    start = body[:256]
    return (
        b"=" in start
        and start.isascii()
        and b"\x00" not in start
        and start.decode("ascii").isprintable()
    )
