"""Every bound of the runtime and of the client, with its reason and what happens there.

Nothing in this package grows without one of these. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import attrs

__all__ = ["ClientLimits", "Limits"]

KIB = 1024
MIB = 1024 * KIB


@attrs.frozen(kw_only=True)
class Limits:
    """The bounds of a runtime (P14.4 unless another number is given).

    Attributes:
        hello_seconds: From connecting to a complete, verified hello; past it UNAUTHENTICATED, close 1008 (P6.1).
        write_seconds: How long one write may make no progress; past it the connection is aborted.
        close_seconds: How long a goodbye and the closing handshake may take together.
        cancel_grace_seconds: How long an agent may take to stop after a cancel or a deadline; past it
            it is disowned (P7.13).
        expiry_grace_seconds: The same after its lease expired (P9.6).
        shutdown_seconds: The one deadline that all phases of a shutdown share.
        drain_seconds: The share of it in which running jobs may still end by themselves.
        retention_seconds: How long an ended job is known; past it JOB_NOT_FOUND (P7.14).
        retention_records: How many ended jobs are known; past it the oldest goes first.
        retention_bytes: How many bytes their terminal events may take together; likewise.
        idempotency_keys: Live idempotency keys in all; past it a submit with a new key is refused.
        connections: Connections in all; past it an upgrade is refused with HTTP status 503.
        sessions_per_principal: Past it session.error INTERNAL_ERROR, retryable (P6.3).
        jobs_per_principal: Running jobs; past it the submit is refused likewise.
        jobs: Running jobs in all; likewise.
        receive_bytes: The largest frame that is read; a larger one closes with 1009 (P4.4).
        send_bytes: The largest frame that is sent: peers refuse larger ones (P4.4).
        chunk_bytes: Decoded bytes of one result_chunk that we send (P8.5).
        result_bytes: Decoded bytes of one streamed result; past it the write raises in the agent (P8.5).
        inline_result_bytes: What a chunked result may have to be sent inline to a session that takes no
            chunks; past it that session gets ``truncated`` (P6.4).
        write_batch_bytes: What one write takes at most: fairness between the sessions of a process.
        unsent_events: Events not yet written to a connection; past it the connection is closed with 4001 (P6.18).
        unsent_bytes: Bytes not yet written, likewise.
        throttle_events: Unsent events of the submitting session above which its own agents wait (P6.17).
        throttle_bytes: Unsent bytes, likewise.
        throttle_seconds: How long they wait at most in one episode of lag.
        replies: Replies that wait for a connection; past it the connection is closed with 1008: a client
            that asks and does not read.
        reply_bytes: The bytes of those replies, likewise; one may pass it.
        remembered_messages: Message ids remembered to recognise a retransmission (P5.7).
        malformed_in_a_row: Malformed frames that close a connection (1008) (P5.5).
        waiting_cancels: Refused cancels of one job that wait for its terminal event to be answered behind
            it; past it they are answered at once.
        slice_seconds: How long agents may emit without letting the writers run. It belongs to the loop, not to a job:
            with one for each, 200 flooding agents would make a turn of 200 slices.
    """

    hello_seconds: float = 10.0
    write_seconds: float = 60.0
    close_seconds: float = 5.0
    cancel_grace_seconds: float = 30.0
    expiry_grace_seconds: float = 1.0
    shutdown_seconds: float = 10.0
    drain_seconds: float = 0.0
    retention_seconds: float = 24 * 3600.0
    retention_records: int = 100_000
    retention_bytes: int = 256 * MIB
    idempotency_keys: int = 100_000
    connections: int = 4096
    sessions_per_principal: int = 64
    jobs_per_principal: int = 256
    jobs: int = 10_000
    receive_bytes: int = 16 * MIB
    send_bytes: int = 1_000_000
    chunk_bytes: int = 512 * KIB
    result_bytes: int = 1024 * MIB
    inline_result_bytes: int = 16 * MIB
    write_batch_bytes: int = 64 * KIB
    unsent_events: int = 5_000
    unsent_bytes: int = 8 * MIB
    throttle_events: int = 1_024
    throttle_bytes: int = 1 * MIB
    throttle_seconds: float = 5.0
    replies: int = 1_024
    reply_bytes: int = 8 * MIB
    remembered_messages: int = 1_024
    malformed_in_a_row: int = 8
    waiting_cancels: int = 64
    slice_seconds: float = 0.001

    def __attrs_post_init__(self) -> None:
        """Refuse bounds that bound nothing."""
        for field in attrs.fields(type(self)):
            value = getattr(self, field.name)
            if not value >= 0 or value == float("inf"):
                raise ValueError(f"{field.name}: expected a finite number that is not negative, got {value!r}")


@attrs.frozen(kw_only=True)
class ClientLimits:
    """The bounds of a client.

    Attributes:
        connect_seconds: From connecting to the runtime's welcome.
        close_seconds: How long a close may wait for the runtime's answer and the closing handshake.
        cancel_seconds: How long a cancel waits for an answer or the job's end: some runtimes give
            neither (interop.md, section 3.15); longer than their grace of 30 s.
        write_seconds: How long one write may make no progress; past it the connection is aborted.
        receive_bytes: The largest frame that is read.
        send_bytes: The largest frame that is sent; a larger request raises MessageTooLargeError (P4.4).
        write_batch_bytes: What one write takes at most.
        requests: Requests in flight; past it a call waits.
        events: Events that one handle keeps for a slow reader; past it the oldest are skipped, and the
            reader is told how many.
        event_bytes: The bytes of those events, likewise.
        result_memory_bytes: A streamed result up to here is assembled in memory, a larger one in a file.
        result_bytes: The largest result that is assembled; past it the result raises INTERNAL_ERROR (P8.5).
        chunk_bytes: The largest result_chunk that is accepted, decoded (P8.5).
        early_frames: Frames of a job that is not known yet (some runtimes send events before job.accepted, D32).
        malformed_in_a_row: Frames in a row that are no envelopes: past it the connection is given up.
    """

    connect_seconds: float = 30.0
    close_seconds: float = 2.0
    cancel_seconds: float = 45.0
    write_seconds: float = 60.0
    receive_bytes: int = 64 * MIB
    send_bytes: int = 1_000_000
    write_batch_bytes: int = 64 * KIB
    requests: int = 1_024
    events: int = 1_024
    event_bytes: int = 1 * MIB
    result_memory_bytes: int = 16 * MIB
    result_bytes: int = 1024 * MIB
    chunk_bytes: int = 1 * MIB
    early_frames: int = 1_000
    malformed_in_a_row: int = 8
