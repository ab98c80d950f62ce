"""Writes an archive from a source.

Reads scans only through segmodel.sources and writes only through segmodel.archive.
"""
