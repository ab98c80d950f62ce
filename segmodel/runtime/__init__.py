"""What a job runs in: the Ray cluster, messages from workers to the driver, trackers.

Does not know what the job does. Imports `storage`, `settings` and `core` only.
"""
