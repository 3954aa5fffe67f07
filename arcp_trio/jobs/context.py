"""What an agent holds of its job: the methods with which it says something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from ..wire import events
from ..wire.envelope import MAX_ID_LENGTH
from ..wire.errors import InternalError, InvalidRequestError, MessageTooLargeError
from ..wire.jsontext import JSONValue, encode_json
from .feed import ResultPayload
from .results import ResultStream, fits_inline

if TYPE_CHECKING:
    from .actor import JobActor

__all__ = ["JobContext"]

_FRAME_OVERHEAD = 1024
# Up to here a float of a whole number is that number.
_EXACT = 2**53


def _text(value: object, name: str) -> str:
    if type(value) is not str:
        raise InvalidRequestError(f"$.body.{name}: expected a string, got {type(value).__name__}")
    return value


def _object(value: Mapping[str, JSONValue] | None, name: str) -> dict[str, JSONValue] | None:
    if value is not None and not isinstance(value, Mapping):
        raise InvalidRequestError(f"$.body.{name}: expected a mapping, got {type(value).__name__}")
    return dict(value) if value else None


def _whole(number: float) -> float:
    """Write 2.0 as 2: one peer decodes progress into unsigned integers (interop.md, section 3.12)."""
    return int(number) if abs(number) <= _EXACT and number == int(number) else number


class JobContext:
    """An agent's view of its job, its first argument.

    Every ``async`` method here is an emission. All of them share one contract: the body is checked and
    encoded first, so a bad one raises :class:`InvalidRequestError` (or :class:`MessageTooLargeError`) and takes no
    number (P8.1); then the method is a checkpoint, at which the agent may be cancelled and nothing was emitted; then it
    may wait, for a bounded time, if the submitting session reads too slowly; then the event is with every
    follower. After the job has ended they raise :class:`JobEndedError` (P7.11).
    """

    __slots__ = ("_actor", "_result")

    def __init__(self, actor: JobActor) -> None:
        self._actor = actor
        self._result: ResultStream | None = None

    def __repr__(self) -> str:
        return f"<JobContext {self.job_id} {self.agent}>"

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._actor.job_id

    @property
    def agent(self) -> str:
        """The resolved agent, ``name@version``."""
        return self._actor.agent.resolved

    @property
    def principal(self) -> str:
        """Who submitted the job."""
        return self._actor.principal

    @property
    def trace_id(self) -> str:
        """The job's trace: 32 hex digits (section 11)."""
        return self._actor.feed.trace_id

    @property
    def lease(self) -> Mapping[str, tuple[str, ...]]:
        """The lease that was asked for: namespaces to patterns. Read-only by convention."""
        return self._actor.lease

    @property
    def cancel_requested(self) -> bool:
        """Whether the agent was told to stop; may be read from any thread.

        For work in threads, which no cancellation reaches: look at it between two steps.
        """
        return self._actor.stop_requested

    # --- emissions --------------------------------------------------------------------------------

    async def log(self, level: str, message: str, fields: Mapping[str, JSONValue] | None = None) -> None:
        """Emit a line for people.

        Args:
            level: trace, debug, info, warn, warning, error, critical or fatal.
            message: The line.
            fields: More about it, as JSON values.
        """
        if level not in events.LOG_LEVELS:
            raise InvalidRequestError(f"$.body.level: expected one of {', '.join(events.LOG_LEVELS)}, got {level!r}")
        body: dict[str, JSONValue] = {"level": level, "message": _text(message, "message")}
        if fields:
            body["fields"] = _object(fields, "fields")
        await self._emit("log", body)

    async def thought(self, text: str) -> None:
        """Emit what the agent thinks.

        Args:
            text: The thought, for people.
        """
        await self._emit("thought", {"text": _text(text, "text")})

    async def status(self, phase: str, message: str | None = None) -> None:
        """Emit that the agent has entered a phase.

        Args:
            phase: Its name; the runtime's own are refused (P8.6).
            message: A line about it.
        """
        events.check_phase(_text(phase, "phase"))
        body: dict[str, JSONValue] = {"phase": phase}
        if message is not None:
            body["message"] = _text(message, "message")
        await self._emit("status", body)

    async def metric(
        self,
        name: str,
        value: float,
        unit: str | None = None,
        dimensions: Mapping[str, JSONValue] | None = None,
    ) -> None:
        """Emit a measured number.

        Args:
            name: What was measured; ``cost.…`` is a cost, never negative (section 9.6).
            value: A finite number.
            unit: Its unit; for a cost the currency.
            dimensions: Labels.
        """
        events.check_metric(_text(name, "name"), value)
        body: dict[str, JSONValue] = {"name": name, "value": value}
        if unit is not None:
            body["unit"] = _text(unit, "unit")
        labels = _object(dimensions, "dimensions")
        if labels:
            body["dimensions"] = body["dims"] = labels
        await self._emit("metric", body)

    async def progress(
        self,
        current: float,
        total: float | None = None,
        units: str | None = None,
        message: str | None = None,
    ) -> None:
        """Emit how far the work is (P8.4).

        Args:
            current: How much is done: finite, not negative, at most ``total``.
            total: How much there is; ``None`` if nobody knows.
            units: What is counted.
            message: A line about it.
        """
        events.check_progress(current, total)
        body: dict[str, JSONValue] = {"current": _whole(current)}
        if total is not None:
            body["total"] = _whole(total)
        if units is not None:
            body["units"] = _text(units, "units")
        if message is not None:
            body["message"] = _text(message, "message")
        await self._emit("progress", body, feature="progress")

    async def tool_call(self, tool: str, args: JSONValue = None, *, call_id: str | None = None) -> str:
        """Emit that a tool is about to be called; return the call's id.

        Args:
            tool: The tool's name.
            args: What it is called with; ``None`` goes out as an empty object.
            call_id: The call's id; ``None`` mints one.
        """
        call_id = self._actor.services.ids.call() if call_id is None else _text(call_id, "call_id")
        body = {"tool": _text(tool, "tool"), "args": {} if args is None else args, "call_id": call_id}
        await self._emit("tool_call", body)
        return call_id

    async def tool_result(
        self, call_id: str, result: JSONValue = None, *, error: Mapping[str, JSONValue] | None = None
    ) -> None:
        """Emit what a call returned.

        Args:
            call_id: As :meth:`tool_call` returned it.
            result: The value, where the call succeeded.
            error: Where it did not: code, message and retryable.
        """
        body: dict[str, JSONValue] = {"call_id": _text(call_id, "call_id")}
        if error is None:
            body["result"] = result
        elif result is not None:
            raise InvalidRequestError("$.body: expected a result or an error, got both")
        else:
            body["error"] = {
                "code": _text(error.get("code"), "error.code"),
                "message": _text(error.get("message"), "error.message"),
                "retryable": bool(error.get("retryable", False)),
            }
        await self._emit("tool_result", body)

    async def artifact_ref(
        self, uri: str, content_type: str, *, byte_size: int | None = None, sha256: str | None = None
    ) -> None:
        """Emit where something that the agent made can be found.

        Args:
            uri: Where it is.
            content_type: What it is.
            byte_size: How large it is, not negative.
            sha256: The digest of its bytes, in hex.
        """
        body: dict[str, JSONValue] = {
            "uri": _text(uri, "uri"),
            "content_type": _text(content_type, "content_type"),
        }
        if byte_size is not None:
            if type(byte_size) is not int or byte_size < 0:
                raise InvalidRequestError("$.body.byte_size: expected an integer that is not negative")
            body["byte_size"] = byte_size
        if sha256 is not None:
            body["sha256"] = _text(sha256, "sha256")
        await self._emit("artifact_ref", body)

    async def emit(self, kind: str, body: Mapping[str, JSONValue]) -> None:
        """Emit an event of the agent's own kind (P8.1).

        Args:
            kind: Begins with ``x-``; at most 256 characters.
            body: A JSON object.
        """
        events.check_vendor_kind(_text(kind, "kind"))
        if len(kind) > MAX_ID_LENGTH:
            raise InvalidRequestError(f"$.kind: expected at most {MAX_ID_LENGTH} characters")
        await self._emit(kind, _object(body, "") or {})

    def stream_result(self, *, content_type: str | None = None) -> ResultStream:
        """Open the job's result as a stream: ``async with job.stream_result() as out: await out.write(…)``.

        Args:
            content_type: Says to the reader what it is; on ``application/json`` alone our client decodes it.

        Raises:
            InvalidRequestError: The job has a result stream already (one for each job, P8.5).
        """
        if self._result is not None:
            raise InvalidRequestError("a job has one result stream")
        services = self._actor.services
        if content_type is not None and (
            not _text(content_type, "content_type").isascii()
            or not content_type.isprintable()
            or '"' in content_type
            or "\\" in content_type
        ):
            raise InvalidRequestError("content_type: expected a media type")
        self._result = ResultStream(
            self._emit_chunk,
            result_id=services.ids.result(),
            limits=services.limits,
            content_type=content_type,
            keep=self._actor.feed.any_without_chunks,
        )
        return self._result

    # --- how it is done ---------------------------------------------------------------------------

    async def _emit(self, kind: str, body: dict[str, JSONValue], *, feature: str | None = None) -> None:
        try:
            encoded = encode_json(body, within=2)
        except ValueError as exc:
            raise InvalidRequestError(f"$.body: {exc}") from None
        if len(encoded) + _FRAME_OVERHEAD > self._actor.services.limits.send_bytes:
            limit = self._actor.services.limits.send_bytes
            raise MessageTooLargeError(f"$.body: {len(encoded)} bytes; a frame has at most {limit}")
        await self._emit_encoded(kind, encoded, feature)

    async def _emit_chunk(self, encoded: bytes) -> None:
        await self._emit_encoded("result_chunk", encoded, "result_chunk")

    async def _emit_encoded(self, kind: str, encoded: bytes, feature: str | None) -> None:
        actor = self._actor
        await trio.lowlevel.checkpoint_if_cancelled()
        if actor.throttle is not None and not actor.stop_requested and actor.throttle.lags():
            await actor.throttle.wait_for_room()
        # No checkpoint between here and the append: the job runs, so the event belongs to it.
        actor.append_event(kind, encoded, feature)
        pacer = actor.services.pacer
        if pacer.slice_is_over():
            await pacer.yield_turn()

    async def finish_result(self, value: Any) -> ResultPayload:
        """Turn what the agent returned into the payload of job.result; the runtime calls it.

        Raises:
            InternalError: The value is not JSON, or stands beside a stream, or the stream was left by an exception.
        """
        stream = self._result
        if stream is not None:
            if value is not None:
                raise InternalError("the agent streamed a result and returned another")
            if stream.broken:
                raise InternalError("the agent's result stream was left by an exception")
            await stream.aclose()
            return stream.payload()
        try:
            encoded = encode_json(value, within=2)
        except ValueError as exc:
            raise InternalError(f"the agent's result is not JSON: {exc}") from None
        if value is None:
            return ResultPayload()
        if fits_inline(encoded, self._actor.services.limits.send_bytes):
            return ResultPayload(inline=encoded)
        async with self.stream_result(content_type="application/json") as out:
            await out.write(encoded.decode())
        return out.payload()
