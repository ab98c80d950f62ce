"""Glioma segmentation in brain MRI on Ray: from a folder of scans to a table of tumor volumes."""

__version__ = "0.1.0"
