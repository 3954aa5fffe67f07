"""A job's place in its trace: its span, where there are any, and what it passes on (P11.1)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

import trio

from ..tracing import outgoing_headers, where_in
from ..wire.errors import ARCPError, InternalError, JobCancelledError
from ..wire.tracecontext import TraceContext
from .authority import JobAuthority
from .lifecycle import Outcome

if TYPE_CHECKING:
    from ..spans import Span
    from .spec import JobServices, JobSpec

__all__ = ["JobTrace", "Operation"]


class JobTrace:
    """Owned by the job's actor. Every method is synchronous and never fails.

    Args:
        job_id: The job.
        spec: What was asked for, and by which operation.
        authority: What it may do, which its span says.
        services: Whether there are spans; without, a job passes on what asked for it.

    Attributes:
        context: What the job passes on. Its trace is the one that was asked for, whatever a provider makes of it.
    """

    __slots__ = ("_authority", "_span", "context")

    def __init__(self, job_id: str, spec: JobSpec, authority: JobAuthority, services: JobServices) -> None:
        self._authority = authority
        self._span = None
        if services.spans is not None:
            self._span = services.spans.start_job(
                job_id=job_id,
                session_id=spec.owner,
                agent=spec.agent.resolved,
                namespaces=authority.lease.grants,
                expires_at=authority.lease.expires_at,
                remaining=authority.budget.remaining(),
                parent=spec.trace,
            )
        made = self._span.context if self._span is not None else None
        asked, ids = spec.trace, services.ids
        if made is not None and (asked is None or asked.trace_id == made.trace_id):
            self.context = made
        else:
            self.context = asked or TraceContext(trace_id=ids.trace(), span_id=ids.span())

    def activate(self) -> None:
        """Make the job's span the current one of the agent's task, which calls this first."""
        if self._span is not None:
            self._span.activate()

    def here(self) -> TraceContext:
        """Return the parent of what is asked for from here: the current span in this trace, else the job's."""
        return where_in(self.context)

    def start_operation(self, name: str, attributes: Mapping[str, str], *, is_local: bool = False) -> Operation:
        """Start a guarded operation.

        Args:
            name: What is done: few names, however many jobs there are.
            attributes: What is known of it; no secrets.
            is_local: Whether it stays in this process.
        """
        span = None
        if self._span is not None:
            span = self._span.start_operation(name, attributes, is_local=is_local)
        return Operation(self.context, span, self._authority)

    def headers(self) -> dict[str, str]:
        """Return the headers of a request that is made from here."""
        return outgoing_headers(self.context)

    def end(self, outcome: Outcome) -> None:
        """End the span, the first time that it is called."""
        if self._span is not None:
            self._span.end(
                outcome.code,
                remaining=self._authority.budget.remaining(),
                attributes={"arcp.job.status": outcome.final_status.value},
            )


class Operation:
    """A guarded operation's place in its job's trace. Entered, it is where the task stands; left, it ends. Never fails.

    Attributes:
        headers: What makes a request a part of it; nobody can change them for another.
    """

    __slots__ = ("_authority", "_span", "headers")

    def __init__(self, context: TraceContext, span: Span | None, authority: JobAuthority) -> None:
        self._span = span
        self._authority = authority
        self.headers: Mapping[str, str] = MappingProxyType(outgoing_headers(context, span))

    def __enter__(self) -> Self:
        if self._span is not None:
            self._span.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._span is not None:
            self._span.__exit__(kind, exc, tb)
            self.end(_code_of(exc))

    def end(self, code: str = "", attributes: Mapping[str, str] | None = None) -> None:
        """End it, the first time that it is called.

        Args:
            code: The error's code; empty for success.
            attributes: What is known only now.
        """
        if self._span is not None:
            self._span.end(code, remaining=self._authority.budget.remaining(), attributes=attributes)


def _code_of(exc: BaseException | None) -> str:
    if exc is None:
        return ""
    if isinstance(exc, ARCPError):
        return exc.code
    return (JobCancelledError if isinstance(exc, trio.Cancelled) else InternalError).default_code
