"""STAC catalogues that are files which refer to each other: they are walked, within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pystac
from requests import Session

from l4s_geo.catalogue.items import DEFECTS, Wanted, aware, bbox_parts, links_of, read_item
from l4s_geo.errors import InputError
from l4s_geo.progress import Progress
from l4s_geo.scene.web import read_json

#: Files that are read at most, and at the same time.
FILES, AT_ONCE = 5000, 8


@dataclass
class Files:
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
                links = links_of(found, where)
                for href, item in loader.load(links.get("item", []) if inside is not False else []):
                    made = read_item(item, href)
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
        boxes = [box for bbox in extent.spatial.bboxes for box in bbox_parts(bbox)]
        spans = [(aware(a), aware(b)) for a, b in extent.temporal.intervals]
    except DEFECTS:
        return True
    in_place = not boxes or any(wanted.meets(box) for box in boxes)
    return in_place and (not spans or any(wanted.in_time(*span) for span in spans))
