"""Scenes as STAC items, from a file or an address: which assets are read, and what their numbers stand for.

SpatioTemporal Asset Catalogs: https://stacspec.org, items 1.0 and 1.1 with the extensions eo, raster and processing.
An item can come from anyone. Addresses in it are checked by ``l4s_geo.scene.web``; images are opened as GeoTIFF or
JPEG 2000 only, without files beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from l4s_geo.errors import InputError
from l4s_geo.paths import is_file
from l4s_geo.scene.assets import Image, find_images, stated
from l4s_geo.scene.safe import BASELINE, IMAGE, WITH_OFFSET, find_date, find_level
from l4s_geo.scene.web import (
    Address,
    begins_like_json,
    fetch,
    is_web,
    new_session,
    parse_json,
    read_file,
    resolve,
    shown,
)

#: Endings of addresses that are not asked what they are.
RASTERS = (".tif", ".tiff", ".jp2", ".vrt", ".img", ".h5", ".hdf5")

#: Of products of processing baseline 04.00 and newer, all bands (ESA, "Sentinel-2 Products Specification Document").
OFFSET = -1000.0

#: Tiles of a DEM at most; a scene needs nine.
TILES = 64


@dataclass(frozen=True)
class Item:
    """A scene as a STAC item.

    Attributes:
        source: As the user gave it.
        files: The item and what it refers to, addresses without signatures.
        name: From its id, fit for a file name.
        level: Of processing, if it says.
        date: ISO date of acquisition.
        baseline: Of processing, if it says.
        images: By band, in the order of ``S2_BANDS``.
        classification: Scene classification (SCL), if any.
        terrain: Tiles by ``dem`` and ``slope``.
        addresses: Of images, by key of the asset.
        offsets: To be added to the stored numbers, by band.
        quantification: Stored numbers of reflectance 1; None where it is not said.
        unclear: Why it is not clear whether the numbers have an offset, if so.
        said: For the user.
    """

    source: str
    files: tuple[str, ...]
    name: str
    level: str | None
    date: str | None
    baseline: str | None
    images: dict[str, Image]
    classification: Image | None
    terrain: dict[str, list[Image]]
    addresses: dict[str, Address]
    offsets: dict[str, float] = field(default_factory=dict)
    quantification: float | None = None
    unclear: str | None = None
    said: tuple[str, ...] = ()

    #: What an item says about an offset is checked on the pixels: some catalogues are wrong about it.
    certain = False

    def notes(self) -> Iterator[str]:
        """What the user should know about it."""
        what = f"Sentinel-2 {self.level}" if self.level else "no processing level given"
        yield f"STAC item, {what}, processing baseline {self.baseline or 'unknown'}"
        yield from self.said

    def check_offset(self) -> None:
        """Raises InputError where it is not clear whether the numbers have an offset."""
        if self.unclear:
            raise InputError(
                f"{shown(self.source)}: {self.unclear}. Say --s2-offset -1000 if the images are as ESA gives them out, "
                "or --s2-offset 0 if the catalogue has taken the offset off (its documentation says so; where it did, "
                "forest and water are far below 1000 in B2 to B4)."
            )


def find_item(path: str) -> Item | None:
    """The STAC item in a file or at an address, told by what is in it.

    Returns:
        None where it is something else, such as a raster.

    Raises:
        InputError: It is JSON, but no item that can be used, or the address cannot be reached.
    """
    read = _read_web(path.removeprefix("/vsicurl/")) if "://" in path else _read_local(path)
    if read is None:
        return None
    base, data = read
    return from_json(parse_json(data, shown(base)), base, path)


def _read_web(url: str) -> tuple[str, bytes] | None:
    bare = shown(url).lower()
    if not is_web(url) or bare.endswith(RASTERS):
        if bare.endswith(".json"):
            raise InputError(
                f"{url} is not read: items are taken from files and from addresses with http(s). Download it first."
            )
        return None
    with new_session() as session:
        return fetch(session, url, if_json=True)


def _read_local(path: str) -> tuple[str, bytes] | None:
    file = Path(path)
    return (path, read_file(file)) if is_file(file) and begins_like_json(file) else None


def from_json(found: Any, base: str, source: str) -> Item:
    """An item from its JSON.

    Args:
        found: Parsed; any of it may be of the wrong type.
        base: File or address that it is from.
        source: As the user gave it.

    Raises:
        InputError: It is no item, not of Sentinel-2, or refers to what must not be read.
    """
    item = _only_item(found, shown(source))
    properties = _mapping(item.get("properties"))
    _refuse_others(properties, shown(source))
    found_images, terrain = find_images(_mapping(item.get("assets")))
    classification = found_images.pop("SCL", None)
    if not found_images:
        raise InputError(_no_bands(item, shown(source)))
    if any(len(tiles) > TILES for tiles in terrain.values()):
        raise InputError(f"{shown(source)} has more than {TILES} tiles of elevation. Give an item of one scene.")
    level = item_level(item)
    used = [*found_images.values(), *(i for tiles in terrain.values() for i in tiles)]
    used += [classification] if classification and level != "L1C" else []
    addresses = {i.key: resolve(i.asset.get("href"), base, f"asset {i.key!r}") for i in used}
    made = Item(
        source=source,
        files=(shown(source), *dict.fromkeys(a.shown for a in addresses.values())),
        name=file_name(item.get("id")),
        level=level,
        date=find_date(str(properties.get("datetime") or properties.get("start_datetime") or "")[:10]),
        baseline=item_baseline(item),
        images=found_images,
        classification=None if level == "L1C" else classification,
        terrain=terrain,
        addresses=addresses,
    )
    return _with_radiometry(made, properties)


def file_name(item_id: Any) -> str:
    """A name fit for files from the id of an item, which can be any text."""
    return re.sub(r"[^\w-]+", "_", str(item_id or ""))[:100].strip("_") or "item"


def _only_item(found: Any, where: str) -> Mapping[str, Any]:
    """The item itself."""
    thing = _mapping(found)
    kind = thing.get("type")
    if kind == "FeatureCollection":
        features = thing.get("features")
        items = [f for f in features if isinstance(f, Mapping)] if isinstance(features, list) else []
        if len(items) != 1:
            names = ", ".join(str(i.get("id"))[:80] for i in items[:5])
            raise InputError(
                f"{where} is a collection of {len(items)} items{f' ({names})' if names else ''}; a scene is one. Save "
                "one of them as a file, or choose with `l4s-map search`."
            )
        thing = items[0]
    if kind in ("Catalog", "Collection"):
        raise InputError(
            f"{where} is a STAC {kind.lower()}, not a scene. Find its scenes with `l4s-map search --catalog {where}`."
        )
    if not isinstance(thing.get("assets"), Mapping):
        raise InputError(
            f"{where} is JSON, but no STAC item: it has no assets. A scene is a STAC item or a raster; an area of "
            "interest is given with --aoi."
        )
    return thing


def _refuse_others(properties: Mapping[str, Any], where: str) -> None:
    """Raises InputError for items of other satellites, whose bands of the same names are others."""
    said = [properties.get(k) for k in ("constellation", "platform", "mission")]
    told = [text for text in said if isinstance(text, str) and text]
    if told and not any(re.search(r"(?i)sentinel[-_ ]?2|^s2[a-d]?$", text) for text in told):
        raise InputError(
            f"{where} is of {told[0][:50]}, but the models know Sentinel-2 only. Choose another collection."
        )


def _no_bands(item: Mapping[str, Any], where: str) -> str:
    assets = _mapping(item.get("assets"))
    kinds = {str(_mapping(a).get("type"))[:40] for a in assets.values()}
    if any("zarr" in kind for kind in kinds):
        return f"{where} has its bands as Zarr, which is not read. Choose a collection with GeoTIFF or JPEG 2000."
    return (
        f"{where} has no asset that is known to be a band of Sentinel-2 as GeoTIFF or JPEG 2000. Its assets are "
        f"{', '.join(str(k)[:30] for k in [*assets][:20]) or 'none'}. Bands are known by names such as B04 or red."
    )


def item_level(item: Mapping[str, Any]) -> str | None:
    """``L1C`` or ``L2A``, from what an item says of itself or from its name and that of its collection."""
    properties = _mapping(item.get("properties"))
    said = [properties.get(k) for k in ("processing:level", "s2:product_type", "product:type", "s2:product_uri")]
    for text in (str(t).upper() for t in (*said, item.get("id"), item.get("collection")) if t):
        kind = re.fullmatch(r"S2MSI(1C|2A)", text)
        if level := f"L{kind[1]}" if kind else find_level(text):
            return level
    return None


def item_baseline(item: Mapping[str, Any]) -> str | None:
    """Processing baseline such as ``05.09``, if an item says."""
    properties = _mapping(item.get("properties"))
    for key in ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version"):
        if BASELINE.fullmatch(text := str(properties.get(key) or "")):
            return text
    for name in (properties.get("s2:product_uri"), item.get("id")):
        if match := re.search(r"_N(\d\d)(\d\d)_", str(name or "")):
            return f"{match[1]}.{match[2]}"
    return None


def _with_radiometry(item: Item, properties: Mapping[str, Any]) -> Item:
    """With what its numbers stand for."""
    found: dict[str, tuple[float, float] | None] = {}
    for band, image in item.images.items():
        try:
            found[band] = stated(image)
        except ValueError as e:
            raise InputError(
                f"{shown(item.source)} states {e} for asset {image.key!r}, which cannot be those of Sentinel-2. "
                "Correct the item, or give the files of its bands."
            ) from e
    scales = {band: s[0] for band, s in found.items() if s and s[0] != 1}
    if len({f"{scale:.6g}" for scale in scales.values()}) > 1:
        told = ", ".join(f"{scale:g} in {band}" for band, scale in scales.items())
        raise InputError(f"{shown(item.source)} states different scales ({told}). Give the files of its bands.")
    item = replace(item, quantification=round(1 / next(iter(scales.values())), 6) if scales else None)
    offsets = {band: round(s[1] / s[0], 6) for band, s in found.items() if s}
    return _with_offset(item, offsets, _taken_off(item, properties))


def _taken_off(item: Item, properties: Mapping[str, Any]) -> bool | None:
    """Whether the item says that its offset was taken off the images; that is not meant for the original files."""
    said = [v for k, v in properties.items() if k.endswith(":boa_offset_applied") and isinstance(v, bool)]
    return said[0] if said and not any(i.original for i in item.images.values()) else None


def _with_offset(item: Item, offsets: dict[str, float], taken_off: bool | None) -> Item:
    """With the offsets to add, and what is to be said about them.

    Args:
        item: Without.
        offsets: That the item states, in stored numbers, by band.
        taken_off: Whether it says that they were taken off.
    """
    newest, none = float(item.baseline or 0), dict.fromkeys(item.images, 0.0)
    newer = WITH_OFFSET[0] <= newest < WITH_OFFSET[1]
    stating = {band: value for band, value in offsets.items() if value}
    if taken_off:
        rest = ", so the one that the item states as well is not added" if stating else ""
        return replace(item, said=(f"the item says that its offset was taken off already (boa_offset_applied){rest}",))
    if stating and 0 < newest < WITH_OFFSET[0]:
        return replace(item, unclear=f"it states an offset, but its processing baseline {item.baseline} has none")
    if stating and none.keys() - offsets.keys():
        silent = ", ".join(band for band in item.images if band not in offsets)
        return replace(item, unclear=f"it states an offset for some bands, but not for {silent}")
    if stating:
        return replace(item, offsets=stating)
    if offsets and newer:
        return replace(item, said=(f"the item states no offset, though its processing baseline is {item.baseline}",))
    if newer and (taken_off is False or _as_given_out(item)):
        why = "the item says that it was not taken off" if taken_off is False else "its files are as ESA gives them out"
        said = f"offset of processing baseline {item.baseline}: {why}"
        return replace(item, offsets=dict.fromkeys(item.images, OFFSET), said=(said,))
    if newer:
        return replace(
            item,
            unclear=f"its processing baseline {item.baseline} has an offset of {OFFSET:g}, but the item does not say "
            "whether its images still have it",
        )
    return item


def _as_given_out(item: Item) -> bool:
    """Whether all bands lie in the folders of a SAFE product, which nobody does who changes them."""
    paths = (re.sub(r"\.tiff?$", ".jp2", item.addresses[i.key].shown) for i in item.images.values())
    insides = [re.search(r"\.SAFE/(GRANULE/.*)", path) for path in paths]
    return all(match is not None and IMAGE.fullmatch(match[1]) for match in insides)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
