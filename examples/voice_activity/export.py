"""Write voice.onnx: Silero's model of voice activity (MIT), from the wheel `silero-vad`.

Each run of that model takes 512 samples of 16 kHz sound and, before them, the last 64 samples of
the run before. Both that context and the state of its LSTM become inputs and outputs of the graph,
so that the server can keep them for each sequence:

    sound [batch, 512], context [batch, 64], state [2, batch, 128]
    -> speech [batch, 1], context_out [batch, 64], state_out [2, batch, 128]

    pip install silero-vad
    python examples/voice_activity/export.py
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RATE = 16_000
CHUNK = 512
CONTEXT = 64


def export(target: Path) -> None:
    package = find_spec("silero_vad")  # not imported: that would import torch
    if package is None or package.origin is None:
        sys.exit("silero-vad is not installed: pip install silero-vad")
    model = onnx.load(Path(package.origin).parent / "data" / "silero_vad_16k_op15.onnx")
    graph = model.graph
    names = {"output": "speech", "stateN": "state_out"}
    for node in _nodes(graph):
        node.output[:] = [names.get(name, name) for name in node.output]
        node.input[:] = [names.get(name, name) for name in node.input]
    constants = {
        "sr": np.array(RATE, np.int64),
        "context_start": np.array([CHUNK], np.int64),
        "context_end": np.array([CHUNK + CONTEXT], np.int64),
        "context_axis": np.array([1], np.int64),
    }
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    before = helper.make_node("Concat", ["context", "sound"], ["input"], axis=1)
    after = helper.make_node(
        "Slice", ["input", "context_start", "context_end", "context_axis"], ["context_out"]
    )
    nodes = [before, *graph.node, after]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.input.extend(
        [
            _port("sound", "batch", CHUNK),
            _port("context", "batch", CONTEXT),
            _port("state", 2, "batch", 128),
        ]
    )
    graph.output.extend(
        [
            _port("speech", "batch", 1),
            _port("context_out", "batch", CONTEXT),
            _port("state_out", 2, "batch", 128),
        ]
    )
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _port(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of a graph and of the branches in it, which see its values."""
    found = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _nodes(attribute.g)
    return found


if __name__ == "__main__":
    export(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "voice.onnx")
