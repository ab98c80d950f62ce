"""The networks, their pretrained encoders, and checkpoints.

Knows nothing of archives, training loops or Ray; imports segmodel.storage, segmodel.settings and
segmodel.core only.
"""
