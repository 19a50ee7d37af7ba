"""Text from elsewhere (run ids, task names, exceptions), made safe to show in a log, an error or a terminal."""

import re
import unicodedata
from urllib.parse import unquote_plus

__all__ = ["MAX_ERROR", "MAX_NAME", "describe", "error_text", "hide_password", "printable", "quoted", "writable"]

MAX_NAME = 200
"""Characters of a name or an id that are shown."""
MAX_ERROR = 2000
"""Characters of an exception's text that are shown or kept."""
UNSAFE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode categories that are escaped: control and format characters (bidi overrides among them), lone surrogates,
unassigned and private characters, line and paragraph separators."""
HOSTS = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]*\])(:\d+)?(,([\w.-]+|\[[0-9a-fA-F:.]*\])(:\d+)?)*(/.*)?")
SECRET_OPTION = re.compile(r"password|passwd|secret|token", re.IGNORECASE)


def printable(text: str, limit: int = MAX_NAME, *, keep: str = "") -> str:
    """Escape what could forge a line or steer a terminal in ``text``, and cut it to ``limit`` characters.

    A cut text ends with the number of characters that it had. ``keep``: characters that stay as they are, such as
    ``"\\n\\t"`` in a traceback.
    """
    shown = text if len(text) <= limit else text[:limit]
    if not (shown.isascii() and shown.isprintable()):
        shown = "".join(
            character if character in keep or unicodedata.category(character) not in UNSAFE else escaped(character)
            for character in shown
        )
        if len(shown) > limit:
            shown = shown[:limit]
    return shown if len(text) <= limit else f"{shown}... ({len(text):,} characters)"


def escaped(character: str) -> str:
    """Return the character as Python would escape it: ``\\n``, ``\\x1b``, ``\\u202e``."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def quoted(text: str, limit: int = MAX_NAME) -> str:
    """Return ``text`` in quotes, as ``repr`` does, cut to ``limit`` characters."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}... ({len(text):,} characters)"


def error_text(exc: BaseException, limit: int = MAX_ERROR, *, keep: str = "") -> str:
    """Return the text of an exception, safe to show; also of one whose ``__str__`` fails. ``keep``: as in
    ``printable``."""
    try:
        text = str(exc)
    except Exception as failure:
        return f"<its text is not available: __str__ raised {type(failure).__name__}>"
    return printable(text, limit, keep=keep)


def describe(exc: BaseException, limit: int = MAX_ERROR, *, keep: str = "") -> str:
    """Return ``Type: text`` of an exception, safe to show; only the type if there is no text."""
    name = printable(type(exc).__name__)
    text = error_text(exc, limit, keep=keep)
    return f"{name}: {text}" if text else name


def writable(text: str) -> str:
    """Return ``text`` with each lone surrogate escaped, so that it can be written as UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def hide_password(url: str) -> str:
    """Return a broker URL with ``***`` in place of its password and of each secret among its options."""
    # Not by urlsplit: a password may hold what should have been escaped, and is hidden all the same.
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    place, mark, query = rest.partition("?")
    if "@" not in place and "@" in query and not HOSTS.fullmatch(place):
        place, mark, query = rest, "", ""
    user, _, host = place.rpartition("@")
    if ":" in user:
        place = f"{user.partition(':')[0]}:***@{host}"
    options = []
    for option in query.split("&"):
        name, equals, _ = option.partition("=")
        options.append(f"{name}=***" if equals and SECRET_OPTION.search(unquote_plus(name)) else option)
    return scheme + separator + place + mark + "&".join(options)
