"""The messages between a front process and the model process, over their link.

Each is a tuple whose first element is its kind, a plain number, since `marshal` writes no
enumeration. Requests have the front's numbers, which increase.

A *body* is `bytes` of up to `INLINE_BYTES`, or the `(offset, size)` of an extent in the sender's
arena. The receiver of an extent frees it, by FREE. A request's raw head ends with its empty line.
Times are on the clock of `time.monotonic`, which all processes of a machine share, in seconds.

From the front to the model process:

    HELLO         with the descriptor of the front's arena. First message.
    (REQUEST, id, head, body, client, first_byte, keep_alive)
    (ASK, id, head, client, first_byte, keep_alive)
    (BODY, id, body)
    (PASSED, id, head, passed, arrays, client, first_byte, keep_alive)
    (FAIL, id, head, client, first_byte, error)
    (CANCEL, id)
    (FREE, offsets)
    (TUNNEL, tunnel, client, tls, last) with the descriptor of a stream socket
    (LAST, tunnel)
    (REPLY, number, payload)

From the model process to the front:

    HELLO         with the descriptor of the model process's arena. First message, the answer to the
                  front's.
    (ANSWER, id, status, head, body, keep_alive, log)
    (GO, id)
    (RESEND, id)
    (FREE, offsets)
    (TABLE, payload, loaded)
    (PRESSURE, name, on)
    (IDLE, tunnel, received, sent)
    (QUERY, number, payload)
"""

from __future__ import annotations

from typing import Final

HELLO: Final = 0
"""The link is open. The descriptor of the sender's arena goes with it."""

REQUEST: Final = 1
"""A whole request. `client` is None or `(host, port)`. `first_byte` is when the first byte of its
body came; 0.0 if it came whole. `keep_alive`: its connection may stay open after the answer.

Of an infer request whose body is in an extent, the binary part should be aligned: `Arena.put(…,
align=…)` with the value of Inference-Header-Content-Length.
"""

ASK: Final = 2
"""May this request come? Answered by GO or by an ANSWER that refuses it. Fronts ask before a body
of more than `ASK_BYTES`, and before they run front nodes of a pipeline under pressure. After GO
follow BODY, PASSED or CANCEL with the same id.
"""

BODY: Final = 3
"""The body of a request that was asked for."""

PASSED: Final = 4
"""A request whose front nodes have run. `passed` is a pickle of protocol 5, a body; `arrays` are
the bodies of its out-of-band buffers.
"""

CANCEL: Final = 5
"""The client of a request has left. No answer comes, unless it is on its way already."""

FREE: Final = 6
"""Extents of the receiver's arena, by offset, that the sender has no more use for."""

TUNNEL: Final = 7
"""A connection that the model process serves itself: a socket that carries its bytes. `client` is
None or the address of its client, `(host, port)`; `tls`: the client's side is encrypted; `last`:
the front ends soon, so its first answer says `connection: close`.
"""

REPLY: Final = 9
"""The answer to a QUERY, by its number. Its payload is a body."""

ANSWER: Final = 10
"""The answer to a request. `head` lacks its last line: the front adds `\\r\\n`, or
`connection: close\\r\\n\\r\\n` if `keep_alive` is false or its connection has to close. `log` is
None, or `(request_id, pipeline or None, queue or None, run or None)` for a line of the access log,
which the front writes, with seconds.
"""

GO: Final = 11
"""A request that was asked for may come."""

RESEND: Final = 12
"""The model process can't answer a request in this form. After PASSED, whose pipeline was replaced
meanwhile, the front sends it whole, as REQUEST; after REQUEST or ASK, through a tunnel.
"""

TABLE: Final = 13
"""The front nodes of all pipelines, as `front_table` makes it. Sent after HELLO, and after each
change of the repository. `loaded`: the model process has loaded its pipelines, so that the front is
prepared for requests once it has loaded these nodes.
"""

PRESSURE: Final = 14
"""A pipeline is under pressure, or no longer: while it is, fronts ask before they run its front
nodes.
"""

IDLE: Final = 15
"""The connection of a tunnel waits for another request, after so many bytes that it received and
sent. The front serves it itself again if both agree with its own counts.
"""

QUERY: Final = 16
"""A question about the front process itself, such as its metrics. Answered by REPLY."""

FAIL: Final = 17
"""The body of a request will not come whole, for `error`, a pickled exception. Comes instead of
REQUEST, or after ASK instead of BODY. The answer to it closes its connection.
"""

LAST: Final = 18
"""The front ends soon: the next answer that begins on a tunnel says `connection: close`."""

ASK_BYTES: Final = 256 << 10
"""Fronts ask before a larger body."""

Body = bytes | tuple[int, int]
Client = tuple[str, int] | None
Log = tuple[str, str | None, float | None, float | None] | None
