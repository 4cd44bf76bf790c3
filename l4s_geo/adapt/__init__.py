"""Fitting models to a new region with few labels or none."""
