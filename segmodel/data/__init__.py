"""From annotated slices to training batches: preprocessing, sampling, augmentation, patient split.

Knows nothing of the training of networks or of runs; imports packages below it (archive, models,
...) only.
"""
