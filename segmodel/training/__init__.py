"""Data-parallel training on Ray Train, and the learning-rate range test.

Knows no segmentations. Imports `data`, `inference`, `report` and the floors below.
"""
