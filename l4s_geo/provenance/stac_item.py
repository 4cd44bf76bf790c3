"""A STAC item beside the outputs, and one for the model that made them.

STAC 1.1 with the extensions projection 2.0, file 2.1, processing 1.1 and, in the model's item, MLM 1.4. MLM fields
describe a model, so by its "best practices" (https://github.com/stac-extensions/mlm) they go into an item of its own,
which the item of the map names in ``derived_from`` and in ``processing:expression`` of its assets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rasterio.crs import CRS

from l4s_geo import outputs
from l4s_geo.outputs import model_path, record_path
from l4s_geo.provenance.stac_fields import crs_code, file_fields, footprint, href, multihash, raster_fields, times
from l4s_geo.provenance.stac_model import mlm_name, model_item
from l4s_geo.scene import Grid

if TYPE_CHECKING:
    import pystac

PROCESSING = "https://stac-extensions.github.io/processing/v1.1.0/schema.json"

#: By extension. The IANA registry has those of the parts of shapefiles.
MEDIA_TYPES = {
    ".gpkg": "application/geopackage+sqlite3",
    ".fgb": "application/vnd.flatgeobuf",
    ".geojson": "application/geo+json",
    ".parquet": "application/vnd.apache.parquet",
    ".shp": "application/vnd.shp",
    ".shx": "application/vnd.shx",
    ".dbf": "application/vnd.dbf",
    ".prj": "text/plain",
    ".cpg": "text/plain",
    ".json": "application/json",
    ".html": "text/html",
    ".png": "image/png",
    ".tif": "image/tiff; application=geotiff",
    ".tiff": "image/tiff; application=geotiff",
    ".jp2": "image/jp2",
    ".xml": "application/xml",
    ".zip": "application/zip",
    ".h5": "application/x-hdf5",
}
CLOUD_OPTIMIZED = "image/tiff; application=geotiff; profile=cloud-optimized"

#: Key, title and roles of an asset, by the option that asks for it; others are called like their option.
ASSETS = {
    "--out": ("landslides", "Outlines of landslides", ["data"]),
    "--prob": ("probability", "Probability of landslide, agreement and uncertainty of the networks", ["data"]),
    "--density": ("density", "Landslide area per square kilometre", ["data"]),
}


def write_items(
    path: Path,
    made: Mapping[str, Path],
    record: Mapping[str, Any],
    grid: Grid,
    summary: Mapping[str, Any],
    until: ExitStack,
) -> None:
    """Write the item of a map and that of its model, when all other outputs wait for being put in place.

    Args:
        path: Of the item.
        made: The other outputs, by the options that ask for them.
        record: Provenance of the run.
        grid: Of the scene.
        summary: What was found.
        until: The items appear when it is closed.

    Raises:
        OutputError: They cannot be written.
    """
    with outputs.writing(path):
        item = map_item(path, made, record, grid, summary)
        model = model_item(model_path(path), record)
    outputs.write_provenance(model_path(path), model.to_dict(include_self_link=False), until=until)
    outputs.write_provenance(path, item.to_dict(include_self_link=False), until=until)


def map_item(
    path: Path, made: Mapping[str, Path], record: Mapping[str, Any], grid: Grid, summary: Mapping[str, Any]
) -> pystac.Item:
    """The item of a map; arguments as in ``write_items``."""
    import pystac
    from pystac.extensions.file import FileExtension
    from pystac.extensions.projection import ProjectionExtension

    geometry, bbox = footprint(grid)
    models = " and ".join(m["name"] for m in record["models"])
    item = pystac.Item(
        id=made["--out"].stem,
        geometry=geometry,
        bbox=bbox,
        **times(record["scene"]["date"]),
        properties={
            "title": f"Landslides in {record['scene']['name']}",
            "description": f"Landslides that the model {models} sees in {record['scene']['name']}",
            "created": _now(),
            "gsd": round(math.sqrt(math.prod(grid.pixel_size_m())), 2),
            "l4s:landslides": summary["landslides"],
            "l4s:area_m2": summary["area_m2"],
            "l4s:seen_share": summary["seen_share"],
            "l4s:threshold": summary["threshold"],
            **({} if summary["expected_f1"] is None else {"l4s:expected_f1": summary["expected_f1"]}),
            **_processing(record),
        },
        stac_extensions=[PROCESSING, FileExtension.get_schema_uri()],
    )
    code = crs_code(grid.crs)
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=code,
        wkt2=None if code else grid.crs.to_wkt(version="WKT2_2019"),
        transform=list(grid.transform)[:6],
        shape=list(grid.shape),
    )
    for key, asset in _assets(path, made, record):
        item.add_asset(key, asset)
    for link in _links(path, record):
        item.add_link(link)
    return item


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _processing(record: Mapping[str, Any]) -> dict[str, Any]:
    """How the map was made, in the words of the processing extension; L4 is what a model makes of measurements."""
    normalization, decided = record["normalization"], record["settings"]
    steps = (
        f"bands {', '.join(normalization['bands'])} standardized ({normalization['source']}, "
        f"{normalization['compression']})",
        f"probabilities of {sum(len(m['sha256']) for m in record['models'])} networks averaged in overlapping patches",
        *(["outlines refined by a dense CRF"] if decided["crf"] else []),
        f"pixels from {decided['threshold']:.3g} on outlined, areas from {decided['min_area']:g} m2 on kept",
        *record["notes"],
    )
    return {
        "processing:level": "L4",
        "processing:lineage": "; ".join(steps),
        "processing:software": {name: str(version) for name, version in record["versions"].items()},
    }


def _assets(path: Path, made: Mapping[str, Path], record: Mapping[str, Any]) -> Iterator[tuple[str, pystac.Asset]]:
    """Every file that is there when all is put in place; records first that of the polygons."""
    import pystac

    by_model = {
        "mlm:name": mlm_name(record),
        "processing:level": "L4",
        "processing:expression": {"format": "stac-mlm", "expression": f"./{model_path(path).name}"},
    }
    for option, output in made.items():
        name = option.removeprefix("--")
        key, title, roles = ASSETS.get(option, (name, name.replace("-", " ").capitalize(), _roles(output)))
        staged = outputs.staged(output)
        for part in sorted(staged.parent.iterdir(), key=lambda p: p.name != output.name):
            main = part.name == output.name
            more = _described(part, output, record) | by_model if main else {}
            yield (
                key if main else f"{key}{part.suffix}",
                pystac.Asset(
                    href(output.with_name(part.name), path),
                    title if main else f"{title}: {part.suffix}",
                    media_type=_media_type(part, option),
                    roles=roles,
                    extra_fields=file_fields(part) | more,
                ),
            )
    for option, output in made.items():
        beside = record_path(output)
        key = "record" if option == "--out" else f"{option.removeprefix('--')}-record"
        title = f"How {output.name} came about; `l4s-map map --from` repeats it"
        more = file_fields(outputs.staged(beside))
        yield (
            key,
            pystac.Asset(
                href(beside, path), title, media_type=MEDIA_TYPES[".json"], roles=["metadata"], extra_fields=more
            ),
        )


def _roles(output: Path) -> list[str]:
    return {".png": ["overview"], ".html": ["overview"]}.get(output.suffix.lower(), ["data"])


def _media_type(part: Path, option: str) -> str | None:
    return CLOUD_OPTIMIZED if option == "--prob" else MEDIA_TYPES.get(part.suffix.lower())


def _described(part: Path, output: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Bands of a raster and what differs from the item in projection."""
    if output.suffix.lower() in outputs.RASTER_EXTENSIONS:
        return raster_fields(part)
    if output.suffix.lower() in outputs.VECTOR_DRIVERS:
        code = (
            "EPSG:4326"
            if output.suffix.lower() == ".geojson"
            else crs_code(CRS.from_string(record["scene"]["native_crs"]))
        )
        return {"proj:code": code}
    return {}


def _links(path: Path, record: Mapping[str, Any]) -> Iterator[pystac.Link]:
    """To the model, and to every input file or address."""
    import pystac

    yield pystac.Link(
        "derived_from",
        f"./{model_path(path).name}",
        MEDIA_TYPES[".geojson"],
        "Model",
        extra_fields={"mlm:name": mlm_name(record), "processing:level": "L4"},
    )
    for name, entry in record["inputs"].items():
        for one in entry if isinstance(entry, list) else [entry]:
            if not one["files"]:
                yield pystac.Link("derived_from", one["path"], title=name)
            for file in one["files"]:
                size = {"file:size": file["bytes"], "file:checksum": multihash(file["sha256"])}
                kind = MEDIA_TYPES.get(Path(file["path"]).suffix.lower())
                yield pystac.Link("derived_from", href(Path(file["path"]), path), kind, name, extra_fields=size)
