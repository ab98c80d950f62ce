"""The folder of a segmentation: what it holds, which shards are done; reading one shard.

Knows neither networks nor volumes. Imports `archive` and the floors below.
"""
