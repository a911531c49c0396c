"""Write ResNet-18 or ResNet-50 to ONNX from plain torch, with a dynamic batch.

    python export.py resnet18                          # random weights, to try and to measure
    python export.py resnet50 --weights resnet50.pth   # trained weights: .pth or .safetensors

Weights are a state_dict with torchvision's names. The network is that of He et al., "Deep Residual
Learning for Image Recognition" (arXiv:1512.03385), with the stride in the 3×3 convolution of a
bottleneck, as in torchvision.

Input: `image`, N×3×224×224 float32, normalised (resnet18.toml has Penstock add this to the
network). Output: `logits`, N×1000.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

CLASSES = 1000


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        z: Tensor = y + (x if self.downsample is None else self.downsample(x))
        return z.relu()


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.downsample = shortcut(inputs, planes * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        z: Tensor = y + (x if self.downsample is None else self.downsample(x))
        return z.relu()


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Return the projection beside a block that changes the size; None if it does not."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A ResNet whose parameters have torchvision's names, so that its weights load."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for index, depth in enumerate(depths):
            planes = 64 * 2**index
            blocks = []
            for position in range(depth):
                blocks.append(block(channels, planes, 2 if index and not position else 1))
                channels = planes * block.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for index in range(4):
            x = self.get_submodule(f"layer{index + 1}")(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def build(name: str, weights: Path | None = None, seed: int = 0) -> ResNet:
    """Build the network in evaluation mode, with weights from a file or drawn with `seed`."""
    torch.manual_seed(seed)
    network = {
        "resnet18": lambda: ResNet(BasicBlock, (2, 2, 2, 2)),
        "resnet50": lambda: ResNet(Bottleneck, (3, 4, 6, 3)),
    }[name]()
    if weights is not None:
        network.load_state_dict(read_weights(weights))
    return network.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def export(network: nn.Module, path: Path, size: int = 224) -> None:
    """Write `network` to `path` as ONNX, with a dynamic batch dimension."""
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, size, size),),
        path,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,  # the newer exporter needs onnxscript
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write ResNet-18 or ResNet-50 to ONNX.")
    parser.add_argument("name", nargs="?", default="resnet18", choices=["resnet18", "resnet50"])
    parser.add_argument(
        "--weights", type=Path, help="state_dict with torchvision's names, .pth or .safetensors"
    )
    parser.add_argument("--output", type=Path, help="default: NAME.onnx beside this script")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of random weights, without --weights"
    )
    arguments = parser.parse_args()
    output = arguments.output or Path(__file__).with_name(f"{arguments.name}.onnx")
    export(build(arguments.name, arguments.weights, arguments.seed), output)
    print(f"wrote {output} ({output.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
