"""Sentinel-2 products as ESA gives them out: SAFE folders and zips, Level-1C and Level-2A, read where they are.

Formats and names: ESA, "Sentinel-2 Products Specification Document" (S2-PDGS-TAS-DI-PSD), "compact" products, which
all are since December 2016. They can come from anyone: ``l4s_geo.scene.archive`` looks after zips and XML, and images
are opened as JPEG 2000 only (``DRIVER``), without files beside them (``GDAL_ALONE``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element

import numpy as np
from rasterio.windows import Window

from l4s_geo.errors import InputError
from l4s_geo.scene.archive import METADATA, Files, in_folder, in_zip, parse_xml, readable
from l4s_geo.scene.bands import S2_BANDS, parse_band
from l4s_geo.scene.layer import Layer
from l4s_geo.scene.units import FULL
from l4s_geo.scene.warp import Pixels

#: Bands and scene classification of a granule. Other images (TCI, PVI, AOT, WVP, probabilities) are none.
IMAGE = re.compile(
    r"GRANULE/(?P<granule>[^/]+)/IMG_DATA/(?:R[126]0m/)?"
    r"(?:L2A_)?T\d\d[A-Z]{3}_\d{8}T\d{6}_(?P<what>B\d\d|B8A|SCL)(?:_(?P<metres>[126]0)m)?\.jp2"
)

#: Driver of the images: what only calls itself .jp2, such as a VRT that leads to other files, is not opened.
DRIVER = "JP2OpenJPEG"

#: With this GDAL takes an image for itself: overviews, masks and metadata beside it could be of any format.
GDAL_ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}

#: Pixels along a side of a Sentinel-2 tile at 10 m; no image of a product has more.
SIDE = 10980

#: Classes of a scene classification where the ground is not seen or not as it is (ESA, "Level-2A Algorithm Theoretical
#: Basis Document", S2-PDGS-MPC-ATBD-L2A): no data, saturated or defective, cloud shadow, cloud of medium and of high
#: probability, thin cirrus, snow. Dark areas (2) stay, many of them slopes in shadow, and so does what is
#: unclassified (7), where cloud is improbable.
UNSEEN = (0, 1, 3, 8, 9, 10, 11)

#: A processing baseline.
BASELINE = re.compile(r"\d\d\.\d\d")

#: Baselines whose metadata must have an offset; those from 99 on are made by users with Sen2Cor.
WITH_OFFSET = (4.0, 99.0)

Level = Literal["L1C", "L2A"]

#: Tags of offset and quantification value, the newest first.
OFFSET_TAG = {"L1C": "RADIO_ADD_OFFSET", "L2A": "BOA_ADD_OFFSET"}
QUANTIFICATION_TAGS = {
    "L1C": ("QUANTIFICATION_VALUE",),
    "L2A": ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE"),
}


@dataclass(frozen=True)
class Product:
    """A Sentinel-2 product of one granule.

    Attributes:
        source: As the user gave it.
        files: On disk: the zip, or the images and metadata.
        name: Of the product, without ``.SAFE``.
        level: Of processing.
        date: ISO date of acquisition.
        baseline: Of processing, such as ``05.09``.
        images: GDAL's paths of the bands, each at its finest resolution, in the order of ``S2_BANDS``.
        classification: That of the scene classification (SCL), if any.
        offsets: To be added to the stored numbers, by band; empty for products that have none.
        quantification: Stored numbers of reflectance 1.
    """

    source: str
    files: tuple[str, ...]
    name: str
    level: Level
    date: str | None
    baseline: str | None
    images: dict[str, str]
    classification: str | None = None
    offsets: dict[str, float] = field(default_factory=dict)
    quantification: float = FULL

    #: What a product says about its offset is true.
    certain = True

    def notes(self) -> Iterator[str]:
        """What the user should know about it."""
        yield f"Sentinel-2 {self.level} product, processing baseline {self.baseline or 'unknown'}"
        missing = [b for b in S2_BANDS if b not in self.images and not (b == "B10" and self.level == "L2A")]
        if missing:
            yield f"not in the product: {', '.join(missing)}; was it downloaded completely?"

    def check_offset(self) -> None:
        """Raises InputError where the metadata should have an offset, but have none."""
        first, after = WITH_OFFSET
        if not self.offsets and first <= float(self.baseline or 0) < after:
            raise InputError(
                f"{self.source} is of processing baseline {self.baseline}, but its metadata have no "
                f"{OFFSET_TAG[self.level]}: they were changed or cut off. Download it again, or say --s2-offset -1000, "
                "or 0 if the offset was taken off the images already."
            )


class ClearSky:
    """Where a scene classification sees the ground: a layer without bands, which says only what is valid.

    Args:
        classification: Layer of its classes, by the nearest pixel.
    """

    names: tuple[str, ...] = ()

    def __init__(self, classification: Layer) -> None:
        self._classification = classification

    def read(self, window: Window) -> Pixels:
        """No bands (0, h, w), and where the ground is seen (h, w)."""
        classes, known = self._classification.read(window)
        return classes[:0], known & ~np.isin(classes[0], UNSEEN)


def find_product(path: str | Path) -> Product | None:
    """The product at a path: a SAFE folder, a zip that holds one, or its ``MTD_MSIL1C.xml`` or ``MTD_MSIL2A.xml``.

    Args:
        path: Local; nothing is written or unpacked.

    Returns:
        None where it is something else, such as a raster or a folder of bands.

    Raises:
        InputError: It should be a product, but cannot be used.
    """
    given = Path(path)
    if METADATA.fullmatch(given.name) and given.is_file():
        given = given.absolute().parent
    if given.is_dir():
        with readable(given):
            inside = any(METADATA.fullmatch(p.name) for p in given.iterdir())
        return _product(in_folder(given)) if inside or given.suffix.upper() == ".SAFE" else None
    return _product(in_zip(given)) if given.suffix.lower() == ".zip" and given.is_file() else None


def find_date(*names: str) -> str | None:
    """The first date such as 20170613 or 2017-06-13 in names of Sentinel-2 products, as ISO text."""
    for name in names:
        for year, month, day in re.findall(r"(?<!\d)(20\d\d)[-_]?([01]\d)[-_]?([0-3]\d)(?!\d)", name):
            try:
                return date(int(year), int(month), int(day)).isoformat()
            except ValueError:
                continue
    return None


def find_level(name: str) -> str | None:
    """``L1C`` or ``L2A`` where a file or folder name says so, as Sentinel-2 products do."""
    found = re.search(r"(?<![A-Za-z])(?:MSI)?(L1C|L2A)(?![A-Za-z0-9])", name)
    return found[1] if found else None


def _product(files: Files) -> Product:
    """Find metadata and images.

    Raises:
        InputError: Either is missing, or there is more than one granule.
    """
    metadata = [n for n in files.inside if METADATA.fullmatch(n)]
    if len(metadata) != 1:
        raise InputError(
            f"{files.source} has {' and '.join(metadata) or 'no MTD_MSIL1C.xml or MTD_MSIL2A.xml'} in it, so it is no "
            "Sentinel-2 product of the kind that is given out since December 2016. Download it again, or give the "
            "folder that holds the band files, with --s2-offset -1000 if it is of processing baseline 04.00 or newer."
        )
    level: Level = "L1C" if "L1C" in metadata[0] else "L2A"
    images = _images(files)
    where = f"{metadata[0]} in {files.source}"
    root = parse_xml(files.read(metadata[0]), where)
    classification = images.pop("SCL", None)
    if not images:
        raise InputError(
            f"{files.source} holds no bands: there is no GRANULE/.../IMG_DATA/..._B02.jp2 or the like in it. Was it "
            "downloaded completely?"
        )
    start, baseline = (_text(root, tag) or "" for tag in ("PRODUCT_START_TIME", "PROCESSING_BASELINE"))
    return Product(
        source=str(files.source),
        files=tuple(dict.fromkeys(files.on_disk(n) for n in (metadata[0], *images.values()))),
        name=re.sub(r"\.SAFE$", "", files.name, flags=re.IGNORECASE),
        level=level,
        date=find_date(start[:10], files.name),
        baseline=baseline if BASELINE.fullmatch(baseline) else None,
        images={band: files.gdal(images[band]) for band in S2_BANDS if band in images},
        classification=classification and files.gdal(classification),
        offsets=_offsets(root, OFFSET_TAG[level], [*images], where),
        quantification=_quantification(root, QUANTIFICATION_TAGS[level], where),
    )


def _images(files: Files) -> dict[str, str]:
    """Paths inside, by band or ``SCL``, at the finest resolution there is.

    Raises:
        InputError: There are several granules.
    """
    found = [m for n in files.inside if (m := IMAGE.fullmatch(n))]
    granules = sorted({m["granule"] for m in found})
    if len(granules) > 1:
        raise InputError(
            f"{files.source} has {len(granules)} granules ({', '.join(granules[:3])}); a scene is one. Give the folder "
            "with the bands of one of them."
        )
    coarse_first = sorted(found, key=lambda m: -int(m["metres"] or 0))
    named = ((m["what"] if m["what"] == "SCL" else parse_band(m["what"]), m.string) for m in coarse_first)
    return {name: inside for name, inside in named if name}


def _text(root: Element, *tags: str) -> str | None:
    """What the first of these tags says."""
    return next((text.strip() for tag in tags if (text := root.findtext(f".//{tag}"))), None)


def _offsets(root: Element, tag: str, bands: Sequence[str], where: str) -> dict[str, float]:
    """Offsets by band, none where the metadata have none."""
    bands_by_id = {str(i): band for i, band in enumerate(S2_BANDS)}
    found: dict[str, float] = {}
    for element in root.iter(tag):
        band_id = element.get("band_id", "")
        if band_id not in bands_by_id:
            raise InputError(f"{where} has an offset for band_id {band_id!r}; 0 to 12 are known. Download it again.")
        found[bands_by_id[band_id]] = _number(element.text, tag, where)
    missing = [b for b in bands if b not in found]
    if found and missing:
        raise InputError(
            f"{where} has offsets ({tag}) for some bands, but not for {', '.join(missing)}. Download it again, or give "
            "the folder of its bands with --s2-offset."
        )
    return found


def _quantification(root: Element, tags: tuple[str, ...], where: str) -> float:
    """Stored numbers of reflectance 1."""
    text = _text(root, *tags)
    if text is None:
        raise InputError(f"{where} has no {tags[0]}: it is cut off, or no metadata of a product. Download it again.")
    found = _number(text, tags[0], where)
    if found <= 0:
        raise InputError(f"{where} has {tags[0]} {found:g}, which nothing can be divided by. Download it again.")
    return found


def _number(text: str | None, tag: str, where: str) -> float:
    """A number of a reasonable size."""
    try:
        found = float(text or "")
    except ValueError:
        found = float("nan")
    if not abs(found) <= 1e6:
        raise InputError(f"{where} has {tag} {text!r}, which is no number that it could be. Download it again.")
    return found
