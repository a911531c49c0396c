"""Train a scikit-learn classifier on the iris data, and export it with skl2onnx.

    python train.py   # seconds; needs scikit-learn and skl2onnx

Writes iris.onnx beside this file. Serving it needs neither package.

skl2onnx writes two outputs, labels and probabilities. The probabilities are enough: the names of
the classes go into the metadata, where SoftmaxArgMaxTensor finds them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def train() -> Any:
    """Fit the classifier: 4 lengths in cm to one of 3 classes."""
    iris: Any = load_iris()
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(iris.data, iris.target)


def main() -> None:
    from skl2onnx import to_onnx  # pyright: ignore[reportMissingImports]

    iris: Any = load_iris()
    # Without zipmap=False, the probabilities are dicts, which are no tensors.
    model: Any = to_onnx(train(), iris.data[:1].astype(np.float32), options={"zipmap": False})
    del model.graph.output[0]
    names = model.metadata_props.add()
    names.key, names.value = "names", json.dumps(iris.target_names.tolist())
    Path(__file__).with_name("iris.onnx").write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
