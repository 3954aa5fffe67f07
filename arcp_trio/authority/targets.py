"""The one way to write a target or a pattern of each namespace (P9.2, P9.3).

A text is made canonical before it is compared with anything, and cut into segments: what stands between two
separators, each with the separator before it. Two spellings of one thing become one text; what has no canonical form
is refused with a ValueError that says why.

URLs are read by ada-url (the extra ``url``), the WHATWG parser that browsers' behaviour is defined by. Without it a
strict parser reads the plain ASCII ones, which every parser reads alike, and refuses all others: a spelling that two
parsers read differently is how a check is passed with one host and another is fetched.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from functools import cache
from urllib.parse import unquote_to_bytes

import attrs

__all__ = [
    "MAX_PATTERN",
    "MAX_SEGMENTS",
    "ROOTED",
    "ParsedUrl",
    "Segment",
    "Syntax",
    "Target",
    "UrlParser",
    "parse_url_fully",
    "parse_url_strictly",
    "syntax_of",
    "url_parser",
]

MAX_PATTERN = 2_048
"""Characters of one pattern."""

MAX_SEGMENTS = 128
"""Segments of a target or a pattern: no path of a real system is deeper, and the cost of a check grows with them."""

_MAX_PATH = 4_096  # PATH_MAX of Linux
_MAX_URL = 8_192  # what servers take of a request line
_MAX_NAME = 1_024

Segment = tuple[str, str]
"""The separator before a segment, and its text."""

# What ends a line or hides in a log, and lone surrogates, which no encoding has.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@attrs.frozen
class Target:
    """A target in its canonical form.

    Attributes:
        text: What the operation is to be done with: a path, a URL without its fragment, a name.
        key: What is matched of it: a URL without its query.
        segments: The key, cut.
    """

    text: str
    key: str
    segments: tuple[Segment, ...]


@attrs.frozen(eq=False)
class Syntax:
    """How the texts of a namespace are written.

    Attributes:
        separators: What may stand between two segments that one ``**`` takes.
        read_target: Makes a target canonical.
        read_pattern: Makes a pattern canonical and returns its segments.
        write_pattern: Writes a pattern from its segments.
        limit: Characters of a target.
    """

    separators: tuple[str, ...]
    read_target: Callable[[str], Target]
    read_pattern: Callable[[str], tuple[Segment, ...]]
    write_pattern: Callable[[tuple[Segment, ...]], str]
    limit: int

    def target(self, text: str) -> Target:
        """Return a target's canonical form.

        Raises:
            ValueError: It has none.
        """
        if not isinstance(text, str):
            raise TypeError(f"a target is a text, got {type(text).__name__}")
        if not 0 < len(text) <= self.limit:
            raise ValueError("empty" if not text else f"longer than {self.limit} characters")
        if _UNPRINTABLE.search(text):
            raise ValueError("has a control character")
        target = self.read_target(text)
        if len(target.segments) > MAX_SEGMENTS:
            raise ValueError(f"more than {MAX_SEGMENTS} segments")
        return target

    def pattern(self, text: str) -> tuple[Segment, ...]:
        """Return the segments of a pattern, made canonical as targets are.

        Raises:
            ValueError: It is no pattern.
        """
        if not text or _UNPRINTABLE.search(text):
            raise ValueError("expected text without control characters")
        if len(text) > MAX_PATTERN:
            raise ValueError(f"expected at most {MAX_PATTERN} characters")
        segments: list[Segment] = []
        for separator, segment in self.read_pattern(text):
            if "**" in segment:
                if segment != "**":
                    raise ValueError("'**' stands for whole segments, and alone between two separators")
                if segments and segments[-1][1] == "**":
                    if segments[-1][0] not in ("", separator):
                        raise ValueError("'**' beside '**' with another separator")
                    continue
            segments.append((separator, segment))
        if len(segments) > MAX_SEGMENTS:
            raise ValueError(f"expected at most {MAX_SEGMENTS} segments")
        return tuple(segments)


def _join(segments: tuple[Segment, ...]) -> str:
    return "".join(separator + text for separator, text in segments)


# --- paths ----------------------------------------------------------------------------------------


def _path_parts(text: str) -> list[str]:
    if not text.startswith("/"):
        raise ValueError("expected an absolute path")
    if "\\" in text:
        raise ValueError("a path with a backslash is read differently by different systems")
    return [part for part in text.split("/") if part]


def _read_path(text: str) -> Target:
    parts: list[str] = []
    for part in _path_parts(text):
        if part == "..":
            # Above the root is the root, as the kernel has it.
            del parts[-1:]
        elif part != ".":
            parts.append(part)
    path = "/" + "/".join(parts)
    return Target(path, path, tuple(("/", part) for part in parts))


def _read_path_pattern(text: str) -> tuple[Segment, ...]:
    parts = _path_parts(text)
    if "." in parts or ".." in parts:
        raise ValueError("a path pattern has no '.' and no '..'")
    return tuple(("/", part) for part in parts)


# --- names ----------------------------------------------------------------------------------------

_NAME_SEPARATOR = re.compile(r"([./:])")
_DOT_SEGMENT = re.compile(r"(?:^|/)\.\.?(?:/|$)")


def _cut(text: str, separator: re.Pattern[str]) -> tuple[Segment, ...]:
    if _DOT_SEGMENT.search(text):
        # Whoever joins the name to a path or a URL would walk up.
        raise ValueError("a name has no '.' and no '..' between slashes")
    parts = separator.split(text)
    return tuple(zip(["", *parts[1::2]], parts[::2], strict=True))


def _cut_name(text: str) -> tuple[Segment, ...]:
    return _cut(text, _NAME_SEPARATOR)


def _cut_model(text: str) -> tuple[Segment, ...]:
    # Dots are part of a version (claude-3.5) and colons of a tag (llama3:8b): only a slash divides.
    return _cut(text, _SLASH)


_SLASH = re.compile(r"(/)")


def _cut_agent(text: str) -> tuple[Segment, ...]:
    """Cut ``name@version``; a version is one segment: its dots divide nothing."""
    name, at, version = text.partition("@")
    if not name or (at and not version) or "@" in version:
        raise ValueError("expected name or name@version")
    segments = _cut_name(name)
    return (*segments, ("@", version)) if at else segments


def _cut_agent_pattern(text: str) -> tuple[Segment, ...]:
    """Cut it; any version is no version."""
    segments = _cut_agent(text)
    return segments[:-1] if segments[-1] == ("@", "**") else segments


def _reader(cut: Callable[[str], tuple[Segment, ...]]) -> Callable[[str], Target]:
    return lambda text: Target(text, text, cut(text))


# --- URLs -----------------------------------------------------------------------------------------


@attrs.frozen
class ParsedUrl:
    """What a URL says, without its fragment: the host in ASCII and lower case, the port ``""`` for the default."""

    scheme: str
    host: str
    port: str
    path: str
    query: str


UrlParser = Callable[[str], ParsedUrl]
"""Reads a URL; raises ValueError for one that it does not vouch for."""

_DEFAULT_PORTS = {"http": "80", "https": "443"}

_PATH_CHARACTERS = r"A-Za-z0-9._~!$&'()*+,;=:@%-"
_STRICT_URL = re.compile(
    r"(https?)://"
    r"([a-z0-9._*-]+)"
    r"(?::([0-9]{1,5}))?"
    rf"(/[/{_PATH_CHARACTERS}]*)?"
    rf"(\?[/?{_PATH_CHARACTERS}]*)?"
    rf"(?:#[/?{_PATH_CHARACTERS}]*)?",
    re.ASCII | re.IGNORECASE,
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}", re.ASCII)


def parse_url_fully(text: str) -> ParsedUrl:
    """Read a URL as WHATWG says, with ada-url.

    Raises:
        ValueError: It is no URL, or has userinfo.
        ImportError: ada-url is not installed.
    """
    import ada_url  # noqa: PLC0415  # the extra "url"; and whoever checks no URL does not pay for it

    try:
        url = ada_url.URL(text)
    except ValueError:
        raise ValueError("not a URL") from None
    if url.username or url.password or url.href.count("@") != text.count("@"):
        # An empty one (http://@host/) leaves no trace but the sign.
        raise ValueError("has userinfo")
    return ParsedUrl(url.protocol[:-1], url.hostname, url.port, url.pathname, url.search)


def parse_url_strictly(text: str) -> ParsedUrl:
    """Read a URL of which every character stands for itself.

    Raises:
        ValueError: It is anything else; another parser may know what.
    """
    match = _STRICT_URL.fullmatch(text)
    if match is None:
        raise ValueError("not a plain ASCII URL, and ada-url, which could say what it is, is not installed")
    scheme, host, port, path, query = (part or "" for part in match.groups())
    scheme, host = scheme.lower(), host.lower()
    labels = host.split(".")
    if not all(labels) or any(label.startswith("xn--") for label in labels):
        raise ValueError("the host has an empty or encoded label")
    if _NUMBER.fullmatch(labels[-1]) and not _IPV4.fullmatch(host):
        raise ValueError("the host is a number, and not four decimal ones")
    if "'" in query:
        raise ValueError("the query has an apostrophe")
    if port:
        number = int(port)
        if number > 65_535:  # noqa: PLR2004
            raise ValueError("the port is no port")
        port = "" if str(number) == _DEFAULT_PORTS[scheme] else str(number)
    if _has_dot_segment(path):
        raise ValueError("the path has dot segments")
    return ParsedUrl(scheme, host, port, path or "/", query if query != "?" else "")


@cache
def url_parser() -> UrlParser:
    """Return the parser that is there: the full one, else the strict one."""
    try:
        import ada_url  # noqa: F401, PLC0415  # as above
    except ImportError:
        return parse_url_strictly
    return parse_url_fully


# Where a server stops reading a segment at a semicolon, "..;" is "..".
_DOTS = re.compile(r"(?:\.|%2e){1,2}(?:;.*)?", re.IGNORECASE)


def _has_dot_segment(path: str) -> bool:
    return any(_DOTS.fullmatch(part) for part in path.split("/"))


_PERCENT = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")
_HIDING = frozenset("/\\\x7f") | frozenset(map(chr, range(0x20)))
# Encoded more than once: whoever decodes twice finds a slash, a dot or a control character there.
_ENCODED_AGAIN = re.compile(r"%25(?:25)*(?:2[EF]|5C|7F|[01][0-9A-F])", re.IGNORECASE)


def _decode_one(match: re.Match[str]) -> str:
    digits = match[1]
    if digits is None:
        raise ValueError("a '%' without two hexadecimal digits")
    character = chr(int(digits, 16))
    if character in _HIDING:
        raise ValueError("an encoded slash, backslash or control character")
    return character if character in _UNRESERVED else match[0].upper()


def _normalise_path(path: str) -> str:
    """Return a URL's path with one spelling for each character.

    Raises:
        ValueError: Servers read it differently.
    """
    path = _PERCENT.sub(_decode_one, path)
    if _ENCODED_AGAIN.search(path):
        raise ValueError("a character that is encoded more than once")
    if _has_dot_segment(path):
        raise ValueError("the path has dot segments")
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise ValueError("the path is not in UTF-8") from None
    return path


def _check_origin(url: ParsedUrl) -> None:
    if url.scheme not in _DEFAULT_PORTS:
        raise ValueError("expected http or https")
    if not url.host or url.host.startswith(".") or url.host.endswith(".") or ".." in url.host:
        raise ValueError("the host is empty, or has an empty label")


def _url_segments(scheme: str, host: str, port: str, path: str) -> tuple[Segment, ...]:
    # The port is always there: one that is not named is the default, and no "*" of a host reaches it.
    origin = (("", scheme), ("//", host), (":", port or _DEFAULT_PORTS[scheme]))
    return (*origin, *(("/", part) for part in path[1:].split("/")))


def _read_url(text: str) -> Target:
    url = url_parser()(text)
    _check_origin(url)
    if "*" in url.host:
        raise ValueError("the host has a '*'")
    path = _normalise_path(url.path)
    key = f"{url.scheme}://{url.host}{':' if url.port else ''}{url.port}{path}"
    return Target(key + url.query, key, _url_segments(url.scheme, url.host, url.port, path))


_URL_PATTERN = re.compile(
    r"(https?)://([^/?#\\@%:\[\]]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}|\*))?(/[^?#\\]*)?", re.IGNORECASE
)


def _read_url_pattern(text: str) -> tuple[Segment, ...]:
    match = _URL_PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(
            "expected http(s)://host, http(s)://host:port or a path behind it: no userinfo, query, fragment or "
            "backslash, nothing encoded in the host"
        )
    scheme, host, port, path = match.groups()
    path = path or "/"
    if host == "**":
        # Any host, and whatever stands behind it.
        host, path = "*", "/**" + (path if path != "/" else "")
    if _has_dot_segment(path):
        raise ValueError("a URL pattern has no dot segments")
    any_port = port == "*"
    url = url_parser()(f"{scheme}://{host}{f':{port}' if port and not any_port else ''}{path}")
    _check_origin(url)
    if url.host.count("*") != host.count("*") or any(
        label.startswith("xn--") and "*" in label for label in url.host.split(".")
    ):
        # A full-width asterisk becomes one that matches; one that is encoded with other letters matches other names.
        raise ValueError("the host has a '*' that is encoded, or in an encoded label")
    return _url_segments(url.scheme, url.host, "*" if any_port else url.port, _normalise_path(url.path))


def _write_url_pattern(segments: tuple[Segment, ...]) -> str:
    (_, scheme), (_, host), (_, port), *path = segments
    named = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    return f"{scheme}://{host}{named}{_join(tuple(path))}"


# --- namespaces -------------------------------------------------------------------------------------


def _write_path_pattern(segments: tuple[Segment, ...]) -> str:
    return _join(segments) or "/"


_PATHS = Syntax(("/",), _read_path, _read_path_pattern, _write_path_pattern, _MAX_PATH)
_URLS = Syntax(("/",), _read_url, _read_url_pattern, _write_url_pattern, _MAX_URL)
_MODELS = Syntax(("/",), _reader(_cut_model), _cut_model, _join, _MAX_NAME)
_AGENTS = Syntax((".", "/", ":"), _reader(_cut_agent), _cut_agent_pattern, _join, _MAX_NAME)
_NAMES = Syntax((".", "/", ":"), _reader(_cut_name), _cut_name, _join, _MAX_NAME)

_SYNTAXES = {
    "fs.read": _PATHS,
    "fs.write": _PATHS,
    "net.fetch": _URLS,
    "model.use": _MODELS,
    "agent.delegate": _AGENTS,
}


ROOTED = frozenset({"fs.read", "fs.write"})
"""Where every segment has a separator before it, and no segment at all is a target: the root."""


def syntax_of(namespace: str) -> Syntax:
    """Return how a namespace's texts are written; an unknown one has plain names (P9.1)."""
    return _SYNTAXES.get(namespace, _NAMES)
