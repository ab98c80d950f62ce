"""Files and folders, local or on S3: reading, publishing, damaged Parquet, the lock of a folder.

Knows nothing of slices, models or jobs; imports only segmodel.core.
"""
