"""Scenes of a STAC catalogue for an area and some days, the most useful first."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pystac
from shapely.geometry.base import BaseGeometry

from l4s_geo.catalogue.api import Catalogue
from l4s_geo.catalogue.items import Dates, Wanted, cloud_cover
from l4s_geo.catalogue.places import boxes_of, footprint, share_covered
from l4s_geo.errors import InputError
from l4s_geo.progress import Progress
from l4s_geo.scene.assets import find_images
from l4s_geo.scene.stac import item_baseline, item_level
from l4s_geo.scene.web import shown

#: Ids of collections of Sentinel-2, and those that are taken where there are several, the first that is there.
SENTINEL_2 = re.compile(r"(?i)sentinel[-_]?s?2|(?<![a-z0-9])s2(?![0-9])")
PREFERRED = ("sentinel-2-l2a", "sentinel-2-c1-l2a", "sentinel-s2-l2a-cogs", "s2_l2a", "sentinel-2-l1c")

#: Clouds of a scene that does not say.
UNKNOWN_CLOUD = 50.0

_MOMENT = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?)?)?)?")


@dataclass(frozen=True)
class Query:
    """What is searched for.

    Attributes:
        area: In degrees, east of 180 in no part.
        dates: First and last moment, None where open.
        max_cloud: Cloud cover in per cent at most.
        collections: Ids; those of Sentinel-2 if none are given.
    """

    area: BaseGeometry
    dates: Dates = (None, None)
    max_cloud: float | None = None
    collections: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """A scene of a catalogue.

    Attributes:
        item: As the catalogue has it.
        covered: Share of the area.
        cloud: Per cent of the scene, if it says.
    """

    item: pystac.Item
    covered: float
    cloud: float | None

    @property
    def clear(self) -> float:
        """Share of the area that is likely to be seen, as if clouds were spread evenly."""
        return self.covered * (1 - (UNKNOWN_CLOUD if self.cloud is None else self.cloud) / 100)

    @property
    def date(self) -> str:
        """ISO date, or a question mark."""
        moment = self.item.datetime or self.item.common_metadata.start_datetime
        return moment.date().isoformat() if moment else "?"

    @property
    def href(self) -> str | None:
        """Where the item is, if it says."""
        return self.item.get_self_href()

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        found = self.item.to_dict(include_self_link=False, transform_hrefs=False)
        return {
            "id": self.item.id,
            "date": self.date,
            "cloud_cover": self.cloud,
            "covered": round(self.covered, 4),
            "level": item_level(found),
            "baseline": item_baseline(found),
            "collection": self.item.collection_id,
            "href": self.href,
        }


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        scenes: The most useful first.
        collections: That were searched; none are named where all were.
        notes: For the user.
    """

    scenes: tuple[Scene, ...]
    collections: tuple[str, ...]
    notes: tuple[str, ...] = ()


def find_scenes(catalogue: Catalogue, query: Query, progress: Progress) -> Found:
    """Scenes of Sentinel-2 in a catalogue, sorted by how much of the area they are likely to show.

    That is the share of the area that they cover, less their clouds, in steps of 1 %. Among equals the earliest comes
    first, since scars fade, and of the same scene the newest processing.

    Raises:
        InputError: The catalogue does not answer, or has no such collection.
    """
    collections, notes = _collections(catalogue, query)
    wanted = Wanted(boxes_of(query.area), query.dates, query.max_cloud, collections)
    scenes, odd = _scenes(catalogue.items(wanted, progress), query.area)
    progress.finish()
    notes += [catalogue.cut] if catalogue.cut else []
    if odd:
        notes.append(f"{odd} items are left out: they have no bands of Sentinel-2 as GeoTIFF or JPEG 2000")
    if not scenes:
        notes += _wider(catalogue, wanted, query, progress)
    return Found(tuple(sorted(scenes, key=_rank)), collections, tuple(notes))


def _collections(catalogue: Catalogue, query: Query) -> tuple[tuple[str, ...], list[str]]:
    """Which collections to search, and what is to be said about it."""
    if query.collections or catalogue.given:
        return query.collections or (str(catalogue.given),), []
    known = catalogue.collections()
    fitting = [c for c in known if SENTINEL_2.search(c)]
    if known and not fitting:
        raise InputError(
            f"{catalogue.address} has no collection that looks like Sentinel-2. Name one with --collection; it has "
            f"{', '.join(known[:40])}."
        )
    first = [c for p in PREFERRED for c in fitting if c.lower() == p][:1] or fitting
    others = [c for c in fitting if c not in first]
    return tuple(first), [f"searched {', '.join(first)}; there is also {', '.join(others)} (--collection)"] * bool(
        others
    )


def _scenes(items: Iterator[pystac.Item], area: BaseGeometry) -> tuple[list[Scene], int]:
    """Those that show part of the area and have bands that can be read, and how many have none."""
    scenes: dict[tuple[str | None, str], Scene] = {}
    odd = 0
    for item in items:
        covered = share_covered(footprint(item), area)
        if not covered:
            continue
        bands = {*find_images({k: a.to_dict() for k, a in item.assets.items()})[0]} - {"SCL"}
        odd += not bands and bool(SENTINEL_2.search(f"{item.collection_id} {item.properties.get('constellation')}"))
        if bands:
            scenes[item.collection_id, item.id] = Scene(item, covered, cloud_cover(item))
    return [*scenes.values()], odd


def _rank(scene: Scene) -> tuple[Any, ...]:
    found = scene.item.to_dict(include_self_link=False, transform_hrefs=False)
    return -round(scene.clear, 2), scene.date, -float(item_baseline(found) or 0), scene.item.id


def _wider(catalogue: Catalogue, wanted: Wanted, query: Query, progress: Progress) -> Iterator[str]:
    """What would find something."""
    if query.max_cloud is not None:
        cloudy, _ = _scenes(catalogue.items(replace(wanted, cloud=None), progress), query.area)
        progress.finish()
        if clouds := sorted(s.cloud for s in cloudy if s.cloud is not None):
            yield f"{len(cloudy)} scenes have more clouds, the clearest of them {clouds[0]:.0f} %: --max-cloud"
            return
    if query.dates != (None, None):
        yield "no scene of these days shows the area: try more days, Sentinel-2 comes every 2 to 10"
    else:
        yield "no scene shows the area: check the order of --bbox (west, south, east, north), or try another catalogue"


def choose(scenes: Sequence[Scene], picks: Sequence[str]) -> list[Scene]:
    """Scenes by their number from 1 or their id; the first if none is named.

    Raises:
        InputError: There is no such scene.
    """
    chosen: list[Scene] = []
    for pick in picks or ("1",):
        by_id = [s for s in scenes if s.item.id == pick]
        by_number = [*scenes[int(pick) - 1 : int(pick)]] if pick.isdecimal() and 0 < int(pick) <= len(scenes) else []
        if not (by_id or by_number):
            raise InputError(
                f"--pick {pick}: there is no such scene. Give a number from 1 to {len(scenes)}, or an id of the table."
            )
        chosen.append((by_id or by_number)[0])
    return list({id(s): s for s in chosen}.values())


def parse_dates(text: str) -> Dates:
    """``2018-09-06/2018-10-06``, a day, a month or a year, or half open as ``2018-09-06/..``; ends are included.

    Raises:
        InputError: It is none of these.
    """
    first, slash, last = text.strip().partition("/")
    start = _moment(first, text)
    end = _moment(last if slash else first, text, last=True)
    if start and end and end < start:
        raise InputError(f"--dates {text}: the end lies before the start. Write them as START/END.")
    return start, end


def _moment(text: str, whole: str, last: bool = False) -> datetime | None:
    """The first or last moment of a year, month, day or of the moment itself; None where open."""
    if text.strip() in ("", "..") and "/" in whole:
        return None
    match = _MOMENT.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        year, month, day, time = int(match[1]), match[2], match[3], match[4]
        if time:
            moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        months = int(month or (12 if last else 1))
        days = int(day or (monthrange(year, months)[1] if last else 1))
        moment = datetime(year, months, days, tzinfo=UTC)
    except ValueError as e:
        raise InputError(
            f"--dates {whole}: {text!r} is no date. Write it as 2018-09-06/2018-10-06, or 2018-09-06/.. without end."
        ) from e
    return moment + timedelta(days=1, seconds=-1) if last else moment


def table(scenes: Sequence[Scene]) -> Iterator[str]:
    """For people: a line per scene, its address last since it is long."""
    rows = [scene.to_dict() for scene in scenes]
    rows = [row | {"id": _plain(row["id"]), "href": _plain(shown(row["href"] or "?"))} for row in rows]
    width = max((len(row["id"]) for row in rows), default=2)
    yield f"{'':>3}  {'date':10}  {'clouds':>6}  {'covered':>7}  {'level':5}  {'id':{width}}  address"
    for number, row in enumerate(rows, 1):
        cloud = "?" if row["cloud_cover"] is None else f"{row['cloud_cover']:.0f} %"
        yield (
            f"{number:>3}  {row['date']:10}  {cloud:>6}  {row['covered']:>7.0%}  {row['level'] or '?':5}  "
            f"{row['id']:{width}}  {row['href']}"
        )


def _plain(text: str) -> str:
    """Without what would do something to a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
