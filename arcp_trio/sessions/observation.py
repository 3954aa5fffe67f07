"""Who may observe whose jobs (P7.19): a policy, asked by listings, subscriptions and cancels."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum

from .auth import Principal

__all__ = ["ObservationPolicy", "Visibility"]


class Visibility(Enum):
    """What a principal gets to know of another's job."""

    HIDDEN = "hidden"
    """As if there were no such job: JOB_NOT_FOUND."""

    KNOWN = "known"
    """That it exists, and no more: PERMISSION_DENIED."""

    OBSERVABLE = "observable"
    """It is listed and may be subscribed to; never cancelled."""


class ObservationPolicy:
    """Who may observe whose jobs; its own are every principal's, whatever this says.

    This class keeps principals apart. Derive from it to widen that, and give it to :func:`arcp_trio.open_runtime`.
    Its methods are synchronous and short; an exception in one is logged and answers that one request with
    INTERNAL_ERROR.
    """

    def observable(self, principal: Principal) -> Collection[str]:  # noqa: ARG002  # for those who derive
        """Return the names of the other principals whose jobs a listing looks at, and shows if they are observable.

        Args:
            principal: Who asks.
        """
        return ()

    def visibility(self, principal: Principal, owner: str, agent: str) -> Visibility:  # noqa: ARG002  # as above
        """Say what ``principal`` gets to know of one job of another principal.

        Args:
            principal: Who asks.
            owner: The name of the principal that submitted the job.
            agent: The job's agent, ``name@version``.
        """
        return Visibility.OBSERVABLE if owner in self.observable(principal) else Visibility.HIDDEN
