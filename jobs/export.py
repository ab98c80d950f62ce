"""python -m jobs.export --format nifti --archive mri/archive --segmentation mri/run --output out

Write the masks of a segmentation, or the network of a checkpoint, as files for other programs.
"""

import sys
from collections.abc import Sequence

from segmodel.settings import cli
from segmodel.settings.export import ExportConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job with these flags and return its exit code."""
    config = cli.parse(ExportConfig, argv, __doc__)
    if config.format == "onnx":
        return _export_network(config)
    from segmodel.export.driver import export

    result = export(config)
    print(
        f"{len(result.exported)} series exported to {config.output}/{config.format}; "
        f"one row each: {config.output}/exported.csv"
    )
    if result.incomplete:
        print(f"{result.incomplete} of them have slices without a mask: see the column note")
    if result.rejects:
        print(
            f"{len(result.rejects)} series were left out: "
            f"see {config.output}/rejects.csv for the reasons"
        )
    if result.too_many_rejected:
        print(f"error: more than {config.max_rejected:.1%} were left out", file=sys.stderr)
    return result.exit_code


def _export_network(config: ExportConfig) -> int:
    from segmodel.export.onnx import export_onnx

    written = export_onnx(config.checkpoint or "", config.output, overwrite=config.overwrite)
    print(
        f"{written.output}: {written.size / 1e6:.1f} MB; logits differ from PyTorch's by at most "
        f"{written.largest_difference:.1e}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
