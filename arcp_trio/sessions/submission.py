"""A submit that passed validation, until its job is accepted or refused.

Most are answered at once. One whose job gets credentials waits for them, and what comes behind it in the same session
waits for it (:mod:`arcp_trio.jobs.admission`); then the connection that it came over may have gone, so the answer goes
by the session's stream.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import attrs

from ..jobs.actor import JobActor
from ..jobs.spec import JobSpec
from ..wire.errors import ARCPError
from ..wire.session_messages import CREDENTIALS_FEATURE
from .services import SessionServices
from .session import Session

__all__ = ["Submission"]


@attrs.frozen(eq=False, kw_only=True)
class Submission:
    """One submit.

    Attributes:
        session: Whose it is.
        services: The runtime's parts.
        spec: What was asked for; there is room for it.
        answer: Sends job.accepted. Synchronous.
        refuse: Refuses it, in the stream. Synchronous; never fails.
    """

    session: Session
    services: SessionServices
    spec: JobSpec
    answer: Callable[[JobActor], None]
    refuse: Callable[[ARCPError], None]

    def begin(self) -> None:
        """Start the job, or have it wait.

        Raises:
            ARCPError: It is refused, now.
        """
        line, admissions, principal = self.session.submits, self.services.admissions, self.spec.principal
        provisioning = self.services.provisioning
        if provisioning is not None and CREDENTIALS_FEATURE in self.session.shape.features:
            prepare = partial(provisioning.issuer.issue_for, self.spec)
            admissions.admit(line, principal, prepare=prepare, accept=self._start, refuse=self.refuse)
        elif len(line):
            admissions.queue(line, partial(self._start, self.spec), self.refuse, principal=principal)
        else:
            self._start(self.spec)

    def _start(self, spec: JobSpec) -> None:
        try:
            self.services.start_job(spec, self._accept)
        except BaseException:
            if spec.credentials is not None:
                # Nobody has them, and nobody will.
                spec.credentials.close()
            raise

    def _accept(self, actor: JobActor) -> None:
        # In the stream before the actor's first step: it precedes every event of the job (P7.2).
        actor.throttle = self.session
        self.session.follow(actor)
        if actor.credentials is not None:
            actor.credentials.confide(self.session)
        self.answer(actor)
