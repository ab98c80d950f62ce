"""From annotated slices to training batches: preprocessing, sampling, augmentation, the split of patients.

Knows nothing of networks' training or of runs; imports packages below it (archive, models, ...) only.
"""
