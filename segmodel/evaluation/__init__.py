"""Judges models and masks against annotations.

May use every package of segmodel; only segmodel.demo and jobs/ use it.
"""
