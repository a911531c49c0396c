"""Models with random weights of a fixed seed, for measurements, where only the speed counts.

Each takes N×3×H×W pixels, and SIZES has its H and W. `convnet` and `transformer` are small, for
machines without a GPU; the others need torchvision and timm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SIZES = {"resnet50": 224, "vit": 224, "detector": 320, "convnet": 96, "transformer": 96}

CANDIDATES = 200
"""Boxes of each image that go into non-maximum suppression."""
DETECTIONS = 100
"""Boxes of each image that come out."""
OVERLAP = 0.5
BOX_SCALES = (10.0, 10.0, 5.0, 5.0)
"""The scales of SSD's box offsets: x, y, width and height."""


def resnet50() -> nn.Module:
    import torchvision  # pyright: ignore[reportMissingImports]  # only GPU machines have it

    torch.manual_seed(0)
    module: nn.Module = torchvision.models.resnet50(weights=None)
    return module


def vit() -> nn.Module:
    """Make ViT-B/16."""
    import timm  # pyright: ignore[reportMissingImports]  # only GPU machines have it

    torch.manual_seed(0)
    module: nn.Module = timm.create_model("vit_base_patch16_224", pretrained=False)
    return module


class Detector(nn.Module):
    """SSDLite320 with MobileNetV3, as one tensor to one tensor.

    It answers N×100×6: x1, y1, x2, y2, score, class. Non-maximum suppression is one call for the
    batch: the boxes of each image are moved far from those of the others.
    """

    anchors: torch.Tensor
    scales: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import (  # pyright: ignore[reportMissingImports]
            detection,
        )
        from torchvision.models.detection.image_list import (  # pyright: ignore[reportMissingImports]
            ImageList,
        )

        net = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
        self.backbone, self.head = net.backbone, net.head
        size = SIZES["detector"]
        image = torch.zeros(1, 3, size, size)
        with torch.no_grad():
            features = list(self.backbone(image).values())
            corners = net.anchor_generator(ImageList(image, [(size, size)]), features)[0]
        sizes = corners[:, 2:] - corners[:, :2]
        # A buffer, because no CUDA graph can hold the copy of a new tensor to the device.
        self.register_buffer("scales", torch.tensor(BOX_SCALES))
        self.register_buffer("anchors", torch.cat([corners[:, :2] + sizes / 2, sizes], 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        from torchvision.ops import nms  # pyright: ignore[reportMissingImports]

        found = self.head(list(self.backbone(image).values()))
        scores, classes = found["cls_logits"].float().softmax(-1)[..., 1:].max(-1)
        scores, best = scores.topk(CANDIDATES, 1)
        offsets = found["bbox_regression"].float() / self.scales.float()
        anchors = self.anchors.float()
        centers = offsets[..., :2] * anchors[:, 2:] + anchors[:, :2]
        halves = offsets[..., 2:].clamp(max=4).exp() * anchors[:, 2:] / 2
        boxes = torch.cat([centers - halves, centers + halves], -1).clamp(0, image.shape[-1])
        boxes = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        apart = torch.arange(boxes.shape[0], device=image.device) * (2.0 * image.shape[-1])
        kept = nms((boxes + apart[:, None, None]).flatten(0, 1), scores.flatten(), OVERLAP)
        mask = torch.zeros_like(scores).flatten().index_fill(0, kept, 1.0).view_as(scores)
        scores, order = (scores * mask).topk(DETECTIONS, 1)
        classes = classes.gather(1, best).gather(1, order)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        return torch.cat([boxes, scores[..., None], classes[..., None].float()], -1)


def detector() -> nn.Module:
    torch.manual_seed(0)
    return Detector()


def convnet() -> nn.Module:
    """Make a small convolutional net: about 1 ms an image on one core."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for given, wanted in ((3, 16), (16, 32), (32, 64), (64, 128)):
        layers += [
            nn.Conv2d(given, wanted, 3, 2, 1, bias=False),
            nn.BatchNorm2d(wanted),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 1000))


class Transformer(nn.Module):
    """A small vision transformer: 36 patches, 2 layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 128, 16, 16)
        layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        scores: torch.Tensor = self.head(self.layers(tokens).mean(1))
        return scores


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return Transformer()


MODELS: dict[str, Any] = {
    "resnet50": resnet50,
    "vit": vit,
    "detector": detector,
    "convnet": convnet,
    "transformer": transformer,
}


class InPrecision(nn.Module):
    """A model that computes in another precision and takes and gives float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module.to(dtype)
        self.dtype = dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.module(image.to(self.dtype))
        return answer.float()
