"""Weights of a module, from a file: read, or mapped by several processes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from ...base import Context
from ...shared_files import Files
from ..sharing import version_of

logger = logging.getLogger("penstock.torch")

Weights = dict[str, torch.Tensor]


def read_weights(path: Path) -> Weights:
    """Read a state_dict. Raises what torch and safetensors raise, and ValueError for a file that
    holds something else.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        content = (
            f"a dict with {some(list(weights))}"
            if isinstance(weights, dict)
            else f"a {type(weights).__name__}"
        )
        raise ValueError(f"it holds {content}: expected tensors by name")
    return weights


def mapped_weights(path: Path, context: Context) -> Weights | None:
    """Map a state_dict that the processes of a node share. None if they can't.

    They map a copy of the file in memory: the file itself may be overwritten while they run.
    """
    if context.shared_files is None or path.suffix == ".safetensors":
        return None

    def copy() -> Files:
        files = Files()
        descriptor = files.add(os.memfd_create("penstock weights"))
        with path.open("rb") as source:
            while os.sendfile(descriptor, source.fileno(), None, 1 << 30):
                pass
        return files

    try:
        files = context.shared_files.files(("torch", *version_of(path)), copy)
        mapped = torch.load(
            f"/proc/self/fd/{files.descriptors[0]}",
            map_location="cpu",
            weights_only=True,
            mmap=True,
        )
    except Exception as error:  # a file of old torch, say; who reads it says what is wrong with it
        logger.debug("%s: %s can't be mapped: %s", context.node, path, error)
        return None
    return mapped if isinstance(mapped, dict) else None


def fit(weights: Weights, module: torch.nn.Module) -> bool:
    """Return whether a module can take tensors as they are, not only their values."""
    own = module.state_dict()
    return all(
        isinstance(value, torch.Tensor)
        and (value.dtype, value.shape) == (own[name].dtype, own[name].shape)
        and value.stride() == own[name].stride()
        for name, value in weights.items()
        if name in own
    )


def some(names: list[object]) -> str:
    """List the first five names."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
