"""Train a small convolutional net on scikit-learn's digits.

    python train.py   # half a minute on two processors; needs torch, scikit-learn and onnx

Writes digits.onnx, labels.txt and digit.png beside this file. Serving them needs neither torch nor
scikit-learn.

The training images are shifted, made weaker or stronger, and passed through JPEG, because clients
send such images. The model does not normalise its input: digits.toml has Penstock fuse MEAN and STD
into it.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from data import SEED, encode, split  # type: ignore[import-not-found]  # beside this file
from numpy.typing import NDArray
from PIL import Image
from torch import nn

HERE = Path(__file__).parent
MEAN, STD = 77.0, 95.0
EPOCHS = 40
BATCH = 64


class Net(nn.Sequential):
    """A net from N×1×8×8 normalised pixels to N×10 logits, with 0.1 million weights."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(48, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def normalise(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy((images[:, None].astype(np.float32) - MEAN) / STD)


def augment(images: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Shift images by up to one pixel, change their strength, and pass half through JPEG."""
    changed = np.empty_like(images)
    for index, image in enumerate(images):
        down, right = random.integers(-1, 2, 2)
        padded = np.pad(image, 1)[1 - down : 9 - down, 1 - right : 9 - right]
        strong = np.clip(padded * random.uniform(0.8, 1.2), 0, 255).astype(np.uint8)
        if random.random() < 0.5:
            buffer = io.BytesIO()
            Image.fromarray(strong).save(buffer, "JPEG", quality=int(random.integers(60, 96)))
            strong = np.asarray(Image.open(buffer))
        changed[index] = strong
    return changed


def train() -> Net:
    torch.manual_seed(SEED)
    random = np.random.default_rng(SEED)
    images, held_out, labels, held_out_labels = split()
    network = Net()
    steps = EPOCHS * (len(images) // BATCH + 1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    loss = torch.zeros(())
    for epoch in range(EPOCHS):
        network.train()
        inputs, targets = normalise(augment(images, random)), torch.from_numpy(labels)
        for chosen in torch.split(torch.randperm(len(inputs)), BATCH):
            loss = nn.functional.cross_entropy(
                network(inputs[chosen]), targets[chosen], label_smoothing=0.05
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            optimiser.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    network.eval()
    with torch.no_grad():
        right = (network(normalise(held_out)).argmax(1).numpy() == held_out_labels).mean()
    print(f"held out: {right:.1%} of {len(held_out)} right")
    return network


def main() -> None:
    network = train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the newer exporter needs onnxscript
        torch.onnx.export(
            network,
            (torch.zeros(1, 1, 8, 8),),
            HERE / "digits.onnx",
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    (HERE / "labels.txt").write_text(
        "zero one two three four five six seven eight nine".replace(" ", "\n") + "\n"
    )
    _, held_out, _, labels = split()
    (HERE / "digit.png").write_bytes(encode(held_out[list(labels).index(3)], "PNG"))
    size = (HERE / "digits.onnx").stat().st_size
    print(f"wrote digits.onnx ({size / 1000:.0f} kB), labels.txt and digit.png")


if __name__ == "__main__":
    main()
