"""The frames with which a connection answers, in the forms that the peers in use read (P5.3a)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from ..wire.codec import encode_payload
from ..wire.envelope import encode_envelope
from ..wire.errors import CORE_CODES, ARCPError, sendable_retryable
from ..wire.ids import IdFactory
from ..wire.job_messages import JobError
from ..wire.session_messages import SessionError
from ..wire.timestamps import WallClock

__all__ = ["Replies"]

_MAX_MESSAGE = 4096


@attrs.frozen
class Replies:
    """Makes frames for one session.

    Attributes:
        session_id: Stands on every frame: before the welcome the client's own proposal or a fresh one.
    """

    session_id: str
    ids: IdFactory
    clock: WallClock

    def frame(
        self,
        frame_type: str,
        message: object,
        *,
        request_id: str | None = None,
        job_id: str | None = None,
        trace_id: str | None = None,
        message_id: str | None = None,
    ) -> bytes:
        """Return a frame without a number; ``request_id`` becomes its correlation_id."""
        return encode_envelope(
            frame_type,
            encode_payload(message),
            message_id=message_id or self.ids.message(),
            timestamp=self.clock.timestamp(),
            session_id=self.session_id,
            job_id=job_id,
            trace_id=trace_id,
            correlation_id=request_id,
        )

    def error(
        self,
        error: ARCPError,
        *,
        request_id: str | None = None,
        job_id: str | None = None,
        trace_id: str | None = None,
    ) -> bytes:
        """Return the session.error that says ``error``, to one request or to the connection (P12.2).

        What it repeats (``job_id``, ``trace_id``) is the request's own: that a job is not found tells nothing of it.
        """
        code = error.code if error.code in CORE_CODES else "INTERNAL_ERROR"
        return self.frame(
            "session.error",
            SessionError(
                code=code,
                message=error.message[:_MAX_MESSAGE] or error.code,
                retryable=sendable_retryable(code, error.retryable),
                request_id=request_id,
                reply_to=request_id,
                job_id=job_id,
                details=error.details or None,
            ),
            request_id=request_id,
            job_id=job_id,
            trace_id=trace_id,
        )

    def error_with_request_id(self, error: ARCPError, request_id: str) -> bytes:
        """Return a refusal for a peer that knows only job.error with its request's own id (X4)."""
        return self.frame(
            "job.error",
            self._refusal(error, None, request_id),
            request_id=request_id,
            message_id=request_id,
        )

    def refused_job(self, error: ARCPError, job_id: str, request_id: str) -> bytes:
        """Return the payload of a job.error for a job that never was (X4, submit_refused_by_job_error)."""
        return encode_payload(self._refusal(error, job_id, request_id))

    def _refusal(self, error: ARCPError, job_id: str | None, request_id: str) -> JobError:
        details: Mapping[str, Any] | None = error.details
        return JobError(
            code=error.code,
            message=error.message[:_MAX_MESSAGE] or error.code,
            retryable=sendable_retryable(error.code, error.retryable),
            job_id=job_id,
            request_id=request_id,
            reply_to=request_id,
            details=dict(details) if details else None,
            completed_at=self.clock.timestamp(),
        )
