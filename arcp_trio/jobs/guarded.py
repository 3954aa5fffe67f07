"""Guarded operations: what an agent does, asked for, done and told in one step (P9.4).

A check that agents have to remember is a check that gets forgotten. So each of these is the convenient way to do its
thing, and asks the job's authority by itself; :class:`~arcp_trio.jobs.context.JobContext` has a method for each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from types import MappingProxyType, TracebackType
from typing import IO, TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar, cast
from urllib.parse import urljoin, urlsplit

import attrs
import trio

from ..wire.envelope import MAX_ID_LENGTH
from ..wire.errors import ARCPError, InvalidRequestError, JobCancelledError, JobEndedError, PermissionDeniedError
from ..wire.events import encode_body
from ..wire.jsontext import JSONValue
from .failures import Failure, failure_of
from .guarded_files import CAN_OPEN, open_checked
from .trace import Operation

if TYPE_CHECKING:
    # The class has no public name; it is what trio.wrap_file returns.
    from trio._file_io import AsyncIOWrapper

    from .actor import JobActor

__all__ = [
    "AllowedFetch",
    "GuardedFile",
    "ModelUse",
    "TextMode",
    "ToolCall",
    "allow_fetch",
    "allow_model",
]

TextMode = Literal["r", "w", "a", "x", "r+", "w+", "a+", "x+", "rt", "wt", "at", "xt"]
"""The usual spellings, for type checkers."""

FileT = TypeVar("FileT", bound=IO[Any])

# As browsers do; a server that leads in circles must not hold an agent for ever.
_MAX_REDIRECTS = 20

# A slash to some and none to others; and what some drop before they look.
_AMBIGUOUS = re.compile(r"[\\\x00-\x1f\x7f]")

# What ends a call without saying anything about it.
_CUT_OFF = (trio.Cancelled, KeyboardInterrupt, GeneratorExit)
_CUT = Failure(code=JobCancelledError.default_code, message="the call was cancelled", retryable=False)


class Guard(Protocol):
    """Asks for one operation; a checkpoint before it asks."""

    async def __call__(self, namespace: str, target: str, *, call_id: str | None = None) -> str:
        """Return the canonical target, or say the refusal on the wire under ``call_id`` and raise it."""
        ...


Refuse = Callable[[ARCPError], None]
"""Says a refusal on the wire; no checkpoint."""


def _text(value: object, name: str) -> str:
    if type(value) is not str:
        raise InvalidRequestError(f"{name}: expected a string, got {type(value).__name__}")
    return value


# --- tools ----------------------------------------------------------------------------------------


class ToolCall:
    """One call of a tool, an asynchronous context manager; made by :meth:`JobContext.tool_call`.

    Once the ``tool_call`` is out, exactly one ``tool_result`` follows, however the body is left, unless the job has
    ended by then.

    Attributes:
        tool: The tool's name, as it was allowed.
        call_id: The call's id.
        headers: ``traceparent``, and ``tracestate`` where there is one, to be passed on to where the tool runs; empty
            before the body.
    """

    __slots__ = (
        "_actor",
        "_args",
        "_emit",
        "_guard",
        "_is_open",
        "_leave",
        "_operation",
        "_result",
        "_was_entered",
        "call_id",
        "headers",
        "tool",
    )

    def __init__(
        self,
        actor: JobActor,
        guard: Guard,
        emit: Callable[[str, bytes, str | None], Awaitable[None]],
        *,
        tool: str,
        args: JSONValue,
        call_id: str | None,
    ) -> None:
        self._actor = actor
        self._guard = guard
        self._emit = emit
        self._args = {} if args is None else args
        self._result: JSONValue = None
        self._was_entered = self._is_open = False
        self.tool = _text(tool, "tool")
        self.call_id = actor.services.ids.call() if call_id is None else _text(call_id, "call_id")
        if not 0 < len(self.call_id) <= MAX_ID_LENGTH:
            raise InvalidRequestError(f"call_id: expected 1 to {MAX_ID_LENGTH} characters")
        self.headers: Mapping[str, str] = MappingProxyType({})
        self._operation: Operation
        self._leave: ExitStack

    def __repr__(self) -> str:
        return f"<ToolCall {self.call_id} {self.tool!r}>"

    @property
    def result(self) -> JSONValue:
        """What the tool returned: any JSON value, sent as it is when the body is left; ``None`` until it is set."""
        return self._result

    @result.setter
    def result(self, value: JSONValue) -> None:
        if not self._is_open:
            raise InvalidRequestError("a result is set in the body of its call")
        self._result = value

    async def __aenter__(self) -> Self:
        if self._was_entered:
            raise InvalidRequestError("a tool call is entered once")
        self._was_entered = True
        encoded = self._encode_call()
        attributes = {"arcp.tool": self.tool[:MAX_ID_LENGTH], "arcp.call_id": self.call_id}
        operation = self._actor.trace.start_operation("arcp.tool.call", attributes)
        with ExitStack() as stack:
            stack.enter_context(operation)
            await self._announce(encoded)
            self._operation, self._leave = operation, stack.pop_all()
        self.headers = operation.headers
        self._is_open = True
        return self

    async def _announce(self, encoded: bytes) -> None:
        """Ask, say what is to come, and ask again."""
        allowed = await self._guard("tool.call", self.tool, call_id=self.call_id)
        if allowed != self.tool:
            self.tool = allowed
            encoded = self._encode_call()
        await self._emit("tool_call", encoded, None)
        try:
            # The emission may have waited, and now the body begins.
            self._actor.authority.check("tool.call", self.tool)
        except ARCPError as refusal:
            self._tell(self._failure(refusal))
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._is_open = False
        with self._leave:
            if exc is not None:
                # And no checkpoint: whatever was raised leaves as it is.
                failure = self._failure(exc)
                self._tell(failure)
                self._operation.end(failure.code)
                return
            try:
                encoded = self._encode({"call_id": self.call_id, "result": self._result})
            except InvalidRequestError as problem:
                refusal = type(problem)(f"the result of tool {self.tool!r} cannot be sent: {problem.message}")
                self._tell(self._failure(refusal))
                raise refusal from None
            # Before the checkpoint: a cancellation cannot unmake what the tool has done, and its result is known.
            self._actor.append_event("tool_result", encoded, None)
            self._operation.end()
        await trio.lowlevel.checkpoint_if_cancelled()  # noqa: ASYNC102  # there is nothing left that must be done

    def _encode(self, body: dict[str, JSONValue]) -> bytes:
        return encode_body(body, self._actor.services.limits.send_bytes)

    def _encode_call(self) -> bytes:
        return self._encode({"tool": self.tool, "args": self._args, "call_id": self.call_id})

    def _failure(self, exc: BaseException) -> Failure:
        if isinstance(exc, BaseExceptionGroup):
            _, rest = exc.split(_CUT_OFF)
            if rest is None:
                return _CUT
            exc = rest
        elif isinstance(exc, _CUT_OFF):
            return _CUT
        actor = self._actor
        name = f"tool call {self.call_id} of agent {actor.agent.resolved}"
        return failure_of(exc, "the tool", name, job_id=actor.job_id, translators=actor.services.translators)

    def _tell(self, failure: Failure) -> None:
        """Append the error, without a checkpoint; of a job that has ended nothing is told any more (P7.11)."""
        error: dict[str, JSONValue] = {
            "code": failure.code,
            "message": failure.message,
            "retryable": failure.retryable,
        }
        with suppress(JobEndedError):
            self._actor.append_event("tool_result", self._encode({"call_id": self.call_id, "error": error}), None)


# --- models and the network -------------------------------------------------------------------------


@attrs.frozen
class ModelUse:
    """A model that the job may use now; made by :meth:`JobContext.use_model`.

    Attributes:
        name: The model, as it was allowed: use this one.
        headers: ``traceparent``, and ``tracestate`` where there is one, to be passed on to where the model runs.
    """

    name: str
    headers: Mapping[str, str] = attrs.field(eq=False)


@attrs.frozen
class AllowedFetch:
    """A URL that the job may fetch now; made by :meth:`JobContext.fetch_allowed`.

    It allows this URL and no other: a client that follows redirects by itself goes where nobody was asked. So fetch
    without following, and ask :meth:`redirect` for each hop.

    Attributes:
        url: The URL in its canonical form: use this one.
        headers: ``traceparent``, and ``tracestate`` where there is one, to be sent along.
        redirects: How many hops led here.
    """

    url: str
    headers: Mapping[str, str] = attrs.field(eq=False)
    redirects: int
    _actor: JobActor = attrs.field(repr=False, eq=False)
    _guard: Guard = attrs.field(repr=False, eq=False)

    async def redirect(self, location: str) -> AllowedFetch:
        """Ask for the next hop.

        Args:
            location: What the answer's ``Location`` says, absolute or relative to this URL.

        Returns:
            The next fetch, with headers of its own.

        Raises:
            ARCPError: As :meth:`JobContext.fetch_allowed`; and PERMISSION_DENIED after 20 hops.

        Cancellation: a checkpoint; nothing was asked.
        """
        if self.redirects >= _MAX_REDIRECTS:
            await trio.lowlevel.checkpoint()
            raise PermissionDeniedError(f"more than {_MAX_REDIRECTS} redirects")
        url = _text(location, "location")
        # What parsers resolve in different ways is not resolved at all: it is no absolute URL, and no lease covers it.
        if not _AMBIGUOUS.search(url):
            with suppress(ValueError):
                url = urljoin(self.url, url)
        return await allow_fetch(self._actor, self._guard, url, redirects=self.redirects + 1)


async def allow_model(actor: JobActor, guard: Guard, name: str) -> ModelUse:
    """Ask for a model; see :meth:`JobContext.use_model`."""
    attributes = {"arcp.model": _text(name, "name")[:MAX_ID_LENGTH]}
    with actor.trace.start_operation("arcp.model.use", attributes) as operation:
        return ModelUse(await guard("model.use", name), operation.headers)


async def allow_fetch(actor: JobActor, guard: Guard, url: str, *, redirects: int = 0) -> AllowedFetch:
    """Ask for a URL; see :meth:`JobContext.fetch_allowed`."""
    _text(url, "url")
    with actor.trace.start_operation("arcp.net.fetch", {}) as operation:
        allowed = await guard("net.fetch", url)
        # The host alone: what stands behind it may hold a secret.
        operation.end(attributes={"server.address": urlsplit(allowed).hostname or ""})
        return AllowedFetch(allowed, operation.headers, redirects, actor, guard)


# --- files ----------------------------------------------------------------------------------------


def _namespaces_of(mode: str) -> tuple[str, ...]:
    """Return what a mode of :func:`open` does to a file."""
    letters = set(_text(mode, "mode"))
    is_known = len(letters) == len(mode) and letters <= set("rwaxbt+")
    if not is_known or len(letters & set("rwax")) != 1 or {"b", "t"} <= letters:
        raise InvalidRequestError(f"mode: expected one of r, w, a, x, with b or t and with +, got {mode!r:.20}")
    if "+" in letters:
        return ("fs.read", "fs.write")
    return ("fs.read",) if "r" in letters else ("fs.write",)


class GuardedFile(Generic[FileT]):
    """A file opened below the job's lease, an asynchronous context manager; see :meth:`JobContext.open_file`."""

    __slots__ = ("_actor", "_file", "_guard", "_mode", "_namespaces", "_options", "_path", "_refuse", "_was_entered")

    def __init__(
        self,
        actor: JobActor,
        guard: Guard,
        refuse: Refuse,
        path: str | os.PathLike[str],
        mode: str,
        **options: Any,
    ) -> None:
        self._actor = actor
        self._guard = guard
        self._refuse = refuse
        self._path = _text(os.fspath(path), "path")
        self._mode = mode
        self._namespaces = _namespaces_of(mode)
        self._options = options
        self._file: AsyncIOWrapper[FileT] | None = None
        self._was_entered = False

    async def __aenter__(self) -> AsyncIOWrapper[FileT]:
        if self._was_entered:
            raise InvalidRequestError("a file is opened once")
        self._was_entered = True
        with self._actor.trace.start_operation("arcp.fs.open", {"arcp.file_mode": self._mode}, is_local=True):
            for namespace in self._namespaces:
                self._path = await self._guard(namespace, self._path)
            try:
                # Waited for even if cancelled, which ends it at its next question: so nothing is left open, or
                # created behind the agent's back.
                opened = await trio.to_thread.run_sync(self._open)
            except JobEndedError:
                raise
            except ARCPError as refusal:
                self._refuse(refusal)
                raise
        # No checkpoint between here and the body.
        self._file = trio.wrap_file(opened)
        return self._file

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._file is not None
        # Closing runs in a thread that nothing can stop, so a deadline would bound nothing. The shield keeps the
        # checkpoint behind it from replacing what was raised.
        with trio.CancelScope(shield=exc is not None):
            await self._file.aclose()

    def _open(self) -> FileT:
        """Open the file; runs in a thread."""
        if not CAN_OPEN:
            raise PermissionDeniedError("this platform cannot keep a path from changing while it is opened")

        def open_descriptor(path: str, flags: int) -> int:
            return open_checked(path, flags, self._ask)

        return cast("FileT", open(self._path, self._mode, opener=open_descriptor, **self._options))

    def _ask(self, path: str) -> None:
        """Ask for a real path, from the thread."""
        trio.from_thread.check_cancelled()
        trio.from_thread.run_sync(self._check, path)

    def _check(self, path: str) -> None:
        for namespace in self._namespaces:
            try:
                self._actor.authority.check(namespace, path)
            except JobEndedError:
                raise
            except PermissionDeniedError as exc:
                if path == self._path:
                    raise
                # Where it leads is not said: the client reads this too, and the place is none of its lease.
                raise PermissionDeniedError(
                    f"{self._path[:200]!r} leads to where the lease does not allow {namespace}", details=exc.details
                ) from None
