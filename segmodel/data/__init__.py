"""Turns annotated slices into training batches: split, sampling, preprocessing, augmentation.

Knows neither the training loop nor runs. Imports `archive`, `models` and the floors below.
"""
