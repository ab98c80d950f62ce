"""Where scans come from: one module a format, each turns a patient's files into slices and rejects.

Knows nothing of the archive's files or of Ray; imports segmodel.storage, segmodel.settings and segmodel.core.
"""
