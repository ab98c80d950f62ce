"""Judges masks and models against annotations: metrics, statistics, tables.

Imports any package below it; only `demo` and jobs/ import it.
"""
