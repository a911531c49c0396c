"""Backends from expressions, as a node would have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.backends.base import Backend, Context
from penstock.backends.errors import ConfigError
from penstock.backends.expressions.expression import parse
from penstock.backends.expressions.spec import Spec
from penstock.pipelines.config.binding import bind


@pytest.fixture
def bound() -> Callable[..., Spec]:
    """Bind an expression and the keys of its node, as loading does.

    Raises ConfigError as loading does.
    """

    def bound(expression: str, **keys: Any) -> Spec:
        binding = bind(parse(expression), keys, {}, Path())
        if binding.problems:
            raise ConfigError(binding.problems)
        (spec,) = binding.specs
        assert spec is not None
        _ = spec.declared_range
        return spec

    return bound


@pytest.fixture
def make(bound: Callable[..., Spec]) -> Callable[..., Backend]:
    """Create and initialise the backend of an expression."""
    return lambda expression, **keys: bound(expression, **keys).create(Context())
