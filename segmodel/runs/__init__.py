"""The folder of a segmentation: its fingerprint, which shards are done, what is in quarantine; reading one shard.

Knows nothing of networks or of volumes; imports packages below it (archive, storage, ...) only.
"""
