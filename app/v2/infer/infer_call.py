"""`InferCall`: one infer request, without what carries it.

Its rules are here once, as those of a predict request are in `PredictCall`. What carries the bytes
calls the steps in order: `begin` with the head, `take` with the body, `submit`, then `choose` and
`write`, and at the end `request.release`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from penstock.backends.errors import DeadlineExceeded, InvalidRequest, PenstockError
from penstock.backends.item import NO_FACTS, Item
from penstock.backends.memory import Reservation
from penstock.pipelines.cache.request import cached
from penstock.pipelines.runs.run import Submission
from penstock.pipelines.trace_context import TraceContext

from ...history.record import Door, Failure
from ...history.ring import History
from ...http.body import is_discarded
from ...http.compression import choose_encoding, window_of
from ...http.helper_thread import on_helper_thread
from ...http.json_text import JsonLimits, parse_json, parsed_bytes
from ...http.request_id import choose_request_id, is_fit
from ...settings import Settings
from ...trace.tracing import ROUTES, Traced, Tracing
from ..call import ProtocolError
from ..models.model import Model, Models
from ..shared_memory import SharedMemory
from ..tensors import COPY_OFF_LOOP_BYTES
from .layout import recall, remember
from .request import InferRequest, held_bytes, parse, parse_raw
from .response import Chosen, Written, choose, takes_long, write, write_arrays
from .traced_tensors import BACKEND_OUTPUT, QUEUE_INPUT, inputs_of, note_tensors

T = TypeVar("T")

READ_OFF_LOOP_BYTES = 1 << 17
"""JSON, or tensors that are not read in place, of this size take milliseconds to read.

More is read on a helper thread. So is a request that may copy `COPY_OFF_LOOP_BYTES` out of shared
memory.
"""

HIGHEST_PRIORITY = 1

JSON_LENGTH_HEADER = b"inference-header-content-length"


class InferRules:
    """The settings and helpers that all infer requests of an app share."""

    __slots__ = (
        "has_key",
        "history",
        "json",
        "max_body",
        "models",
        "notes",
        "regions",
        "remember",
        "settings",
        "tracing",
    )

    def __init__(
        self,
        models: Models,
        settings: Settings,
        regions: SharedMemory,
        history: History | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`history` and `tracing`: None if no requests are remembered, or traced."""
        self.models = models
        self.history = history
        self.tracing = tracing
        self.notes = history is not None or tracing is not None
        self.remember = None if history is None else history.append  # as in `PredictRules`
        self.settings = settings
        self.max_body = settings.max_body  # as in `PredictRules`
        self.has_key = settings.api_key is not None
        self.regions = regions
        self.json = JsonLimits(settings.max_json_depth, settings.max_json_values)


class InferHead:
    """The head of an infer request. Read-only: requests with the same head share it.

    `names` are the parts of the path. `is_read_anyway`: the body is small enough to be read even if
    the request is refused. Its deadline and its priority, which are in the body, are known then.
    """

    __slots__ = (
        "accepted",
        "encoding",
        "fields",
        "is_read_anyway",
        "json_length",
        "length",
        "names",
        "request_id",
        "traceparent",
        "tracestate",
    )

    def __init__(self, names: Mapping[str, str], fields: Sequence[tuple[bytes, bytes]]) -> None:
        self.names = names
        self.fields = fields
        # If a header is repeated, the last one counts.
        get = dict(fields).get
        self.length = get(b"content-length")
        self.is_read_anyway = is_discarded(self.length)
        self.encoding = get(b"content-encoding")
        self.accepted = get(b"accept-encoding")
        self.request_id = get(b"x-request-id")
        self.traceparent = get(b"traceparent")
        self.tracestate = get(b"tracestate")
        self.json_length = get(JSON_LENGTH_HEADER)


class InferCall:
    """An infer request, and how far it has come.

    `size`: the bytes of JSON before the tensors; None if the whole body is JSON.
    """

    __slots__ = (
        "_arrived",
        "_began",
        "_reading",
        "client",
        "context",
        "head",
        "memory",
        "model",
        "request",
        "request_id",
        "rules",
        "size",
        "window",
    )

    in_stream: bool = False
    """True: the answer may come in parts."""

    def __init__(
        self,
        rules: InferRules,
        head: InferHead,
        memory: Reservation,
        *,
        client: str | None,
        request_id: str | None = None,
    ) -> None:
        """`client`: who sent it, as `client_of` says."""
        self.rules = rules
        self.head = head
        self.memory = memory
        self.client = client
        self.context: TraceContext | None = None
        self.request = InferRequest(memory, rules.json)
        self.request_id = request_id or choose_request_id(head.request_id)

    def begin(self) -> None:
        """Check what the head asks for, before the body is read.

        Raises the error of a request that has to be refused; so do the other steps.
        """
        self.model = self._model()
        head, tracing = self.head, self.rules.tracing
        if tracing is not None:
            sampler = tracing.settings.shared
            if sampler.left > 1 and head.traceparent is None:  # as `sample`, without a call
                sampler.left -= 1
            else:
                self.context = tracing.sample(self.model.name, head.traceparent, head.tracestate)
        if not head.is_read_anyway:
            # Nothing is refused here that the highest level admits. A deadline comes too late.
            self.model.pipeline.check_admission(priority=HIGHEST_PRIORITY, client=self.client)
        self.window = 0 if head.encoding is None else _window(head.encoding)
        self.size = None if head.json_length is None else _json_length(head.json_length)
        self._began = time.monotonic()

    def take(self, text: bytes, blobs: memoryview) -> bool:
        """Read the request in the body, its JSON and the tensors after it.

        Returns False if `read` has to do it on a helper thread.
        """
        self._arrived = time.monotonic()
        # If the pipeline was replaced while the body arrived, the new one reads the request.
        if self.model.pipeline.state != "ready":
            self.model = self._model()
        if not recall(self.request, text, blobs, self.model, self.rules.regions):
            if self._takes_long(len(text), len(blobs)):
                return False
            self.read(text, blobs)
        return True

    def submit(self, future: asyncio.Future[Item] | None = None) -> Submission:
        """Submit the request, which has been read, as one item."""
        request = self.request
        timeout = request.timeout
        if timeout is not None:
            timeout -= time.monotonic() - self._began
            if timeout <= 0:
                raise DeadlineExceeded("the timeout passed before the body had arrived")
        # The protocol's own id, if there is one and it is fit for logs: backends get that one.
        request_id = self.request_id
        if request.id is not None and is_fit(request.id):
            request_id = request.id
            if self.head.request_id is None:
                self.request_id = request_id
        # If it was replaced while a helper thread read the request, the new one answers.
        if self.model.pipeline.state != "ready":
            self.model = self._model()
        self._reading = time.monotonic() - self._arrived
        if request.id and self.model.takes_request_facts:
            facts = request.item.get("request_facts", NO_FACTS)
            request.item["request_facts"] = facts._replace(request_id=request.id)
        context = self.context
        if context is not None and isinstance(context, Traced) and context.wants_tensors:
            note_tensors(context, QUEUE_INPUT, inputs_of(self.model, request.item))
        return self.model.pipeline.submit_nowait(
            request.item,
            timeout,
            request.priority,
            future,
            request_id,
            None,
            None,
            self.client,
            None,
            request.step,
            self.context,
            True,  # it only reads the answer; by names these would cost more
            not request.is_shared,
        )

    def choose(self, item: Item) -> Chosen:
        """Choose the outputs to write."""
        context = self.context
        if context is not None and isinstance(context, Traced) and context.wants_tensors:
            note_tensors(context, BACKEND_OUTPUT, self.model.values_of(item))
        self.request.response_parameters = item.get("response_parameters")
        return choose(self.request, self.model, item)

    def write_arrays(self, chosen: Chosen) -> Written | None:
        """Write the body of the answer if that is quick and common, else return None."""
        return write_arrays(self.request, self.model, chosen)

    def write(self, chosen: Chosen) -> Written:
        """Write the body of any other answer. `takes_long` says where to call it."""
        return write(self.request, self.model, chosen)

    async def write_part(self, item: Item, run: Submission, write: Callable[[Chosen], T]) -> T:
        """Write the final item of `run`, or one of its parts, on a helper thread if that is long.

        If it can't be written, the request has failed, even if it was counted as a success.
        """
        answered = time.monotonic()
        try:
            chosen = self.choose(item)
            if takes_long(chosen):
                written = await on_helper_thread(write, chosen)
            else:
                written = write(chosen)
        except Exception:
            if run.future.done():
                self.take_back(run)
            else:
                run.leave("unwritten")
            raise
        self.count(answered, run)
        self._reading = 0.0  # the next part does not count it again
        return written

    def encoding(self, written: Written) -> bytes | None:
        """Return how to compress the answer; None to leave it as it is."""
        accepted = self.head.accepted
        if accepted is None:
            return None
        return choose_encoding(accepted, written.size, bool(written.blobs))

    def count(self, answered: float, run: Submission) -> None:
        """Count the time of a request that was written, since `answered`."""
        statistics = self.model.pipeline.statistics
        writing = time.monotonic() - answered
        if cached(run) is None:
            statistics.reading += self._reading
            statistics.writing += writing
        else:
            statistics.hit_seconds += self._reading + writing

    def take_back(self, run: Submission) -> None:
        """Count a request as failed that could not be written."""
        self.model.pipeline.statistics.take_back(run.rows)

    def remember(
        self, door: Door, status: int, failure: Failure | None, runs: Sequence[Submission]
    ) -> None:
        """Put the request, which ends now, into the history and into its trace, if there are any.

        A request without a good key leaves none.
        """
        if self.context is not None:
            self.end_trace(door, status, failure, runs)
        history = self.rules.history
        if history is not None and status != 401:
            model: Model | None = getattr(self, "model", None)
            pace = None if model is None else model.pipeline.pace
            began: float = getattr(self, "_began", 0.0)
            history.add(
                self.request_id,
                pace,
                door=door,
                status=status,
                failure=failure,
                started=began,
                runs=runs,
            )

    def end_trace(
        self, door: Door, status: int, failure: Failure | None, runs: Sequence[Submission]
    ) -> None:
        """Hand over the request, which ends now, if it is traced."""
        context, self.context = self.context, None
        tracing = self.rules.tracing
        if tracing is not None and context is not None:
            tracing.end(
                context,
                self.route_of(door),
                self.request_id,
                self.model.pipeline.pace,
                door=door,
                status=status,
                failure=failure,
                started=getattr(self, "_began", 0.0),
                runs=runs,
            )

    def route_of(self, door: Door) -> str:
        """Return the name of the route or RPC, for the trace."""
        return ROUTES[door]

    def pipeline_name(self) -> str | None:
        """Return the model's name, for the log; None if there is none of the asked name."""
        model: Model | None = getattr(self, "model", None)
        return None if model is None else model.name

    def _model(self) -> Model:
        """Return the model that the path names.

        Raises `InvalidRequest` for a pipeline that streams: an infer request has one answer, with
        the outputs that the model describes, which a list of parts does not have.
        """
        names = self.head.names
        model = self.rules.models.get(names["model"], names["version"])
        if model.streams and not self.in_stream:
            raise self._in_parts(model)
        return model

    def _in_parts(self, model: Model) -> PenstockError:
        """Return the error for a model whose answers come in parts."""
        return InvalidRequest(
            "HTTP end point doesn't support models with decoupled transaction policy: model "
            f"'{model.name}' answers in parts, which POST /predict/{model.name} sends, and "
            f"/v2/models/{model.name}/generate_stream"
        )

    def _takes_long(self, text: int, blobs: int) -> bool:
        """Return whether reading so many bytes of text and of tensors on the event loop would delay
        other requests notably.
        """
        if self.model.decodes:
            return True
        shared = self.rules.regions.largest
        if text >= READ_OFF_LOOP_BYTES or shared > COPY_OFF_LOOP_BYTES:
            return True
        return max(blobs, shared) >= READ_OFF_LOOP_BYTES and not all(
            tensor.datatype is not None and tensor.datatype.in_place for tensor in self.model.inputs
        )

    def read(self, text: bytes, blobs: memoryview) -> None:
        """Read the request, on whatever thread."""
        request, model = self.request, self.model
        if self.size == 0:
            parse_raw(request, blobs, model)
            return
        memory = request.memory
        before = memory.size
        document = parse_json(text, self.rules.json, memory)
        parsed = memory.size - before
        parse(request, document, blobs, model, self.rules.regions)
        remember(request, document, text, blobs, model)
        # Of what was parsed, only texts and arrays stay.
        texts = parsed_bytes(text) - len(text)
        kept = min(parsed, texts + held_bytes(request.item))
        memory.resize(memory.size - parsed + kept, "a parsed body")


def _window(encoding: bytes) -> int:
    """Return zlib's `wbits` for a Content-Encoding. Raises `ProtocolError` (501)."""
    try:
        return window_of(encoding)
    except KeyError as error:
        raise ProtocolError(
            501,
            f"Unsupported content encoding: {error.args[0]}",
            ((b"accept-encoding", b"gzip, deflate"),),
        ) from None


def _json_length(value: bytes) -> int:
    """Parse Inference-Header-Content-Length. Raises `InvalidRequest`."""
    if not value.isdigit() or len(value) > 19:
        raise InvalidRequest(
            "inference header size should be in range (0, size of the body), got: "
            f"{value[:40].decode('latin-1')}"
        )
    return int(value)
