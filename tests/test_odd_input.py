"""Odd and hostile input, one line a case: a right result, or exit 2 with one message; never a traceback or a half file.

``here`` is an empty folder. Every case makes its files there and gives the arguments of ``map``; what is expected is
``same`` (the landslides that were drawn, at their places), ``seen(share)`` (these, and that share of the scene seen),
or ``says(words)``: exit code 2, one line with these words, and no file more than before.
"""

from __future__ import annotations

import http.server
import json
import os
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas as gpd
import h5py
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from shapely.geometry import Point, Polygon, box

from l4s_geo.cli import main
from l4s_geo.models import zoo
from l4s_geo.scene.raster import GDAL_OPTIONS

from .conftest import UTM, UTM_10M, write_raster
from .odd import BANDS, SIDE, SLIDES, Bright, image, save_model, scene

DEGREE = 9e-5
IMAGE = image()
FLOATS = IMAGE.astype(np.float32)
LOCAL = 'LOCAL_CS["site",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'

#: A corner without landslides, and the share of the scene beside it.
CORNER, BESIDE = np.s_[..., 60:, :20], 1 - 12 * 20 / SIDE**2


@pytest.fixture(autouse=True)
def here(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and the model ``MODEL`` elsewhere."""
    build = zoo.build
    monkeypatch.setattr(zoo, "build", lambda name, args, n: Bright() if name == "Bright" else build(name, args, n))
    monkeypatch.setenv("MODEL", str(save_model(tmp_path_factory.mktemp("models") / "bright")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str) -> Result:
    """Map, or what the first argument says."""
    verb, rest = (args[0], args[1:]) if args[0] in ("check", "polygonize") else ("map", args)
    more = ["--model", os.environ["MODEL"]] if verb != "polygonize" and "--model" not in rest else []
    more += ["--out", "o.gpkg", "--device", "cpu", "--dtype", "fp32"] if verb == "map" and "--out" not in rest else []
    return CliRunner().invoke(main, [verb, "-q", *more, *rest])


def refused(done: Result, *words: str) -> None:
    assert done.exit_code == 2, done.output + str(done.exception)
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr


# --- what is expected -----------------------------------------------------------------------------------

Expected = Callable[[Path, Result, set[str]], None]


def says(*words: str) -> Expected:
    def expected(here: Path, done: Result, before: set[str]) -> None:
        refused(done, *words)
        assert {p.name for p in here.iterdir()} == before

    return expected


def seen(share: float | None, at: Affine = UTM_10M, crs: str = UTM, overlap: float = 0.999) -> Expected:
    def expected(here: Path, done: Result, before: set[str]) -> None:
        assert done.exit_code == 0, done.output + str(done.exception)
        drawn = [
            [at * c for c in ((left, top), (right, top), (right, end), (left, end))] for top, left, end, right in SLIDES
        ]
        truth = gpd.GeoSeries([Polygon(c) for c in drawn], crs=crs).union_all()
        found = gpd.read_file("o.gpkg", layer="landslides")
        assert len(found) == len(SLIDES)
        whole = found.geometry.union_all()
        assert whole.intersection(truth).area / whole.union(truth).area >= overlap
        if share is not None:
            assert json.loads(Path("o.gpkg.json").read_text())["seen_share"] == pytest.approx(share, abs=1e-5)

    return expected


same = seen(1.0)

#: Drawn in bytes, and with losses.
rendered = seen(1.0, overlap=0.8)


def steep(here: Path, done: Result, before: set[str]) -> None:
    """As ``same``, on ground of 20 degrees."""
    same(here, done, before)
    slopes = gpd.read_file("o.gpkg", layer="landslides").filter(like="slope")
    assert slopes.to_numpy() == pytest.approx(20, abs=0.01)


def within(share: float) -> Expected:
    """That share of the scene was looked at."""

    def expected(here: Path, done: Result, before: set[str]) -> None:
        assert done.exit_code == 0, done.output + str(done.exception)
        assert json.loads(Path("o.gpkg.json").read_text())["seen_share"] == pytest.approx(share, rel=0.02)

    return expected


def placed(at: Affine, crs: str = UTM, overlap: float = 0.999) -> tuple[Any, Expected]:
    """A scene with a grid, and its landslides there."""
    return lambda d: scene(d / "s.tif", transform=at, crs=crs), seen(None, at, crs, overlap)


def misplaced(at: Affine, *words: str, crs: str | None = UTM) -> tuple[Any, Expected]:
    return lambda d: scene(d / "s.tif", transform=at, crs=crs), says(*words)


# --- how input is made ----------------------------------------------------------------------------------


def corner(values: NDArray[Any], value: float) -> NDArray[Any]:
    """The image with other numbers in the corner."""
    values = values.copy()
    values[CORNER] = value
    return values


def tagged(path: Path, values: NDArray[Any], scale: float, offset: float = 0.0) -> str:
    with rasterio.open(scene(path, values), "r+") as file:
        file.scales, file.offsets = (scale,) * 3, (offset,) * 3
    return str(path)


def vrt(here: Path, source: str = "base.tif", band: str = "", kind: str = "", root: str = "", size: int = SIDE) -> str:
    """A VRT of three bands; other sources, more in each band or in the root, attributes of the bands, another size."""
    with rasterio.open(scene(here / "base.tif", corner(IMAGE, 0))) as base:
        srs = base.crs.to_wkt()
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{i}" {kind}><Description>{name}</Description>{band.format(i=i)}'
        f'<SimpleSource><SourceFilename relativeToVRT="1">{source}</SourceFilename><SourceBand>{i}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for i, name in enumerate(BANDS, 1)
    )
    (here / "s.vrt").write_text(
        f'{root}<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><SRS>{srs}</SRS>'
        f"<GeoTransform>570000,10,0,4730000,0,-10</GeoTransform>{bands}</VRTDataset>"
    )
    return "s.vrt"


def masked_by_band(here: Path) -> str:
    write_raster(here / "mask.tif", corner(np.full((3, SIDE, SIDE), 255, np.uint8), 0))
    return vrt(
        here,
        band='<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource><SourceFilename relativeToVRT="1">mask.tif'
        "</SourceFilename><SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand></MaskBand>",
    )


def python_in_vrt(here: Path) -> str:
    code = "def f(x, out, *a, **k): open('ran', 'w').close()"
    band = (
        "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"
        f"<PixelFunctionCode><![CDATA[{code}]]></PixelFunctionCode>"
    )
    os.environ["GDAL_VRT_ENABLE_PYTHON"] = "YES"
    return vrt(here, band=band, kind='subClass="VRTDerivedRasterBand"')


BOMB = "<!DOCTYPE x [" + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12)) + "]>"


def with_alpha(here: Path) -> str:
    alpha = corner(np.full((1, SIDE, SIDE), 65535, np.uint16), 0)
    path = scene(here / "s.tif", np.concatenate([IMAGE, alpha]), photometric="rgb")
    with rasterio.open(path, "r+") as file:
        file.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    return path


def with_msk(here: Path) -> str:
    path = scene(here / "s.tif")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(corner(np.ones((SIDE, SIDE), bool), 0))
    assert (here / "s.tif.msk").exists()
    return path


def with_points(here: Path) -> str:
    path = scene(here / "s.tif", crs=None, transform=None)
    points = [GroundControlPoint(r, c, 570000 + 10 * c, 4730000 - 10 * r) for r, c in ((0, 0), (0, 72), (72, 0))]
    with rasterio.open(path, "r+") as file:
        file.gcps = points, CRS.from_string(UTM)
    return path


def patch(here: Path, values: Any) -> str:
    with h5py.File(here / "s.h5", "w") as file:
        file["img"] = values
    return "s.h5"


def beside(here: Path, name: str, data: bytes = b"garbage") -> str:
    (here / name).write_bytes(data)
    return scene(here / "s.tif")


def named(name: str) -> Callable[[Path], list[str]]:
    def make(here: Path) -> list[str]:
        scene(here / "any.tif")
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        Path("any.tif").rename(name)
        return ["--", name]

    return make


def pipe(name: str, *args: str) -> Callable[[Path], list[str]]:
    def make(here: Path) -> list[str]:
        scene(here / "s.tif")
        (here / name).parent.mkdir(exist_ok=True)
        os.mkfifo(name)
        return [*args] if args else [name]

    return make


def area(here: Path, shape: Any, crs: Any = UTM) -> list[str]:
    gpd.GeoSeries([shape], crs=crs).to_file("area.gpkg")
    return [scene(here / "s.tif"), "--aoi", "area.gpkg"]


def text(here: Path, option: str, name: str, content: str) -> list[str]:
    (here / name).write_text(content)
    return [scene(here / "s.tif"), option, name]


def terrain(here: Path, option: str, values: Any, unit: str | None = None, **how: Any) -> list[str]:
    path = write_raster(here / "t.tif", np.broadcast_to(values, (SIDE, SIDE)), **how)
    if unit:
        with rasterio.open(path, "r+") as file:
            file.units = (unit,)
    return [scene(here / "s.tif"), option, str(path)]


def inclined(here: Path, unit: str, metres: float) -> list[str]:
    """Ground of 20 degrees."""
    heights = np.arange(SIDE) * 10 * np.tan(np.radians(20)) / metres
    return terrain(here, "--dem", heights.astype(np.float32), unit)


def picture(here: Path, **how: Any) -> list[str]:
    path = scene(here / "s.tif", (IMAGE // 8).astype(np.uint8), interleave="pixel", **how)
    (here / "n.json").write_text(statistics(center=[62] * 3, scale=[6] * 3))
    return [path, "--units", "byte", "--normalize", "n.json"]


def with_camera(here: Path) -> str:
    path = scene(here / "s.tif", crs=None, transform=None)
    one, line, sample = ([float(i == at) for i in range(20)] for at in (0, 2, 1))
    scales = dict.fromkeys(("height_scale", "line_scale", "samp_scale", "lat_scale", "long_scale"), 1.0)
    offsets = {"height_off": 0, "line_off": 36, "samp_off": 36, "lat_off": 42.7, "long_off": 141.9}
    with rasterio.open(path, "r+") as file:
        file.rpcs = RPC(
            **scales, **offsets, line_num_coeff=line, line_den_coeff=one, samp_num_coeff=sample, samp_den_coeff=one
        )
    return path


def circle(here: Path, radius: float, many: bool = False) -> list[str]:
    """An area of two arcs, as QGIS and ArcGIS draw circles: geometry types 8, 10 and 12 of ISO 19125."""
    args = area(here, AROUND)
    x, y = 570360, 4729640
    corners = (x - radius, y, x, y + radius, x + radius, y, x, y - radius, x - radius, y)
    shape = struct.pack("<BIIBII10d", 1, 10, 1, 1, 8, 5, *corners)
    shape = struct.pack("<BII", 1, 12, 1) + shape if many else shape
    with closing(sqlite3.connect("area.gpkg")) as file, file:
        for (trigger,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            file.execute(f'DROP TRIGGER "{trigger}"')
        file.execute("UPDATE area SET geom = ?", (b"GP\0\1" + struct.pack("<i", 32654) + shape,))
        file.execute("UPDATE gpkg_geometry_columns SET geometry_type_name = 'GEOMETRY'")
        file.execute("DELETE FROM gpkg_extensions WHERE extension_name = 'gpkg_rtree_index'")
    return args


def statistics(**changes: Any) -> str:
    return json.dumps({"bands": BANDS, "center": [500] * 3, "scale": [50] * 3, "compression": "asinh"} | changes)


AROUND = box(569000, 4728000, 572000, 4731000)
NAN, INF = float("nan"), float("inf")

CASES: dict[str, tuple[Any, Expected]] = {
    # grids
    "rotated": placed(UTM_10M * Affine.rotation(30), overlap=0.9),
    "sheared": placed(UTM_10M * Affine.shear(20, 5), overlap=0.9),
    "south-up": placed(Affine(10, 0, 570000, 0, 10, 4730000)),
    "mirrored": placed(Affine(-10, 0, 570000, 0, -10, 4730000)),
    "rows and columns swapped": placed(Affine(0, 10, 570000, 10, 0, 4730000)),
    "degrees": placed(Affine(DEGREE, 0, 141.9, 0, -DEGREE, 42.75), "EPSG:4326", 0.9),
    "across 180 degrees": placed(Affine(DEGREE, 0, 179.9968, 0, -DEGREE, -17), "EPSG:4326", 0.9),
    "UTM zone 1 across 180 degrees": placed(Affine(10, 0, 178400, 0, -10, 8118000), "EPSG:32701"),
    "Arctic": placed(Affine(10, 0, -200000, 0, -10, -2200000), "EPSG:3413"),
    "North Pole": placed(Affine(10, 0, -360, 0, -10, 360), "EPSG:3413"),
    "Antarctic": placed(Affine(10, 0, -1000000, 0, -10, 1500000), "EPSG:3031"),
    "89 degrees north": misplaced(Affine(30 * DEGREE, 0, 10, 0, -DEGREE, 89), "no UTM zone", crs="EPSG:4326"),
    "own projection": placed(Affine(10, 0, 0, 0, -10, 0), "+proj=tmerc +lat_0=42.7 +lon_0=141.9 +datum=WGS84"),
    "own projection in feet": placed(
        Affine(32.808, 0, 0, 0, -32.808, 0), "+proj=tmerc +lat_0=42.7 +lon_0=141.9 +datum=WGS84 +units=us-ft"
    ),
    "with heights": placed(UTM_10M, "EPSG:32654+5773"),
    "no place on Earth": placed(Affine(10, 0, 0, 0, -10, 0), LOCAL),
    "geocentric": misplaced(UTM_10M, "no map can be drawn", crs="EPSG:4978"),
    "rotated pole": misplaced(
        Affine(DEGREE, 0, 1.9, 0, -DEGREE, 2.75),
        "cannot hold the scene's coordinate system",
        crs="+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +to_meter=0.0174532925199433",
    ),
    "on the moon": misplaced(Affine(10, 0, 0, 0, -10, 0), "tied to the Earth", crs="+proj=laea +R=1737400"),
    "no CRS": misplaced(UTM_10M, "no coordinate system", crs=None),
    "pixels without size": misplaced(Affine(0, 0, 570000, 0, 0, 4730000), "without a size"),
    "pixels of 1e-300 m": misplaced(Affine(1e-300, 0, 570000, 0, -1e-300, 4730000), "without a size"),
    "pixels on one line": misplaced(Affine(10, 10, 570000, 10, 10, 4730000), "without a size"),
    "pixels of NaN": misplaced(Affine(NAN, 0, 570000, 0, -10, 4730000), "without a size"),
    "at infinity": misplaced(Affine(10, 0, INF, 0, -10, 4730000), "without a size"),
    "degrees called metres": misplaced(Affine(0.1, 0, 141.9, 0, -0.1, 42.75), "far too coarse", crs="EPSG:4326"),
    "metres called degrees": misplaced(UTM_10M, "no UTM zone", crs="EPSG:4326"),
    "camera model": (with_camera, says("camera model", "gdalwarp")),
    "ground control points": (with_points, says("ground control points", "gdalwarp")),
    # numbers
    "1e38, not declared": (lambda d: scene(d / "s.tif", corner(FLOATS, 1e38)), seen(BESIDE)),
    "-3.4e38, not declared": (lambda d: scene(d / "s.tif", corner(FLOATS, -3.4e38)), seen(BESIDE)),
    "1e300 in doubles": (lambda d: scene(d / "s.tif", corner(FLOATS.astype(float), 1e300)), seen(BESIDE)),
    "-9999, not declared": (lambda d: scene(d / "s.tif", corner(IMAGE.astype(np.int16), -9999)), seen(BESIDE)),
    "NaN": (lambda d: scene(d / "s.tif", corner(FLOATS, NAN)), seen(BESIDE)),
    "infinity": (lambda d: scene(d / "s.tif", corner(FLOATS, INF)), seen(BESIDE)),
    "-infinity as nodata": (lambda d: scene(d / "s.tif", corner(FLOATS, -INF), nodata=-INF), seen(BESIDE)),
    "denormal numbers": (lambda d: scene(d / "s.tif", corner(FLOATS, 1e-42)), same),
    "nodata beyond the type": (lambda d: vrt(d, band="<NoDataValue>-9999</NoDataValue>"), seen(BESIDE)),
    "NaN as nodata of integers": (lambda d: vrt(d, band="<NoDataValue>nan</NoDataValue>"), seen(BESIDE)),
    "int64": (lambda d: scene(d / "s.tif", corner(IMAGE.astype(np.int64), -(2**62)), nodata=-(2**62)), seen(BESIDE)),
    "uint64": (lambda d: scene(d / "s.tif", IMAGE.astype(np.uint64)), same),
    "float16": (lambda d: scene(d / "s.tif", FLOATS, nbits=16), same),
    "int8": (lambda d: scene(d / "s.tif", (IMAGE // 10).astype(np.int8)), says("int8", "--units byte")),
    "one bit": (lambda d: scene(d / "s.tif", (IMAGE > 999).astype(np.uint8), nbits=1), says("uint8")),
    "scale": (lambda d: tagged(d / "s.tif", IMAGE, 1e-4), same),
    "scale and offset": (lambda d: tagged(d / "s.tif", IMAGE + 1000, 1e-4, -0.1), same),
    "scale of Landsat": (
        lambda d: tagged(d / "s.tif", np.uint16((IMAGE * 1e-4 + 0.2) / 2.75e-5), 2.75e-5, -0.2),
        same,
    ),
    "scale, but told what is stored": (lambda d: [tagged(d / "s.tif", IMAGE, 1e-4), "--units", "dn"], same),
    "scale of 0": (lambda d: tagged(d / "s.tif", IMAGE, 0), says("scale of 0")),
    # masks
    "mask inside": (lambda d: scene(d / "s.tif", mask=corner(np.ones((SIDE, SIDE), bool), 0)), seen(BESIDE)),
    "mask beside (.msk)": (with_msk, seen(BESIDE)),
    "mask by band": (masked_by_band, seen(BESIDE)),
    "alpha": (with_alpha, seen(BESIDE)),
    "missing tiles": (
        lambda d: scene(d / "s.tif", corner(IMAGE, 0), sparse_ok=True, tiled=True, blockxsize=16, blockysize=16),
        seen(BESIDE),
    ),
    # layouts
    **{
        f"compressed with {c}": (lambda d, c=c: scene(d / "s.tif", compress=c), same)
        for c in ("zstd", "lzma", "lerc", "packbits")
    },
    "BigTIFF": (lambda d: scene(d / "s.tif", bigtiff="YES"), same),
    "pictures compressed with jpeg": (lambda d: picture(d, compress="jpeg", photometric="ycbcr"), rendered),
    "pictures compressed with webp": (lambda d: picture(d, compress="webp", webp_level=90), rendered),
    "one strip": (lambda d: scene(d / "s.tif", compress="deflate", blockysize=SIDE), same),
    "band after band": (lambda d: scene(d / "s.tif", interleave="band"), same),
    "broken overviews": (lambda d: beside(d, "s.tif.ovr"), same),
    "broken metadata": (lambda d: beside(d, "s.tif.aux.xml"), same),
    # VRTs
    "VRT of itself": (lambda d: vrt(d, "s.vrt"), says("s.vrt cannot be")),
    "VRT of nothing": (lambda d: vrt(d, "gone.tif"), says("gone.tif")),
    "VRT of no raster": (lambda d: vrt(d, "/etc/passwd"), says("s.vrt cannot be")),
    "VRT with code": (python_in_vrt, says("disabled")),
    "VRT with a bomb of entities": (lambda d: vrt(d, root=BOMB), seen(BESIDE)),
    "VRT nested deeply": (lambda d: vrt(d, band="<a>" * 20000), says("s.vrt cannot be opened")),
    "VRT of 10^12 pixels": (lambda d: vrt(d, size=10**6), says("more than any image")),
    "VRT of 10^18 pixels": (lambda d: vrt(d, size=2 * 10**9), says("more than any image")),
    # patches
    "patch of NaN": (lambda d: patch(d, np.full((8, 8, 14), NAN)), says("no pixel that is valid")),
    "patch of text": (lambda d: patch(d, np.full((8, 8, 14), b"x")), says("no Landslide4Sense patch")),
    "patch of another shape": (lambda d: patch(d, np.zeros((8, 8, 3))), says("no Landslide4Sense patch")),
    # names
    **{
        f"named {name!r}": (named(name), same)
        for name in (
            "my scene.tif", "地すべり é.tif", "a'b\"c.tif", "a\nb.tif", "100%d%s.tif", "-s.tif", "a,b.tif",
            "a[1]*?.tif",
            "a:b.tif", "$(ls) & `x`;#.tif", "x{y}.tif", "~", "x" * 251 + ".tif", "/".join(["d" * 200] * 12 + ["s.tif"]),
        )
    },
    "name that is not UTF-8": (named("\udcff.tif"), says("not in UTF-8")),
    "name that is too long": (lambda d: "x" * 5000, says("name too long")),
    "path that is too long": (lambda d: "/".join(["x" * 200] * 30), says("name too long")),
    "model with a name that is too long": (lambda d: [scene(d / "s.tif"), "--model", "x" * 999], says("Unknown model")),
    # no files
    "pipe": (pipe("s"), says("pipe")),
    "pipe called .zip": (pipe("s.zip"), says("pipe")),
    "pipe called .h5": (pipe("s.h5"), says("pipe")),
    "pipe for --dem": (pipe("d", "s.tif", "--dem", "d"), says("pipe")),
    "pipe for --mask": (pipe("m.gpkg", "s.tif", "--mask", "m.gpkg"), says("pipe")),
    "pipe for --normalize": (pipe("n", "s.tif", "--normalize", "n"), says("pipe")),
    "pipe for a card": (pipe("m/card.json", "s.tif", "--model", "m"), says("pipe")),
    "/dev/null": (lambda d: "/dev/null", says("device")),
    "/vsistdin/": (lambda d: "/vsistdin/", says("standard input")),
    "empty": (lambda d: (Path("s.tif").touch(), "s.tif")[1], says("s.tif cannot be opened")),
    "link to nothing": (lambda d: (Path("s.tif").symlink_to("gone"), "s.tif")[1], says("There is no file")),
    "link to itself": (lambda d: (Path("s.tif").symlink_to("s.tif"), "s.tif")[1], says("s.tif cannot be read")),
    **{
        f"address {address!r}": (lambda d, address=address: address, says())
        for address in (
            "http://127.0.0.1:9/s.tif", "MVT:http://127.0.0.1:9/x", "PG:host=127.0.0.1", "<VRTDataset/>",
            "/vsizip/no.zip/x",
            "DERIVED_SUBDATASET:AMPLITUDE:s.tif", "/vsigzip//vsistdin/", "file:///etc/passwd", "/vsi", "://", "WMS:",
        )
    },
    # terrain
    "slope in percent": (lambda d: terrain(d, "--slope", np.float32(140)), says("t.tif", "percent")),
    "slope with -9999": (
        lambda d: terrain(d, "--slope", corner(np.full((SIDE, SIDE), 20, np.float32), -9999)),
        seen(BESIDE),
    ),
    **{
        f"elevations in {unit or 'no unit'}": (lambda d, unit=unit, m=m: inclined(d, unit, m), steep)
        for unit, m in (("", 1), ("metre", 1), ("ft", 0.3048), ("US survey foot", 1200 / 3937))
    },
    "complex elevations": (lambda d: terrain(d, "--dem", np.complex64(100)), says("complex")),
    "elevations without a place": (lambda d: terrain(d, "--dem", np.float32(9), crs=LOCAL), says("tied to the Earth")),
    "elevations far away": (lambda d: terrain(d, "--dem", np.float32(9), crs="EPSG:3413"), says("does not overlap")),
    # areas
    "area": (lambda d: area(d, AROUND), same),
    "area with a million vertices": (lambda d: area(d, Point(570360, 4729640).buffer(600, 250000)), same),
    "area with heights": (lambda d: area(d, shapely.force_3d(AROUND, 5)), same),
    "area with curves": (lambda d: circle(d, 600), same),
    "area with curves in several parts": (lambda d: circle(d, 600, many=True), same),
    "area that curves cut": (lambda d: circle(d, 200), within(np.pi * 200**2 / 720**2)),
    "area of the world": (lambda d: area(d, box(-180, -90, 180, 90), 4326), same),
    "area of nothing": (lambda d: area(d, Polygon()), says("holds no polygons")),
    "area without CRS": (lambda d: area(d, AROUND, None), says("no CRS")),
    "area of NaN": (
        lambda d: text(d, "--aoi", "a.geojson", '{"type":"Polygon","coordinates":[[[NaN,1],[1e400,2],[3,3],[NaN,1]]]}'),
        says("a.geojson"),
    ),
    "area nested deeply": (lambda d: text(d, "--aoi", "a.geojson", "[" * 100_000), says("a.geojson")),
    "area of garbage": (lambda d: text(d, "--aoi", "a.parquet", "PAR1xxxxPAR1"), says("a.parquet")),
    "area that is the mask": (lambda d: [*area(d, AROUND), "--mask", "area.gpkg"], says("no valid pixel")),
    # statistics
    "statistics": (lambda d: text(d, "--normalize", "n.json", statistics()), same),
    "statistics of NaN": (lambda d: text(d, "--normalize", "n.json", statistics(center=[NAN] * 3)), says("n.json")),
    "endless statistics": (lambda d: text(d, "--normalize", "n.json", statistics(scale=[INF] * 3)), says("n.json")),
    "statistics nested deeply": (lambda d: text(d, "--normalize", "n.json", "[" * 100_000), says("n.json", "no JSON")),
    # one file for two
    "two outputs in one": (
        lambda d: [scene(d / "s.tif"), "--prob", "p.tif", "--density", f"../{d.name}/p.tif"],
        says("--prob and --density"),
    ),
    "output that links to the input": (
        lambda d: (Path("p.tif").symlink_to("s.tif"), [scene(d / "s.tif"), "--prob", "p.tif", "--overwrite"])[1],
        says("p.tif is an input"),
    ),
    "provenance over an input": (
        lambda d: [*text(d, "--normalize", "o.gpkg.json", statistics()), "--overwrite"],
        says("o.gpkg.json is an input"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_odd_input(case: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_VRT_ENABLE_PYTHON", "NO")  # put back after the case that sets it
    make, expected = CASES[case]
    args = make(here)
    args = [args] if isinstance(args, str) else args
    before = {p.name for p in here.iterdir()}
    expected(here, run(*args), before)
    after = {p.name for p in here.iterdir()}
    checked(here, run("check", *only_scene(args)), after)


def only_scene(args: list[str]) -> Iterator[str]:
    """What ``check`` takes of the arguments of ``map``."""
    words = iter(args)
    for word in words:
        if word in ("--aoi", "--mask", "--normalize", "--prob", "--density"):
            next(words)
        elif word != "--overwrite":
            yield word


def checked(here: Path, done: Result, before: set[str]) -> None:
    """``check`` says what it found, also where that is no scene, and leaves nothing behind."""
    if done.exit_code:
        assert done.exit_code == 2, done.output + str(done.exception)
        assert "problem" in done.stdout if not done.stderr else done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) <= 1, done.stderr
    assert {p.name for p in here.iterdir()} == before


# --- damage ---------------------------------------------------------------------------------------------


def damaged(data: bytes, draw: st.DataObject, head: int = 1024) -> bytes:
    """Cut off, or with some bytes changed, mostly near the beginning."""
    end = draw.draw(st.integers(0, len(data)) | st.just(len(data)))
    found = bytearray(data[:end])
    for at in draw.draw(st.lists(st.integers(0, head) | st.integers(0, len(data)), max_size=4)):
        if at < len(found):
            found[at] = draw.draw(st.integers(0, 255))
    return bytes(found)


def write_jp2(here: Path) -> list[str]:
    scene(here / "base.tif")
    rasterio.shutil.copy("base.tif", "s.jp2", driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    return ["s.jp2", "--bands", "B4,B3,B2"]


#: What is damaged, and how it is made.
DAMAGED: dict[str, Callable[[Path], Any]] = {
    "s.tif": lambda d: [scene(d / "s.tif", compress="deflate")],
    "s.vrt": lambda d: [vrt(d)],
    "s.jp2": write_jp2,
    "s.h5": lambda d: [patch(d, np.ones((8, 8, 14)))],
    "area.gpkg": lambda d: area(d, AROUND),
    "m.geojson": lambda d: text(d, "--mask", "m.geojson", gpd.GeoSeries([AROUND], crs=UTM).to_crs(4326).to_json()),
    "n.json": lambda d: text(d, "--normalize", "n.json", statistics()),
    "m/card.json": lambda d: [scene(d / "s.tif"), "--model", str(save_model(d / "m"))],
    "m/n.safetensors": lambda d: [scene(d / "s.tif"), "--model", str(save_model(d / "m"))],
}

EXAMPLES = int(os.environ.get("L4S_FUZZ", "8"))


@pytest.mark.parametrize("name", DAMAGED)
@settings(max_examples=EXAMPLES, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_damaged_files_are_read_or_refused(name: str, draw: st.DataObject, here: Path) -> None:
    whole = here / "whole"
    if not whole.exists():
        args = DAMAGED[name](here)
        whole.write_bytes((here / name).read_bytes())
        (here / "args").write_text(json.dumps(args))
    (here / name).write_bytes(damaged(whole.read_bytes(), draw))
    for file in (*here.glob("o.gpkg*"), *here.glob("*.aux.xml")):
        file.unlink()
    before = {p.name for p in here.iterdir()}
    done = run(*json.loads((here / "args").read_text()))
    if done.exit_code:
        refused(done)
        assert {p.name for p in here.iterdir()} == before
    else:
        assert len(gpd.read_file("o.gpkg", layer="landslides")) >= 0
        assert Path("o.gpkg.json").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("done.txt", "networks many\n"), ("done.txt", "networks -1\n"), ("done.txt", "networks 72\nnetworks 1\n"),
     ("asked.json", "{"), ("asked.json", "[1]"), ("work.raw", "")],
)  # fmt: skip
def test_what_an_interrupted_run_has_left_may_be_damaged(
    name: str, content: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from l4s_geo import outputs

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    scene(here / "s.tif")
    with monkeypatch.context() as while_full:
        while_full.setattr(outputs, "write_styles", full)
        assert run("s.tif").exit_code == 2
    (here / ".o.gpkg.l4s-map" / name).write_text(content)
    done = run("s.tif", "--resume")
    assert done.exit_code == 2, done.output
    assert "--overwrite" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("o.gpkg").exists()
    assert run("s.tif", "--overwrite").exit_code == 0
    same(here, run("s.tif", "--overwrite"), set())


# --- shapes, outputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (3, 60_000)])
def test_any_shape(shape: tuple[int, int], here: Path) -> None:
    """Bright all over: one landslide as large as the scene."""
    scene(here / "s.tif", np.full((3, *shape), 1200, np.uint16))
    assert run("s.tif", "--min-area", "0").exit_code == 0
    (found,) = gpd.read_file("o.gpkg", layer="landslides").itertuples()
    assert found.geometry.equals(box(570000, 4730000 - 10 * shape[0], 570000 + 10 * shape[1], 4730000))


def test_geojson_is_cut_at_the_date_line(here: Path) -> None:
    at = Affine(10, 0, 180450, 0, -10, 8118000)
    scene(here / "s.tif", transform=at, crs="EPSG:32701")
    assert run("s.tif", "--out", "o.geojson").exit_code == 0
    assert run("s.tif").exit_code == 0
    found, plain = gpd.read_file("o.geojson"), gpd.read_file("o.gpkg", layer="landslides")
    parts = found.geometry.explode()
    assert (parts.bounds.maxx - parts.bounds.minx < 1).all()
    assert parts.bounds.minx.min() < -179.9
    assert parts.bounds.maxx.max() > 179.9
    assert parts.to_crs(32701).area.sum() == pytest.approx(plain.area.sum(), rel=1e-3)


def test_weights_that_are_no_numbers_are_refused(here: Path) -> None:
    import torch

    from l4s_geo.models import registry
    from l4s_geo.models.card import Card

    folder, network = save_model(here / "m"), Bright()
    network.gain.data[:] = torch.nan
    saved = registry.save_network(network, folder, "n", "Bright", {})
    card = json.loads((folder / "card.json").read_text())
    card["networks"][0]["sha256"] = saved.sha256
    (folder / "card.json").write_text(json.dumps(card))
    assert Card.load(folder).networks == (saved,)
    scene(here / "s.tif")
    refused(run("s.tif", "--model", "m"), "n.safetensors", "no numbers")


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files"), OSError(28, "No space left")])
def test_what_the_machine_lacks_is_no_bug(error: Exception, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from l4s_geo import pipeline

    def fail(*_: object) -> None:
        raise error

    scene(here / "s.tif")
    monkeypatch.setattr(pipeline, "_fill", fail)
    refused(run("s.tif"))
    assert {p.name for p in here.iterdir()} == {"s.tif"}


# --- the network ----------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Callable[[int], str]]:
    """Starts a server that answers so, or never if 0, and gives the address of a raster there."""
    servers, end = [], threading.Event()

    def start(status: int) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not status:
                    end.wait(30)
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"<html>please log in</html>")

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}/s.tif"

    yield start
    end.set()
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [0, 200, 403, 500])
def test_servers_that_do_not_give_a_raster(
    status: int, serve: Callable[[int], str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"GDAL_HTTP_CONNECTTIMEOUT", "GDAL_HTTP_LOW_SPEED_TIME", "GDAL_HTTP_LOW_SPEED_LIMIT"} <= {*GDAL_OPTIONS}
    monkeypatch.setitem(GDAL_OPTIONS, "GDAL_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setitem(GDAL_OPTIONS, "GDAL_HTTP_MAX_RETRY", "0")
    refused(run(serve(status)), "cannot be opened")
    assert not [*here.iterdir()]


# --- the installed command in odd surroundings ----------------------------------------------------------

COMMAND = Path(sys.executable).parent / "l4s-map"


@pytest.mark.parametrize(
    ("surroundings", "code"),
    [
        ("ulimit -n 64; env -i OMP_NUM_THREADS=1 LC_ALL=C {} >out 2>err <&-", 2),
        ("{} >&- 2>err", 2),
    ],
)
def test_surroundings(surroundings: str, code: int, here: Path) -> None:
    """A scene without position is refused in the same words wherever the command runs."""
    scene(here / "s.tif", crs=None)
    command = surroundings.format(f"{COMMAND} s.tif --out o.gpkg -q")
    assert subprocess.run(["bash", "-c", command], timeout=300, check=False).returncode == code
    said = Path("err").read_text() if Path("err").exists() else ""
    assert said == "" or (said.startswith("error: s.tif has no coordinate system") and len(said.splitlines()) == 1)
    assert not [*here.glob("*o.gpkg*")]
