"""The spans of sessions, jobs and guarded operations: one each, and not one for each event (P11.1).

Theory of operation. A span is started under a parent that is named, never under what happens to be current: the tasks
of a runtime start from the context of whoever opened it. A job's span is made current where its agent's task begins, in
that task's own context, which ends with the task; that of an operation while it is entered. Status is set by us: what
a cancellation leaves would end unset. An error is named by its code alone: its message is an agent's, and may hold
anything.

Spans disturb nothing that they watch: what a provider raises is logged, and costs the span.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import ParamSpec, Self, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context, attach, get_current

from ._version import __version__
from .wire.tracecontext import TraceContext

__all__ = ["Span", "Spans", "active_context"]

logger = logging.getLogger("arcp_trio.tracing")

P = ParamSpec("P")
T = TypeVar("T")

# The namespaces of a lease come from a client; the first of a thousand say what it is.
_MAX_ATTRIBUTE = 1_024


def _quietly(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Call what may end up in a provider, which is not ours; ``None`` where it failed."""
    try:
        return do(*args, **kwargs)
    except Exception:
        logger.exception("the tracer provider failed")
        return None


def _read_context(span: trace.Span) -> TraceContext | None:
    found = span.get_span_context()
    if not found.is_valid:
        return None
    return TraceContext(
        trace_id=trace.format_trace_id(found.trace_id),
        span_id=trace.format_span_id(found.span_id),
        flags=found.trace_flags,
        tracestate=found.trace_state.to_header(),
        is_remote=found.is_remote,
    )


def active_context() -> TraceContext | None:
    """Return what the current span is for others; ``None`` where there is none."""
    return _quietly(_read_context, trace.get_current_span())


def _beneath(parent: TraceContext | None) -> Context:
    """Return the context in which a span of that parent starts: nothing else is in it."""
    if parent is None:
        return Context()
    named = trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=parent.is_remote,
        trace_flags=trace.TraceFlags(parent.flags),
        trace_state=trace.TraceState.from_header([parent.tracestate]),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(named), Context())


def _budget_attribute(remaining: Mapping[str, Decimal]) -> dict[str, str]:
    """Return what is left of a budget as the attribute that the specification names: amounts by currency, as JSON.

    Args:
        remaining: By currency, whose names need no escaping (P9.7); none, no attribute.
    """
    if not remaining:
        return {}
    amounts = ",".join(f'"{currency}":{amount:f}' for currency, amount in sorted(remaining.items()))
    return {"arcp.budget.remaining": f"{{{amounts}}}"}


class Span:
    """A span that has been started. It ends once, whoever ends it again.

    Entered, it is the current one of the task until it is left; neither that nor an exception ends it.

    Attributes:
        context: What others name as their parent; ``None`` where nobody named a trace and no provider made one.
    """

    __slots__ = ("_attributes", "_before", "_ended", "_span", "_tracer", "context")

    def __init__(self, span: trace.Span, tracer: trace.Tracer, attributes: Mapping[str, str]) -> None:
        self._span = span
        self._tracer = tracer
        self._attributes = attributes
        self._ended = False
        self._before: Context | None = None
        self.context = _quietly(_read_context, span)

    def activate(self) -> None:
        """Make it the current span of this task, and of what it starts, for as long as the task lives."""
        _quietly(attach, trace.set_span_in_context(self._span))

    def __enter__(self) -> Self:
        self._before = get_current()
        self.activate()
        return self

    def __exit__(self, *_: object) -> None:
        # Not by the token of attach: where this is another task than the one that entered, OpenTelemetry would
        # complain of it.
        if self._before is not None and trace.get_current_span() is self._span:
            _quietly(attach, self._before)

    def start_operation(self, name: str, attributes: Mapping[str, str], *, is_local: bool = False) -> Span | None:
        """Start the span of what this one's job does: under the current span, where that is of the job's trace.

        Args:
            name: What is done: few names, however many jobs there are.
            attributes: What is known beside the job's own attributes; no secrets.
            is_local: Whether it stays in this process.
        """
        kind = trace.SpanKind.INTERNAL if is_local else trace.SpanKind.CLIENT
        active, here = active_context(), get_current()
        if active is None or self.context is None or active.trace_id != self.context.trace_id:
            here = trace.set_span_in_context(self._span, here)
        return _start(self._tracer, name, here, kind, {**self._attributes, **attributes})

    def end(
        self,
        code: str = "",
        *,
        remaining: Mapping[str, Decimal] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """End it, the first time that it is called.

        Args:
            code: The error's code; empty for success.
            remaining: What is left of the job's budget.
            attributes: What else is known only now.
        """
        if not self._ended:
            self._ended = True
            _quietly(self._end, code, {**_budget_attribute(remaining or {}), **(attributes or {})})

    def _end(self, code: str, attributes: Mapping[str, str]) -> None:
        found = {**attributes, "error.type": code} if code else attributes
        self._span.set_attributes(found)
        self._span.set_status(trace.Status(trace.StatusCode.ERROR, code) if code else trace.Status(trace.StatusCode.OK))
        self._span.end()


def _start(
    tracer: trace.Tracer, name: str, context: Context, kind: trace.SpanKind, attributes: Mapping[str, str]
) -> Span | None:
    span = _quietly(tracer.start_span, name, context, kind, attributes)
    return None if span is None else Span(span, tracer, attributes)


class Spans:
    """Starts the spans of one runtime.

    Args:
        provider: Where they go; ``None`` for the global provider, also one that is set later.
    """

    __slots__ = ("_tracer",)

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        self._tracer = (provider or trace.get_tracer_provider()).get_tracer("arcp_trio", __version__)

    def start_session(self, session_id: str, parent: TraceContext | None) -> Span | None:
        """Start the span of a session; it goes on while its connections come and go.

        Args:
            session_id: Its id.
            parent: The operation that opened it; ``None`` where its hello named none.
        """
        attributes = {"arcp.session_id": session_id}
        return _start(self._tracer, "arcp.session", _beneath(parent), trace.SpanKind.SERVER, attributes)

    def start_job(
        self,
        *,
        job_id: str,
        session_id: str,
        agent: str,
        namespaces: Iterable[str],
        expires_at: str | None,
        remaining: Mapping[str, Decimal],
        parent: TraceContext | None,
    ) -> Span | None:
        """Start the span of a job.

        Args:
            job_id: Its id.
            session_id: The session that submitted it.
            agent: The resolved agent, ``name@version``.
            namespaces: What its lease grants something of: patterns may name what is nobody's business.
            expires_at: When the lease ends, as the wire writes it, or ``None``.
            remaining: Its budget.
            parent: The operation that asked for it; ``None`` where it begins a trace of its own.
        """
        attributes = {"arcp.session_id": session_id, "arcp.job_id": job_id, "arcp.agent": agent}
        capabilities = ",".join(sorted(namespaces))
        if capabilities:
            attributes["arcp.lease.capabilities"] = capabilities[:_MAX_ATTRIBUTE]
        if expires_at is not None:
            attributes["arcp.lease.expires_at"] = expires_at
        attributes |= _budget_attribute(remaining)
        kind = trace.SpanKind.SERVER if parent is None or parent.is_remote else trace.SpanKind.INTERNAL
        return _start(self._tracer, f"arcp.job {agent}", _beneath(parent), kind, attributes)
