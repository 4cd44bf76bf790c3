"""Attributes of landslides in plain words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """How an attribute is called and written.

    Attributes:
        label: Name.
        unit: Behind the number.
        digits: Behind the point.
        meaning: One sentence.
        short: Heading in the list; not listed if empty.
    """

    label: str
    unit: str = ""
    digits: int = 3
    meaning: str = ""
    short: str = ""


ATTRIBUTES = {
    "id": Attribute("Number", digits=0, meaning="As in the file of the landslides.", short="No."),
    "area_m2": Attribute("Area", "m²", 0, "In the plane of the map; on a slope the ground is larger.", "Area, m²"),
    "length_m": Attribute("Length", "m", 0, "Longer side of the smallest rectangle around it.", "Length, m"),
    "width_m": Attribute("Width", "m", 0, "Shorter side of that rectangle."),
    "perimeter_m": Attribute("Outline", "m", 0, "Length of the outline, along the edges of pixels."),
    "prob_mean": Attribute(
        "Probability, mean",
        digits=2,
        meaning="What the model gives on average to the pixels inside, from 0 to 1.",
        short="Probability",
    ),
    "prob_max": Attribute("Probability, highest", digits=2, meaning="Of its surest pixel."),
    "agreement": Attribute(
        "Agreement",
        digits=2,
        meaning="Share of the networks that call it landslide; 1 is all of them.",
        short="Agreement",
    ),
    "uncertainty": Attribute(
        "Uncertainty",
        digits=3,
        meaning="How much doubt the networks leave: 0 is none.",
    ),
    "elev_min": Attribute("Elevation, lowest", "m", 0),
    "elev_max": Attribute("Elevation, highest", "m", 0),
    "relief_m": Attribute("Relief", "m", 0, "Difference of highest and lowest elevation.", "Relief, m"),
    "slope_mean": Attribute("Slope, mean", "°", 1, "Steepness of the ground.", "Slope, °"),
    "slope_max": Attribute("Slope, steepest", "°", 1),
    "aspect_deg": Attribute("Faces", "°", 0, "Direction that the slope faces: 0 is north, 90 east."),
    "edge": Attribute(
        "Cut off",
        meaning="Touches the edge of what was seen, and may go on beyond.",
        short="Cut off",
    ),
    "new": Attribute("New", meaning="Whether it was not there in the image before.", short="New"),
}


def attribute(name: str) -> Attribute:
    """What is known about an attribute; others go by their own name."""
    return ATTRIBUTES.get(name, Attribute(name))
