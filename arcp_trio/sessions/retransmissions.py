"""What a session was asked lately, so that a message which comes again is not carried out again (P5.7). Sans-IO."""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum

import attrs

from ..wire.errors import InvalidRequestError
from ..wire.withheld import Content

__all__ = ["Answer", "Retransmissions"]

# Larger replies are not held; what has one may be carried out again, or its answer stands in the stream.
_MAX_HELD_REPLY = 8192


class Answer(Enum):
    """Which way an answer goes."""

    REPLY = "ahead of the events"
    RIDER = "in its place among the events"


@attrs.define
class _Message:
    content: int
    reply: Content | None = None
    way: Answer = Answer.REPLY


class Retransmissions:
    """The ids of the newest messages, what they said, and their answers while they are held.

    Args:
        limit: How many are remembered; past it the oldest is forgotten.
        reply_bytes: The bytes of the answers that are held; past it the oldest is dropped, and its message stays known.
    """

    __slots__ = ("_answered", "_held_bytes", "_limit", "_messages", "_reply_bytes")

    def __init__(self, limit: int, reply_bytes: int) -> None:
        self._limit = limit
        self._reply_bytes = reply_bytes
        self._messages: OrderedDict[str, _Message] = OrderedDict()
        # Those whose answers are held, the oldest answer first.
        self._answered: OrderedDict[str, _Message] = OrderedDict()
        self._held_bytes = 0

    def recognise(self, message_id: str, text: bytes | str) -> tuple[Content | None, Answer] | None:
        """Remember a message; for one that came before, return its answer (``None`` where it is not held) and its way.

        Raises:
            InvalidRequestError: The id was used before, for another message.
        """
        # One transport has bytes and another text; a session may change from one to the other.
        content = hash(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        message = self._messages.get(message_id)
        if message is None:
            self._messages[message_id] = _Message(content)
            if len(self._messages) > self._limit:
                self._let_go(self._messages.popitem(last=False)[0])
            return None
        if message.content != content:
            raise InvalidRequestError("$.id: was used before, for another message")
        return message.reply, message.way

    def hold(self, message_id: str, reply: Content, way: Answer) -> None:
        """Hold the answer to a message that is remembered."""
        message = self._messages.get(message_id)
        if message is None or len(reply) > _MAX_HELD_REPLY:
            return
        self._let_go(message_id)
        message.reply, message.way = reply, way
        self._answered[message_id] = message
        self._held_bytes += len(reply)
        while self._held_bytes > self._reply_bytes:
            self._let_go(next(iter(self._answered)))

    def _let_go(self, message_id: str) -> None:
        """Drop the answer to a message, if it is held."""
        message = self._answered.pop(message_id, None)
        if message is not None and message.reply is not None:
            self._held_bytes -= len(message.reply)
            message.reply, message.way = None, Answer.REPLY
