"""Items of STAC catalogues, and which of them are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pystac
from pystac.errors import STACError, STACTypeError

from l4s_geo.scene.web import absolute, is_web

Box = tuple[float, float, float, float]
Dates = tuple[datetime | None, datetime | None]

#: What pystac raises for metadata that are not as they should be.
DEFECTS = (
    STACError, STACTypeError, KeyError, ValueError, TypeError, AttributeError, IndexError, ArithmeticError,
    RecursionError,
)  # fmt: skip


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
        return self.in_time(*_span(item)) and any(self.meets(box) for box in bbox_parts(item.bbox))

    def in_time(self, first: datetime | None, last: datetime | None) -> bool:
        """Whether any of a time span, open where None, is wanted."""
        start, end = self.dates
        late, early = bool(start and last and last < start), bool(end and first and first > end)
        return not (late or early)

    def meets(self, box: Box) -> bool:
        """Whether a box meets one of the wanted ones."""
        return any(box[0] <= e and w <= box[2] and box[1] <= n and s <= box[3] for w, s, e, n in self.boxes)


def read_item(found: Any, where: str | None = None) -> pystac.Item | None:
    """An item that knows its address: where it was read, or else where it says it is; None where it is none."""
    try:
        item = pystac.Item.from_dict(found)
        own = item.get_self_href()
        item.set_self_href(where or (own if own and is_web(own) else None))
        _span(item), bbox_parts(item.bbox)  # must not fail later
    except Exception:  # whatever pystac does not foresee in metadata; there is no common base
        return None
    named = isinstance(item.id, str) and item.id and isinstance(item.collection_id, str | None)
    return item if named and (item.bbox or item.geometry) else None


def _span(item: pystac.Item) -> Dates:
    common = item.common_metadata
    return aware(item.datetime or common.start_datetime), aware(item.datetime or common.end_datetime)


def aware(moment: datetime | None) -> datetime | None:
    """With a time zone: UTC where none is given."""
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def bbox_parts(bbox: Sequence[float] | None) -> list[Box]:
    """A bounding box of 4 or 6 numbers, in two where it crosses the date line; everywhere if there is none."""
    if not bbox or len(bbox) not in (4, 6):
        return [(-180.0, -90.0, 180.0, 90.0)]
    west, south, east, north = (float(v) for v in (*bbox[:2], *bbox[len(bbox) // 2 :][:2]))
    return [(west, south, east, north)] if west <= east else [(west, south, 180, north), (-180, south, east, north)]


def cloud_cover(item: pystac.Item) -> float | None:
    """Per cent of an item that is under cloud, if it says."""
    found = item.properties.get("eo:cloud_cover")
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return None
    return float(found) if 0 <= found <= 100 else None


def links_of(found: Mapping[str, Any], base: str) -> dict[str, list[str]]:
    """Addresses by relation, of those that may be followed."""
    links: dict[str, list[str]] = {}
    listed = found.get("links")
    for link in listed if isinstance(listed, list) else []:
        if isinstance(link, Mapping) and (href := absolute(link.get("href"), base)):
            links.setdefault(str(link.get("rel")), []).append(href)
    return links
