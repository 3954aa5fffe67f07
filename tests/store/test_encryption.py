"""A store with a key (P14.3): nothing that was said can be read without it, and no row passes for another."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from store.kit import KEY, accepted, claim, ended, entry, event, read_window, write

from arcp_trio.store.cipher import KEY_BYTES, make_cipher
from arcp_trio.store.errors import StoreCorruptError, StoreError, StoreKeyError
from arcp_trio.store.sqlite import open_sqlite_store
from arcp_trio.store.writes import LedgerNoted, OwnAppended, RiderAppended, SessionOpened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


# A word that no schema has.
CANARY = b"parakeet"


async def fill(path: Path, key: bytes | None) -> None:
    async with open_sqlite_store(path, key=key) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, SessionOpened(session_id="sess_1", principal="me", opened_at_ms=1, detail=CANARY))
        await write(store, epoch, accepted(), event("job_1", 1, ("sess_1", 1), content=CANARY * 3))
        await write(store, epoch, OwnAppended(session_id="sess_1", event_seq=2, content=CANARY))
        await write(store, epoch, RiderAppended(session_id="sess_1", content=CANARY), claim("key", "job_1"))
        await write(store, epoch, *ended("job_1", 2, ("sess_1", 3)), LedgerNoted(entry("cred_1")))


@pytest.mark.requirement("P14.3", "P14.2")
async def test_without_the_key_nothing_that_was_said_can_be_read(path: Path) -> None:
    said = (CANARY, b"outcome of job_1", b"handle of cred_1", b'{"job_id"', b"digest of job_1")
    await fill(path, None)
    assert all(each in path.read_bytes() for each in said)
    path.unlink()
    await fill(path, KEY)
    assert not any(each in path.read_bytes() for each in said)
    assert KEY not in path.read_bytes()
    # What a store has to find by is not encrypted.
    assert b"job_1" in path.read_bytes()
    async with open_sqlite_store(path, key=KEY) as store:
        assert [each.content for each in await read_window(store, "sess_1")] == [
            CANARY * 3,
            CANARY,
            CANARY,
            b"outcome of job_1",
        ]
        assert (await store.keys(None, 1)).items[0].digest == b"digest of job_1"
        assert await store.outstanding() == [entry("cred_1")]


@pytest.mark.requirement("P14.3")
async def test_a_key_and_a_store_belong_together(path: Path) -> None:
    await fill(path, KEY)
    before = path.read_bytes()
    for key, message in (
        (None, "store.db is encrypted: it needs its key"),
        (bytes(KEY_BYTES), "store.db is encrypted with another key"),
        (b"short", "a key has 32 bytes, not 5"),
    ):
        with pytest.raises(StoreKeyError, match=message):
            async with open_sqlite_store(path, key=key):
                pass
    assert path.read_bytes() == before
    path.unlink()
    await fill(path, None)
    # Its owner would believe that it is encrypted.
    with pytest.raises(StoreKeyError, match=r"store.db is not encrypted: a key is for a new store"):
        async with open_sqlite_store(path, key=KEY):
            pass
    async with open_sqlite_store(path) as store:
        assert len(await read_window(store, "sess_1")) == 4


async def test_a_key_is_known_from_the_first_moment(path: Path) -> None:
    """A process that dies while it makes the file leaves none of which it is not known whether it is encrypted."""

    class Dies:
        def reach(self, point: str) -> None:
            if point == "migrated":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with open_sqlite_store(path, key=KEY, hooks=Dies()):
            pass
    await fill(path, KEY)


async def test_no_row_passes_for_another(path: Path) -> None:
    for swap in (
        "UPDATE events SET content = (SELECT content FROM riders)",
        "UPDATE riders SET event_seq = event_seq - 1",
        "UPDATE outcomes SET content = (SELECT content FROM events)",
        "UPDATE own SET content = CAST(substr(content, 1, length(content) - 1) || x'00' AS BLOB)",
        "UPDATE own SET content = x'01'",
        "UPDATE own SET content = 'parakeet'",
        "UPDATE own SET content = x''",
    ):
        path.unlink(missing_ok=True)
        await fill(path, KEY)
        with closing(sqlite3.connect(path)) as db:
            db.execute(swap)
            db.commit()
        async with open_sqlite_store(path, key=KEY) as store:
            with pytest.raises(StoreCorruptError, match="was not sealed"):
                await store.window("sess_1", 0, 100)


def test_equal_texts_are_not_equal_when_they_are_sealed() -> None:
    cipher, canary = make_cipher(KEY, None, "here", new=True)
    again, _ = make_cipher(KEY, canary, "here", new=False)
    sealed = [each.seal(b"text", "event", "job_1", 1) for each in (cipher, cipher, again, again)]
    assert len(set(sealed)) == 4
    assert {each.open(text, "event", "job_1", 1) for text in sealed for each in (cipher, again)} == {b"text"}
    # Places are told apart, also where their words are the same.
    for place in (("event", "job_1", 2), ("event", "job_1 1"), ("event job_1", 1), ("own", "job_1", 1)):
        with pytest.raises(StoreCorruptError):
            cipher.open(sealed[0], *place)


@pytest.mark.requirement("P14.2")
def test_a_key_is_not_shown() -> None:
    cipher, _ = make_cipher(KEY, None, "here", new=True)
    assert repr(cipher) == "<a key>"


def test_without_the_extra_it_says_what_to_install(path: Path) -> None:
    code = (
        "import sys; sys.modules['cryptography.exceptions'] = None\n"
        "from arcp_trio.store.cipher import make_cipher\n"
        "from arcp_trio.store.errors import StoreError\n"
        "try: make_cipher(bytes(32), None, 'here', new=True)\n"
        "except StoreError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'arcp-trio[encryption]'" in done.stdout
    assert issubclass(StoreKeyError, StoreError)


def test_a_store_that_has_no_key_needs_no_extra(path: Path) -> None:
    code = (
        "import sys, trio\n"
        "from arcp_trio.store.sqlite import open_sqlite_store\n"
        "async def main():\n"
        "    async with open_sqlite_store(sys.argv[1]) as store: await store.take_ownership()\n"
        "trio.run(main)\n"
        "print([name for name in sys.modules if name.startswith('cryptography')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
