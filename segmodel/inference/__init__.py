"""Applies a checkpoint to batches of slices.

Knows no shards, runs or Ray. Imports `data`, `models` and the floors below.
"""
