"""A checkpoint applied to batches of slices.

Knows nothing of shards, runs or Ray; imports packages below it (models, data, ...) only.
"""
