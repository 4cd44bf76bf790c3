"""A scene of a catalogue and the elevation under it as one STAC item, which can be mapped as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pystac
import shapely
from shapely.geometry.base import BaseGeometry

from l4s_geo.catalogue.api import Catalogue
from l4s_geo.catalogue.items import Wanted
from l4s_geo.catalogue.places import boxes_of, footprint, share_covered
from l4s_geo.catalogue.search import Scene
from l4s_geo.errors import InputError, L4SError
from l4s_geo.outputs import write_provenance, writing
from l4s_geo.progress import Progress
from l4s_geo.scene.assets import find_elevation, find_images
from l4s_geo.scene.stac import TILES, file_name
from l4s_geo.scene.web import Address, resolve

#: Collections of elevation, the best first: Copernicus GLO-30, then ALOS World 3D, both of about 30 m.
DEM_COLLECTIONS = (r"cop(ernicus)?[-_]?dem[-_](glo[-_]?)?30(m?$|[-_]dged.*)", r"alos[-_]?(world[-_]?3d|dem|aw3d30).*")

#: Degrees around a scene for which elevation is fetched: a pixel or two for the slope at its border.
MARGIN = 0.002

#: Said where there is no elevation, with what to do.
WITHOUT = "Name another collection with --dem-collection, or leave terrain out with --dem-collection none."


@dataclass(frozen=True)
class Stack:
    """A scene with its elevation.

    Attributes:
        item: A STAC item that refers to nothing relative to it.
        notes: For the user.
    """

    item: dict[str, Any]
    notes: tuple[str, ...]


def dem_collection(catalogue: Catalogue, asked: str | None) -> str | None:
    """The collection of elevation to use, None where none is wanted.

    Args:
        catalogue: Whose collections are known.
        asked: Of ``--dem-collection``; the best there is if not given.

    Raises:
        InputError: There is none.
    """
    if asked is not None:
        return None if asked.lower() == "none" else asked
    known = catalogue.collections()
    for kind in DEM_COLLECTIONS:
        fitting = sorted((c for c in known if re.fullmatch(kind, c, re.IGNORECASE)), key=len)
        if fitting:
            return fitting[0]
    others = [c for c in known if re.search(r"(?i)dem|dsm|dtm|elevation|srtm", c)]
    there = f"There is {', '.join(others[:10])}. " if others else ""
    raise InputError(f"{catalogue.address} has no elevation of Copernicus (GLO-30) or ALOS. {there}{WITHOUT}")


def build(scene: Scene, catalogue: Catalogue, collection: str | None, progress: Progress) -> Stack:
    """A scene with the tiles of elevation that lie under it.

    Args:
        scene: Of the catalogue.
        catalogue: Where it was found.
        collection: Of elevation; None leaves terrain out.
        progress: Advances while tiles are searched for.

    Raises:
        InputError: The scene or a tile refers to what must not be read, or no tile lies under the scene.
    """
    found = scene.item.to_dict(include_self_link=False, transform_hrefs=False)
    images, _ = find_images(found["assets"])
    kept = {image.key for image in images.values()}
    assets = {key: _whole(found["assets"][key], scene.item, key) for key in found["assets"] if key in kept}
    links = [_link("derived_from", scene.item), *_lasting(found)]
    notes: list[str] = []
    if collection is not None:
        tiles, share = _tiles(footprint(scene.item), catalogue, collection, progress)
        if not tiles:
            raise InputError(f"{collection} of {catalogue.address} has no tile under {scene.item.id}. {WITHOUT}")
        for number, tile in enumerate(tiles, 1):
            assets["dem" if len(tiles) == 1 else f"dem-{number}"] = _dem_asset(tile, collection)
            links.append(_link("derived_from", tile))
        notes.append(f"elevation from {len(tiles)} tile{'s'[: len(tiles) > 1]} of {collection}")
        if share < 0.999:
            notes.append(f"they cover {share:.0%} of {scene.item.id}; elsewhere (open sea, mostly) nothing is mapped")
    return Stack(found | {"assets": assets, "links": [link for link in links if link]}, tuple(notes))


def write_stacks(stacks: Sequence[Stack], out: Path) -> list[Path]:
    """Write each as a file: ``out`` itself, if it ends in ``.json``, or files in it named after the scenes.

    Raises:
        OutputError: One cannot be written; none is then.
    """
    if out.suffix.lower() == ".json":
        paths = [out]
    else:
        with writing(out):
            out.mkdir(exist_ok=True)
        paths = [out / f"{file_name(stack.item['id'])}.json" for stack in stacks]
    with ExitStack() as until:
        for stack, path in zip(stacks, paths, strict=True):
            write_provenance(path, stack.item, until=until)
    return paths


def _whole(asset: dict[str, Any], item: pystac.Item, key: str) -> dict[str, Any]:
    """An asset whose address does not depend on where the item is."""
    base = item.get_self_href() or "https://item.without.address/"
    address = resolve(asset.get("href"), base, f"asset {key!r}")
    return asset | {"href": _href(address)}


def _href(address: Address) -> str:
    """As items have it."""
    return re.sub(r"^/vsis3/", "s3://", address.gdal.removeprefix("/vsicurl/"))


def _link(rel: str, item: pystac.Item) -> dict[str, str] | None:
    href = item.get_self_href()
    return {"rel": rel, "href": href, "type": "application/geo+json", "title": item.id} if href else None


def _lasting(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Links of an item that hold wherever it is."""
    return [
        link for link in found["links"]
        if link.get("rel") in ("collection", "license") and re.match(r"https?://", str(link.get("href")))
    ]  # fmt: skip


def _tiles(
    outline: BaseGeometry, catalogue: Catalogue, collection: str, progress: Progress
) -> tuple[list[pystac.Item], float]:
    """Tiles of elevation under an outline, the newest for each place, and the share of it that they cover."""
    around = shapely.buffer(outline, MARGIN, join_style="mitre")
    found: dict[tuple[float, ...], pystac.Item] = {}
    for tile in sorted(catalogue.items(Wanted(boxes_of(around), collections=(collection,)), progress), key=_age):
        if shapely.area(footprint(tile) & around) > 0:
            found[tuple(round(v, 2) for v in footprint(tile).bounds)] = tile
    progress.finish()
    if len(found) > TILES:
        raise InputError(f"{collection} has {len(found)} tiles under the scene, more than {TILES}. {WITHOUT}")
    tiles = [found[place] for place in sorted(found)]
    return tiles, share_covered(shapely.union_all([footprint(t) for t in tiles]), outline)


def _age(tile: pystac.Item) -> tuple[str, str]:
    moment = tile.datetime or tile.common_metadata.start_datetime
    return moment.isoformat() if moment else "", tile.id


def _dem_asset(tile: pystac.Item, collection: str) -> dict[str, Any]:
    assets = {key: asset.to_dict() for key, asset in tile.assets.items()}
    key = find_elevation(assets)
    if key is None:
        raise InputError(f"{tile.id} of {collection} has no asset that is known to be its elevation. {WITHOUT}")
    try:
        whole = _whole(assets[key], tile, key)
    except L4SError as e:
        raise InputError(f"{e} {WITHOUT}") from e
    return whole | {"title": f"Elevation: {tile.id}", "roles": ["data"]}
