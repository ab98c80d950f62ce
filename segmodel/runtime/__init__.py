"""What a job runs in: the Ray cluster, messages from workers to the driver, the tracker.

Knows nothing of what the job does; imports segmodel.storage, segmodel.settings and segmodel.core.
"""
