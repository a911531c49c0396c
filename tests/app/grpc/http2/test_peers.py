"""The `h2` library as a client, which is strict, and frames of any kind in any order."""

from __future__ import annotations

import socket
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.app.grpc.http2.frames import FrameReader
from penstock.app.grpc.http2.wire import PREFACE, Http2Error, frame
from penstock.app.grpc.messages import messages

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "penstock"),
    (":path", "/inference.GRPCInferenceService/ModelInfer"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


class Peer:
    """A client by h2, which raises for whatever it must not be sent."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.settimeout(60)
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.http.initiate_connection()
        self.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 100})
        self.send()

    def send(self) -> None:
        self._socket.sendall(self.http.data_to_send())

    def close(self) -> None:
        self.http.close_connection()
        self.send()
        self._socket.close()

    def _received(self, *, wait: bool) -> bytes:
        self._socket.settimeout(60 if wait else 0)
        try:
            received = self._socket.recv(65536)
            assert received
        except BlockingIOError:
            received = b""
        self._socket.settimeout(60)
        return received

    def call(self, content: bytes) -> tuple[bytes, dict[Any, Any]]:
        stream = self.http.get_next_available_stream_id()
        self.http.send_headers(stream, REQUEST)
        body = b"\0" + len(content).to_bytes(4, "big") + content
        answer, ended, sent = b"", False, False
        fields: dict[Any, Any] = {}
        while not ended:
            room = min(self.http.local_flow_control_window(stream), len(body), 10_000)
            if not sent and (room > 9 or room == len(body)):
                sent = room == len(body)
                self.http.send_data(stream, body[:room], end_stream=sent)
                body = body[room:]
            self.send()
            for event in self.http.receive_data(self._received(wait=sent or not room)):
                if isinstance(event, h2.events.DataReceived):
                    answer += event.data
                    self.http.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    fields |= dict(event.headers)
                elif isinstance(event, h2.events.StreamEnded):
                    ended = True
        self.send()
        return answer, fields


def test_a_strict_client(served: Any) -> None:
    peer = Peer(served.address)
    for count in (1, 50_000, 1):
        request = messages.ModelInferRequest(
            model_name="identity_FP32", raw_input_contents=[bytes(4 * count)]
        )
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, count])
        answer, fields = peer.call(request.SerializeToString())
        assert (
            fields[":status"] == "200" and fields["grpc-status"] == "0" and fields["x-request-id"]
        )
        response = messages.ModelInferResponse.FromString(answer[5:])
        assert response.raw_output_contents == [bytes(4 * count)]
    peer.close()


class Ears:
    """Hears everything, and counts it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def begins(self) -> None:
        self.heard.append(("begins", None))

    def data_begins(self, stream: int, size: int, padding: int) -> None:
        self.heard.append(("data", stream))

    def data(self, view: memoryview) -> None:
        if self.heard and self.heard[-1][0] == "bytes":
            self.heard[-1] = ("bytes", self.heard[-1][1] + bytes(view))
        else:
            self.heard.append(("bytes", bytes(view)))

    def data_ends(self, *, is_last: bool) -> None:
        self.heard.append(("end", is_last))

    def header_block(self, stream: int, block: bytes, *, is_last: bool) -> None:
        self.heard.append(("block", (stream, block, is_last)))

    def settings(self, pairs: list[tuple[int, int]]) -> None:
        self.heard.append(("settings", pairs))

    def ping(self, content: bytes) -> None:
        self.heard.append(("ping", content))

    def pong(self) -> None:
        self.heard.append(("pong", None))

    def window_update(self, stream: int, size: int) -> None:
        self.heard.append(("window", (stream, size)))

    def reset(self, stream: int) -> None:
        self.heard.append(("reset", stream))

    def idle_frame(self) -> None:
        self.heard.append(("idle", None))


def heard_of(pieces: list[bytes]) -> tuple[list[tuple[str, Any]], str]:
    ears = Ears()
    reader = FrameReader(ears, 1000)
    try:
        for piece in pieces:
            reader.feed(piece)
    except Http2Error as error:
        return ears.heard, error.reason
    return ears.heard, ""


FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.integers(0, 255),
    st.integers(0, 7),
    st.binary(max_size=40),
)


@given(st.lists(FRAMES | st.binary(max_size=20), max_size=12), st.integers(1, 30))
@settings(max_examples=300, deadline=None)
def test_frames_are_the_same_however_they_are_cut(parts: list[bytes], size: int) -> None:
    sent = PREFACE + b"".join(parts)
    cut = [sent[start : start + size] for start in range(0, len(sent), size)]
    assert heard_of(cut) == heard_of([sent])
