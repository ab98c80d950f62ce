"""Writes an archive from a source, on Ray.

Reads scans through `sources` only, and writes through `archive` only.
"""
