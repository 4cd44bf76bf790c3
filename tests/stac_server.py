"""Catalogues for tests: rasters and items true to format, a server of files with ranges, and a small STAC API."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import transform_bounds

from l4s_geo.scene import S2_BANDS

#: Pixels along a side at 10 m.
SIZE = 120

UTM, CORNER = "EPSG:32654", Affine(10, 0, 570000, 0, -10, 4730000)

#: Every band has a level of its own, so that one in place of another shows.
LEVELS = {band: 1400 + 100 * i for i, band in enumerate(S2_BANDS)}

METRES = dict.fromkeys(("B2", "B3", "B4", "B8"), 10)
METRES |= dict.fromkeys(("B5", "B6", "B7", "B8A", "B11", "B12"), 20) | dict.fromkeys(("B1", "B9"), 60)

#: Keys of the assets of Earth Search.
EARTH_SEARCH = {
    "B1": "coastal", "B2": "blue", "B3": "green", "B4": "red", "B5": "rededge1", "B6": "rededge2", "B7": "rededge3",
    "B8": "nir", "B8A": "nir08", "B9": "nir09", "B11": "swir16", "B12": "swir22",
}  # fmt: skip

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def write_cog(path: Path, values: NDArray[np.generic], metres: float = 10, **profile: Any) -> Path:
    """One band (h, w) as a COG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = values.shape
    given = {"crs": UTM, "transform": CORNER * Affine.scale(metres / 10), "nodata": 0, "driver": "COG"} | profile
    with rasterio.open(path, "w", count=1, width=width, height=height, dtype=values.dtype, **given) as file:
        file.write(values, 1)
    return path


def flat(band: str, metres: int | None = None, shift: int = 0) -> NDArray[np.uint16]:
    n = SIZE * 10 // (metres or METRES[band])
    return np.full((n, n), LEVELS[band] + shift, np.uint16)


def two_digits(band: str) -> str:
    return f"B{band[1:]:0>2}"


def bounds() -> tuple[float, ...]:
    return transform_bounds(UTM, "EPSG:4326", 570000, 4730000 - 10 * SIZE, 570000 + 10 * SIZE, 4730000)


def item(
    assets: Mapping[str, Any],
    item_id: str = "S2A_54TWN_20180911_0_L2A",
    bbox: Sequence[float] | None = None,
    collection: str = "sentinel-2-l2a",
    day: str = "2018-09-11",
    **properties: Any,
) -> dict[str, Any]:
    """A STAC item."""
    box = [float(v) for v in (bounds() if bbox is None else bbox)]
    west, south, east, north = box
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": ["https://stac-extensions.github.io/eo/v1.1.0/schema.json"],
        "id": item_id,
        "collection": collection,
        "bbox": box,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"{day}T01:27:01Z", "constellation": "sentinel-2", "eo:cloud_cover": 3.5}
        | properties,
        "links": [],
        "assets": dict(assets),
    }


def earth_search_assets(
    folder: Path, *, shift: int = 0, scl: NDArray[np.uint8] | None = None, raster: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """COGs and assets as Earth Search has them, with pictures that a reader could take for bands."""
    said = {"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": 0} | dict(raster or {})
    assets: dict[str, Any] = {}
    for band, key in EARTH_SEARCH.items():
        write_cog(folder / f"{two_digits(band)}.tif", flat(band, shift=shift), METRES[band])
        assets[key] = {
            "href": f"{two_digits(band)}.tif",
            "type": TIFF,
            "gsd": METRES[band],
            "eo:bands": [{"name": key, "common_name": re.sub(r"rededge\d", "rededge", key)}],
            "raster:bands": [said | {"spatial_resolution": METRES[band]}],
            "roles": ["data", "reflectance"],
        }
        assets[f"{key}-jp2"] = assets[key] | {"href": f"s3://nowhere/{two_digits(band)}.jp2", "type": "image/jp2"}
    visible = [{"name": n, "common_name": n} for n in ("red", "green", "blue")]
    assets["visual"] = {"href": "TCI.tif", "type": TIFF, "eo:bands": visible, "roles": ["visual"]}
    assets["overview"] = {"href": "L2A_PVI.tif", "type": TIFF, "eo:bands": visible, "gsd": 1, "roles": ["overview"]}
    assets["thumbnail"] = {"href": "preview.jpg", "type": "image/jpeg", "roles": ["thumbnail"]}
    assets["granule_metadata"] = {"href": "metadata.xml", "type": "application/xml", "roles": ["metadata"]}
    clear = np.full((SIZE // 2, SIZE // 2), 5, np.uint8)
    write_cog(folder / "SCL.tif", clear if scl is None else scl, 20)
    assets["scl"] = {"href": "SCL.tif", "type": TIFF, "raster:bands": [{"nodata": 0, "data_type": "uint8"}]}
    return assets


def write_json(path: Path, found: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return path


# --- servers ----------------------------------------------------------------------------------------------


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """The address of a folder's files, and what gives the paths that were asked for."""
    with tempfile.TemporaryDirectory() as place:
        log = Path(place, "asked.txt")
        log.touch()
        command = [sys.executable, str(Path(__file__).with_name("range_server.py")), str(folder), str(log)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline())
                yield f"http://127.0.0.1:{port}", lambda: log.read_text().split()
            finally:
                server.kill()


@contextmanager
def _running(handler: Any) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Api:
    """A small STAC API: items by collection, searched by box, time, cloud and collection, in pages."""

    items: dict[str, list[dict[str, Any]]]
    page: int = 2
    methods: tuple[str, ...] = ("GET", "POST")
    query: bool = True
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def landing(self) -> dict[str, Any]:
        classes = ["core", "item-search", "ogcapi-features", "collections", *(["item-search#query"] * self.query)]
        links = [{"rel": r, "href": self.url, "type": "application/json"} for r in ("self", "root")]
        links.append({"rel": "data", "href": f"{self.url}/collections", "type": "application/json"})
        links += [
            {"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json", "method": m}
            for m in self.methods
        ]
        return {
            "type": "Catalog", "id": "small", "description": "A small API.", "stac_version": "1.0.0", "links": links,
            "conformsTo": [f"https://api.stacspec.org/v1.0.0/{c}" for c in classes],
        }  # fmt: skip

    def collection(self, name: str) -> dict[str, Any]:
        own = f"{self.url}/collections/{name}"
        links = {"self": own, "root": self.url, "items": f"{own}/items"}
        return {
            "type": "Collection", "id": name, "stac_version": "1.0.0", "description": name, "license": "other",
            "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
            "links": [{"rel": rel, "href": href} for rel, href in links.items()],
        }  # fmt: skip

    def search(self, how: str, asked: dict[str, Any]) -> dict[str, Any]:
        wanted = asked.get("collections") or [*self.items]
        west, south, east, north = asked["bbox"]
        first, last = (asked.get("datetime") or "../..").split("/")
        limit = (asked.get("query") or {}).get("eo:cloud_cover", {}).get("lte", 100)
        found = []
        for entry in (i for name in wanted for i in self.items.get(name, [])):
            w, s, e, n = entry["bbox"]
            moment = entry["properties"]["datetime"]
            in_time = (first == ".." or moment >= first) and (last == ".." or moment <= last)
            clear = entry["properties"].get("eo:cloud_cover", 0) <= limit
            if w <= east and west <= e and s <= north and south <= n and in_time and clear:
                own = f"{self.url}/collections/{entry['collection']}/items/{entry['id']}"
                found.append(entry | {"links": [{"rel": "self", "href": own, "type": "application/geo+json"}]})
        start = int(asked.get("token", 0))
        page, rest = found[start : start + self.page], found[start + self.page :]
        links: list[dict[str, Any]] = []
        if rest and how == "POST":
            body = asked | {"token": start + self.page}
            links = [{"rel": "next", "href": f"{self.url}/search", "method": "POST", "body": body}]
        elif rest:
            flat = {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in asked.items()}
            flat |= {"query": json.dumps(asked["query"])} if "query" in asked else {}
            following = urlencode(flat | {"token": start + self.page})
            links = [{"rel": "next", "href": f"{self.url}/search?{following}"}]
        return {"type": "FeatureCollection", "features": page, "links": links}

    def answer(self, how: str, path: str, asked: dict[str, Any]) -> Any:
        self.requests.append((how, path, asked))
        if path == "/search":
            return self.search(how, asked)
        if path in ("", "/"):
            return self.landing()
        if path == "/collections":
            return {"collections": [self.collection(name) for name in self.items], "links": []}
        if match := re.fullmatch(r"/collections/([^/]+)", path):
            return self.collection(match[1]) if match[1] in self.items else None
        match = re.fullmatch(r"/collections/([^/]+)/items/(.+)", path)
        found = [i for i in self.items.get(match[1], []) if i["id"] == match[2]] if match else []
        return found[0] if found else None

    @contextmanager
    def serve(self) -> Iterator[str]:
        api = self

        class Handler(_Quiet):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                asked: dict[str, Any] = {k: v[0] for k, v in parse_qs(parts.query).items()}
                for key, kind in (("bbox", float), ("collections", str)):
                    if key in asked:
                        asked[key] = [kind(v) for v in asked[key].split(",")]
                if "query" in asked:
                    asked["query"] = json.loads(asked["query"])
                self.send(api.answer("GET", parts.path, asked))

            def do_POST(self) -> None:
                self.send(
                    api.answer("POST", self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                )

            def send(self, found: Any) -> None:
                data = json.dumps({"code": "NotFound"} if found is None else found).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Type", "application/geo+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        with _running(Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            yield self.url
