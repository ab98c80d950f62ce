"""python -m jobs.demo

Run the whole chain on phantom patients, in a few minutes on a laptop.
"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.demo import DemoConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these flags and return its exit code."""
    config = cli.parse(DemoConfig, argv, __doc__)
    print("loading PyTorch", flush=True)  # takes seconds
    from segmodel.demo import demo

    result = demo(config)
    print()
    print("patient        tumor, ml  set")
    for row in result.volumes.to_pylist():
        print(f"{row['patient_id']}  {row['tumor_volume_ml']:10.1f}  {row['seen_in_training']}")
    print()
    print(f"Dice on the validation patients: {result.best_dice:.3f}")
    print(f"picture   {result.contact_sheet}")
    print(f"report    {result.run}/report.html")
    print(f"volumes   {result.run}/volumes.csv")
    print(f"masks     {result.run}/masks")
    print(f"model     {result.model}/best")
    print(f"archive   {result.archive}")
    print("To segment your own scans, see README.md.")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
