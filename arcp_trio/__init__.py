"""The Agent Runtime Control Protocol (ARCP v1.1) on Trio.

A map of the package; imports only point down this list:

``cli``                 the command ``arcp-trio``; imported only by it
``gateway``             a server on a port, or over stdin and stdout
``embedded``            a session in the process itself
``runtime``             wires the rest together and owns every task
``sessions`` ``client`` who listens; the other end of the wire
``jobs``                what runs: the lifecycle, the actor, the feed
``store`` ``transports`` where it is kept; how bytes travel
``timers`` ``records``  every deadline in one task; what is kept of what has ended
``tracing`` ``spans``   where a call stands in a trace; OpenTelemetry, where it is installed
``limits``              every bound, in one place
``authority``           what a job may do: leases, budgets, credentials
``wire``                what is said: envelopes, messages, errors, ids
"""

from __future__ import annotations

from ._version import __version__ as __version__
from .authority.credentials import Credential as Credential
from .authority.credentials import CredentialConstraints as CredentialConstraints
from .authority.credentials import CredentialRequest as CredentialRequest
from .authority.credentials import IssuedCredential as IssuedCredential
from .authority.credentials import Provisioner as Provisioner
from .authority.credentials import ProvisioningError as ProvisioningError
from .authority.credentials import Secret as Secret
from .authority.lease import Lease as Lease
from .authority.lease import LeaseCeiling as LeaseCeiling
from .client.client import Client as Client
from .client.events import Event as Event
from .client.events import Skipped as Skipped
from .client.job_handle import CancelOutcome as CancelOutcome
from .client.job_handle import JobHandle as JobHandle
from .client.listing import JobPages as JobPages
from .client.opening import open_client as open_client
from .client.opening import open_client_over as open_client_over
from .client.process import open_process_client as open_process_client
from .client.reconnect import ConnectionState as ConnectionState
from .client.reconnect import Reconnect as Reconnect
from .client.results import ResultFile as ResultFile
from .embedded import open_session as _open_session
from .gateway import Listening as Listening
from .gateway import serve_stdio as serve_stdio
from .gateway import serve_websocket as serve_websocket
from .jobs.agents import Agents as Agents
from .jobs.children import Child as Child
from .jobs.context import JobContext as JobContext
from .limits import ClientLimits as ClientLimits
from .limits import Limits as Limits
from .records import LedgerEntry as LedgerEntry
from .records import LedgerState as LedgerState
from .runtime import Runtime as Runtime
from .runtime import open_runtime as open_runtime
from .sessions.auth import AnonymousAccess as AnonymousAccess
from .sessions.auth import Principal as Principal
from .sessions.auth import StaticTokens as StaticTokens
from .sessions.auth import Verifier as Verifier
from .sessions.observation import ObservationPolicy as ObservationPolicy
from .sessions.observation import Visibility as Visibility
from .statistics import RuntimeStatistics as RuntimeStatistics
from .store.base import CredentialLedger as CredentialLedger
from .transports.stdio import open_stdio as open_stdio
from .wire.errors import AgentNotAvailableError as AgentNotAvailableError
from .wire.errors import AgentVersionNotAvailableError as AgentVersionNotAvailableError
from .wire.errors import ARCPError as ARCPError
from .wire.errors import BudgetExhaustedError as BudgetExhaustedError
from .wire.errors import ConnectionLostError as ConnectionLostError
from .wire.errors import DuplicateKeyError as DuplicateKeyError
from .wire.errors import HeartbeatLostError as HeartbeatLostError
from .wire.errors import InternalError as InternalError
from .wire.errors import InvalidRequestError as InvalidRequestError
from .wire.errors import JobCancelledError as JobCancelledError
from .wire.errors import JobEndedError as JobEndedError
from .wire.errors import JobNotFoundError as JobNotFoundError
from .wire.errors import JobTimeoutError as JobTimeoutError
from .wire.errors import LeaseExpiredError as LeaseExpiredError
from .wire.errors import LeaseSubsetViolationError as LeaseSubsetViolationError
from .wire.errors import MessageTooLargeError as MessageTooLargeError
from .wire.errors import PermissionDeniedError as PermissionDeniedError
from .wire.errors import ResumeWindowExpiredError as ResumeWindowExpiredError
from .wire.errors import UnauthenticatedError as UnauthenticatedError
from .wire.session_messages import SessionJobsEntry as JobEntry  # noqa: F401

# Bound here and not in the runtime's class: the runtime does not know the client.
Runtime.open_session = _open_session  # type: ignore[method-assign, assignment]
