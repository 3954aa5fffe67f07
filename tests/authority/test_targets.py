"""One spelling for each target: what is canonical, what is refused, with and without ada-url.

Both ways of reading URLs are tested in one environment: the parser is given, not looked for.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from authority.reference import lease_of
from hypothesis import given, settings
from hypothesis import strategies as st

from arcp_trio.authority import targets
from arcp_trio.authority.lease import Lease
from arcp_trio.authority.targets import UrlParser, parse_url_fully, parse_url_strictly
from arcp_trio.wire.errors import InvalidRequestError, PermissionDeniedError

PARSERS: dict[str, UrlParser] = {"ada-url": parse_url_fully, "strict": parse_url_strictly}


@pytest.fixture(params=sorted(PARSERS))
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which parser there is: the test runs with each."""
    monkeypatch.setattr(targets, "url_parser", lambda: PARSERS[request.param])
    return str(request.param)


def canonical(namespace: str, target: str) -> str | None:
    """Return a target's canonical form, which is its own, or ``None`` for one that is refused."""
    try:
        shown = Lease.EMPTY.canonical(namespace, target)
    except PermissionDeniedError:
        return None
    assert Lease.EMPTY.canonical(namespace, shown) == shown
    return shown


# --- paths ----------------------------------------------------------------------------------------

PATHS: list[tuple[str, str | None]] = [
    ("/ws/a", "/ws/a"),
    ("/", "/"),
    ("/ws/", "/ws"),
    ("/ws//a///b", "/ws/a/b"),
    ("//ws/a", "/ws/a"),
    ("///", "/"),
    ("/ws/./a/.", "/ws/a"),
    ("/ws/../etc", "/etc"),
    ("/ws/a/../../etc/passwd", "/etc/passwd"),
    ("/ws/../../../../etc", "/etc"),
    ("/ws/..", "/"),
    ("/..", "/"),
    ("/ws/.../a", "/ws/.../a"),
    ("/ws/..a", "/ws/..a"),
    ("/ws/%2e%2e/etc", "/ws/%2e%2e/etc"),  # a file of that name: nothing decodes a path
    ("/ws/%2e%2e%2fetc", "/ws/%2e%2e%2fetc"),
    ("/ws/\uff0e\uff0e/etc", "/ws/\uff0e\uff0e/etc"),  # full-width: not the dots that the kernel knows
    ("/ws/\u2025/etc", "/ws/\u2025/etc"),
    ("/ws/~/a", "/ws/~/a"),
    ("/ws/$HOME", "/ws/$HOME"),
    ("/ws/*", "/ws/*"),
    ("/ws/a b", "/ws/a b"),
    ("/ws\\..\\etc", None),
    ("/ws/..\\etc", None),
    ("C:\\ws", None),
    ("C:/ws", None),
    ("\\\\server\\ws", None),
    ("ws/a", None),
    ("./ws", None),
    ("../ws", None),
    ("~/ws", None),
    ("file:///ws", None),
    (" /ws", None),
    ("", None),
    ("/ws\0/a", None),
    ("/ws/a\n", None),
    ("/ws/\x1b[2J", None),
    ("/ws/\x7f", None),
    ("/ws/\x85", None),
    ("/ws/\u2028", None),
    ("/ws/\udcff", None),
    ("/" + "a" * 4095, "/" + "a" * 4095),
    ("/" + "a" * 4096, None),
    ("/a" * 128, "/a" * 128),
    ("/a" * 129, None),
    ("/a/.." * 500, "/"),
]


@pytest.mark.requirement("P9.3", "G04")
@pytest.mark.parametrize(("path", "expected"), PATHS)
def test_a_path_is_canonical_or_refused(path: str, expected: str | None) -> None:
    for namespace in ("fs.read", "fs.write"):
        assert canonical(namespace, path) == expected


@pytest.mark.requirement("P9.3", "G04")
@pytest.mark.parametrize("path", [path for path, _ in PATHS])
def test_no_spelling_of_a_path_leaves_the_grant(path: str) -> None:
    lease = lease_of("fs.read", "/ws/**")
    shown = canonical("fs.read", path)
    inside = shown is not None and (shown == "/ws" or shown.startswith("/ws/"))
    assert lease.covers("fs.read", path) is inside


# --- URLs -----------------------------------------------------------------------------------------

PLAIN: list[tuple[str, str]] = [
    ("https://good.com", "https://good.com/"),
    ("https://good.com/", "https://good.com/"),
    ("HTTPS://GOOD.com/A", "https://good.com/A"),
    ("https://good.com:443/a", "https://good.com/a"),
    ("http://good.com:80/a", "http://good.com/a"),
    ("http://good.com:443/a", "http://good.com:443/a"),
    ("https://good.com:8443/a", "https://good.com:8443/a"),
    ("https://good.com:08443/a", "https://good.com:8443/a"),
    ("https://good.com/a/", "https://good.com/a/"),
    ("https://good.com//a", "https://good.com//a"),
    ("https://good.com/a?b=c&d=%2F..#e", "https://good.com/a?b=c&d=%2F.."),
    ("https://good.com?b", "https://good.com/?b"),
    ("https://good.com#b", "https://good.com/"),
    ("https://good.com/a?", "https://good.com/a"),
    ("https://good.com?#", "https://good.com/"),
    ("https://good.com/%61%7e%2d", "https://good.com/a~-"),
    ("https://good.com/%c3%a9%20", "https://good.com/%C3%A9%20"),
    ("https://good.com/@user/a:b;c=d,e+f!$&'()*", "https://good.com/@user/a:b;c=d,e+f!$&'()*"),
    ("https://good_host.a-b--c.com/", "https://good_host.a-b--c.com/"),
    ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/"),
    ("http://localhost/", "http://localhost/"),
]
"""What every parser reads alike: the strict one reads it too."""

ODD: list[tuple[str, str | None]] = [
    # Dot segments.
    ("https://good.com/ws/../a", "https://good.com/a"),
    ("https://good.com/ws/%2e%2E/a", "https://good.com/a"),
    ("https://good.com/ws/.%2e/a", "https://good.com/a"),
    ("https://good.com/../../a", "https://good.com/a"),
    ("https://good.com/ws/./a", "https://good.com/ws/a"),
    ("https://good.com/ws/..;/a", None),
    ("https://good.com/ws/..;x=1/a", None),
    ("https://good.com/ws/%2e%2e;/a", None),
    # Encoded separators, once and again.
    ("https://good.com/ws%2fa", None),
    ("https://good.com/ws/..%2Fa", None),
    ("https://good.com/ws%5c..%5ca", None),
    ("https://good.com/ws/%00", None),
    ("https://good.com/ws/a%0d%0aHost:%20evil.com", None),
    ("https://good.com/ws/%252e%252e/a", None),
    ("https://good.com/ws/%252fa", None),
    ("https://good.com/ws/%25252fa", None),
    ("https://good.com/ws/%255Ca", None),
    ("https://good.com/ws/%2520a", "https://good.com/ws/%2520a"),
    ("https://good.com/ws/%c0%ae%c0%ae/a", None),  # an overlong dot
    ("https://good.com/ws/%ff", None),
    ("https://good.com/ws/%", None),
    ("https://good.com/ws/%2", None),
    ("https://good.com/ws/%zz", None),
    ("https://good.com/ws/%u002e", None),
    # Backslashes, which some read as slashes.
    ("https://good.com\\@evil.com/", "https://good.com/@evil.com/"),
    ("https:\\\\evil.com/ws", "https://evil.com/ws"),
    ("https://good.com/ws\\..\\a", "https://good.com/a"),
    ("https://evil.com\\.good.com/", "https://evil.com/.good.com/"),
    # Userinfo.
    ("https://good.com@evil.com/", None),
    ("https://good.com:pass@evil.com/", None),
    ("https://@good.com/", None),
    ("https://:@good.com/", None),
    ("https://good.com%40evil.com/", None),
    ("https://good.com\uff20evil.com/", None),
    ("https://user:pass@good.com/", None),
    # Numbers for hosts.
    ("http://2130706433/", "http://127.0.0.1/"),
    ("http://0x7f000001/", "http://127.0.0.1/"),
    ("http://0x7f.1/", "http://127.0.0.1/"),
    ("http://017700000001/", "http://127.0.0.1/"),
    ("http://0177.0.0.1/", "http://127.0.0.1/"),
    ("http://127.1/", "http://127.0.0.1/"),
    ("http://127.0.0.1./", "http://127.0.0.1/"),
    ("http://127.0.0.01/", "http://127.0.0.1/"),
    ("http://256.0.0.1/", None),
    ("http://1.2.3.4.5/", None),
    ("http://good.0x/", None),
    # Full width, other digits, ideographic stops, what vanishes.
    ("http://\uff47\uff4f\uff4f\uff44.com/", "http://good.com/"),
    ("http://\u2460\u2461\u2466.0.0.1/", "http://127.0.0.1/"),
    ("http://good\u3002com/", "http://good.com/"),
    ("http://go\xadod.com/", "http://good.com/"),
    ("http://go\u200bod.com/", "http://good.com/"),
    ("http://go\u200dod.com/", None),
    ("http://good.com\u2044a/", "http://good.xn--coma-2g7a/"),
    ("http://g\u043e\u043ed.com/", "http://xn--gd-fmca.com/"),  # Cyrillic: another host, and it shows
    ("http://b\xfccher.de/", "http://xn--bcher-kva.de/"),
    ("http://xn--bcher-kva.de/", "http://xn--bcher-kva.de/"),
    ("http://B\xdcCHER.de/", "http://xn--bcher-kva.de/"),
    ("http://fa\xdf.de/", "http://xn--fa-hia.de/"),
    ("http://\uff0a.com/", None),
    ("http://*.com/", None),
    ("http://go%6fd.com/", "http://good.com/"),
    # Dots and ports.
    ("http://good.com./", None),
    ("http://good.com../", None),
    ("http://.good.com/", None),
    ("http://good..com/", None),
    ("http://good.com:/", "http://good.com/"),
    ("http://good.com:00080/", "http://good.com/"),
    ("http://good.com:65536/", None),
    ("http://good.com:99999999999999999999/", None),
    ("http://good.com:80a/", None),
    ("http://good.com:-80/", None),
    # IPv6.
    ("http://[::1]/", "http://[::1]/"),
    ("http://[0:0::0:1]:80/", "http://[::1]/"),
    ("http://[::FFFF:127.0.0.1]/", "http://[::ffff:7f00:1]/"),
    ("http://[fe80::1%25eth0]/", None),
    ("http://[fe80::1%eth0]/", None),
    ("http://[::1/", None),
    ("http://[v1.a]/", None),
    # No host, no scheme, another scheme.
    ("http://", None),
    ("https:///", None),
    ("https://?a", None),
    ("https:///good.com/", "https://good.com/"),
    ("https:good.com", "https://good.com/"),
    ("https:/good.com", "https://good.com/"),
    ("//good.com/", None),
    ("good.com/a", None),
    ("/ws", None),
    ("ftp://good.com/", None),
    ("file:///etc/passwd", None),
    ("javascript:alert(1)", None),
    ("data:text/html,a", None),
    ("wss://good.com/", None),
    ("blob:https://good.com/a", None),
    ("view-source:https://good.com/", None),
    # White space and control characters.
    ("https://good.com/\tws", None),
    ("https://go\nod.com/", None),
    ("\thttps://good.com/", None),
    ("https://good.com/a\r\nHost: evil.com", None),
    ("https://good.com/\0", None),
    (" https://good.com/ ", "https://good.com/"),
    ("https://good.com /", None),
    ("https://good.com/a b", "https://good.com/a%20b"),
    ("https://go od.com/", None),
    ("https://good.com/\u2028", None),
    # What a path may have, and is encoded.
    ("https://good.com/\xe9", "https://good.com/%C3%A9"),
    ("https://good.com/\uff0e\uff0e/a", "https://good.com/%EF%BC%8E%EF%BC%8E/a"),
    ('https://good.com/a"<>`{}', "https://good.com/a%22%3C%3E%60%7B%7D"),
    ("https://good.com/a?b='", "https://good.com/a?b=%27"),
    ("https://good.com/a|b", "https://good.com/a|b"),
    ("https://good.com/" + "a" * 8175, "https://good.com/" + "a" * 8175),
    ("https://good.com/" + "a" * 8176, None),
    ("https://good.com" + "/a" * 126, None),
    ("", None),
]


@pytest.mark.requirement("P9.3", "G04")
@pytest.mark.parametrize(("url", "expected"), PLAIN)
def test_a_plain_url_is_read_alike_with_and_without_ada_url(parser: str, url: str, expected: str) -> None:
    assert canonical("net.fetch", url) == expected


@pytest.mark.requirement("P9.3", "G04")
@pytest.mark.parametrize(("url", "expected"), ODD)
def test_an_odd_url_is_canonical_or_refused(parser: str, url: str, expected: str | None) -> None:
    shown = canonical("net.fetch", url)
    if parser == "ada-url":
        assert shown == expected
    else:
        # Refused where it is not certain, and never read differently.
        assert shown in (expected, None)


@pytest.mark.requirement("P9.3", "G04")
@pytest.mark.parametrize("url", [url for url, _ in [*PLAIN, *ODD]])
def test_no_spelling_of_a_url_leaves_the_grant(parser: str, url: str) -> None:
    lease = lease_of("net.fetch", "https://good.com/ws/**", "http://good.com/ws/**")
    shown = canonical("net.fetch", url)
    inside = shown is not None and shown.split("?")[0].partition("://")[2].startswith("good.com/ws/")
    assert lease.covers("net.fetch", url) is inside


@pytest.mark.requirement("P9.3")
@settings(deadline=None, max_examples=400, print_blob=True)
@given(
    st.one_of(
        st.text("htps:/?#[]@!&'%2eEfF.\\;*-_~ab019X \t|\xe9\uff0e", max_size=24),
        st.tuples(
            st.sampled_from(["http://", "https://", "HTTP://", "http:/", "https:\\\\"]),
            st.text("ab.-_01xn:%@[]*/\uff41", min_size=1, max_size=10),
            st.sampled_from(["", ":80", ":443", ":8080", ":0", ":065"]),
            st.text("/.;%2eE5cfFaZ~*@:\\^|\xe9", max_size=10).map("/".__add__),
            st.sampled_from(["", "?", "?#", "?a=b", "?'", "?a=%2f#c", "#x"]),
        ).map("".join),
    )
)
def test_the_two_parsers_agree_on_what_both_accept(url: str) -> None:
    read: dict[str, str | None] = {}
    for name, parse in PARSERS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(targets, "url_parser", lambda parse=parse: parse)
            read[name] = canonical("net.fetch", url)
    # And the strict one accepts nothing that the other refuses.
    assert read["strict"] in (read["ada-url"], None)


@pytest.mark.requirement("P9.3")
@settings(deadline=None, max_examples=200, print_blob=True)
@given(
    st.from_regex(
        r"https?://[a-z]{1,5}(\.[a-z]{2,4}){0,2}(:[1-9][0-9]{1,3})?(/[a-zA-Z0-9~_.-]{1,6}[a-z]){0,4}/?(\?[a-z=&]{0,6})?",
        fullmatch=True,
    )
)
def test_what_programs_write_needs_no_extra(url: str) -> None:
    """The strict parser is of use: ordinary URLs pass it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "url_parser", lambda: parse_url_strictly)
        assert canonical("net.fetch", url) is not None


URL_PATTERNS: list[tuple[str, str | None]] = [
    ("https://good.com", "https://good.com/"),
    ("HTTPS://Good.COM:443/a/**", "https://good.com/a/**"),
    ("https://good.com:8443/*", "https://good.com:8443/*"),
    ("https://good.com:*/*", "https://good.com:*/*"),
    ("https://*.good.com/**", "https://*.good.com/**"),
    ("https://**", "https://*/**"),
    ("https://**/a", "https://*/**/a"),
    ("https://*:*/**", "https://*:*/**"),
    ("https://good.com/%7ea/**/**", "https://good.com/~a/**"),
    ("http://127.0.0.*/", "http://127.0.0.*/"),
    ("https://good.com/*/%2A", "https://good.com/*/%2A"),
    ("*", None),
    ("**", None),
    ("*://good.com/", None),
    ("http*://good.com/", None),
    ("ftp://good.com/", None),
    ("good.com/**", None),
    ("/good.com", None),
    ("https://", None),
    ("https:///a", None),
    ("https://**.com/", None),
    ("https://a**/", None),
    ("https://user@good.com/", None),
    ("https://user:pass@good.com/", None),
    ("https://*@good.com/", None),
    ("https://good.com/?a=*", None),
    ("https://good.com?*", None),
    ("https://good.com/#a", None),
    ("https://good.com/a/../b", None),
    ("https://good.com/a/%2e%2e/b", None),
    ("https://good.com/./a", None),
    ("https://good.com\\a", None),
    ("https://good.com/a%2fb", None),
    ("https://good.com/a%2*", None),
    ("https://good.com/%*", None),
    ("https://good.com/a**", None),
    ("https://good.com:80*/", None),
    ("https://good.com:**/", None),
    ("https://good.com:70000/", None),
    ("https://good.com./", None),
    ("https://*..com/", None),
    ("https://%2a.com/", None),
    ("https://\uff0a.com/", None),
    ("https://b\xfc*.de/", None),
    ("https://xn--*/", None),
    ("https://*.0.0.1/", None),
]


@pytest.mark.requirement("P9.3", "P9.2")
@pytest.mark.parametrize(("pattern", "expected"), URL_PATTERNS)
def test_a_url_pattern_is_canonical_or_refused(parser: str, pattern: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(InvalidRequestError) as caught:
            lease_of("net.fetch", pattern)
        assert caught.value.message.startswith('$.payload.lease_request."net.fetch"[0]: ')
    else:
        assert lease_of("net.fetch", pattern).grants == {"net.fetch": (expected,)}
        assert lease_of("net.fetch", expected).grants == {"net.fetch": (expected,)}


@pytest.mark.requirement("P9.3")
def test_patterns_that_only_ada_url_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {
        "https://*.b\xfccher.de/\xe9/*": "https://*.xn--bcher-kva.de/%C3%A9/*",
        "https://[::1]:8000/**": "https://[::1]:8000/**",
        "http://0x7f.1/": "http://127.0.0.1/",
    }
    for pattern, expected in odd.items():
        monkeypatch.setattr(targets, "url_parser", lambda: parse_url_fully)
        assert lease_of("net.fetch", pattern).grants["net.fetch"] == (expected,)
        monkeypatch.setattr(targets, "url_parser", lambda: parse_url_strictly)
        with pytest.raises(InvalidRequestError, match=r"ada-url|four decimal"):
            lease_of("net.fetch", pattern)


@pytest.mark.requirement("P9.3")
def test_ada_url_is_looked_for_when_a_url_is_checked_and_can_be_absent() -> None:
    code = (
        "import sys\n"
        "if 'without' in sys.argv: sys.modules['ada_url'] = None\n"
        "from arcp_trio import Lease\n"
        "lease = Lease.read({'fs.read': ['/a'], 'tool.call': ['a']}, None, now_ms=0)\n"
        "lease.covers('fs.read', '/a'), lease.covers('net.fetch', 'https://a.com/')\n"
        "early = bool(sys.modules.get('ada_url'))\n"
        "lease = Lease.read({'net.fetch': ['https://good.com/**']}, None, now_ms=0)\n"
        "print(early, lease.covers('net.fetch', 'https://good.com/a'), lease.covers('net.fetch', 'https:good.com/a'))"
    )
    for argument, expected in (("with", "False True True"), ("without", "False True False")):
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, argument], capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == expected


# --- names ----------------------------------------------------------------------------------------

NAMES: list[tuple[str, str, bool]] = [
    ("tool.call", "search", True),
    ("tool.call", "mcp:github/search.v2", True),
    ("tool.call", "Search Tool", True),
    ("tool.call", "a..b", True),
    ("tool.call", ".hidden", True),
    ("tool.call", "a/../b", False),
    ("tool.call", "../b", False),
    ("tool.call", "a/.", False),
    ("tool.call", "..", False),
    ("tool.call", "", False),
    ("tool.call", "a\nb", False),
    ("tool.call", "a" * 1024, True),
    ("tool.call", "a" * 1025, False),
    ("tool.call", "a.b" * 128, False),
    ("model.use", "anthropic/claude-3.5:beta", True),
    ("model.use", "tier/../other", False),
    ("model.use", "..", False),
    ("model.use", "tier-fast/\0", False),
    ("agent.delegate", "helper", True),
    ("agent.delegate", "helper@1.0.0", True),
    ("agent.delegate", "helper@", False),
    ("agent.delegate", "@1", False),
    ("agent.delegate", "helper@1@2", False),
    ("x.own", "a/../b", False),
    ("x.own", "anything at all", True),
    ("cost.budget", "USD:1", False),
]


@pytest.mark.requirement("P9.3")
@pytest.mark.parametrize(("namespace", "name", "accepted"), NAMES)
def test_a_name_is_itself_or_refused(namespace: str, name: str, accepted: bool) -> None:
    assert canonical(namespace, name) == (name if accepted else None)
    if not accepted:
        assert not Lease.read({"x.own": ["**"]}, None, now_ms=0).covers(namespace, name)


@pytest.mark.requirement("P9.3", "P14.2")
def test_a_refusal_does_not_repeat_the_target() -> None:
    with pytest.raises(PermissionDeniedError) as caught:
        Lease.EMPTY.canonical("net.fetch", "https://user:secret@good.com/?token=secret")
    assert "secret" not in caught.value.message


def test_what_is_no_text_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="a target is a text, got bytes"):
        Lease.EMPTY.canonical("fs.read", b"/ws")  # type: ignore[arg-type]
