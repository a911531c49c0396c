"""The outputs that a request asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from penstock.backends.errors import InvalidRequest

from ...http.json_text import check_boolean, check_unsigned
from ..models.model import Model
from ..shared_memory import SharedMemory, Slice, region_of


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output as a request asks for it.

    `binary` asks for bytes after the JSON. `classes` is the number of best classes, 0 for the
    tensor itself. `region` names the shared memory region to write the tensor to, `size` bytes
    from `offset` on; "" for none. `lease` is that part of the region, borrowed until the request
    has been answered.
    """

    name: str
    binary: bool = False
    classes: int = 0
    region: str = ""
    offset: int = 0
    size: int = 0
    lease: Slice | None = None

    def borrowed(self, regions: SharedMemory) -> Wanted:
        """Return a copy with a lease of its region. Raises `InvalidRequest` and `NotFound`."""
        return replace(self, lease=regions.borrow(self.region, self.offset, self.size))


def read_outputs(
    outputs: Any, binary: bool, model: Model, regions: SharedMemory, leases: list[Slice]
) -> list[Wanted] | None:
    """Read the outputs of a request; None stands for all outputs.

    Shared memory is borrowed now, since its region may be unregistered while the request runs, and
    added to `leases`. Raises `InvalidRequest`, and `NotFound` for an unknown region.
    """
    if type(outputs) is not list:
        raise InvalidRequest("Unable to parse 'outputs': expected an array")
    wanted: dict[str, Wanted] = {}
    for output in outputs:
        if type(output) is not dict or type(output.get("name")) is not str:
            raise InvalidRequest(
                "Unable to parse 'outputs': every output is an object with a 'name'"
            )
        name = output["name"]
        if name in wanted:
            raise InvalidRequest(f"output '{name}' already exists in request")
        if name not in model.outputs_by_name and not _may_be_unnamed_array(name, model):
            raise InvalidRequest(f"unexpected inference output '{name}' for model '{model.name}'")
        parameters = output.get("parameters")
        if not parameters and (parameters is None or type(parameters) is dict):
            wanted[name] = Wanted(name, binary)
        else:
            wanted[name] = _read_output(name, parameters, binary, regions)
            lease = wanted[name].lease
            if lease is not None:
                leases.append(lease)
    return list(wanted.values()) or None


def _may_be_unnamed_array(name: str, model: Model) -> bool:
    """Return whether the model may answer an array of this name.

    If a pipeline answers a list of arrays as one undeclared output, they are named `result_0`,
    `result_1` and so on; how many there are is known only once they have been computed.
    """
    whole, _, index = name.rpartition("_")
    output = model.outputs_by_name.get(whole)
    return output is not None and output.datatype is None and index.isdecimal()


def _read_output(name: str, parameters: Any, binary: bool, regions: SharedMemory) -> Wanted:
    if type(parameters) is not dict:
        raise InvalidRequest(f"Unable to parse 'parameters' of output '{name}': expected an object")
    classes = 0
    if "classification" in parameters:
        classes = check_unsigned(
            parameters["classification"], f"'classification' of output '{name}'"
        )
    explicit = parameters.get("binary_data")
    if explicit is not None:
        binary = check_boolean(explicit, f"'binary_data' of output '{name}'")
    if "shared_memory_region" not in parameters:
        return Wanted(name, binary, classes)
    if classes:
        raise InvalidRequest(
            f"shared memory can't be used with classification, for output '{name}'"
        )
    if explicit:
        raise InvalidRequest(f"shared memory can't be used with 'binary_data', for output '{name}'")
    return Wanted(name, False, 0, *region_of(parameters)).borrowed(regions)
