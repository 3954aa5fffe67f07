"""Which agents there are: names, versions, defaults, and how a submit's ``agent`` is resolved (P7.16)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from ..wire.errors import AgentNotAvailableError, AgentVersionNotAvailableError, InvalidRequestError
from ..wire.session_messages import AgentInventory

if TYPE_CHECKING:
    from .context import JobContext

__all__ = ["Agent", "AgentFunction", "Agents", "Inventory"]

AgentFunction = Callable[["JobContext", Any], Awaitable[Any]]
"""An agent: ``async def agent(job, input)``; ``input`` and what it returns are JSON values."""

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_VERSION = re.compile(r"[a-zA-Z0-9.+_-]{1,128}")


@attrs.frozen
class Agent:
    """One version of an agent."""

    name: str
    version: str
    function: AgentFunction

    @property
    def resolved(self) -> str:
        """``name@version``, as it stands in job.accepted and listings."""
        return f"{self.name}@{self.version}"


def _version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Order versions so that numbers compare as numbers (10 > 9), and 1.0-rc1 < 1.0 < 1.0.1."""
    parts = [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.findall(r"\d+|[a-zA-Z]+", version)]
    # The end stands above a word and below a number.
    return (*parts, (1, -1, ""))


@attrs.frozen
class Inventory:
    """The agents at one moment, as a welcome advertises them.

    Attributes:
        entries: What the welcome lists.
        defaults: The version that a bare name means for the session that was told so.
    """

    entries: tuple[AgentInventory, ...]
    defaults: Mapping[str, str]


class Agents:
    """A registry of agents, given to :func:`arcp_trio.open_runtime`."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, Agent]] = {}
        self._chosen: dict[str, str] = {}
        self._snapshots: dict[frozenset[str] | None, Inventory] = {}

    def register(self, name: str, *, version: str = "1.0.0", default: bool = False) -> Callable[[F], F]:
        """Return a decorator that registers an agent.

        Args:
            name: Lower-case letters, digits, ``.``, ``_``, ``-``; begins with a letter or digit (spec 7.5).
            version: Letters, digits and ``.+_-``.
            default: Whether a bare ``name`` means this version; else the highest does.

        Raises:
            ValueError: The name or version is not of that form, is registered already, or another
                version is the default already.
            TypeError: The name is left out: ``@agents.register`` alone.
        """
        if not isinstance(name, str):
            raise TypeError(f'an agent needs a name: @agents.register("name"), got {name!r}')
        if not _NAME.fullmatch(name):
            raise ValueError(f"agent name: expected lower-case letters, digits and '._-', got {name!r}")
        if not _VERSION.fullmatch(version):
            raise ValueError(f"agent version: expected letters, digits and '.+_-', got {version!r}")

        def decorate(function: F) -> F:
            versions = self._versions.get(name, {})
            if version in versions:
                raise ValueError(f"agent {name}@{version} is registered already")
            if default and name in self._chosen:
                raise ValueError(f"agent {name} has the default version {self._chosen[name]} already")
            # Replaced, never changed: a welcome may be walking over the old one.
            self._versions = {**self._versions, name: {**versions, version: Agent(name, version, function)}}
            if default:
                self._chosen[name] = version
            self._snapshots = {}
            return function

        return decorate

    def _default(self, name: str) -> str:
        return self._chosen.get(name) or max(self._versions[name], key=_version_order)

    def inventory(self, allowed: frozenset[str] | None = None) -> Inventory:
        """Return what a welcome says, for a principal that may use the ``allowed`` names (``None``: all)."""
        snapshot = self._snapshots.get(allowed)
        if snapshot is None:
            entries = tuple(
                AgentInventory(
                    name=name,
                    versions=tuple(sorted(versions, key=_version_order)),
                    default=self._default(name),
                )
                for name, versions in sorted(self._versions.items())
                if allowed is None or name in allowed
            )
            snapshot = Inventory(entries, {entry.name: entry.default or "" for entry in entries})
            if len(self._snapshots) < 64:  # noqa: PLR2004  # few principals have lists of their own
                self._snapshots[allowed] = snapshot
        return snapshot

    def resolve(
        self,
        agent: str,
        defaults: Mapping[str, str],
        allowed: frozenset[str] | None = None,
        *,
        path: str = "$.payload.agent",
    ) -> Agent:
        """Return the agent that ``name`` or ``name@version`` means.

        Args:
            agent: As the submit has it.
            defaults: What the session's welcome advertised.
            allowed: The names that the principal may use; ``None`` for all.
            path: Where it stands, for the error.

        Raises:
            InvalidRequestError: It has neither form.
            AgentNotAvailableError: No such name, or not for this principal.
            AgentVersionNotAvailableError: No such version; ``details`` has those that are available.
        """
        name, at, version = agent.partition("@")
        if not _NAME.fullmatch(name) or (at and not _VERSION.fullmatch(version)):
            raise InvalidRequestError(f"{path}: expected 'name' or 'name@version' in lower case")
        versions = self._versions.get(name)
        if versions is None or (allowed is not None and name not in allowed):
            raise AgentNotAvailableError(f"{path}: no agent is named {name!r}")
        if not at:
            version = defaults.get(name) or self._default(name)
        found = versions.get(version)
        if found is None:
            available = sorted(versions, key=_version_order)
            raise AgentVersionNotAvailableError(
                f"{path}: {name!r} has no version {version!r}, only {', '.join(available)}",
                details={"available": available},
            )
        return found
