"""The archive: Parquet files of slices and archive.json, how they are read and written, and which slices have masks.

Knows nothing of where scans come from or of models; imports segmodel.storage, segmodel.settings and segmodel.core.
"""
