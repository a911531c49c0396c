"""Photographs, and short ways to run one backend on one image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from penstock.backends.base import Context


@pytest.fixture(scope="session", params=["china.jpg", "flower.jpg"])
def photo(request: pytest.FixtureRequest) -> Any:
    """A photograph, 427×640×3, uint8. Read-only: a backend that writes to its input raises."""
    image = load_sample_image(request.param).copy()
    image.flags.writeable = False
    return image


@pytest.fixture(scope="session")
def make() -> Any:
    def make(cls: Any, context: Any = None, **params: Any) -> Any:
        backend = cls()
        backend.init(cls.parameters(**params), context or Context(node="test", device="cpu"))
        return backend

    return make


@pytest.fixture(scope="session")
def run(make: Any) -> Any:
    """Run one backend and return the item, after checks that hold for all of them."""

    def run(cls: Any, data: Any, keys: dict[str, Any] | None = None, **params: Any) -> Any:
        before = np.array(data)
        item = {"data": data, **(keys or {})}
        backend = make(cls, **params)
        assert backend.max == 1
        backend.forward([item])
        assert item["data"] is data
        assert np.array_equal(data, before)
        result = item["result"]
        assert isinstance(result, np.ndarray) and result.ndim == 3
        assert result.flags.c_contiguous and result.flags.owndata
        return item

    return run


@pytest.fixture(scope="session")
def tensor(photo: Any) -> Any:
    """The photograph as 1×3×427×640, uint8, in memory of its own."""
    torch = pytest.importorskip("torch")
    return torch.from_numpy(photo.transpose(2, 0, 1)[None].copy())


@pytest.fixture(scope="session")
def run_tensor(make: Any) -> Any:
    """Run one torch backend and return the item, after checks that hold for all of them."""
    torch = pytest.importorskip("torch")

    def copy(data: Any) -> Any:
        if isinstance(data, list):
            return [copy(value) for value in data]
        return data.detach().clone() if isinstance(data, torch.Tensor) else np.array(data)

    def same(data: Any, before: Any) -> bool:
        if isinstance(data, list):
            return len(data) == len(before) and all(map(same, data, before))
        return (
            torch.equal(data, before)
            if isinstance(data, torch.Tensor)
            else np.array_equal(data, before)
        )

    def run_tensor(cls: Any, data: Any, keys: dict[str, Any] | None = None, **params: Any) -> Any:
        before = copy(data)
        item = {"data": data, **(keys or {})}
        backend = make(cls, **params)
        backend.forward([item])
        backend.close()
        assert item["data"] is data and same(data, before)
        results = item["result"] if isinstance(item["result"], list) else [item["result"]]
        for result in results:
            assert isinstance(result, torch.Tensor) and not result.requires_grad
            assert (
                result.is_contiguous()
                and result.untyped_storage().nbytes() == result.numel() * result.element_size()
            )
        return item

    return run_tensor
