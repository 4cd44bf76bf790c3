"""Scenes: any input as one grid of named bands, read window by window."""

from l4s_geo.scene.bands import L4S_BANDS, L4S_MEAN, S2_BANDS, TERRAIN_BANDS, parse_band
from l4s_geo.scene.scene import Grid, Scene, open_scene, open_terrain

__all__ = [
    "L4S_BANDS",
    "L4S_MEAN",
    "S2_BANDS",
    "TERRAIN_BANDS",
    "Grid",
    "Scene",
    "open_scene",
    "open_terrain",
    "parse_band",
]
