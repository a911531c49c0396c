"""Train word vectors on Penstock's documentation (latent semantic analysis), and export them.

    python train.py   # seconds; needs scikit-learn and skl2onnx

Writes lsa.onnx and words.txt beside this file. Serving them needs neither package. The model takes
how often each word of words.txt is in a text, N×words. It gives vectors of length 1, N×64.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
SIZE = 64
MIN_CHARACTERS = 80
"""Shorter paragraphs are headings and the like."""


def paragraphs() -> list[str]:
    texts = (page.read_text() for page in sorted(DOCS.rglob("*.md")))
    found = [paragraph for text in texts for paragraph in re.split(r"\n\s*\n", text)]
    return [paragraph for paragraph in found if len(paragraph) >= MIN_CHARACTERS]


def main() -> None:
    from skl2onnx import to_onnx  # pyright: ignore[reportMissingImports]

    counter: Any = CountVectorizer(token_pattern=r"\b[a-z]\w+", stop_words="english", min_df=3)
    counts = counter.fit_transform(paragraphs())
    vectors = make_pipeline(TfidfTransformer(), TruncatedSVD(SIZE, random_state=0), Normalizer())
    vectors.fit(counts)
    model: Any = to_onnx(vectors, np.zeros((1, counts.shape[1]), np.float32))
    # skl2onnx says that there is one row, whatever the batch.
    model.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    (HERE / "lsa.onnx").write_bytes(model.SerializeToString())
    words = counter.get_feature_names_out()
    (HERE / "words.txt").write_text("".join(f"{word}\n" for word in words))


if __name__ == "__main__":
    main()
