"""Small texts from files and addresses, none of which is trusted to be small, quick, or what it says it is."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

from l4s_geo.errors import InputError, reason

if TYPE_CHECKING:
    import requests

#: Seconds for a connection, for the next piece of an answer, and for all of it.
CONNECT, PIECE, WHOLE = 5.0, 30.0, 180.0

#: Bytes of metadata at most: far more than an item or a page of search results has.
JSON_MAX = 32 << 20

#: Characters of an address at most; those with a signature have some hundreds.
HREF_MAX = 8000

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # one letter is a drive of Windows


@dataclass(frozen=True)
class Address:
    """Where a raster is.

    Attributes:
        gdal: As GDAL takes it.
        shown: Without a signature, for messages and records.
    """

    gdal: str
    shown: str


def is_web(text: str) -> bool:
    """Whether it is an http or https address."""
    return re.match(r"(?i)https?://", text) is not None


def new_session() -> requests.Session:
    """A session that tries again what may pass, but not for long."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    session = requests.Session()
    # a server's own wish when to come back is not heeded: it could be tomorrow
    often = Retry(
        3, connect=1, read=1, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), allowed_methods=None,
        respect_retry_after_header=False, raise_on_status=False,
    )  # fmt: skip
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=often))
    return session


def fetch(
    session: requests.Session, url: str, method: str = "GET", *, if_json: bool = False, **request: Any
) -> tuple[str, bytes] | None:
    """What an address answers with, and the address after redirections.

    Args:
        session: To ask with.
        url: With http or https.
        method: Of the request.
        if_json: Read on only where it begins like JSON; None is returned where not.
        **request: What ``requests`` takes besides.

    Raises:
        InputError: It cannot be reached, refuses, takes too long, or answers with too much.
    """
    import requests

    until = time.monotonic() + WHOLE
    headers = {"Accept": "application/geo+json, application/json;q=0.9, */*;q=0.1"} | (request.pop("headers", {}) or {})
    try:
        with session.request(
            method, url, headers=headers, timeout=(CONNECT, PIECE), stream=True, **request
        ) as response:
            if not response.ok:
                said = " ".join(response.raw.read(500, decode_content=True).decode(errors="replace").split())
                raise InputError(_refused(url, response.status_code, said))
            body = b""
            for piece in response.iter_content(1 << 16):
                body += piece
                if if_json and body.strip() and not _like_json(body):
                    return None
                if len(body) > JSON_MAX:
                    raise InputError(f"{shown(url)} answers with more than {JSON_MAX >> 20} MB, too much for metadata.")
                if time.monotonic() > until:
                    raise InputError(f"{shown(url)} takes more than {WHOLE:.0f} s to answer. Try again later.")
            return response.url, body
    except requests.RequestException as e:
        raise InputError(f"{shown(url)} cannot be reached ({_cause(e)}). Check the address and the network.") from e


def _like_json(body: bytes) -> bool:
    return body.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"


def _refused(url: str, status: int, said: str) -> str:
    hint = {
        401: "It needs credentials, or a signed address.",
        403: "It needs credentials, or a signed address whose time has not run out.",
        404: "Check the address.",
    }.get(status, "Check the address, or try again later.")
    told = f" ({said[:200]})" if said and not said.startswith("<") else ""  # no pages for people
    return f"{shown(url)} answers with HTTP status {status}{told}. {hint}"


def _cause(error: BaseException) -> str:
    """The innermost reason, without the objects that libraries wrap it in."""
    text = str(error)
    for what, plain in (
        ("NameResolution", "no server of that name was found"),
        ("Connection refused", "the server refuses connections"),
        ("timed out", "no answer in time"),
        ("CERTIFICATE", "its certificate is not valid"),
    ):
        if what in text:
            return plain
    return reason(error)[:200]


def read_json(where: str, session: requests.Session | None = None) -> tuple[str, Any]:
    """JSON of a local file or of an address, and the address after redirections.

    Raises:
        InputError: It cannot be read, is larger than ``JSON_MAX``, or is no JSON.
    """
    if is_web(where):
        found = fetch(session or new_session(), where)
        assert found is not None  # without if_json something is returned
        return found[0], parse_json(found[1], shown(where))
    return where, parse_json(read_file(Path(where)), where)


def read_file(path: Path) -> bytes:
    """All of a file.

    Raises:
        InputError: It cannot be read, or is larger than ``JSON_MAX``.
    """
    with _readable(path), path.open("rb") as file:
        data = file.read(JSON_MAX + 1)
    if len(data) > JSON_MAX:
        raise InputError(f"{path} has more than {JSON_MAX >> 20} MB, too much for metadata. It is not read.")
    return data


def begins_like_json(path: Path) -> bool:
    """Whether a file begins with a brace, as no raster does."""
    with _readable(path), path.open("rb") as file:
        return _like_json(file.read(256))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror}). Check the path and the permissions.") from e


def parse_json(data: bytes, where: str) -> Any:
    """JSON from anyone.

    Raises:
        InputError: It is none, or nested too deeply.
    """
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        what = "nested too deeply" if isinstance(e, RecursionError) else f"no JSON ({reason(e)[:100]})"
        raise InputError(f"{where} is {what}. Was it downloaded completely?") from e


def shown(url: str) -> str:
    """An address without what it is signed with."""
    return url.split("?")[0] if is_web(url) else url


def resolve(href: Any, base: str, whose: str) -> Address:
    """Where an address in metadata leads, as far as it may.

    Only http(s) and s3 addresses and, from local metadata, local files are followed: nothing else reaches GDAL, whose
    other prefixes and drivers could lead anywhere.

    Args:
        href: As the metadata have it: absolute, or relative to them.
        base: File or address that the metadata are from.
        whose: What refers to it, for messages.

    Raises:
        InputError: It leads to where it must not, or there is no such local file.
    """
    what = f"{whose} of {shown(base)}"
    if not isinstance(href, str) or not href.strip() or len(href) > HREF_MAX or not href.isprintable():
        raise InputError(f"{what} has no usable address (href). Take the item from its catalogue again.")
    try:
        return _resolved(href, base, what)
    except ValueError as e:  # of the standard library, for hosts that cannot be
        raise InputError(f"{what} is at {href[:200]!r}, which is no address ({e}).") from e


def _resolved(href: str, base: str, what: str) -> Address:
    scheme = _SCHEME.match(href)
    if scheme is None and is_web(base) and not re.match(r"/(?!/)|\\|[A-Za-z]:", href):
        href = urljoin(base, href)
        scheme = _SCHEME.match(href)
    kind = scheme[1].lower() if scheme else "file"
    if kind in ("http", "https") and urlsplit(href).netloc:
        return Address(f"/vsicurl/{href}", shown(href))
    if kind == "s3" and re.match(r"(?i)s3://[^/?]+/.", href):
        return Address(f"/vsis3/{href[5:]}", href)
    if kind != "file":
        raise InputError(
            f"{what} is at {href[:200]!r}, an address that is not followed. Addresses with https:// and s3:// are, "
            "and files beside a local item. Download the file and change the address in the item."
        )
    if is_web(base):
        raise InputError(
            f"{what} is said to be the local file {href[:200]!r}. An item from the web must not lead to files of this "
            "computer. If you trust it, download the item and give the file."
        )
    path = _local(href, base)
    if href.startswith(("/vsi", "\\")) or not path.is_file():
        raise InputError(f"{what} is to be the file {str(path)[:300]}, but there is none. Download it too.")
    return Address(str(path.absolute()), str(path))


def allow_public_buckets() -> bool:
    """Have GDAL read s3 addresses without credentials where none are set, for all of the process.

    Public buckets, such as those of the Copernicus DEM, refuse nobody, but GDAL would not ask without credentials.

    Returns:
        Whether it is so.
    """
    known = [f"AWS_{k}" for k in ("ACCESS_KEY_ID", "PROFILE", "WEB_IDENTITY_TOKEN_FILE", "ROLE_ARN")]
    known += [f"AWS_CONTAINER_CREDENTIALS_{k}_URI" for k in ("RELATIVE", "FULL")]
    files = Path("~/.aws/credentials").expanduser(), Path("~/.aws/config").expanduser()
    if not any(os.environ.get(k) for k in known) and not any(path.exists() for path in files):
        os.environ.setdefault("AWS_NO_SIGN_REQUEST", "YES")
    return os.environ.get("AWS_NO_SIGN_REQUEST") == "YES"


def _local(href: str, base: str) -> Path:
    """The file that a path, or an address with ``file:``, stands for."""
    if not href.lower().startswith("file:"):
        return Path(base).parent / href
    parts = urlsplit(href)
    return Path(url2pathname(unquote(parts.path)) if parts.netloc in ("", "localhost") else "//no-other-computers")


def absolute(href: Any, base: str) -> str | None:
    """The address of other metadata, for following links; None where it must not be followed."""
    if not isinstance(href, str) or len(href) > HREF_MAX:
        return None
    if is_web(base):
        try:
            joined = urljoin(base, href)
        except ValueError:  # hosts that cannot be
            return None
        return joined if is_web(joined) else None
    if is_web(href):
        return href
    if re.match(r"/vsi|(?!file:)[A-Za-z][A-Za-z0-9+.-]+:", href):
        return None
    return os.path.normpath(_local(href, base))  # one name for one file, else circles have no end
