"""Runs in QGIS's own Python: an algorithm of the Processing toolbox as from its dialog, with results loaded.

    python3 run_qgis_script.py PROFILE requests.json

The profile is a folder. The requests are a list. Each names the ``algorithm``, its ``parameters`` and, if it is to be
cancelled as soon as it shows progress, ``cancel``. In the parameters ``{"memory": WKT, "crs": ...}`` stands for a
temporary layer with one polygon. Prints a JSON list: for each the results, or the error, what was said, and the layers
of the project from top to bottom.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from qgis.core import (
    QgsApplication,
    QgsFeature,
    QgsGeometry,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProject,
    QgsVectorLayer,
)


class Feedback(QgsProcessingFeedback):
    """Keeps what is said, and cancels at the first progress if it should."""

    def __init__(self, cancel: bool) -> None:
        super().__init__(False)
        self.said: list[str] = []
        self.steps: list[float] = []
        self._cancel = cancel
        self.progressChanged.connect(self.steps.append)

    def setProgressText(self, text: str) -> None:
        """Of a stage."""
        self.said.append(text)
        if self._cancel:
            self.cancel()

    def pushInfo(self, info: str) -> None:
        """For the log."""
        self.said.append(info)


def memory(wkt: str, crs: str) -> QgsVectorLayer:
    """A temporary layer with one polygon."""
    layer = QgsVectorLayer(f"Polygon?crs={crs}", "area", "memory")
    feature = QgsFeature()
    feature.setGeometry(QgsGeometry.fromWkt(wkt))
    layer.dataProvider().addFeature(feature)
    return layer


def answer(request: dict) -> dict:
    """Run one algorithm in an empty project."""
    import processing

    parameters = {
        name: memory(value["memory"], value["crs"]) if isinstance(value, dict) else value
        for name, value in request["parameters"].items()
    }
    feedback, found = Feedback(request.get("cancel", False)), {}
    try:
        found["results"] = processing.runAndLoadResults(request["algorithm"], parameters, feedback=feedback)
    except QgsProcessingException as e:
        found["error"] = str(e)
    layers = [node.layer() for node in QgsProject.instance().layerTreeRoot().findLayers()]
    found["layers"] = [[layer.name(), layer.source(), layer.renderer().type()] for layer in layers]
    QgsProject.instance().clear()
    return found | {"said": feedback.said, "steps": feedback.steps}


def main() -> None:
    """Answer the requests."""
    application = QgsApplication([], False, sys.argv[1])
    application.initQgis()
    sys.path.append(str(Path(QgsApplication.pkgDataPath()) / "python" / "plugins"))
    from processing.core.Processing import Processing

    Processing.initialize()
    print(json.dumps([answer(request) for request in json.loads(Path(sys.argv[2]).read_text())]))
    sys.stdout.flush()
    application.exitQgis()


if __name__ == "__main__":
    main()
