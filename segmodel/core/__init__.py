"""What all packages may use: errors, schemas, geometry, mask PNGs, Dice, progress lines, memory.

Knows no file system, no Ray and no network. Imports nothing else of segmodel.
"""
