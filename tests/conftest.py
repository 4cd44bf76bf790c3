"""What several test files share: where real data are, and tiny rasters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import settings
from numpy.typing import ArrayLike

# How long an example takes says more about the machine than about the code
settings.register_profile("tests", parent=settings(), deadline=None)
settings.load_profile("tests")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")

#: 10 m pixels in UTM zone 54 north.
UTM, UTM_10M = "EPSG:32654", Affine(10, 0, 570000, 0, -10, 4730000)


def write_raster(
    path: Path,
    values: ArrayLike,
    *,
    crs: str | None = UTM,
    transform: Affine | None = UTM_10M,
    nodata: float | None = None,
    names: Sequence[str | None] = (),
    mask: ArrayLike | None = None,
    **profile: object,
) -> Path:
    """Write (h, w) or (C, h, w) as a GeoTIFF; ``mask`` (h, w) is True where valid, in the file itself."""
    array = np.asarray(values)
    array = array[None] if array.ndim == 2 else array
    count, height, width = array.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=array.dtype,
            crs=crs, transform=transform, nodata=nodata, **profile,
        ) as raster,
    ):  # fmt: skip
        raster.write(array)
        for i, name in enumerate(names, 1):
            raster.set_band_description(i, name)
        if mask is not None:
            raster.write_mask(np.asarray(mask))
    return path


@pytest.fixture
def raster(tmp_path: Path) -> Callable[..., Path]:
    """Writes tiny rasters by name into the test's own folder, as ``write_raster`` does."""

    def write(name: str, values: ArrayLike, **how: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_raster(path, values, **how)  # type: ignore[arg-type]

    return write
