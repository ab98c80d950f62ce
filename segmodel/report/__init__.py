"""Figures, contact sheets and report pages for people.

Computes nothing that a table does not hold. Imports `runs` and the floors below.
"""
