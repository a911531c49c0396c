"""Photographs and short ways to run one backend on one image."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from penstock.backends.base import Context


@pytest.fixture(scope="session", params=["china.jpg", "flower.jpg"])
def photo(request):
    """427×640×3, uint8. Read-only: a backend that writes to its input raises."""
    image = load_sample_image(request.param).copy()
    image.flags.writeable = False
    return image


@pytest.fixture(scope="session")
def make():
    def make(cls, context=None, **params):
        backend = cls()
        backend.init(cls.parameters(**params), context or Context(node="test"))
        return backend

    return make


@pytest.fixture(scope="session")
def run(make):
    """The item after one backend, once what holds for all of them has been checked."""

    def run(cls, data, keys=None, **params):
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
