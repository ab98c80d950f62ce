"""The networks, their pretrained encoders, and checkpoints.

Knows no archives, training loops or Ray. Imports `storage`, `settings` and `core` only.
"""
