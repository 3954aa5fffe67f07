"""Whom a frame of the runtime is for.

Answers are matched by the request's id wherever a runtime writes it; against one that writes none, by trace
or by job, and then by order (interop.md, section 3).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

from ..limits import ClientLimits
from ..wire.envelope import Envelope
from ..wire.errors import ARCPError, error_from_wire
from ..wire.job_messages import JobAccepted, JobCancelled, JobError, JobSubscribed
from ..wire.session_messages import SessionError, SessionJobs
from .job_handle import CancelOutcome, JobHandle
from .requests import Request

__all__ = ["EarlyFrames", "Pending", "error_of"]


def error_of(error: SessionError | JobError) -> ARCPError:
    """Return the exception that an error message stands for."""
    return error_from_wire(error.code, error.message, retryable=error.retryable, details=error.details)


class Pending:
    """The requests that wait, each kind in the order in which it was asked.

    Attributes:
        correlates: Whether the runtime has shown that its answers name their request, also those that refuse: until
            then one submit at a time (D31).
        accepts_late: Whether it is the one implementation whose events come before its accepts (D32).
    """

    def __init__(self, limits: ClientLimits) -> None:
        self.submits: OrderedDict[str, Request[JobHandle]] = OrderedDict()
        self.cancels: OrderedDict[str, Request[CancelOutcome]] = OrderedDict()
        self.subscribes: OrderedDict[str, Request[JobSubscribed]] = OrderedDict()
        self.listings: OrderedDict[str, Request[SessionJobs]] = OrderedDict()
        self.correlates = False
        self.accepts_late = False
        # Traces of submits whose callers have left: their answers are nobody's.
        self.left: deque[str] = deque(maxlen=limits.requests)

    def __iter__(self) -> Iterator[Request[Any]]:
        for requests in self._kinds():
            yield from requests.values()

    def _kinds(self) -> tuple[OrderedDict[str, Request[Any]], ...]:
        # Subscriptions first: after a resume a cancel's job may be one that is joined again.
        return self.subscribes, self.submits, self.cancels, self.listings

    def find(self, *request_ids: str | None) -> Request[Any] | None:
        """Return the request that has one of these ids."""
        for request_id in request_ids:
            for requests in self._kinds():
                found = requests.get(request_id or "")
                if found is not None:
                    return found
        return None

    def renew(self, request: Request[Any], request_id: str) -> None:
        """Give a request another id."""
        for requests in self._kinds():
            if requests.get(request.request_id) is request:
                del requests[request.request_id]
                request.renew(request_id)
                requests[request_id] = request
                return

    def fail(self, request: Request[Any], error: ARCPError) -> None:
        """Answer a request with an error, and with it the handle of a job that will never be accepted."""
        if request.request_id in self.submits and request.handle is not None:
            request.handle._lose(error)  # noqa: SLF001
        request.slot.fail(error)

    # --- answers ------------------------------------------------------------------------------------

    def take_submit(self, accepted: JobAccepted, envelope: Envelope) -> Request[JobHandle] | None:
        """Take the submit that an acceptance answers: by id, by trace, by order."""
        request_id = self._submit_of(accepted, envelope)
        return None if request_id is None else self.submits.pop(request_id)

    def _submit_of(self, accepted: JobAccepted, envelope: Envelope) -> str | None:
        named = {accepted.request_id, accepted.reply_to, envelope.correlation_id} - {None}
        for request_id in named:
            if request_id in self.submits:
                # One runtime names requests here and not where it refuses them: request_id alone shows nothing.
                self.correlates |= request_id in (accepted.reply_to, envelope.correlation_id)
                return request_id
        trace_id = accepted.trace_id or envelope.trace_id
        if named or accepted.parent_job_id is not None:
            return None
        for request_id, request in self.submits.items():
            if trace_id is not None and request.handle is not None and request.handle.trace_id == trace_id:
                return request_id
        if trace_id is not None and trace_id in self.left:
            self.left.remove(trace_id)
            return None
        return next(iter(self.submits), None)

    def acknowledge_cancel(self, cancelled: JobCancelled, envelope: Envelope) -> None:
        """Answer the cancel that an acknowledgement is for: by id, by job."""
        outcome = CancelOutcome(applied=True, status="cancelled")
        for request_id in (cancelled.request_id, cancelled.reply_to, envelope.correlation_id):
            named = self.cancels.get(request_id or "")
            if named is not None:
                named.slot.put(outcome)
                return
        if envelope.correlation_id is not None and self.correlates:
            # It names a cancel that was answered before: it comes again, behind a resume.
            return
        for request in self.cancels.values():
            if request.handle is not None and request.handle.job_id == cancelled.job_id and not request.slot.is_set:
                request.slot.put(outcome)
                return

    def answer_cancels_of(self, handle: JobHandle) -> None:
        """Answer the cancels of a job by how it has ended: some runtimes acknowledge none."""
        for request in self.cancels.values():
            if request.handle is handle:
                request.slot.put(CancelOutcome(applied=handle.status == "cancelled", status=handle.status))

    def subscribe_of(self, subscribed: JobSubscribed, envelope: Envelope) -> Request[JobSubscribed] | None:
        """Return the subscription that an answer is for: by id, by job."""
        for request_id in (subscribed.request_id, subscribed.reply_to, envelope.correlation_id):
            if request_id in self.subscribes:
                return self.subscribes[request_id or ""]
        return self._subscribe_to(subscribed.job_id)

    def _subscribe_to(self, job_id: str | None) -> Request[JobSubscribed] | None:
        for request in self.subscribes.values():
            if request.handle is not None and request.handle.job_id == job_id and not request.slot.is_set:
                return request
        return None

    def answer_listing(self, page: SessionJobs, envelope: Envelope) -> None:
        """Answer a listing: by id, by order."""
        named = [name for name in (page.request_id, page.reply_to, envelope.correlation_id) if name is not None]
        for request_id in named:
            if request_id in self.listings:
                self.listings[request_id].slot.put(page)
                return
        if not named:
            waiting = (request for request in self.listings.values() if not request.slot.is_set)
            oldest = next(waiting, None)
            if oldest is not None:
                oldest.slot.put(page)

    # --- refusals -----------------------------------------------------------------------------------

    def refuse_by_id(self, envelope: Envelope, error: SessionError | JobError) -> bool:
        """Refuse the request that an error names."""
        request = self.find(error.request_id, error.reply_to, envelope.correlation_id, envelope.id)
        if request is None:
            return False
        request.slot.fail(error_of(error))
        self.correlates = True
        return True

    def refuse_by_elimination(self, error: SessionError) -> bool:
        """Refuse the one request that an error can answer which names none: never a running job (D15)."""
        about_jobs: list[Request[Any]] = [*self.cancels.values(), *self.subscribes.values()]
        others: list[Request[Any]] = [*self.submits.values(), *self.listings.values()]
        # Our cancels are well formed: what refuses one is that its job is unknown.
        for group in (about_jobs, others) if error.code == "JOB_NOT_FOUND" else (others, about_jobs):
            requests = [request for request in group if not request.slot.is_set]
            if len(requests) == 1:
                requests[0].slot.fail(error_of(error))
            if requests:
                return len(requests) == 1
        return False

    def refuse_by_job(self, envelope: Envelope, error: JobError, handle: JobHandle | None) -> bool:
        """Recognise a job.error that refuses a request without naming it, as one runtime writes it (X4, D34).

        That runtime leaves the trace out exactly where it refuses; what ends a job has the job's.
        """
        if envelope.trace_id is not None or self.accepts_late:
            return False
        if error.code in ("JOB_NOT_FOUND", "PERMISSION_DENIED") and self._refuse_about(error.job_id or "", error):
            return True
        if handle is not None and error.code != "DUPLICATE_KEY":
            return False
        # The answer to a cancel whose caller has left is no answer to a submit.
        return error.code == "JOB_NOT_FOUND" or self._refuse_oldest_submit(error)

    def _refuse_about(self, job_id: str, error: JobError) -> bool:
        for request in self.cancels.values():
            handle = request.handle
            if handle is not None and handle.job_id == job_id and not request.slot.is_set:
                if handle.terminal is not None:
                    request.slot.put(CancelOutcome(applied=False, status=handle.status))
                else:
                    request.slot.fail(error_of(error))
                return True
        subscribe = self._subscribe_to(job_id)
        if subscribe is None:
            return False
        subscribe.slot.fail(error_of(error))
        return True

    def _refuse_oldest_submit(self, error: JobError) -> bool:
        for request in self.submits.values():
            if not request.slot.is_set:
                request.slot.fail(error_of(error))
                return True
        return False


class EarlyFrames:
    """Frames of jobs that are not accepted yet, as some runtimes send them (D32).

    Attributes:
        frames: For each job, its frames with their sizes, in order.
        count: How many they are in all.
    """

    def __init__(self, limits: ClientLimits) -> None:
        self._limits = limits
        self.frames: OrderedDict[str, list[tuple[Envelope, int]]] = OrderedDict()
        self.count = 0

    def keep(self, job_id: str, envelope: Envelope, size: int) -> None:
        """Keep a frame of a job that is not known; past the bound the last one of that job gives way to its end."""
        if self.count < self._limits.early_frames:
            self.frames.setdefault(job_id, []).append((envelope, size))
            self.count += 1
        elif envelope.type != "job.event" and job_id in self.frames:
            # An event can be missed, the end cannot: the job would seem to run for ever.
            self.frames[job_id][-1] = (envelope, size)

    def take(self, job_id: str) -> list[tuple[Envelope, int]]:
        """Take the frames of a job."""
        frames = self.frames.pop(job_id, [])
        self.count -= len(frames)
        return frames

    def clear(self) -> None:
        """Drop them all: nobody is left for whom they could have been early."""
        self.frames.clear()
        self.count = 0
