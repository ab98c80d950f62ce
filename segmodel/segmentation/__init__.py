"""Segments an archive on Ray Data, shard by shard.

Knows nothing of trainings; imports packages below it (runs, inference, analysis, report, ...) only.
"""
