"""What the tests of spans share: a provider whose spans a test can read, and the trace of who asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import trio
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import arcp_trio
from arcp_trio.wire.timestamps import WallClock
from arcp_trio.wire.tracecontext import TRACECONTEXT_EXTENSION

if TYPE_CHECKING:
    from helpers import Frame
    from opentelemetry.sdk.trace.sampling import Sampler

__all__ = [
    "NOW",
    "PARENT",
    "SPAN",
    "THEIR_CLOCK",
    "TRACE",
    "Recorded",
    "agents_that",
    "carrying",
    "current_id",
    "ids_of",
    "parent_id",
    "recorded",
]

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
NOW = 1_800_000_000.0
THEIR_CLOCK = WallClock(lambda: NOW + trio.current_time())
"""A time of day that goes with the mock clock."""


class Recorded:
    """A provider, and what ended of its spans."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, start: str) -> list[ReadableSpan]:
        """Return those that have ended whose names begin so, in the order of their ends."""
        return [span for span in self.spans if span.name.startswith(start)]

    def one(self, start: str) -> ReadableSpan:
        (span,) = self.named(start)
        return span

    def texts(self) -> str:
        """Return all that an exporter would see."""
        return "\n".join(span.to_json() + repr(span.context.trace_state if span.context else "") for span in self.spans)


def ids_of(span: ReadableSpan | trace.Span) -> tuple[str, str]:
    """Return the trace and the id of a span, as they are written in a traceparent."""
    context: Any = span.get_span_context()
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def current_id() -> str | None:
    """Return the id of the current span; ``None`` where there is none."""
    context = trace.get_current_span().get_span_context()
    return trace.format_span_id(context.span_id) if context.is_valid else None


def parent_id(span: ReadableSpan) -> str | None:
    return None if span.parent is None else trace.format_span_id(span.parent.span_id)


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def carrying(traceparent: str, tracestate: str | None = None) -> Frame:
    carrier = {"traceparent": traceparent} | ({"tracestate": tracestate} if tracestate else {})
    return {TRACECONTEXT_EXTENSION: carrier}


def agents_that(look: Callable[[arcp_trio.JobContext], Any]) -> arcp_trio.Agents:
    """Return an agent that returns what it sees."""
    agents = arcp_trio.Agents()

    @agents.register("look", version="1.0.0")
    async def agent(job: arcp_trio.JobContext, value: Any) -> Any:
        return look(job)

    return agents
