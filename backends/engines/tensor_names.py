"""Inputs and outputs that a file chooses by name: the keys `inputs` and `outputs` of engines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..base import Context
from ..errors import ConfigError, Problem
from ..suggestions import did_you_mean


def places(
    names: Sequence[str],
    known: Sequence[str],
    key: str,
    context: Context,
    required: Iterable[str] = (),
) -> list[int]:
    """Return where each of `names` stands in `known`, a model's inputs or outputs.

    `key` is the file's key, for the ConfigError of a name that the model lacks, that stands twice,
    or that is `required` and missing.
    """
    message = ""
    missing = [name for name in required if name not in names]
    for index, name in enumerate(names):
        if name not in known:
            message = (
                f"names {name!r}, and the model has no such tensor{did_you_mean(name, known)}: "
                f"expected {', '.join(known)}"
            )
        elif name in names[:index]:
            message = f"names {name!r} twice"
    if missing and not message:
        message = f"lacks {', '.join(missing)}, which the model needs: list all of its inputs"
    if message:
        raise ConfigError([Problem(message, node=context.node, key=key)])
    return [known.index(name) for name in names]
