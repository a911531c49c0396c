"""The table of all fields of a Triton model configuration (`config.pbtxt`) and their treatment.

`FIELDS` is the one table: the translation does what it says, `penstock check` prints it, and
`docs/reference/triton-config.md` is made from it. A field without a line is refused.

A path has the names of the fields, joined by dots, without the indices of lists; `*` is any key of
a map. A path with a key goes before one with `*`, and a path without lines of its own has those of
the message that contains it, if that is refused. Of several lines the first that fits holds; after
those of a parameter come those of `parameters.*`.
"""

from __future__ import annotations

from collections.abc import Mapping

from .model import MODEL_FIELDS
from .optimization import OPTIMIZATION_FIELDS
from .parameters import PARAMETER_FIELDS
from .scheduling import SCHEDULING_FIELDS
from .treatments import Line

FIELDS: Mapping[str, tuple[Line, ...]] = {
    **MODEL_FIELDS,
    **SCHEDULING_FIELDS,
    **OPTIMIZATION_FIELDS,
    **PARAMETER_FIELDS,
}
