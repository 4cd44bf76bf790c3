"""How a map compares with reference data."""
