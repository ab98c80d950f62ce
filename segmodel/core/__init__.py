"""What everything else may use: errors, table schemas, geometry, mask PNGs, Dice counts, progress lines, free memory.

Knows no file system, no Ray and no network; imports nothing of segmodel outside this package.
"""
