"""The schemas that a pipeline's ports carry, as components of the OpenAPI document.

Each is a component of its own, named by its title, and so is each of its definitions, because
generators make a class of a component. Names end with the pipeline's key, as all others do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from penstock.pipelines.config.definition import PipelineConfig, Port
from penstock.pipelines.config.json_schema import JsonSchema

from .schema import Schema, array_of, reference

DEFINITIONS = ("$defs", "definitions")

RESERVED = frozenset({"Prediction", "Batch", "Part", "Inputs", "Form", "Forms"})
"""What names of the document's own schemas of a pipeline begin with."""


class PortSchemas:
    """The components of one pipeline's ports.

    `components`: by name. `references`: to what stands for each port's schema.
    """

    def __init__(self, config: PipelineConfig, key: str) -> None:
        """`key`: what the names end with."""
        self.components: dict[str, Schema] = {}
        self.references: dict[JsonSchema, Schema] = {}
        self._key = key
        # Answers first: their names are the ones that users write into their programs.
        for port in (*config.outputs, *config.inputs):
            schema = port.inner_schema
            if schema is not None:
                self.references[schema] = self._add(schema.document, port.name)

    def of(self, port: Port) -> Schema | None:
        """Return the reference that stands for a port's schema; None if it has none."""
        return None if port.schema is None else self.references[port.schema]

    def _add(self, document: Mapping[str, Any], fallback: str) -> Schema:
        """Add a schema and its definitions. Return what stands for it."""
        definitions = {
            f"#/{place}/{name}": (name, schema)
            for place in DEFINITIONS
            for name, schema in document.get(place, {}).items()
        }
        top = {
            key: value
            for key, value in document.items()
            if key not in {*DEFINITIONS, "$schema", "$id"}
        }
        parts = {"#": (str(document.get("title") or fallback), top), **definitions}
        names, added = self._named(parts)
        self.components |= added
        items = top.get("items")
        stands_for = reference(names["#"])
        if top.keys() == {"$ref"} and top["$ref"] in names:  # a pydantic model within itself
            stands_for = reference(names[top["$ref"]])
        elif top.get("type") == "array" and isinstance(items, dict) and items.get("$ref") in names:
            stands_for = array_of(reference(names[items["$ref"]]))
        if stands_for != reference(names["#"]):  # what it stands for has a name already
            del self.components[names["#"]]
        return stands_for

    def _named(
        self, parts: Mapping[str, tuple[str, Schema]]
    ) -> tuple[dict[str, str], dict[str, Schema]]:
        """Name the parts of a schema: by pointer, and the components that they make.

        Another port may have the same definitions, which are then the same components, or others of
        the same names, after which these are numbered.
        """
        for number in count(1):
            suffix = f"_{number}" if number > 1 else ""
            names = {
                pointer: f"{_clean(name)}{suffix}_{self._key}"
                for pointer, (name, _) in parts.items()
            }

            def rename(target: str, names: Mapping[str, str] = names) -> str:
                return f"#/components/schemas/{names[target]}" if target in names else target

            # Without its title, after which a generator would name the class: two pipelines may
            # each have a Line.
            added = {
                names[pointer]: {
                    key: value
                    for key, value in with_references(schema, rename).items()
                    if key != "title"
                }
                for pointer, (_, schema) in parts.items()
            }
            if all(self.components.get(name, schema) == schema for name, schema in added.items()):
                return names, added
        raise AssertionError("count() does not end")


def _clean(name: str) -> str:
    """Return a name that a component may have."""
    clean = re.sub(r"[^A-Za-z0-9.\-_]", "_", name)
    return f"{clean}Value" if clean in RESERVED else clean


def with_references(value: Any, rename: Callable[[str], str]) -> Any:
    """Return a copy of a schema with other targets of references."""
    if isinstance(value, list):
        return [with_references(each, rename) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: rename(member)
        if name == "$ref" and isinstance(member, str)
        else {each: rename(target) for each, target in member.items()}
        if name == "mapping" and isinstance(member, dict)
        else with_references(member, rename)
        for name, member in value.items()
    }
