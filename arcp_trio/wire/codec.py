"""Payloads: frozen classes to JSON bytes and back, through one strict converter.

Strict means: no string for a number, no boolean for an integer, no float for a sequence number
(P5.6). Unknown fields are ignored (P5.4), a missing or wrong one is named by its path (P5.5).
The hooks are registered before anything is structured: cattrs keeps what it has once composed, and
a hook that comes later is silently not used (dependencies.md, section 1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import attrs
from cattrs import (
    AttributeValidationNote,
    BaseValidationError,
    Converter,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from . import events, forms, job_messages, session_messages
from .envelope import MAX_INTEGER, Envelope, _describe
from .errors import MalformedPayloadError
from .jsontext import JSONValue, encode_json

__all__ = ["MESSAGES", "decode_payload", "encode_payload", "read_message", "structure_body"]

T = TypeVar("T")

MESSAGES: Mapping[str, type[Any]] = {
    "session.hello": session_messages.SessionHello,
    "session.welcome": session_messages.SessionWelcome,
    "session.error": session_messages.SessionError,
    "session.resume": session_messages.SessionResume,
    "session.ping": session_messages.SessionPing,
    "session.pong": session_messages.SessionPong,
    "session.ack": session_messages.SessionAck,
    "session.list_jobs": session_messages.SessionListJobs,
    "session.jobs": session_messages.SessionJobs,
    "session.close": session_messages.SessionClose,
    "session.closed": session_messages.SessionClosed,
    "session.bye": session_messages.SessionBye,
    "session.rejected": session_messages.SessionRejected,
    "job.submit": job_messages.JobSubmit,
    "job.accepted": job_messages.JobAccepted,
    "job.cancel": job_messages.JobCancel,
    "job.cancelled": job_messages.JobCancelled,
    "job.event": job_messages.JobEvent,
    "job.result": job_messages.JobResult,
    "job.error": job_messages.JobError,
    "job.subscribe": job_messages.JobSubscribe,
    "job.subscribed": job_messages.JobSubscribed,
    "job.unsubscribe": job_messages.JobUnsubscribe,
    "x-arcp-trio.reply": job_messages.Reply,
    "x-arcp-trio.replayed": session_messages.Replayed,
}
"""Every message that this package reads or writes, and the class of its payload."""

# Written also when they are null: the only two nulls that peers want (P5.3a, D54); and the input of a
# submit, which one peer requires (D28).
_KEPT_NULLS = {
    session_messages.SessionJobs: ("next_cursor",),
    session_messages.SessionJobsEntry: ("parent_job_id",),
    job_messages.JobSubscribed: ("parent_job_id",),
    job_messages.JobSubmit: ("input",),
    events.ToolCall: ("args",),
}


class _WrongTypeError(ValueError):
    """A value of another type than the class says; its text is ready to be shown."""


def _strict(expected: type, name: str) -> Callable[[JSONValue, Any], Any]:
    def structure(value: JSONValue, _: Any) -> Any:
        if type(value) is not expected:
            raise _WrongTypeError(f"expected {name}, got {_describe(value)}")
        return value

    return structure


def _structure_int(value: JSONValue, _: Any) -> int:
    if type(value) is not int:
        raise _WrongTypeError(f"expected an integer, got {_describe(value)}")
    if not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
        raise _WrongTypeError("expected an integer of at most 64 bits, got a larger one")
    return value


def _structure_number(value: JSONValue, _: Any) -> int | float:
    if type(value) not in (int, float):
        raise _WrongTypeError(f"expected a number, got {_describe(value)}")
    return cast("int | float", value)


def _structure_tuple(converter: Converter) -> Callable[[JSONValue, Any], Any]:
    def structure(value: JSONValue, cls: Any) -> Any:
        if type(value) is not list:
            raise _WrongTypeError(f"expected an array, got {_describe(value)}")
        element: Any = get_args(cls)[0]
        items: list[Any] = []
        for index, item in enumerate(value):
            try:
                items.append(converter.structure(item, element))
            except Exception as exc:
                # The first one only: an exception for each of millions would exhaust the process.
                exc.add_note(IterableValidationNote(f"at {index}", index, element))
                raise
        return tuple(items)

    return structure


def _structure_dict(converter: Converter) -> Callable[[JSONValue, Any], Any]:
    def structure(value: JSONValue, cls: Any) -> Any:
        if type(value) is not dict:
            raise _WrongTypeError(f"expected an object, got {_describe(value)}")
        element = get_args(cls)[1]
        if element is Any:
            return value
        result = {}
        for key, item in value.items():
            try:
                result[key] = converter.structure(item, element)
            except Exception as exc:
                exc.add_note(IterableValidationNote(f"at {key}", key, element))
                raise
        return result

    return structure


def _is_number(cls: Any) -> bool:
    return get_origin(cls) in (Union, UnionType) and set(get_args(cls)) == {int, float}


def _is_optional_number(cls: Any) -> bool:
    return get_origin(cls) in (Union, UnionType) and set(get_args(cls)) == {int, float, type(None)}


def _is_generic(container: type) -> Callable[[Any], bool]:
    def check(cls: Any) -> bool:
        origin: Any = get_origin(cls)
        return origin is container

    return check


def _holds_message(annotation: Any) -> bool:
    return attrs.has(annotation) or any(map(_holds_message, get_args(annotation)))


def _as_it_is(value: JSONValue) -> JSONValue:
    return value


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=True, forbid_extra_keys=False)
    converter.register_structure_hook(str, _strict(str, "a string"))
    converter.register_structure_hook(bool, _strict(bool, "a boolean"))
    converter.register_structure_hook(int, _structure_int)
    converter.register_structure_hook(float, _structure_number)
    converter.register_structure_hook_func(_is_number, _structure_number)
    converter.register_structure_hook_func(
        _is_optional_number, lambda value, cls: None if value is None else _structure_number(value, cls)
    )
    converter.register_structure_hook_func(_is_generic(tuple), _structure_tuple(converter))
    converter.register_structure_hook_func(_is_generic(dict), _structure_dict(converter))

    def make_structure(cls: Any) -> Callable[[JSONValue, Any], Any]:
        inner = make_dict_structure_fn(cls, converter)

        def structure(value: JSONValue, target: Any) -> Any:
            if type(value) is not dict:
                raise _WrongTypeError(f"expected an object, got {_describe(value)}")
            return inner(value, target)

        return structure

    def make_unstructure(cls: Any) -> Callable[[Any], Any]:
        hints = get_type_hints(cls)
        overrides: dict[str, Any] = {
            field.name: override(
                omit_if_default=field.default is None and field.name not in _KEPT_NULLS.get(cls, ()),
                # What is JSON already passes as it is: not copied, and not turned into JSON if it is none.
                unstruct_hook=None if _holds_message(hints[field.name]) else _as_it_is,
            )
            for field in attrs.fields(cls)
        }
        return make_dict_unstructure_fn(cls, converter, **overrides)

    converter.register_structure_hook_factory(attrs.has, make_structure)
    converter.register_unstructure_hook_factory(attrs.has, make_unstructure)
    return converter


_converter = _make_converter()


def _leaves(exc: BaseException, path: str) -> Iterator[tuple[str, BaseException]]:
    """Walk the converter's nested groups to their causes, building each one's path."""
    # The innermost note was added first: a key of a mapping comes after the name of its field.
    for note in reversed(getattr(exc, "__notes__", ())):
        if isinstance(note, AttributeValidationNote):
            path = f"{path}.{note.name}"
        elif isinstance(note, IterableValidationNote):
            path = f"{path}[{note.index}]" if isinstance(note.index, int) else f'{path}."{note.index}"'
    if isinstance(exc, BaseValidationError):
        for inner in exc.exceptions:
            yield from _leaves(inner, path)
    else:
        yield path, exc


def _explain(exc: BaseException, path: str) -> str:
    if isinstance(exc, KeyError):
        return f"{path}: required, but not there"
    if isinstance(exc, _WrongTypeError):
        return f"{path}: {exc}"
    return f"{path}: not valid"


def structure_body(cls: type[T], body: JSONValue, path: str) -> T:
    """Make a ``cls`` of a decoded JSON value.

    Raises:
        MalformedPayloadError: Every wrong field, each with its path under ``path`` (P5.5).
    """
    try:
        return _converter.structure(body, cls)
    except Exception as exc:  # noqa: BLE001
        # cattrs raises groups; a caller's except* must not see into our boundary.
        reasons = "; ".join(_explain(leaf, where) for where, leaf in _leaves(exc, path))
        raise MalformedPayloadError(reasons) from None


def decode_payload(cls: type[T], payload: dict[str, JSONValue]) -> T:
    """Make a payload's class of a decoded payload.

    Raises:
        MalformedPayloadError: Every wrong field, each with its path (``$.payload.lease_request."fs.read"[0]``).
    """
    return structure_body(cls, payload, "$.payload")


def read_message(envelope: Envelope, cls: type[T]) -> T:
    """Read an envelope's payload as ``cls``, whatever form its sender wrote it in.

    Args:
        envelope: A decoded envelope, of a type whose class in :data:`MESSAGES` is ``cls``.
        cls: The payload's class.

    Raises:
        MalformedPayloadError: The payload is not valid; every wrong field is named by its path (P5.5).
    """
    reader = forms.READERS.get(envelope.type)
    payload = envelope.payload if reader is None else reader(envelope)
    return decode_payload(cls, payload)


def encode_payload(message: object) -> bytes:
    """Write a payload's class (or an event's body) as JSON, without nulls (P5.3a).

    Raises:
        ValueError: A value inside is not JSON.
    """
    return encode_json(_converter.unstructure(message), within=1)
