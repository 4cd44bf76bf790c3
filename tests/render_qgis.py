"""Runs in QGIS's own Python, not in the tests' one: opens results as a person would and draws them.

    python3 render_qgis.py requests.json

The requests are a list. Each names ``layers`` (top first; each ``[kind, source]`` with the kind ``ogr`` or ``gdal``),
the picture to write, ``png``, its ``size`` [width, height] and, if wanted, the ``extent`` [xmin, ymin, xmax, ymax] in
the CRS of the last layer. Prints a JSON list: for each what its ``layers`` look like and the ``extent`` drawn.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from qgis.core import (
    QgsApplication,
    QgsExpression,
    QgsMapLayer,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsProject,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize
from qgis.PyQt.QtGui import QColor


def open_layer(kind: str, source: str) -> QgsMapLayer:
    """As QGIS's browser opens it: with the style that it finds by itself."""
    name = source.rpartition("=")[2] if "|" in source else Path(source).name
    layer = QgsVectorLayer(source, name, kind) if kind == "ogr" else QgsRasterLayer(source, name, kind)
    if not layer.isValid():
        sys.exit(f"QGIS cannot open {source}")
    return layer


def describe(layer: QgsMapLayer) -> dict:
    """What a person would see of a layer's style."""
    renderer = layer.renderer()
    found = {"name": layer.name(), "renderer": renderer.type()}
    if isinstance(layer, QgsRasterLayer):
        if renderer.type() == "singlebandpseudocolor":
            ramp = renderer.shader().rasterShaderFunction()
            found["band"] = renderer.band()
            found["stops"] = [[i.value, i.color.getRgb(), i.label] for i in ramp.colorRampItemList()]
            found["legend"] = [label for label, _ in renderer.legendSymbologyItems()]
        return found
    found["features"] = layer.featureCount()
    found["legend"] = [item.label() for item in renderer.legendSymbolItems()]
    found["symbols"] = [item.symbol().color().getRgb() for item in renderer.legendSymbolItems() if item.symbol()]
    if renderer.type() == "graduatedSymbol":
        found["by"] = renderer.classAttribute()
        found["classes"] = [[r.lowerValue(), r.upperValue()] for r in renderer.ranges()]
    found["titles"] = {field.name(): field.displayName() for field in layer.fields()}
    found["read_only"] = [f.name() for i, f in enumerate(layer.fields()) if layer.editFormConfig().readOnly(i)]
    found["tip"] = layer.mapTipTemplate()
    for feature in layer.getFeatures():
        context = layer.createExpressionContext()
        context.setFeature(feature)
        found["first_tip"] = QgsExpression.replaceExpressionText(layer.mapTipTemplate(), context)
        found["first_name"] = QgsExpression(layer.displayExpression()).evaluate(context)
        break
    return found


def draw(layers: list[QgsMapLayer], request: dict) -> list[float]:
    """Draw the map into a PNG on white; returns its extent."""
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[-1].crs())
    settings.setTransformContext(QgsProject.instance().transformContext())
    settings.setBackgroundColor(QColor("white"))
    settings.setOutputSize(QSize(*request["size"]))
    settings.setExtent(QgsRectangle(*request["extent"]) if "extent" in request else layers[-1].extent())
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    if job.errors():
        sys.exit("; ".join(error.message for error in job.errors()))
    if not job.renderedImage().save(request["png"]):
        sys.exit(f"cannot write {request['png']}")
    seen = settings.visibleExtent()
    return [seen.xMinimum(), seen.yMinimum(), seen.xMaximum(), seen.yMaximum()]


def answer(request: dict) -> dict:
    """Open, describe, draw."""
    layers = [open_layer(*layer) for layer in request["layers"]]
    QgsProject.instance().addMapLayers(layers)
    found = {"layers": [describe(layer) for layer in layers], "extent": draw(layers, request)}
    QgsProject.instance().clear()
    return found


def main() -> None:
    """Answer the requests."""
    application = QgsApplication([], False)
    application.initQgis()
    print(json.dumps([answer(request) for request in json.loads(Path(sys.argv[1]).read_text())]))
    application.exitQgis()


if __name__ == "__main__":
    main()
