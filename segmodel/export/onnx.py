"""A checkpoint's network as one ONNX file, with its preprocessing in the file's metadata."""

import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segmodel import __version__
from segmodel.core.errors import ConfigError, ExportError
from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard
from segmodel.settings.base import SIZE_MULTIPLE
from segmodel.storage import conditional, store
from segmodel.storage.temporary_file import temporary_file_beside

INPUT, OUTPUT = "image", "logits"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Largest difference from PyTorch's logits, relative to the largest logit where that exceeds 1."""
PREPROCESSING = (
    "uint8 pixels (N, H, W, C) -> scale the longest side to image_size (bilinear, antialiased "
    "where it shrinks), round to whole numbers -> divide by 255, subtract mean and divide by std "
    "of each channel -> pad with zeros below and to the right to multiples of size_multiple -> "
    "float32 (N, C, H, W)"
)
POSTPROCESSING = (
    "softmax over the 2 classes (background, tumor) -> crop the padding -> scale the tumor "
    "probability to the slice's own size (bilinear) -> tumor where it is greater than threshold"
)


@dataclass(frozen=True)
class OnnxExport:
    """What an export wrote."""

    output: str
    size: int
    """Bytes."""
    largest_difference: float
    """Between the logits of the ONNX runtime and of PyTorch, on random input."""


def check_request(output: str, overwrite: bool) -> None:
    """Refuse an export that cannot be done, before the network is loaded.

    Raises:
        ConfigError: a package is missing, or the file is there already.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format onnx needs {', '.join(missing)}: install the optional packages with "
            f"pip install {' '.join(PACKAGES)}"
        )
    if not overwrite and store.exists(output):
        raise _occupied(output)


def export_onnx(checkpoint_uri: str, output: str, *, overwrite: bool = False) -> OnnxExport:
    """Write the network of a checkpoint as an ONNX file, whole or not at all.

    The graph takes `image`, float32 (N, C, H, W), normalised, and gives `logits`, (N, 2, H, W).
    N is free; H and W are free multiples of 32.

    Args:
        checkpoint_uri: checkpoint folder, or output folder of a training.
        output: the file.
        overwrite: replace the file if it is there.

    Raises:
        ConfigError: as `check_request`, or the file cannot be written.
        CheckpointError: there is no sound checkpoint.
        ExportError: the ONNX runtime computes something else than PyTorch.
    """
    check_request(output, overwrite)
    model, card = checkpoint.load(checkpoint.find_checkpoint(checkpoint_uri))
    _check_writable(output)
    content = to_onnx(model, card)
    difference = largest_difference(content, model, card)
    if overwrite:
        store.publish(output, content)
    else:
        try:
            conditional.create(output, content)
        except FileExistsError:
            raise _occupied(output) from None
    return OnnxExport(output, len(content), difference)


def _check_writable(output: str) -> None:
    """Refuse a file that cannot be written, before the minutes that a conversion may take."""
    if not store.is_local(output):
        return
    path = Path(store.filesystem(output)[1])
    reason = "it is a folder" if path.is_dir() else None
    try:
        with temporary_file_beside(path, b""):
            pass
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise ConfigError(
            f"{output} cannot be written ({reason}). Give --output a file in a folder that this "
            "job may write into, or that it may create"
        )


def to_onnx(model: nn.Module, card: ModelCard) -> bytes:
    """Convert a network in evaluation mode on the CPU to an ONNX file with metadata."""
    # Two slices of different height and width: export must not take any of them for a constant.
    example_nchw = torch.zeros(2, card.model.channels, 2 * SIZE_MULTIPLE, 3 * SIZE_MULTIPLE)
    sizes: dict[int, Any] = {
        0: torch.export.Dim("batch"),
        2: SIZE_MULTIPLE * torch.export.Dim("height_blocks"),
        3: SIZE_MULTIPLE * torch.export.Dim("width_blocks"),
    }
    with warnings.catch_warnings():
        # torch's own modules use names that torch has deprecated.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (example_nchw,),
            dynamo=True,
            dynamic_shapes=(sizes,),
            external_data=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no program; try another version of torch")
    program.model.producer_name, program.model.producer_version = "segmodel", __version__
    program.model.metadata_props.update(describe(card))
    return bytes(program.model_proto.SerializeToString())


def describe(card: ModelCard) -> dict[str, str]:
    """All that a program needs to feed the network and read its answer; no patient's id."""
    values = {
        "arch": card.model.arch,
        "encoder": card.model.encoder or "",
        "channels": list(card.channels),
        "mean": list(card.mean),
        "std": list(card.std),
        "image_size": card.image_size,
        "size_multiple": SIZE_MULTIPLE,
        "threshold": card.threshold,
        "classes": ["background", "tumor"],
        "preprocessing": PREPROCESSING,
        "postprocessing": POSTPROCESSING,
        "weights_sha256": card.weights_sha256,
        "segmodel_version": __version__,
        "intended_use": "research use, not for diagnosis",
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


def largest_difference(content: bytes, model: nn.Module, card: ModelCard) -> float:
    """Compare the file's logits with PyTorch's on random slices of two sizes.

    Raises:
        ExportError: they differ by more than `TOLERANCE`.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for shape in ((1, 2, 1), (3, 1, 3)):
        size = (shape[1] * SIZE_MULTIPLE, shape[2] * SIZE_MULTIPLE)
        x_nchw = torch.randn(shape[0], card.model.channels, *size, generator=generator)
        with torch.inference_mode():
            expected_nchw: Tensor = model(x_nchw)
        expected = expected_nchw.numpy()
        difference = float(np.abs(run_onnx(content, x_nchw.numpy()) - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ExportError(
                f"the ONNX runtime's logits differ from PyTorch's by {difference:.2g}; nothing was "
                "written. Try other versions of torch and onnxruntime"
            )
        largest = max(largest, difference)
    return largest


def run_onnx(content: bytes, x_nchw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logits of an ONNX file for normalised slices, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT], {INPUT: x_nchw})
    return np.asarray(logits, np.float32)


def _occupied(output: str) -> ConfigError:
    return ConfigError(f"{output} is already there; give --overwrite to replace it")
