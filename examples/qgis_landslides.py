"""Map landslides from QGIS: a script for its Processing toolbox that calls the command ``l4s-map``.

In QGIS: Processing > Toolbox > the Python icon > Add Script to Toolbox..., choose this file. It is then under
Scripts > Landslides. On a terminal:

    qgis_process run script:l4smap -- SCENE=scene.tif DEM=dem.tif OUT=landslides.gpkg COMMAND=/path/to/.venv/bin/l4s-map

It needs QGIS 3.22 or newer (Python 3.9), and nothing else there: the networks run in the Python of ``l4s-map``.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from qgis.core import (
    QgsFeatureRequest,
    QgsMapLayer,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingOutputNumber,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterFeatureSource,
    QgsProcessingParameterFile,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsProcessingUtils,
    QgsProject,
    QgsSettings,
    QgsVectorFileWriter,
)

#: Where the command was when it last worked.
SETTING = "l4s_map/command"

PRESETS = {
    "balanced": "balanced",
    "recall": "recall: miss fewer, with more false alarms",
    "precision": "precision: fewer false alarms, miss more",
    "fast": "fast: take less time",
}
UNITS = {
    "auto": "automatic: Sentinel-2 digital numbers, unless they cannot be",
    "dn": "Sentinel-2 digital numbers (reflectance x 10000)",
    "reflectance": "reflectance from 0 to 1",
    "byte": "rendering for viewing, 0 to 255",
}

#: How far all is when a stage of the command begins and ends, in per cent.
STAGES = {"mapping": (0, 85), "refining": (85, 98)}

#: Of QGIS's own Python, GDAL and libraries: the command has its own.
FOREIGN = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "GDAL_DATA",
    "GDAL_DRIVER_PATH",
    "PROJ_LIB",
    "PROJ_DATA",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "DYLD_LIBRARY_PATH",
    "DYLD_FRAMEWORK_PATH",
    "VIRTUAL_ENV",
)

HELP = """Outlines the landslides in a Sentinel-2 image, with the networks of l4s-map.

<b>Scene</b>: an image from soon after the event, with the bands B4, B3 and B2 (or more) at 10 m. Give a raster layer,
or a Sentinel-2 product as it was downloaded (its zip, or its .SAFE folder), or a folder with one file per band. If the
bands of a layer have no names, say under "Names of the bands" what they are, in their order, as B4,B3,B2.

<b>Elevation</b>: fills in height, slope and aspect of every landslide, and leaves out those on flat ground (5 degrees).

<b>Threshold</b>: probability from which on a pixel is landslide; if empty, the preset decides.

The polygons open coloured by their mean probability: pale (unsure) over yellow and orange to dark red (sure). What was
not seen (no data, clouds) is grey; only a GeoPackage holds it.

<b>The command l4s-map</b>: where it is, if QGIS does not find it by itself: <i>.venv/bin/l4s-map</i> in the folder that
it was installed in, on Windows <i>.venv\\Scripts\\l4s-map.exe</i>. It is remembered."""


class MapLandslides(QgsProcessingAlgorithm):
    """``l4s-map map`` as an algorithm of QGIS."""

    def createInstance(self) -> MapLandslides:
        """A fresh one, as QGIS asks for."""
        return MapLandslides()

    def name(self) -> str:
        """For programs."""
        return "l4smap"

    def displayName(self) -> str:
        """For people."""
        return "Map landslides (l4s-map)"

    def group(self) -> str:
        """In the toolbox."""
        return "Landslides"

    def groupId(self) -> str:
        """For programs."""
        return "landslides"

    def shortHelpString(self) -> str:
        """Shown beside the dialog."""
        return HELP.replace("\n\n", "<br><br>")

    def initAlgorithm(self, config: dict | None = None) -> None:
        """Say what it takes and gives."""
        layer, file, number = (
            QgsProcessingParameterRasterLayer,
            QgsProcessingParameterFile,
            QgsProcessingParameterNumber,
        )
        real, folder = number.Double, file.Folder
        self.addParameter(layer("SCENE", "Scene: a raster layer,", optional=True))
        self.addParameter(file("PRODUCT", "or a Sentinel-2 product as it was downloaded (zip),", optional=True))
        self.addParameter(file("FOLDER", "or a folder (.SAFE, or one file per band)", folder, optional=True))
        self.addParameter(layer("DEM", "Elevation in metres", optional=True))
        self.addParameter(
            QgsProcessingParameterFeatureSource(
                "AOI", "Area of interest", [QgsProcessing.TypeVectorPolygon], optional=True
            )
        )
        self.addParameter(QgsProcessingParameterEnum("PRESET", "Preset", list(PRESETS.values()), defaultValue=0))
        self.addParameter(number("THRESHOLD", "Threshold", real, optional=True, minValue=0, maxValue=1))
        self.addParameter(number("MIN_AREA", "Leave out landslides below (m²)", real, optional=True, minValue=0))
        self._add_advanced(QgsProcessingParameterString("BANDS", "Names of the bands, as B4,B3,B2", optional=True))
        self._add_advanced(QgsProcessingParameterEnum("UNITS", "Pixel values", list(UNITS.values()), defaultValue=0))
        command = QgsSettings().value(SETTING) or shutil.which("l4s-map") or ""
        # QGIS's own filter *.* would refuse a name without a point
        every = "All files (*)"
        self._add_advanced(
            file("COMMAND", "The command l4s-map", defaultValue=command, optional=True, fileFilter=every)
        )
        for destination in (
            QgsProcessingParameterVectorDestination("OUT", "Landslides", QgsProcessing.TypeVectorPolygon),
            QgsProcessingParameterRasterDestination("PROB", "Probability", optional=True, createByDefault=False),
            QgsProcessingParameterRasterDestination(
                "DENSITY", "Landslide area per km²", optional=True, createByDefault=False
            ),
        ):
            destination.setSupportsNonFileBasedOutput(False)
            self.addParameter(destination)
        self.addOutput(QgsProcessingOutputNumber("COUNT", "Number of landslides"))
        self.addOutput(QgsProcessingOutputNumber("AREA_M2", "Their area in m²"))

    def _add_advanced(self, parameter: QgsProcessingParameterDefinition) -> None:
        parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        self.addParameter(parameter)

    def checkParameterValues(self, parameters: dict, context: QgsProcessingContext) -> tuple[bool, str]:
        """Whether there is one scene."""
        if sum(bool(parameters.get(name)) for name in ("SCENE", "PRODUCT", "FOLDER")) != 1:
            return False, "Give one scene: a raster layer, or a product, or a folder."
        return super().checkParameterValues(parameters, context)

    def processAlgorithm(
        self, parameters: dict, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, object]:
        """Run the command.

        Raises:
            QgsProcessingException: With what the command says is wrong.
        """
        command = find_command(self.parameterAsFile(parameters, "COMMAND", context))
        outputs = {
            name: self.parameterAsOutputLayer(parameters, name, context)
            for name in ("OUT", "PROB", "DENSITY")
            if parameters.get(name)
        }
        with tempfile.TemporaryDirectory() as folder:
            arguments = self._arguments(parameters, context, feedback, Path(folder))
            for name, path in outputs.items():
                arguments += [f"--{name.lower()}", path]
            summary = run([command, "map", *arguments, "--overwrite", "--json"], feedback)
        if not summary:  # cancelled
            return {}
        QgsSettings().setValue(SETTING, command)
        for note in summary["notes"]:
            feedback.pushInfo(f"Note: {note}")
        feedback.pushInfo(f"{summary['landslides']} landslides, {summary['area_m2'] / 1e4:,.1f} ha")
        load_styled(outputs["OUT"], context)
        return {**outputs, "COUNT": summary["landslides"], "AREA_M2": summary["area_m2"]}

    def _arguments(
        self, parameters: dict, context: QgsProcessingContext, feedback: QgsProcessingFeedback, folder: Path
    ) -> list[str]:
        """Of the command, but for the outputs."""
        given: dict[str, str] = {
            "--preset": list(PRESETS)[self.parameterAsEnum(parameters, "PRESET", context)],
            "--units": list(UNITS)[self.parameterAsEnum(parameters, "UNITS", context)],
            "--bands": self.parameterAsString(parameters, "BANDS", context),
            "--dem": self._raster(parameters, "DEM", context),
            "--aoi": self._area(parameters, context, feedback, folder),
        }
        for option, name in (("--threshold", "THRESHOLD"), ("--min-area", "MIN_AREA")):
            if parameters.get(name) is not None:
                given[option] = repr(self.parameterAsDouble(parameters, name, context))
        files = [self.parameterAsFile(parameters, name, context) for name in ("PRODUCT", "FOLDER")]
        scene = self._raster(parameters, "SCENE", context) or next(filter(None, files))
        return [scene, *(part for option, value in given.items() if value for part in (option, value))]

    def _raster(self, parameters: dict, name: str, context: QgsProcessingContext) -> str:
        """What a raster layer is read from; empty where none is given."""
        if not parameters.get(name):
            return ""
        layer = self.parameterAsRasterLayer(parameters, name, context)
        if layer is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, name))
        if layer.providerType() != "gdal":
            raise QgsProcessingException(f"{layer.name()} is not a file on this computer. Save it as a GeoTIFF first.")
        return layer.source().split("|")[0]

    def _area(
        self, parameters: dict, context: QgsProcessingContext, feedback: QgsProcessingFeedback, folder: Path
    ) -> str:
        """The area of interest as a file: a layer may be in memory, filtered, or only its selection is meant."""
        source = self.parameterAsSource(parameters, "AOI", context)
        if source is None:
            return ""
        options = QgsVectorFileWriter.SaveVectorOptions()
        options.driverName = "GPKG"
        written = QgsVectorFileWriter.writeAsVectorFormatV3(
            source.materialize(QgsFeatureRequest(), feedback),
            str(folder / "area.gpkg"),
            context.transformContext(),
            options,
        )
        if written[0] != QgsVectorFileWriter.NoError:
            raise QgsProcessingException(f"The area of interest cannot be handed on: {written[1]}")
        return written[2]


def find_command(given: str) -> str:
    """Where the command is.

    Raises:
        QgsProcessingException: It is not there.
    """
    found = shutil.which(given or "l4s-map")
    if found is None:
        raise QgsProcessingException(
            f"There is no command {given or 'l4s-map'}. Install l4s-map (see its README), and give the place of "
            ".venv/bin/l4s-map (on Windows .venv\\Scripts\\l4s-map.exe) under Advanced Parameters, The command l4s-map."
        )
    return found


def run(arguments: list[str], feedback: QgsProcessingFeedback) -> dict:
    """Run the command until it ends or QGIS's user cancels.

    Returns:
        Its summary, empty if it was cancelled.

    Raises:
        QgsProcessingException: With the command's own message.
    """
    feedback.pushCommandInfo(subprocess.list2cmdline(arguments))
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    # So that all it says is UTF-8, whatever the computer's language
    environment["PYTHONUTF8"] = "1"
    with tempfile.TemporaryFile() as answer:
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=subprocess.PIPE,
                env=environment,
                encoding="utf-8",
                errors="replace",
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as e:
            raise QgsProcessingException(f"{arguments[0]} cannot be started: {e.strerror}.") from e
        said = []
        try:
            for line in spoken(process, feedback):
                if not show_progress(line, feedback):
                    feedback.pushConsoleInfo(line)
                    said.append(line)
            if feedback.isCanceled():
                return {}
            process.wait()
        finally:
            stop(process)
        if process.returncode != 0:
            raise QgsProcessingException(message(said, process.returncode))
        answer.seek(0)
        return json.loads(answer.read())


def spoken(process: subprocess.Popen, feedback: QgsProcessingFeedback) -> Iterator[str]:
    """Lines of the command as they come, until it ends or is cancelled, which is looked for all the time."""
    lines: queue.Queue = queue.Queue()

    def read() -> None:
        with process.stderr:
            for line in process.stderr:
                lines.put(line.rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while not feedback.isCanceled():
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            continue
        if line is None:
            return
        yield line


def stop(process: subprocess.Popen) -> None:
    """End the command if it still runs: first so that it can tidy up, then for good."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def show_progress(line: str, feedback: QgsProcessingFeedback) -> bool:
    """Move QGIS's bar where the line says how far the command is; whether it does."""
    found = re.match(r"(\w+): (?:(\d+) %|(\d+) steps|(done))", line)
    if found is None or found[1] not in STAGES:
        return False
    first, last = STAGES[found[1]]
    share = 100 if found[4] else int(found[2] or 0)
    feedback.setProgressText(found[1].capitalize())
    feedback.setProgress(first + (last - first) * share / 100)
    return True


def message(said: list[str], code: int) -> str:
    """What the command says is wrong."""
    start = next((i for i, line in enumerate(said) if line.startswith("error: ")), None)
    if start is None:
        return "\n".join([f"l4s-map has failed (exit code {code}).", *said[-20:]])
    return "\n".join(said[start:]).removeprefix("error: ")


class Styled(QgsProcessingLayerPostProcessorInterface):
    """Gives a layer the style that it brings along, which QGIS leaves out for results, and keeps polygons on top."""

    def __init__(self, polygons: list[QgsMapLayer]) -> None:
        super().__init__()
        self.polygons = polygons

    def postProcessLayer(
        self, layer: QgsMapLayer, context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> None:
        """Called by QGIS once the layer is in the project."""
        layer.loadDefaultStyle()
        layer.triggerRepaint()
        if layer.type() == QgsMapLayer.VectorLayer:
            self.polygons.append(layer)
        root = (context.project() or QgsProject.instance()).layerTreeRoot()
        # Landslides last, to the very top
        for top in sorted(self.polygons, key=lambda layer: "not_seen" not in layer.source()):
            node = root.findLayer(top.id())
            if node is not None:
                parent = node.parent()
                parent.insertChildNode(0, node.clone())
                parent.removeChildNode(node)


#: QGIS holds no reference of Python's to them.
processors: list[Styled] = []


def load_styled(out: str, context: QgsProcessingContext) -> None:
    """Let QGIS load those layers that the user wants to see: with their styles, and all of a GeoPackage."""
    wanted = context.layersToLoadOnCompletion()
    if out in wanted and out.lower().endswith(".gpkg"):
        details = wanted.pop(out)
        wanted[f"{out}|layername=landslides"] = details
        wanted[f"{out}|layername=not_seen"] = QgsProcessingContext.LayerDetails(
            "Not seen", details.project, "", QgsProcessingUtils.LayerHint.Vector
        )
    polygons: list[QgsMapLayer] = []
    for details in wanted.values():
        processors.append(Styled(polygons))  # one each: QGIS deletes it with the layer's entry
        details.setPostProcessor(processors[-1])
    context.setLayersToLoadOnCompletion(wanted)
