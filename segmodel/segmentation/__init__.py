"""Segments an archive on Ray Data, shard by shard.

Knows no trainings. Imports `runs`, `inference`, `analysis`, `report` and the floors below.
"""
