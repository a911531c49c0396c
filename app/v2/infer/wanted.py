"""Which outputs a request asks for, and how they are to come."""

from __future__ import annotations

from typing import Any, NamedTuple

from penstock.backends.errors import InvalidRequest

from ..models.model import Model
from ..shared_memory import Part, SharedMemory
from .fields import boolean, region_of, unsigned


class Wanted(NamedTuple):
    """An output as the request asks for it. `classes`: 0 for the tensor itself. `region`: shared memory, "" for none; `lease`: `size`
    bytes of it, from `offset` on, until the request has been answered.
    """

    name: str
    binary: bool = False
    classes: int = 0
    region: str = ""
    offset: int = 0
    size: int = 0
    lease: Part | None = None

    def borrowed(self, regions: SharedMemory) -> Wanted:
        """With a lease of its region. Raises `InvalidRequest`, and what regions raise."""
        return self._replace(lease=regions.borrow(self.region, self.offset, self.size))


def read_outputs(
    outputs: Any, binary: bool, model: Model, regions: SharedMemory, leases: list[Part]
) -> list[Wanted] | None:
    """None: all of them. The memory that they go to is borrowed now, and added to `leases`: a region may be unregistered meanwhile."""
    if type(outputs) is not list:
        raise InvalidRequest("Unable to parse 'outputs': expected an array")
    found: dict[str, Wanted] = {}
    for entry in outputs:
        if type(entry) is not dict or type(entry.get("name")) is not str:
            raise InvalidRequest(
                "Unable to parse 'outputs': every output is an object with a 'name'"
            )
        name = entry["name"]
        if name in found:
            raise InvalidRequest(f"output '{name}' already exists in request")
        if name not in model.outputs_by_name and not _is_part(name, model):
            raise InvalidRequest(f"unexpected inference output '{name}' for model '{model.name}'")
        parameters = entry.get("parameters")
        if not parameters and (parameters is None or type(parameters) is dict):
            found[name] = Wanted(name, binary)
        else:
            found[name] = _read_output(name, parameters, binary, regions)
            if (lease := found[name].lease) is not None:
                leases.append(lease)
    return list(found.values()) or None


def _is_part(name: str, model: Model) -> bool:
    """Whether it may be one of several arrays that nobody has named: those are only known once they are there."""
    whole, _, index = name.rpartition("_")
    output = model.outputs_by_name.get(whole)
    return output is not None and output.datatype is None and index.isdecimal()


def _read_output(name: str, parameters: Any, binary: bool, regions: SharedMemory) -> Wanted:
    if type(parameters) is not dict:
        raise InvalidRequest(f"Unable to parse 'parameters' of output '{name}': expected an object")
    classes = 0
    if "classification" in parameters:
        classes = unsigned(parameters["classification"], f"'classification' of output '{name}'")
        if not classes:
            raise InvalidRequest(f"'classification' of output '{name}' must be at least 1")
    explicit = parameters.get("binary_data")
    if explicit is not None:
        binary = boolean(explicit, f"'binary_data' of output '{name}'")
    if "shared_memory_region" not in parameters:
        return Wanted(name, binary, classes)
    if classes:
        raise InvalidRequest(
            f"shared memory can't be used with classification, for output '{name}'"
        )
    if explicit:
        raise InvalidRequest(f"shared memory can't be used with 'binary_data', for output '{name}'")
    return Wanted(name, False, 0, *region_of(parameters)).borrowed(regions)
