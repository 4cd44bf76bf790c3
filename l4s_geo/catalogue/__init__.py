"""STAC catalogues: scenes in them, and the items that `search` builds of what it has found."""
