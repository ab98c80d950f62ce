"""Writes results in formats that other programs open.

Never writes into a run or an archive. Imports `runs`, `inference` and the floors below.
"""
