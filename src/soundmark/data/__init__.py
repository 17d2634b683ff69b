"""Data sets: fetched, made in code, measured, prepared and turned into features."""
