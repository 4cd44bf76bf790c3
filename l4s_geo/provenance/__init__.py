"""How a result came about, for people, for STAC, and for a run that repeats it."""
