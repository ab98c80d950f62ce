"""The archive: Parquet files of slices and archive.json; reading, writing, appending.

Knows neither where scans come from nor models. Imports `storage`, `settings` and `core` only.
"""
