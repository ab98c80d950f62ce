"""Turns the masks of a run into tumor volumes, shapes and a review queue.

Reads published masks only: no pixels, no networks. Imports `runs` and the floors below.
"""
