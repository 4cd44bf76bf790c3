"""Comparison with a scene from before the event."""
