"""STAC catalogues: those with an API are asked, those that are files are walked, in both cases within bounds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pystac
from pystac_client import Client
from pystac_client.stac_api_io import StacApiIO
from requests import Session

from l4s_geo.catalogue.files import FILES, Files
from l4s_geo.catalogue.items import Box, Dates, Wanted, links_of, read_item
from l4s_geo.errors import InputError, meant, reason
from l4s_geo.progress import Progress
from l4s_geo.scene.web import fetch, is_web, new_session, parse_json, read_json, shown

#: Items of one search, and of a page, at most.
ITEMS, PAGE = 2000, 100


class Catalogue(Protocol):
    """What can be searched.

    Attributes:
        address: Of its root.
        given: Collection that the user's address is of, if any.
        cut: What was left out of the last search because there was too much, for the user.
    """

    address: str
    given: str | None
    cut: str | None

    def collections(self) -> list[str]:
        """Ids of its collections, as far as they are known."""

    def items(self, wanted: Wanted, progress: Progress) -> Iterator[pystac.Item]:
        """Items that are wanted, in any order."""


class _Reader(StacApiIO):
    """Reads for pystac and pystac-client: bounded in size and time, and from the web only."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """The answer to a request."""
        if not is_web(href):
            raise InputError(f"The catalogue refers to {href[:200]!r}, which is not followed.")
        how: dict[str, Any] = {"json": parameters} if (method or "GET").upper() == "POST" else {"params": parameters}
        found = fetch(self.session, href, (method or "GET").upper(), headers=headers, **how)
        return "" if found is None else parsed_text(found[1], href)

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """Text at an address, never a local file."""
        if isinstance(source, pystac.Link):
            return super().read_text(source, *args, **kwargs)
        return self.request(str(source), *args, **kwargs)


def parsed_text(body: bytes, href: str) -> str:
    """The text of an answer that has been found to be JSON."""
    parse_json(body, shown(href))
    return body.decode("utf-8-sig")


@contextmanager
def open_catalogue(address: str) -> Iterator[Catalogue]:
    """A catalogue by the address of its API, of its ``catalog.json``, of one of its collections, or a local file.

    Raises:
        InputError: It cannot be reached, or is no STAC catalogue.
    """
    if not is_web(address):
        path = Path(address) / "catalog.json" if Path(address).is_dir() else Path(address)
        if "://" in address or not path.is_file():
            raise InputError(
                f"There is no catalogue {address}. Give an address with https://, or the catalog.json of a folder."
            )
        address = str(path)
    with new_session() as session:
        yield _catalogue(address, session)


def _catalogue(address: str, session: Session) -> Catalogue:
    try:
        where, found = read_json(address, session)
    except InputError as e:
        if "no JSON" not in str(e):
            raise
        raise InputError(
            f"{address} is no STAC catalogue but something else, perhaps a page for people. Give the address of the "
            "catalogue itself: of its API (often ending in /v1 or /stac), or of its catalog.json."
        ) from e
    kind = found.get("type") if isinstance(found, Mapping) else None
    if kind not in ("Catalog", "Collection"):
        what = f"a STAC {kind}" if kind in ("Feature", "FeatureCollection") else "no STAC catalogue"
        raise InputError(f"{address} is {what}. Give the root of a catalogue, whose type is Catalog.")
    links = links_of(found, where)
    if kind == "Collection" and {"items", "root"} <= links.keys() and is_web(links["root"][0]):
        return _Api(links["root"][0], session, str(found.get("id")))
    if "search" in links and is_web(where):
        return _Api(where, session)
    return Files(where, session, found)


class _Api:
    """A catalogue with a search of its own (STAC API)."""

    def __init__(self, address: str, session: Session, given: str | None = None) -> None:
        self.address, self.given = address, given
        self.cut: str | None = None
        self._reader = _Reader(session)
        with warnings.catch_warnings(), _answers(address):
            warnings.simplefilter("ignore")  # an API that does not say what it conforms to is asked all the same
            self._client = Client.open(address, stac_io=self._reader)
            self._client.add_conforms_to("ITEM_SEARCH")
        self._ids: list[str] | None = None

    def collections(self) -> list[str]:
        """Ids of all collections."""
        if self._ids is None:
            with _answers(self.address):
                href = next((link.get_absolute_href() for link in self._client.get_links("data")), None)
                pages = self._reader.get_pages(href or self.address.rstrip("/") + "/collections")
                found = (c for page in _first(pages, FILES // PAGE) for c in page.get("collections", []))
                self._ids = [str(c["id"]) for c in found if isinstance(c, Mapping) and c.get("id")]
        return self._ids

    def items(self, wanted: Wanted, progress: Progress) -> Iterator[pystac.Item]:
        """Items that are wanted; cloud cover is left to the server where it can tell."""
        self.cut = None
        unknown = [c for c in wanted.collections if self.collections() and c not in self.collections()]
        if unknown:
            raise InputError(
                f"{self.address} has no collection {unknown[0]!r}{meant(unknown[0], self.collections())}; it has "
                f"{', '.join(self.collections()[:40])}."
            )
        for box in wanted.boxes:
            progress.start("items looked at (at most)", ITEMS)
            count = odd = 0
            for item in self._found(wanted, box):
                count += 1
                progress.advance()
                made = read_item(item)
                odd += made is None
                if made and wanted.fits(made):
                    yield made
            if odd:
                self.cut = f"{odd} of the catalogue's answers are no STAC items, there may be more scenes"
            if count >= ITEMS:
                self.cut = f"the catalogue has more than the {ITEMS} items that were looked at: ask for fewer days"

    def _found(self, wanted: Wanted, box: Box) -> Iterator[Any]:
        """Items as the server gives them."""
        with warnings.catch_warnings(), _answers(self.address):
            warnings.simplefilter("ignore")
            posts = any(link.extra_fields.get("method") == "POST" for link in self._client.get_links("search"))
            asks = wanted.cloud is not None and self._client.conforms_to("QUERY")
            yield from self._client.search(
                method="POST" if posts else "GET",
                max_items=ITEMS,
                limit=PAGE,
                collections=list(wanted.collections) or None,
                bbox=list(box),
                datetime=_interval(wanted.dates),
                query={"eo:cloud_cover": {"lte": wanted.cloud}} if asks else None,
            ).items_as_dicts()


def _interval(dates: Dates) -> str | None:
    first, last = (".." if d is None else d.strftime("%Y-%m-%dT%H:%M:%SZ") for d in dates)
    return None if first == last == ".." else f"{first}/{last}"


def _first(pages: Iterator[Any], count: int) -> Iterator[Any]:
    for _, page in zip(range(count), pages, strict=False):
        yield page


@contextmanager
def _answers(address: str) -> Iterator[None]:
    """Turn what the libraries raise for odd answers into one message."""
    try:
        yield
    except InputError:
        raise
    except Exception as e:  # they have no common base
        said = re.sub(r"\s+", " ", reason(e))[:300]
        raise InputError(f"{address} does not answer as a STAC catalogue does ({said}).") from e
