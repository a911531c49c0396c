"""The pipelines and the loads of `scripts/bench scale`, and the processes of a server."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from servers import Server

from penstock.app.bench.images import synthetic_jpegs
from penstock.app.bench.usage import TCP_LISTEN

PICTURES = {
    "1920×1280": (1920, 1280, 500_000),
    "640×427": (640, 427, 100_000),
    "96×64": (96, 64, 3_000),
}
"""The photographs that are sent: width, height and bytes of a JPEG."""

DEVICE_SECONDS = 0.01
"""Time of a batch of any size on the device that `device.toml` stands for."""

MOST_IN_A_BATCH = 64

PICTURE = """
[pipeline]
name = "picture"

[pipeline.inputs]
data = {{ kind = "image" }}

[decode]
backend = "S[DecodeMat,ResizeMat,CvtColorMat,Mat2Tensor]"
resize_h = 64
resize_w = 64
color = "rgb"
instance_num = {decoders}
next = "network"

[network]
backend = "S[OnnxTensor,SoftmaxArgMaxTensor]"
model = "small.onnx"
mean = 127
std = 128
max = 8
"""

BYTES = """
[pipeline]
name = "{name}"

[pipeline.inputs]
data = {{ kind = "bytes" }}

[{name}]
backend = "Python[scale_backends.py:{backend}]"
max = {most}
{more}
"""

BACKENDS = f"""
import time


class Device:
    '''Computes for as long for a batch as for an item, elsewhere than on a processor.'''

    def forward(self, batch):
        time.sleep({DEVICE_SECONDS})
        for item in batch:
            item["result"] = len(item["data"])


def size(data):
    return len(data)


def features(data):
    '''A small model in pure Python: a millisecond or two that hold the GIL.'''
    total = 0
    for number in range(30_000):
        total += number * number
    return total % 1000
"""

SEND_BYTES = """
wrk.method = "POST"
wrk.body = string.rep("x", 1024)
wrk.headers["Content-Type"] = "application/octet-stream"
"""

SEND_PICTURES = """
local requests, sent = {{}}, 0
function init()
  for number = 0, {count} - 1 do
    local file = io.open(string.format("{folder}/%d.jpg", number), "rb")
    requests[number] = wrk.format("POST", nil, {{["Content-Type"] = "image/jpeg"}}, file:read("*a"))
    file:close()
  end
end
function request()
  sent = sent + 1
  return requests[sent % {count}]
end
"""


def write(folder: Path) -> None:
    """Write the pipelines into a folder, the pictures, and the scripts that tell wrk of them."""
    for decoders in (1, 2):
        text = PICTURE.format(decoders=decoders)
        (folder / f"picture_{decoders}.toml").write_text(text)
    for name, backend, most, more in (
        ("device", "Device", MOST_IN_A_BATCH, ""),
        ("noop", "size", 32, 'executor = "thread"'),
        ("features", "features", 1, 'executor = "thread"\nfront = true'),
    ):
        text = BYTES.format(name=name, backend=backend, most=most, more=more)
        (folder / f"{name}.toml").write_text(text)
    (folder / "scale_backends.py").write_text(BACKENDS)
    (folder / "small.onnx").write_bytes(small_network())
    (folder / "bytes.lua").write_text(SEND_BYTES)
    for name, (width, height, size) in PICTURES.items():
        pictures = folder / name
        pictures.mkdir()
        jpegs = synthetic_jpegs(width=width, height=height, size=size)
        for number, jpeg in enumerate(jpegs):
            (pictures / f"{number}.jpg").write_bytes(jpeg)
        script = SEND_PICTURES.format(folder=pictures, count=len(jpegs))
        (folder / f"{name}.lua").write_text(script)


def small_network() -> bytes:
    """Return an ONNX model: two convolutions and a layer of 10 classes, on 3×64×64.

    Raises RuntimeError without the package onnx.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise RuntimeError("the package onnx, which writes the model, is not installed") from error
    generator = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "w3": (32, 10)}
    weights = [
        numpy_helper.from_array(generator.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    halves: dict[str, Any] = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], **halves),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], **halves),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def names_of(server: Server) -> dict[str, int]:
    """Return the processes of a server by name: `parent`, `models`, `front 1`, …

    A server of one process has none but itself, `models`. The children of nodes are left out.
    """
    found = {}
    for children in Path(f"/proc/{server.pid}/task").glob("*/children"):
        for child in children.read_text().split():
            with suppress(OSError):  # it ended meanwhile
                words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
                if "--process" in words:
                    role = words[words.index("--process") + 1]  # front:1@0.1.0
                    found[role.partition("@")[0].replace(":", " ")] = int(child)
    return {"parent": server.pid, **found} if found else {"models": server.pid}


def processor_seconds(pid: int) -> float:
    """Return the processor time of one process, without its children; 0.0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def clients_of(pid: int, port: int) -> set[int]:
    """Return the client's ports of the connections to `port` of 127.0.0.1 that a process holds."""
    sockets = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(field.rpartition(":")[2], 16) for field in fields[1:3])
        if local == port and fields[3] != TCP_LISTEN:
            sockets[f"socket:[{fields[9]}]"] = remote
    return {sockets[file] for file in _files(pid) if file in sockets}


def _files(pid: int) -> Iterator[str]:
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            yield str(file.readlink())


def metric(server: Server, name: str) -> float:
    """Return the sum of all samples of a metric. Raises RuntimeError if there is none."""
    text = page(server.port, "/metrics")
    values = [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith((f"{name}{{", f"{name} "))
    ]
    if not values:
        raise RuntimeError(f"/metrics has no {name}")
    return sum(values)


def page(port: int, path: str) -> str:
    """Read a page of a server. Raises RuntimeError unless its answer is 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered with {answer.status}: {body[:200]}")
    return body
