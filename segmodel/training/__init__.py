"""Data-parallel training on Ray Train, and the learning rate range test.

Knows nothing of segmentations; imports packages below it (data, models, inference, report, ...)
only.
"""
