"""How patient GDAL is with servers that do not answer, in rasterio and in pyogrio, which has a GDAL of its own."""

from __future__ import annotations

import os

#: Without these it waits for ever. A transfer may be slow, but not stand still for half a minute; what fails for a
#: moment is tried again. What is set in the environment is left as it is.
NETWORK = {
    name: value
    for name, value in {
        "GDAL_HTTP_CONNECTTIMEOUT": "10",
        "GDAL_HTTP_LOW_SPEED_TIME": "30",
        "GDAL_HTTP_LOW_SPEED_LIMIT": "100",
        "GDAL_HTTP_MAX_RETRY": "2",
        "GDAL_HTTP_RETRY_DELAY": "1",
    }.items()
    if name not in os.environ
}
