"""Which asset of a STAC item holds which band of Sentinel-2, and how its numbers are stored.

Names as the public catalogues have them: band numbers (``B04``, ``B04_10m``, ``B8A``) or the common names of the
electro-optical extension (``red``, ``nir08``), of assets or in ``eo:bands`` (STAC 1.0) or ``bands`` (STAC 1.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from l4s_geo.scene.bands import S2_BANDS

#: Common names of bands (STAC electro-optical extension), and those of Earth Search for the red edge. "rededge" alone
#: is any of four bands, so it names none.
COMMON = {
    "coastal": "B1", "blue": "B2", "green": "B3", "red": "B4", "rededge1": "B5", "rededge2": "B6", "rededge3": "B7",
    "rededge071": "B5", "rededge075": "B6", "rededge078": "B7", "nir": "B8", "nir08": "B8A", "nir09": "B9",
    "cirrus": "B10", "swir16": "B11", "swir22": "B12",
}  # fmt: skip

#: What comes after a name in keys of assets: a resolution, a format.
_AFTER = r"(?:[_-](?P<metres>10|20|60)m)?(?P<jp2>[_-]jp2)?"
_NUMBERED = re.compile(rf"b0?(?P<band>1[0-2]|8a|[1-9]){_AFTER}", re.IGNORECASE)
_WORD = re.compile(rf"(?P<band>[a-z]+\d*){_AFTER}", re.IGNORECASE)
_TERRAIN = re.compile(r"(?:(?P<dem>dem|dsm|dtm|elevation)|slope)(?:[_.-].*)?", re.IGNORECASE)

#: Roles and names of assets that are pictures for the eye, or no rasters.
_PICTURES = {"overview", "thumbnail", "visual", "metadata"}
_PICTURE = re.compile(r"(visual|tci|true.?colou?r|overview|thumbnail|(rendered_)?preview|quicklook)", re.IGNORECASE)


@dataclass(frozen=True)
class Image:
    """A band in an asset.

    Attributes:
        key: Of the asset.
        asset: As the item has it.
        index: Of the band in the file, from 1.
        driver: Of GDAL.
        metres: Size of a pixel, infinite where it is not said.
    """

    key: str
    asset: Mapping[str, Any]
    index: int
    driver: str
    metres: float

    @property
    def original(self) -> bool:
        """Whether the key says that it is a JPEG 2000 file, as ESA made it, beside a converted one."""
        return self.key.lower().endswith(("-jp2", "_jp2"))


def find_images(assets: Mapping[str, Any]) -> tuple[dict[str, Image], dict[str, list[Image]]]:
    """Images of an item by what they show.

    Args:
        assets: Of the item; any of it may be of the wrong type.

    Returns:
        Bands in the order of ``S2_BANDS`` and ``SCL``, each at its finest resolution; and terrain by ``dem`` and
        ``slope``, of which there may be several tiles.
    """
    bands: dict[str, list[Image]] = {}
    terrain: dict[str, list[Image]] = {}
    for key, asset in assets.items():
        driver = _driver(asset) if isinstance(asset, Mapping) else None
        if driver is None or _is_picture(key, asset):
            continue
        if match := _TERRAIN.fullmatch(key):
            terrain.setdefault("dem" if match["dem"] else "slope", []).append(Image(key, asset, 1, driver, math.inf))
            continue
        for index, name in enumerate(_names(key, asset), 1):
            if name:
                bands.setdefault(name, []).append(Image(key, asset, index, driver, _metres(key, asset, index)))
    finest = {name: min(found, key=lambda i: (i.metres, i.driver, i.key)) for name, found in bands.items()}
    return {name: finest[name] for name in (*S2_BANDS, "SCL") if name in finest}, terrain


def find_elevation(assets: Mapping[str, Any]) -> str | None:
    """Key of the asset of a tile of a DEM collection that holds the elevations."""
    usable = [
        key for key, asset in assets.items()
        if isinstance(asset, Mapping) and _driver(asset) and not _is_picture(key, asset)
    ]  # fmt: skip
    named = [key for key in usable if _TERRAIN.fullmatch(key) or key.lower() == "data"]
    return next(iter(named or (usable if len(usable) == 1 else [])), None)


def stated(image: Image) -> tuple[float, float] | None:
    """Scale and offset that an item states for an image, reflectance being stored * scale + offset.

    Returns:
        None where nothing is stated, or what changes nothing: some programs write a scale of 1 into everything.

    Raises:
        ValueError: They are no numbers that they could be.
    """
    band, old = _entry(image.asset, ("bands",), image.index), _entry(image.asset, ("raster:bands",), image.index)
    places = (old.get, lambda k: band.get(f"raster:{k}"), band.get, lambda k: image.asset.get(f"raster:{k}"))
    found = {k: next((v for get in places if (v := get(k)) is not None), None) for k in ("scale", "offset")}
    scale, offset = (_number(v, default) for v, default in zip(found.values(), (1.0, 0.0), strict=True))
    if not 1e-6 <= scale <= 1 or abs(offset / scale) > 1e5 or (scale == 1 and 0 < abs(offset) < 10):
        raise ValueError(f"scale {scale:g} and offset {offset:g}")
    return None if (scale, offset) == (1, 0) else (scale, offset)


def _number(value: Any, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise ValueError(f"scale or offset {str(value)[:50]!r}")
    return float(value)


def _entry(asset: Mapping[str, Any], keys: tuple[str, ...], index: int) -> Mapping[str, Any]:
    """What a list in an asset says about a band; one entry speaks for all."""
    for key in keys:
        listed = asset.get(key)
        if isinstance(listed, list) and listed:
            entry = listed[min(index, len(listed)) - 1]
            if isinstance(entry, Mapping):
                return entry
    return {}


def _names(key: str, asset: Mapping[str, Any]) -> Iterator[str | None]:
    """Names of the bands of an asset, in their order in the file."""
    given = (asset.get(k) for k in ("bands", "eo:bands"))
    listed: list[Any] = next((found for found in given if isinstance(found, list) and found), [{}])
    for entry in listed:
        band = entry if isinstance(entry, Mapping) else {}
        texts = [band.get("name"), *([key] if len(listed) == 1 else [])]
        common = [band.get("eo:common_name"), band.get("common_name")]
        yield _agreed([str(t) for t in texts if t], [str(t) for t in common if t])


def _agreed(names: list[str], common: list[str]) -> str | None:
    """The band that names stand for; None where they contradict each other.

    Numbers win over words: catalogues give B8A and the bands of the red edge all kinds of common names.
    """
    for candidates in ({_numbered(t) for t in names} - {None}, {_word(t) for t in names} - {None}):
        if candidates:
            return candidates.pop() if len(candidates) == 1 else None
    words = {_word(t) for t in common} - {None, "SCL"}
    return words.pop() if len(words) == 1 else None


def _numbered(text: str) -> str | None:
    match = _NUMBERED.fullmatch(text.strip())
    return f"B{match['band'].upper()}" if match else None


def _word(text: str) -> str | None:
    match = _WORD.fullmatch(text.strip())
    word = match["band"].lower() if match else ""
    return "SCL" if word == "scl" else COMMON.get(word)


def _driver(asset: Mapping[str, Any]) -> str | None:
    """GDAL's driver for an asset, by its media type or else by its name; None where it is not read, such as Zarr."""
    kind, href = (str(asset.get(k) or "").lower() for k in ("type", "href"))
    ending = href.split("?")[0].rpartition(".")[2]
    if "tiff" in kind or "jp2" in kind:
        return "JP2OpenJPEG" if "jp2" in kind else "GTiff"
    if kind and "octet-stream" not in kind:
        return None
    return {"tif": "GTiff", "tiff": "GTiff", "jp2": "JP2OpenJPEG"}.get(ending)


def _is_picture(key: str, asset: Mapping[str, Any]) -> bool:
    roles = asset.get("roles")
    listed = {str(r).lower() for r in roles} if isinstance(roles, list) else set()
    return bool(listed & _PICTURES) or _PICTURE.match(key) is not None


def _metres(key: str, asset: Mapping[str, Any], index: int) -> float:
    """Size of a pixel, from whatever says it."""
    said = [
        _entry(asset, ("raster:bands",), index).get("spatial_resolution"),
        _entry(asset, ("bands",), index).get("raster:spatial_resolution"),
        asset.get("raster:spatial_resolution"),
        asset.get("gsd"),
    ]
    numbers = [float(v) for v in said if isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < 1e6]
    match = _NUMBERED.fullmatch(key) or _WORD.fullmatch(key)
    if match and match["metres"]:
        return float(match["metres"])  # gsd may be that of the sensor
    return numbers[0] if numbers else math.inf
