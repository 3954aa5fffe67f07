"""Where we stand in a trace; OpenTelemetry, where a program has it (P11.1).

A trace goes on without OpenTelemetry: a job passes on the operation that its submit has named. Where it is installed,
sessions, jobs and guarded operations have spans, and what they pass on is their own. :mod:`arcp_trio.spans` alone
imports it, and is itself imported only when a runtime is opened, or where the program has imported it before.

Nothing of ours goes into a tracestate, and no baggage is passed on: what a program keeps there is its own.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from .wire.tracecontext import TraceContext

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from .spans import Span, Spans

__all__ = ["active_context", "find_spans", "outgoing_headers", "where_in"]


def find_spans(provider: TracerProvider | None) -> Spans | None:
    """Return what makes a runtime's spans; ``None`` where OpenTelemetry is not installed.

    Args:
        provider: Where they go; ``None`` for the global provider, also one that is set later.

    Raises:
        ImportError: A provider was given, and there is no OpenTelemetry that could use it.
    """
    try:
        from .spans import Spans  # noqa: PLC0415  # an extra: found when it is wanted
    except ImportError:
        if provider is not None:
            raise
        return None
    return Spans(provider)


def active_context() -> TraceContext | None:
    """Return the operation that runs here, as OpenTelemetry knows it; ``None`` where there is none."""
    # Who has not imported it has no span either: a client must not pay for an import.
    if "opentelemetry.trace" not in sys.modules:
        return None
    from .spans import active_context  # noqa: PLC0415  # as above

    return active_context()


def where_in(trace: TraceContext) -> TraceContext:
    """Return the operation of a job's trace that runs here: the innermost span, else what the job passes on.

    Args:
        trace: What the job passes on.
    """
    active = active_context()
    return active if active is not None and active.trace_id == trace.trace_id else trace


def outgoing_headers(trace: TraceContext, span: Span | None = None) -> dict[str, str]:
    """Return the headers of a call that a job makes: ``traceparent``, and ``tracestate`` where there is one.

    Args:
        trace: What the job passes on.
        span: The call's own span; ``None`` for the one that runs here.
    """
    context = span.context if span is not None else None
    return (context or where_in(trace)).headers()
