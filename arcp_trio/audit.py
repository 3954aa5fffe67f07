"""The audit log "arcp_trio.audit": one line for each decision on who may do what, and for what comes and goes.

That is a lease that expires, and a credential that is issued, rotated or revoked.
"""

from __future__ import annotations

import logging

__all__ = ["audit"]

_logger = logging.getLogger("arcp_trio.audit")


def audit(
    decision: str,
    action: str,
    *,
    principal: str,
    session_id: str = "",
    job_id: str = "",
    owner: str = "",
    detail: str = "",
) -> None:
    """Log a decision on who may do what to whose job: one line, with the same as fields of the record.

    Args:
        decision: ``granted`` or ``denied``, or why.
        action: What was asked for: ``subscribe``, ``cancel``, ``list``, ``delegate``; or what came about: ``lease``,
            ``credential``.
        principal: Who asked.
        session_id: In which session; empty where nobody asked.
        job_id: Which job; empty for none.
        owner: Whose job that is; empty where nobody's is known.
        detail: More about the request, of bounded length and without secrets.
    """
    whose = f" of {owner!r}" if owner else ""
    session = f", session {session_id}" if session_id else ""
    job = f", job {job_id[:256]!r}{whose}" if job_id else ""
    _logger.info(
        "%s %s: principal %r%s%s%s%s",
        action,
        decision,
        principal,
        session,
        job,
        ", " if detail else "",
        detail,
        extra={
            "arcp_action": action,
            "arcp_decision": decision,
            "arcp_principal": principal,
            "arcp_session": session_id,
            "arcp_job": job_id,
            "arcp_owner": owner,
        },
    )
