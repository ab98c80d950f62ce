"""The classes that every network tells apart: channel 0 of the logits is background, 1 tumor."""

TUMOR = 1
CLASSES = 2
