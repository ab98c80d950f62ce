"""python -m tests.support.small_demo FLAGS: jobs.demo, with fewer and smaller patients."""

import sys

from jobs import demo
from segmodel import demo as library

PATIENTS = 5

if __name__ == "__main__":
    library.PATIENTS, library.SLICES, library.SIZE, library.EPOCHS = PATIENTS, 6, 32, 2
    sys.exit(demo.main())
