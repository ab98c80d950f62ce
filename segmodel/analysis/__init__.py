"""From the masks of a run to tumor volumes, shapes and a review queue.

Reads published masks only, never pixels or networks; imports packages below it (runs, ...) only.
"""
