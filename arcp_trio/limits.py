"""Every bound of the runtime and of the client, with its reason and what happens there.

Nothing in this package grows without one of these. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import attrs

__all__ = ["ClientLimits", "Limits"]

KIB = 1024
MIB = 1024 * KIB


def _check_bounds(limits: Limits | ClientLimits) -> None:
    """Refuse bounds that bound nothing."""
    for field in attrs.fields(type(limits)):
        value = getattr(limits, field.name)
        if not value >= 0 or value == float("inf"):
            raise ValueError(f"{field.name}: expected a finite number that is not negative, got {value!r}")


MIN_HEARTBEAT_SECONDS = 0.1
"""The shortest interval of heartbeats, in seconds."""


@attrs.frozen(kw_only=True)
class Limits:
    """The bounds of a runtime (P14.4 unless another number is given): in seconds, in bytes, or a number of things.

    Raises ValueError for one that is negative, infinite or not a number, and where one says "at least".

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
        retention_records: How many ended jobs are known; past it one goes of the principal with the oldest or the
            newest, whoever has more, that one's oldest.
        retention_bytes: How many bytes their terminal events may take together; likewise.
        idempotency_keys: Live idempotency keys in all; past it a submit with a new key is refused. This version keeps
            none and refuses them all.
        connections: Connections in all; past it an upgrade is refused with HTTP status 503.
        sessions_per_principal: Past it session.error INTERNAL_ERROR, retryable (P6.3).
        jobs_per_principal: Running jobs, delegated ones too; past it the submit or the delegation is refused likewise.
        jobs: Running jobs in all; likewise.
        children: Running jobs that one job has delegated; past it a delegation is refused, retryable.
        delegation_depth: Generations below a job that was submitted; past it a delegation is refused with
            PERMISSION_DENIED (P10.3).
        waiting_children: Delegated jobs of which a session is not told yet, because a submit of it waits for its
            answer; past it the next one is told at once, and a peer that knows answers by their order may mistake it
            for that of its submit (interop.md, section 3.16).
        receive_bytes: The largest frame that is read; a larger one closes with 1009 (P4.4).
        send_bytes: The largest frame that is sent: peers refuse larger ones (P4.4).
        chunk_bytes: Decoded bytes of one result_chunk that we send (P8.5).
        result_bytes: Decoded bytes of one streamed result; past it the write raises in the agent (P8.5).
        inline_result_bytes: What a chunked result may have to be sent inline to a session that takes no
            chunks; past it that session gets ``truncated`` (P6.4).
        write_batch_bytes: What one write takes at most: fairness between the sessions of a process.
        heartbeat_seconds: The interval of heartbeats (P6.13): silent for one, a peer is asked; silent for two, its
            connection is closed with 4002. At least 0.1.
        resume_seconds: How long a session waits for its client after it lost its connection; past it
            RESUME_WINDOW_EXPIRED (P6.12). At least 1.
        sessions_waiting: Sessions in all that wait for their clients; past it the one that waits longest ends.
        window_events: Events that a session keeps to send them again: past it the oldest that was sent goes, and
            half of it unsent closes the connection with 4001 (P6.18); the other half is time to resume.
        window_bytes: The bytes of those events, likewise.
        windows_bytes: The bytes of all windows together, what several share counted for each; past it the largest
            of the principal that has most gives way: what was sent goes, by halves, then its connection is closed
            with 4001, then it ends.
        lag_events: Unsent events above which a session is told that it lags, and its own agents wait (P6.17).
        lag_bytes: Unsent bytes, likewise.
        unacked_events: Sent events without an ack, where acks were negotiated, above which it is told too (P6.17).
        throttle_seconds: How long its own agents wait for it at most in one episode of lag.
        subscriptions: Jobs that one session may subscribe to; past it the request is refused.
        waiting_subscribes: Subscriptions with a history that wait until the session has room for it; likewise.
        history_events: Events of one job that are kept for subscribers who come later; past it the oldest goes (P7.18).
        history_bytes: The bytes of those events, likewise.
        histories_bytes: The bytes of the histories of all jobs together; past it those of the principal that has
            most go, first of its ended jobs, the oldest first, then the older half of its longest.
        replies: Replies that wait for a connection; past it the connection is closed with 1008: a client
            that asks and does not read.
        reply_bytes: The bytes of those replies, likewise; one may pass it.
        remembered_messages: Message ids that a session remembers to recognise a retransmission (P5.7).
        remembered_bytes: The bytes of the answers that it holds for one; past it the oldest is held no more.
        malformed_in_a_row: Malformed frames that close a connection (1008) (P5.5).
        waiting_cancels: Refused cancels of one job that wait for its terminal event to be answered behind
            it; past it they are answered at once.
        submit_seconds: How long a submit that passed validation may wait for what it needs before it is accepted (its
            credentials); past it it is refused, retryable.
        waiting_submits: Submits of one session that wait for that, and those behind them: answers keep their order.
            Past it a submit is refused at once, retryable. They count as jobs in the caps.
        credentials: Provisioned credentials that one job may have; past it its submit is refused.
        credential_bytes: The largest of them, as job.accepted shows it; likewise. All of a job's together may take a
            quarter of ``send_bytes``, as they come in one frame.
        revocation_seconds: How long a job's end waits for the revocation of its credentials, which goes on behind it
            (P9.10); and how long one call of the provisioner may take to revoke one.
        revocation_attempts: How often revoking one credential is tried; past it it is shown as one that cannot be
            revoked, until the next start. With the delays below that takes some eight hours.
        revocation_delay_seconds: The delay before the second attempt, doubled for each further one, up to half of it
            random.
        revocation_max_delay_seconds: The longest delay.
        revocations: Calls of the provisioner that revoke, at a time; past it they wait for one another.
        unrevoked_credentials: Credentials of ended jobs that are not revoked; past it submits that need credentials
            are refused, retryable: who cannot revoke must not issue.
        remembered_credentials: The newest values of which a fingerprint is kept, in memory, so that no value is
            handed out twice (section 9.8.2).
        slice_seconds: How long agents may emit without letting the writers run; longer, by up to 8 times, where the
            writers take longer than that. It belongs to the loop, not to a job: with one for each, 200 flooding agents
            would make a turn of 200 slices.
        store_uncommitted_bytes: Bytes that wait to be durable; past it submits are refused and emissions wait.
        store_reserve_bytes: How many more outcomes, terminal events and the like may be.
        store_wait_seconds: How long an emission waits for room; past it it raises StoreUnavailableError.
        store_commit_bytes: Bytes that one transaction takes; one batch may pass it.
        store_retry_min_seconds: From a transaction that failed to the first retry.
        store_retry_max_seconds: From one retry to the next, at most: each time is twice the one before.
        store_close_seconds: How long the last commits may take when a store is closed, and then closing the file;
            past it what nobody was told of is given up.
        store_slice_rows: Rows that one transaction deletes of what is no longer kept, beside what it writes.
        store_slice_bytes: Their bytes; one row may pass it.
        store_free_bytes: Space that may be free in the file, for what comes next; what is more, and more than a quarter
            of the file, is given back.
        store_page_bytes: Bytes of a page that is read; one entry may pass it.
        store_readers: Pages that are read at once. At least 1.
        store_wal_bytes: What the write-ahead log may have; past it is emptied as soon as no reader is in the way.
        store_check_seconds: How long the check of a file may take when it is opened; what is left is not checked then.
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
    children: int = 128
    delegation_depth: int = 8
    waiting_children: int = 64
    receive_bytes: int = 16 * MIB
    send_bytes: int = 1_000_000
    chunk_bytes: int = 512 * KIB
    result_bytes: int = 1024 * MIB
    inline_result_bytes: int = 16 * MIB
    write_batch_bytes: int = 64 * KIB
    heartbeat_seconds: float = 30.0
    resume_seconds: float = 600.0
    sessions_waiting: int = 4_096
    window_events: int = 10_000
    window_bytes: int = 16 * MIB
    windows_bytes: int = 1024 * MIB
    lag_events: int = 1_024
    lag_bytes: int = 1 * MIB
    unacked_events: int = 8_192
    throttle_seconds: float = 5.0
    subscriptions: int = 256
    waiting_subscribes: int = 64
    history_events: int = 1_000
    history_bytes: int = 1 * MIB
    histories_bytes: int = 256 * MIB
    replies: int = 1_024
    reply_bytes: int = 8 * MIB
    remembered_messages: int = 1_024
    remembered_bytes: int = 1 * MIB
    malformed_in_a_row: int = 8
    waiting_cancels: int = 64
    submit_seconds: float = 30.0
    waiting_submits: int = 64
    credentials: int = 8
    credential_bytes: int = 16 * KIB
    revocation_seconds: float = 5.0
    revocation_attempts: int = 100
    revocation_delay_seconds: float = 0.5
    revocation_max_delay_seconds: float = 300.0
    revocations: int = 16
    unrevoked_credentials: int = 10_000
    remembered_credentials: int = 100_000
    slice_seconds: float = 0.001
    store_uncommitted_bytes: int = 16 * MIB
    store_reserve_bytes: int = 32 * MIB
    store_wait_seconds: float = 10.0
    store_commit_bytes: int = 1 * MIB
    store_retry_min_seconds: float = 0.05
    store_retry_max_seconds: float = 2.0
    store_close_seconds: float = 5.0
    store_slice_rows: int = 256
    store_slice_bytes: int = 1 * MIB
    store_free_bytes: int = 16 * MIB
    store_page_bytes: int = 1 * MIB
    store_readers: int = 2
    store_wal_bytes: int = 64 * MIB
    store_check_seconds: float = 0.2

    def __attrs_post_init__(self) -> None:
        """Refuse bounds that bound nothing, or under which nothing works."""
        _check_bounds(self)
        if self.heartbeat_seconds < MIN_HEARTBEAT_SECONDS:
            # A smaller one would spin (H07).
            raise ValueError(f"heartbeat_seconds: expected at least {MIN_HEARTBEAT_SECONDS}")
        if self.resume_seconds < 1:
            raise ValueError("resume_seconds: expected at least 1, the shortest window that a welcome can say")
        if self.revocations < 1 or self.revocation_attempts < 1:
            raise ValueError("revocations, revocation_attempts: expected at least 1: with none nothing is ever revoked")
        if self.store_readers < 1:
            raise ValueError("store_readers: expected at least 1: with none nothing could be read")


@attrs.frozen(kw_only=True)
class ClientLimits:
    """The bounds of a client: in seconds, in bytes, or a number of things.

    Raises ValueError, as :class:`Limits` does, for one that is negative, infinite or not a number.

    Attributes:
        connect_seconds: From connecting to the runtime's welcome.
        close_seconds: How long a close may wait for the runtime's answer and the closing handshake; or for the exit
            status of a runtime that the client started and that has closed its pipes.
        cancel_seconds: How long a cancel waits for an answer or the job's end: some runtimes give
            neither (interop.md, section 3.15); longer than their grace of 30 s.
        answer_seconds: How long a listing and a subscription wait for an answer, likewise.
        ack_seconds: The shortest time between two acks of the events that were taken (P6.15).
        heartbeat_min_seconds: The shortest interval of heartbeats that a runtime can ask for: a shorter one, 0 or a
            negative one counts as this (P6.13).
        heartbeat_max_seconds: The longest one, likewise.
        write_seconds: How long one write may make no progress; past it the connection is aborted.
        receive_bytes: The largest frame that is read.
        send_bytes: The largest frame that is sent; a larger request raises MessageTooLargeError (P4.4).
        write_batch_bytes: What one write takes at most.
        requests: Requests in flight; past it a call waits. At least 1.
        events: Events that one handle keeps for a slow reader; past it the oldest are skipped, and the
            reader is told how many.
        event_bytes: The bytes of those events, likewise.
        currencies: Currencies of one job's budget that its handle tells apart; further ones are ignored.
        result_memory_bytes: A streamed result up to here is assembled in memory, a larger one in a file.
        result_bytes: The largest result that is assembled; past it the result raises INTERNAL_ERROR (P8.5).
        chunk_bytes: The largest result_chunk that is accepted, decoded (P8.5).
        children: Delegated jobs for which the handle of the job that delegated them keeps handles; past it the one that
            ended first gives way, and where none has ended the new one is not followed.
        early_frames: Frames of a job that is not known yet (some runtimes send events before job.accepted, D32).
        malformed_in_a_row: Frames in a row that are no envelopes: past it the connection is given up.
        exit_seconds: How long a runtime that the client started may take to end once its stdin is closed, longer than
            our own takes to shut down; past it SIGTERM.
        terminate_seconds: How long then; past it SIGKILL.
    """

    connect_seconds: float = 30.0
    close_seconds: float = 2.0
    cancel_seconds: float = 45.0
    answer_seconds: float = 30.0
    ack_seconds: float = 0.25
    heartbeat_min_seconds: float = 1.0
    heartbeat_max_seconds: float = 3600.0
    write_seconds: float = 60.0
    receive_bytes: int = 64 * MIB
    send_bytes: int = 1_000_000
    write_batch_bytes: int = 64 * KIB
    requests: int = 1_024
    events: int = 1_024
    event_bytes: int = 1 * MIB
    currencies: int = 64
    result_memory_bytes: int = 16 * MIB
    result_bytes: int = 1024 * MIB
    chunk_bytes: int = 1 * MIB
    children: int = 256
    early_frames: int = 1_000
    malformed_in_a_row: int = 8
    exit_seconds: float = 15.0
    terminate_seconds: float = 5.0

    def __attrs_post_init__(self) -> None:
        """Refuse bounds that bound nothing, or under which nothing works."""
        _check_bounds(self)
        if self.requests < 1:
            raise ValueError("requests: expected at least 1: with none every call would wait for ever")
        if not 0 < self.heartbeat_min_seconds <= self.heartbeat_max_seconds:
            raise ValueError("heartbeat_min_seconds: expected more than 0, and at most heartbeat_max_seconds")
