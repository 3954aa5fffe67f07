"""A JSON Schema (2020-12) of every message, generated from the classes that read and write them.

For authors of peers, and for our own tests: the classes say what a message is, this says it in a form that
others can check. It describes what is *sent*: an optional field is absent, never null, but for the few that peers
want (P5.3a). What is read is more (:mod:`arcp_trio.wire.forms`).

``python -m arcp_trio.wire.schema`` prints it; ``messages.schema.json`` beside this file is its output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs

from .codec import _KEPT_NULLS, MESSAGES
from .envelope import MAX_ID_LENGTH, MAX_INTEGER, NUMBERED_TYPES, Envelope
from .events import EVENT_BODIES
from .job_messages import JobEvent

__all__ = ["message_schema", "schema_text"]

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SIMPLE: Mapping[Any, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": -MAX_INTEGER - 1, "maximum": MAX_INTEGER},
    float: {"type": "number"},
    type(None): {"type": "null"},
}

_ID: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH}

# What the classes cannot say of an envelope: P5.1, P5.2, P5.3, P5.8, P8.2.
_ENVELOPE_FIELDS: Mapping[str, Schema] = {
    "arcp": {"type": "string", "pattern": r"^1(\.[0-9]+)?$"},
    "id": _ID,
    "type": {"type": "string", "minLength": 1},
    "session_id": _ID,
    "job_id": _ID,
    "event_seq": {"type": "integer", "minimum": 1, "maximum": MAX_INTEGER},
    "trace_id": {"type": "string", "pattern": "^(?!0{32})[0-9a-f]{32}$"},
}
_ENVELOPE_REQUIRED = ("arcp", "id", "type", "payload")


def _summary(cls: type[Any]) -> str:
    return (cls.__doc__ or "").partition("\n")[0]


class _Definitions:
    """The ``$defs``: each class once, named as itself."""

    def __init__(self) -> None:
        self.schemas: dict[str, Schema] = {}
        self._classes: dict[str, type[Any]] = {}

    def reference(self, cls: type[Any]) -> Schema:
        """Return a reference to the schema of ``cls``, which is made when it is first wanted."""
        name = cls.__name__
        if self._classes.setdefault(name, cls) is not cls:
            raise TypeError(f"two classes are named {name}: a reference could mean either")
        if name not in self.schemas:
            self.schemas[name] = {}  # now, so that a class may contain itself
            self.schemas[name] = self._object(cls)
        return {"$ref": f"#/$defs/{name}"}

    def _object(self, cls: type[Any]) -> Schema:
        properties = self.properties(cls)
        schema: Schema = {"description": _summary(cls), "type": "object", "properties": properties}
        required = [field.name for field in attrs.fields(cls) if field.default is attrs.NOTHING]
        if required:
            schema["required"] = required
        if cls is JobEvent:
            # An unknown kind is the consumer's: any object is a body of one (P5.4).
            schema["allOf"] = [
                {"if": _if("kind", [kind]), "then": {"properties": {"body": self.reference(body)}}}
                for kind, body in EVENT_BODIES.items()
            ]
        return schema

    def properties(self, cls: type[Any]) -> dict[str, Schema]:
        """Return the schema of each field of ``cls``."""
        hints = get_type_hints(cls)
        kept = _KEPT_NULLS.get(cls, ())
        return {field.name: self.of_type(hints[field.name], nullable=field.name in kept) for field in attrs.fields(cls)}

    def of_type(self, annotation: Any, *, nullable: bool = False) -> Schema:
        """Return the schema of the values of a type, as far as they are sent.

        Args:
            annotation: As it stands in a class of messages.
            nullable: Whether ``X | None`` is sent as null; it is left out otherwise.

        Raises:
            TypeError: A type that no message has had until now.
        """
        if annotation is Any:
            return {}
        if annotation in _SIMPLE:
            return dict(_SIMPLE[annotation])
        if attrs.has(annotation):
            return self.reference(annotation)
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin in (Union, UnionType):
            return self._union([member for member in arguments if nullable or member is not type(None)])
        if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:  # noqa: PLR2004  # tuple[X, ...]
            return {"type": "array", "items": self.of_type(arguments[0])}
        if origin is dict and arguments[0] is str:
            element = self.of_type(arguments[1])
            return {"type": "object", "additionalProperties": element} if element else {"type": "object"}
        raise TypeError(f"no schema for the type {annotation!r}")

    def _union(self, members: list[Any]) -> Schema:
        if set(members) >= {int, float}:
            # A number of any size: the bound of 64 bits is for protocol integers (P5.6).
            members = [member for member in members if member is not int]
        if len(members) == 1:
            return self.of_type(members[0])
        return {"anyOf": [self.of_type(member) for member in members]}


def _if(name: str, values: Iterable[str]) -> Schema:
    """Return the condition: the property ``name`` is there and is one of ``values``."""
    listed = sorted(values)
    return {"properties": {name: {"const": listed[0]} if len(listed) == 1 else {"enum": listed}}, "required": [name]}


def message_schema() -> Schema:
    """Return the schema of one frame: an envelope and, by its type, its payload.

    Unknown types, kinds and fields are valid (P5.4). ``event_seq`` is required where a runtime numbers its
    frames, and forbidden everywhere else (P5.1).
    """
    definitions = _Definitions()
    payloads = [
        {"if": _if("type", [name]), "then": {"properties": {"payload": definitions.reference(cls)}}}
        for name, cls in MESSAGES.items()
    ]
    numbers = {
        "if": _if("type", NUMBERED_TYPES),
        "then": {"required": ["event_seq"]},
        "else": {"properties": {"event_seq": False}},
    }
    return {
        "$schema": _DIALECT,
        "title": "ARCP v1.1, as arcp_trio sends it",
        "description": "One frame. Generated by arcp_trio.wire.schema: do not edit.",
        "type": "object",
        "required": list(_ENVELOPE_REQUIRED),
        "properties": {**definitions.properties(Envelope), **_ENVELOPE_FIELDS},
        "allOf": [*payloads, numbers],
        "$defs": dict(sorted(definitions.schemas.items())),
    }


def schema_text() -> str:
    """Return the schema as the text of ``messages.schema.json``."""
    return json.dumps(message_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
