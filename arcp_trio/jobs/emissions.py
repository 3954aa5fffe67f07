"""What an agent can say of its job, and how it gets out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from ..authority.budget import Reservation, to_amount
from ..wire import events
from ..wire.envelope import MAX_ID_LENGTH
from ..wire.errors import InternalError, InvalidRequestError
from ..wire.jsontext import JSONValue, encode_json, exact_number
from .feed import ResultPayload, Throttle
from .results import ResultStream, fits_inline

if TYPE_CHECKING:
    from .actor import JobActor

__all__ = ["JobEmissions"]

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


class JobEmissions:
    """The part of :class:`~arcp_trio.jobs.context.JobContext` that speaks; its contract stands there."""

    __slots__ = ("_actor", "_result")

    def __init__(self, actor: JobActor) -> None:
        self._actor = actor
        self._result: ResultStream | None = None

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
        value: float | Decimal,
        unit: str | None = None,
        dimensions: Mapping[str, JSONValue] | None = None,
    ) -> None:
        """Emit a measured number.

        A cost is charged to the job's budget in the same step, where the budget has its currency, or an ancestor's
        does; a ``cost.budget.remaining`` says what is left of it then. Costs are charged as they are: past zero too,
        and the next guarded operation is refused. Other currencies, and ``cost.budget.…``, are not charged (P9.7).

        Args:
            name: What was measured; ``cost.…`` is a cost.
            value: A finite number; a cost is not negative. A float counts as the decimal that it prints as.
            unit: Its unit; for a cost the currency.
            dimensions: Labels.
        """
        await self._report(name, value, unit, dimensions)

    async def _report(
        self,
        name: str,
        value: float | Decimal,
        unit: str | None,
        dimensions: Mapping[str, JSONValue] | None,
        reservation: Reservation | None = None,
    ) -> None:
        """Emit a metric; charge a cost, out of a reservation if there is one."""
        events.check_metric(_text(name, "name"), value)
        body: dict[str, JSONValue] = {
            "name": name,
            "value": exact_number(value) if isinstance(value, Decimal) else value,
        }
        if unit is not None:
            body["unit"] = _text(unit, "unit")
        labels = _object(dimensions, "dimensions")
        if labels:
            body["dimensions"] = body["dims"] = labels
        charge: Callable[[], object] | None = None
        if events.is_cost(name):
            # Checked here, so that a bad one takes no number; also where nobody pays.
            amount = to_amount(value, "$.body.value")
            if unit is not None:
                charge = partial((reservation or self._actor.authority.budget).charge, unit, amount)
        elif reservation is not None:
            raise InvalidRequestError(f"$.body.name: expected the name of a cost, got {name!r:.60}")
        await self._emit("metric", body, charge=charge)

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
            keep=self._wants_whole_result,
        )
        return self._result

    # --- how it is done ---------------------------------------------------------------------------

    def _encode(self, body: dict[str, JSONValue]) -> bytes:
        return events.encode_body(body, self._actor.services.limits.send_bytes)

    async def _emit(
        self,
        kind: str,
        body: dict[str, JSONValue],
        *,
        feature: str | None = None,
        charge: Callable[[], object] | None = None,
    ) -> None:
        await self._emit_encoded(kind, self._encode(body), feature, charge)

    async def _emit_chunk(self, encoded: bytes) -> None:
        await self._emit_encoded("result_chunk", encoded, "result_chunk")

    async def _emit_encoded(
        self, kind: str, encoded: bytes, feature: str | None, charge: Callable[[], object] | None = None
    ) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._wait_for_room()
        # No checkpoint between here and the append: the job runs, so the event belongs to it.
        if charge is None:
            self._actor.append_event(kind, encoded, feature)
        else:
            self._actor.append_cost(encoded, charge)
        await self._yield_if_due()

    async def _wait_for_room(self) -> None:
        throttle = self._lagging()
        if throttle is not None:
            await throttle.wait_for_room()

    async def _yield_if_due(self) -> None:
        pacer = self._actor.services.pacer
        if pacer.slice_is_over():
            await pacer.yield_turn()

    def _lagging(self) -> Throttle | None:
        """Return the submitting session if the agent should wait for it: never one that is being stopped."""
        throttle = self._actor.root.throttle
        return throttle if throttle is not None and not self._actor.stop_requested and throttle.lags() else None

    def _wants_whole_result(self) -> bool:
        """Say whether a streamed result is kept: for a follower that takes no chunks, or for the parent's agent."""
        return self._actor.parent is not None or self._actor.feed.any_without_chunks()

    async def finish_result(self, value: Any) -> ResultPayload:
        """Turn what the agent returned into the payload of job.result; the runtime calls it.

        It waits for the children first: until they have ended the agent has not, and can be stopped (P10.3).

        Raises:
            InternalError: The value is not JSON, or stands beside a stream, or the stream was left by an exception.
        """
        await self._actor.children.wait_ended()
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
