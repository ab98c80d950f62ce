"""Files and folders, local or on S3: reading, publishing, damaged Parquet, the lock of a folder.

Knows no slices, models or jobs. Imports `core` only.
"""
