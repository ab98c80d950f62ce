"""Reads scans: one module per format turns a patient's files into slices and rejects.

Knows neither the archive's files nor Ray. Imports `storage`, `settings` and `core` only.
"""
