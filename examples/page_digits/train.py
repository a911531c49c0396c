"""Train a small convolutional net on the digits that find.py finds on pages.

    python train.py   # under a minute on two idle processors; needs torch and scikit-learn

Writes page_digits.onnx and page.png beside this file. Serving them needs neither torch nor
scikit-learn.

../digits/digits.onnx was trained on upright digits of 8×8 pixels, and reads nine in ten of those on
pages. This net sees 16×16 pixels, and learns from digits that lean, cut out as the pipeline cuts
them out. Its pages have training digits only.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from find import Boxes  # type: ignore[import-not-found]  # beside this file, as pages and text
from numpy.typing import NDArray
from pages import page  # type: ignore[import-not-found]
from text import lines  # type: ignore[import-not-found]
from torch import nn

import penstock

HERE = Path(__file__).parent
SIZE = 16
MEAN, STD = 60.0, 60.0
PAGES = 2000
EPOCHS = 8
BATCH = 64


class Net(nn.Sequential):
    """A net from N×1×16×16 normalised pixels to N×10 logits, with 45 thousand weights."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 48, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(48 * 4, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )


def cut_out(pages: range, *, held_out: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return what the pipeline's classifier gets from these pages (n×1×16×16), and the digits."""
    crops: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    with penstock.pipe(
        {"backend": "S[CropMat,ResizeCenterPadMat,Mat2Tensor]", "max_h": SIZE, "max_w": SIZE}
    ) as crop:
        for number in pages:
            file, text, _ = page(number, held_out=held_out)
            item: dict[str, Any] = {
                "data": cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
            }
            Boxes().forward([item])
            order = lines(item["_box"])
            if [len(line) for line in order] != [len(line) for line in text.split("\n")]:
                continue  # a digit is in two pieces, or two touch: boxes and digits don't match
            parts = [
                {"data": item["result"], "_box": item["_box"][index]}
                for line in order
                for index in line
            ]
            crop(parts)
            crops += [part["result"] for part in parts]
            labels += [int(digit) for digit in text if digit != "\n"]
    return np.concatenate(crops), np.array(labels)


def normalise(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy((images.astype(np.float32) - MEAN) / STD)


def train() -> Net:
    torch.manual_seed(0)
    inputs, targets = map(torch.as_tensor, cut_out(range(PAGES), held_out=False))
    inputs = normalise(inputs.numpy())
    network = Net()
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=EPOCHS * (len(inputs) // BATCH + 1)
    )
    loss = torch.zeros(())
    for epoch in range(EPOCHS):
        for chosen in torch.split(torch.randperm(len(inputs)), BATCH):
            loss = nn.functional.cross_entropy(
                network(inputs[chosen]), targets[chosen], label_smoothing=0.05
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    network.eval()
    held_out, labels = cut_out(range(200), held_out=True)
    with torch.no_grad():
        right = (network(normalise(held_out)).argmax(1).numpy() == labels).mean()
    print(f"held out: {right:.1%} of {len(labels)} right")
    return network


def main() -> None:
    network = train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs onnxscript
        torch.onnx.export(
            network,
            (torch.zeros(1, 1, SIZE, SIZE),),
            HERE / "page_digits.onnx",
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    (HERE / "page.png").write_bytes(page(1)[0])
    size = (HERE / "page_digits.onnx").stat().st_size
    print(f"wrote page_digits.onnx ({size / 1000:.0f} kB) and page.png")


if __name__ == "__main__":
    main()
