"""STAC catalogues: those with an API are asked, those that are files are walked, in both cases within bounds."""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pystac
from pystac.errors import STACError, STACTypeError
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from requests import Session

from l4s_geo.errors import InputError, meant, reason
from l4s_geo.progress import Progress
from l4s_geo.scene.web import absolute, fetch, is_web, new_session, parse_json, read_json, shown

#: Items of one search, items of a page, and files of a catalogue that are read at most.
ITEMS, PAGE, FILES = 2000, 100, 5000

#: Files that are loaded at the same time.
AT_ONCE = 8

Box = tuple[float, float, float, float]
Dates = tuple[datetime | None, datetime | None]

#: What pystac raises for metadata that are not as they should be.
DEFECTS = (STACError, STACTypeError, KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError)


@dataclass(frozen=True)
class Wanted:
    """Which items.

    Attributes:
        boxes: West, south, east, north in degrees; one of them is enough.
        dates: First and last moment, None where open.
        cloud: Cloud cover in per cent at most; None takes all.
        collections: Ids.
    """

    boxes: tuple[Box, ...]
    dates: Dates = (None, None)
    cloud: float | None = None
    collections: tuple[str, ...] = ()

    def fits(self, item: pystac.Item) -> bool:
        """Whether an item is wanted, going by its bbox."""
        cloud = cloud_cover(item)
        if self.cloud is not None and cloud is not None and cloud > self.cloud:
            return False
        return self.in_time(*_span(item)) and any(self.meets(box) for box in _boxes(item.bbox))

    def in_time(self, first: datetime | None, last: datetime | None) -> bool:
        """Whether any of a time span, open where None, is wanted."""
        start, end = self.dates
        late, early = bool(start and last and last < start), bool(end and first and first > end)
        return not (late or early)

    def meets(self, box: Box) -> bool:
        """Whether a box meets one of the wanted ones."""
        return any(box[0] <= e and w <= box[2] and box[1] <= n and s <= box[3] for w, s, e, n in self.boxes)


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
    links = _links(found, where)
    if kind == "Collection" and {"items", "root"} <= links.keys() and is_web(links["root"][0]):
        return _Api(links["root"][0], session, str(found.get("id")))
    if "search" in links and is_web(where):
        return _Api(where, session)
    return _Files(where, session, found)


def _links(found: Mapping[str, Any], base: str) -> dict[str, list[str]]:
    """Addresses by relation, of those that may be followed."""
    links: dict[str, list[str]] = {}
    listed = found.get("links")
    for link in listed if isinstance(listed, list) else []:
        if isinstance(link, Mapping) and (href := absolute(link.get("href"), base)):
            links.setdefault(str(link.get("rel")), []).append(href)
    return links


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
            href = next((link.get_absolute_href() for link in self._client.get_links("data")), None)
            with _answers(self.address):
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
                made = _item(item)
                odd += made is None
                if made and wanted.fits(made):
                    yield made
            if odd:
                self.cut = f"{odd} of the catalogue's answers are no STAC items, there may be more scenes"
            if count >= ITEMS:
                self.cut = f"the catalogue has more than the {ITEMS} items that were looked at: ask for fewer days"

    def _found(self, wanted: Wanted, box: Box) -> Iterator[Any]:
        """Items as the server gives them."""
        posts = any(link.extra_fields.get("method") == "POST" for link in self._client.get_links("search"))
        asks = wanted.cloud is not None and self._client.conforms_to("QUERY")
        with warnings.catch_warnings(), _answers(self.address):
            warnings.simplefilter("ignore")
            yield from self._client.search(
                method="POST" if posts else "GET",
                max_items=ITEMS,
                limit=PAGE,
                collections=list(wanted.collections) or None,
                bbox=list(box),
                datetime=_interval(wanted.dates),
                query={"eo:cloud_cover": {"lte": wanted.cloud}} if asks else None,
            ).items_as_dicts()


@dataclass
class _Files:
    """A catalogue of files that refer to each other."""

    address: str
    session: Session
    root: Mapping[str, Any]
    given: str | None = None
    cut: str | None = None
    _ids: dict[str, None] = field(default_factory=dict)

    def collections(self) -> list[str]:
        """Ids of the collections that a search has come across."""
        return [*self._ids]

    def items(self, wanted: Wanted, progress: Progress) -> Iterator[pystac.Item]:
        """Items that are wanted, from all collections that may have some."""
        progress.start("files read (at most)", FILES)
        with closing(_Loader(self.session, progress, self.address)) as loader:
            # with each file, whether it lies in a collection that is wanted; None: in no collection
            waiting: deque[tuple[str, Mapping[str, Any], bool | None]] = deque([(self.address, self.root, None)])
            while waiting:
                where, found, inside = waiting.popleft()
                if found.get("type") == "Collection":
                    name = str(found.get("id"))
                    self._ids[name] = None
                    inside = not wanted.collections or name in wanted.collections
                    if not _may_have(found, wanted):
                        continue
                links = _links(found, where)
                for href, item in loader.load(links.get("item", []) if inside is not False else []):
                    made = _item(item, href)
                    if made and wanted.fits(made) and (inside or _of(made, wanted.collections)):
                        yield made
                waiting.extend((href, child, inside) for href, child in loader.load(links.get("child", [])))
            self.cut = loader.cut


class _Loader:
    """Reads the files of a catalogue, each once, several at the same time, and not too many."""

    def __init__(self, session: Session, progress: Progress, *known: str) -> None:
        self.cut: str | None = None
        self._session, self._progress, self._known = session, progress, {*known}
        self._pool = ThreadPoolExecutor(AT_ONCE)

    def load(self, hrefs: Iterable[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Those that are there, in order."""
        fresh = [h for h in dict.fromkeys(hrefs) if h not in self._known]
        left = FILES - len(self._known)
        if len(fresh) > left:
            self.cut = f"the catalogue has more than the {FILES} files that were read: search one of its parts"
        fresh = fresh[:left]
        self._known.update(fresh)
        for first in range(0, len(fresh), 8 * AT_ONCE):  # few enough to stop soon
            some = fresh[first : first + 8 * AT_ONCE]
            for href, found in zip(some, self._pool.map(self._read, some), strict=True):
                self._progress.advance()
                if found is not None:
                    yield href, found

    def _read(self, href: str) -> Mapping[str, Any] | None:
        """None for files that are missing or damaged, which do not spoil the rest."""
        try:
            found = read_json(href, self._session)[1]
        except InputError:
            return None
        return found if isinstance(found, Mapping) else None

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)


def _of(item: pystac.Item, collections: Sequence[str]) -> bool:
    return not collections or item.collection_id in collections


def _may_have(collection: Mapping[str, Any], wanted: Wanted) -> bool:
    """Whether the extent of a collection meets what is wanted; if in doubt it does."""
    try:
        extent = pystac.Extent.from_dict(dict(collection["extent"]))
        boxes = [box for bbox in extent.spatial.bboxes for box in _boxes(bbox)]
        spans = [(_aware(a), _aware(b)) for a, b in extent.temporal.intervals]
    except DEFECTS:
        return True
    in_place = not boxes or any(wanted.meets(box) for box in boxes)
    return in_place and (not spans or any(wanted.in_time(*span) for span in spans))


def _item(found: Any, where: str | None = None) -> pystac.Item | None:
    """An item that knows its address: where it was read, or else where it says it is; None where it is none."""
    try:
        item = pystac.Item.from_dict(found)
        own = item.get_self_href()
        item.set_self_href(where or (own if own and is_web(own) else None))
    except Exception:  # whatever pystac does not foresee in metadata; there is no common base
        return None
    return item if item.bbox or item.geometry else None


def _span(item: pystac.Item) -> Dates:
    common = item.common_metadata
    return _aware(item.datetime or common.start_datetime), _aware(item.datetime or common.end_datetime)


def _aware(moment: datetime | None) -> datetime | None:
    """With a time zone: UTC where none is given."""
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def _boxes(bbox: Sequence[float] | None) -> list[Box]:
    """A bounding box of 4 or 6 numbers, in two where it crosses the date line; everywhere if there is none."""
    if not bbox or len(bbox) not in (4, 6):
        return [(-180.0, -90.0, 180.0, 90.0)]
    west, south, east, north = (float(v) for v in (*bbox[:2], *bbox[len(bbox) // 2 :][:2]))
    return [(west, south, east, north)] if west <= east else [(west, south, 180, north), (-180, south, east, north)]


def cloud_cover(item: pystac.Item) -> float | None:
    """Per cent of an item that is under cloud, if it says."""
    found = item.properties.get("eo:cloud_cover")
    return float(found) if isinstance(found, (int, float)) and 0 <= found <= 100 else None


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
    except (APIError, *DEFECTS) as e:
        said = re.sub(r"\s+", " ", reason(e))[:300]
        raise InputError(f"{address} does not answer as a STAC catalogue does ({said}).") from e
