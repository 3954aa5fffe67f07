"""What a session's stream keeps of a frame with a secret in it: the rest."""

from __future__ import annotations

import secrets

import pytest
from provisioning.memory_search import canaries, everything

from arcp_trio.sessions.retransmissions import Answer, Retransmissions
from arcp_trio.sessions.stream import SessionStream, StreamBounds, WindowTotal
from arcp_trio.wire.withheld import Withheld

BOUNDS = StreamBounds(window_events=100, window_bytes=10_000, lag_events=50, lag_bytes=5_000, unacked_events=None)


class Home:
    """Where a secret lives, while it does."""

    def __init__(self, secret: bytes = b',"value":"sk-canary-1"') -> None:
        self.secret = secret

    def tell(self) -> bytes:
        return self.secret

    def put_into(self, kept: bytes, place: int = 2) -> Withheld:
        return Withheld(kept, place, self.tell)


def make_stream() -> tuple[SessionStream, WindowTotal]:
    total = WindowTotal(1_000_000)
    return SessionStream("sess_1", BOUNDS, total), total


@pytest.mark.requirement("P9.10")
def test_a_secret_is_filled_in_each_time_and_while_there_is_one() -> None:
    home = Home()
    withheld = home.put_into(b'{"a":{"b":1}}')
    assert withheld.write() == b'{"a":{"b":1,"value":"sk-canary-1"}}'
    home.secret = b',"value":"sk-canary-2"'
    assert withheld.write() == b'{"a":{"b":1,"value":"sk-canary-2"}}'
    home.secret = b""
    assert withheld.write() == withheld.kept == b'{"a":{"b":1}}'
    assert "canary" not in repr(withheld)


@pytest.mark.requirement("P9.10", "P6.9")
def test_a_rider_is_replayed_with_its_secret_and_later_without() -> None:
    home = Home()
    stream, total = make_stream()
    stream.append_rider(home.put_into(b'{"p":{"x":1}}'), keep=True)
    stream.append(b',"n":1}')
    told = b'{"p":{"x":1,"value":"sk-canary-1"}}'
    assert stream.take(1_000)[0] == told
    stream.rewind(0)
    assert stream.take(1_000)[0] == told
    home.secret = b""
    stream.rewind(0)
    assert stream.take(1_000)[0] == b'{"p":{"x":1}}'
    assert stream.acknowledge(1)
    assert (stream.kept_bytes, total.used) == (0, 0)


@pytest.mark.requirement("P9.10", "P8.2")
def test_an_event_has_its_number_with_and_without_its_secret() -> None:
    home = Home()
    stream, total = make_stream()
    assert stream.append(home.put_into(b',"p":{"x":1}}')) == 1
    (first,) = stream.take(1_000)
    home.secret = b""
    stream.rewind(0)
    (again,) = stream.take(1_000)
    assert first.replace(b',"value":"sk-canary-1"', b"") == again
    assert b'"event_seq":1' in again
    stream.clear()
    assert total.used == 0


@pytest.mark.requirement("P9.10")
def test_the_bounds_count_what_it_was_at_first() -> None:
    """What is added and what is taken away must be the same number, whatever became of the secret meanwhile."""
    home = Home(b"x" * 100)
    stream, total = make_stream()
    stream.append_rider(home.put_into(b'{"p":{}}'), keep=True)
    stream.append(home.put_into(b',"p":{}}'))
    stream.append_rider(home.put_into(b'{"p":{}}'), keep=False)
    assert stream.unsent_bytes == total.used == 3 * 108
    home.secret = b""
    assert len(stream.take(1_000)) == 3
    assert stream.unsent_bytes == 0
    assert stream.kept_bytes == total.used == 2 * 108
    home.secret = b"y" * 5_000
    stream.rewind(0)
    assert stream.unsent_bytes == 2 * 108
    assert len(stream.take(100)) == 1, "the size of a write is what is written"
    stream.clear()
    assert total.used == 0


@pytest.mark.requirement("P9.10", "P5.7")
def test_an_answer_that_is_held_holds_no_secret() -> None:
    token = secrets.token_hex(8)
    home = Home(f',"value":"{token}"'.encode())
    hidden = token[::-1]
    held = Retransmissions(10, 1_000)
    held.recognise("msg_1", b"submit")
    held.hold("msg_1", home.put_into(b'{"p":{}}'), Answer.RIDER)
    known = held.recognise("msg_1", b"submit")
    assert known is not None
    answer, way = known
    assert isinstance(answer, Withheld)
    assert way is Answer.RIDER
    assert token.encode() in answer.write()
    home.secret = b""
    del token
    assert canaries(everything(), hidden[::-1]) == []
