"""Checkpoints: folders with model.safetensors, model.json and, from a training, trainer.pt.

The network is built from model.json and filled with the weights; nothing is unpickled. model.json
is written last and holds the SHA-256 of the weights: an interrupted write or changed weights are
detected. trainer.pt holds all that a training needs to resume, weights too, in one file: after an
interrupted write it is still the old one.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from segmodel import __version__
from segmodel.core.errors import CheckpointError
from segmodel.models.registry import ModelSettings, build_model
from segmodel.storage import store

FORMAT_VERSION = 1
WEIGHTS, MANIFEST, TRAINER = "model.safetensors", "model.json", "trainer.pt"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The content of model.json: how to build the network, its input, and its training."""

    model: ModelSettings
    channels: tuple[str, ...]
    """What each input channel shows."""
    image_size: int
    """Longest side in pixels that slices were scaled to in training."""
    mean: tuple[float, ...]
    """Of each channel, values scaled to 0 to 1; subtracted before the network."""
    std: tuple[float, ...]
    """Of each channel; divided by, after `mean`."""
    threshold: float
    """A pixel is tumor where its probability is greater."""
    training_patients: tuple[str, ...]
    """Patients whose masks the weights were fitted to."""
    validation_patients: tuple[str, ...]
    """Patients whose masks chose the epoch."""
    metrics: dict[str, float]
    """Of the validation patients."""
    weights_sha256: str = ""
    """Filled in by `save`."""
    format_version: int = FORMAT_VERSION
    versions: dict[str, str] | None = None
    """Of the software that wrote the checkpoint; filled in by `save`."""

    def seen_in_training(self, patient: str) -> str:
        """`train`, `validation` or `no`."""
        if patient in self.training_patients:
            return "train"
        return "validation" if patient in self.validation_patients else "no"


def save(uri: str, model: nn.Module, card: ModelCard) -> ModelCard:
    """Write a checkpoint folder, the weights first.

    Args:
        uri: of the folder.
        model: as `build_model(card.model)` makes it.
        card: of the model.

    Returns:
        The card as written, with the hash of the weights.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    weights = safetensors.torch.save(tensors)
    versions = {"segmodel": __version__, "torch": torch.__version__}
    card = replace(card, weights_sha256=hashlib.sha256(weights).hexdigest(), versions=versions)
    store.publish(store.join(uri, WEIGHTS), weights)
    store.publish_json(store.join(uri, MANIFEST), asdict(card))
    return card


@dataclass(frozen=True)
class TrainerState:
    """What a training needs to resume after its last whole epoch.

    Random numbers are not part of it: they follow from seed, epoch and slice.
    """

    epochs_done: int
    cycles: tuple[tuple[int, float], ...]
    """(epochs, peak learning rate) of each 1cycle, with the rates that `auto` found."""
    weights: Mapping[str, Tensor]
    """Of the network, with batch norm's running statistics."""
    optimizer: Mapping[int, Mapping[str, Tensor]]
    """Adam's moments and step count of each parameter."""
    mean: tuple[float, ...]
    """Of each channel, as in model.json."""
    std: tuple[float, ...]
    history: tuple[Mapping[str, float], ...]
    """A row of history.csv an epoch."""
    precision: Literal["bf16", "fp32"]
    """Of the forward pass."""


def save_trainer(uri: str, state: TrainerState) -> None:
    """Write trainer.pt into a checkpoint folder, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(
        {"format_version": FORMAT_VERSION}
        | {f.name: getattr(state, f.name) for f in fields(state)},
        buffer,
    )
    store.publish(store.join(uri, TRAINER), buffer.getvalue())


def load_trainer(uri: str) -> TrainerState:
    """Read trainer.pt of a checkpoint folder.

    Raises:
        CheckpointError: it is missing, damaged or of another version.
    """
    path = store.join(uri, TRAINER)
    try:
        content = store.read_bytes(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; there is no training to go on with, leave --resume out"
        ) from None
    again = "start a new training with --overwrite"
    try:
        values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a training's state that can be read safely "
            f"({type(error).__name__}); {again}"
        ) from error
    if not isinstance(values, dict) or values.pop("format_version", None) != FORMAT_VERSION:
        raise CheckpointError(f"{path}: of another version; {again}")
    try:
        return TrainerState(**values)
    except TypeError as error:
        raise CheckpointError(
            f"{path}: not a training's state of this project ({error}); {again}"
        ) from error


def find_checkpoint(uri: str) -> str:
    """The checkpoint folder that a user means: `uri`, or `best/` in a training's output folder.

    Raises:
        CheckpointError: there is neither.
    """
    for candidate in (uri, store.join(uri, "best")):
        if store.exists(store.join(candidate, MANIFEST)):
            return candidate
    raise CheckpointError(
        f"{uri}: no checkpoint ({MANIFEST} is neither here nor in best/); "
        "make one with python -m jobs.train"
    )


def read_card(uri: str) -> ModelCard:
    """Read model.json of a checkpoint folder.

    Raises:
        CheckpointError: it is missing, damaged, or from something else.
    """
    path = store.join(uri, MANIFEST)
    try:
        values = json.loads(store.read_bytes(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; --checkpoint takes a folder that python -m jobs.train wrote"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); take another checkpoint") from error
    if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
        version = values.get("format_version") if isinstance(values, dict) else None
        raise CheckpointError(
            f"{path}: format version {version}, this version reads {FORMAT_VERSION}"
        )
    try:
        known = {field.name: values[field.name] for field in fields(ModelCard)}
        for name in ("channels", "mean", "std", "training_patients", "validation_patients"):
            known[name] = tuple(known[name])
        return ModelCard(**{**known, "model": ModelSettings(**known["model"])})
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a model.json of this project ({error}); take another checkpoint"
        ) from error


def read_weights(uri: str, card: ModelCard) -> bytes:
    """Read model.safetensors of a checkpoint folder and check that it belongs to `card`.

    Raises:
        CheckpointError: it is missing, damaged or altered.
    """
    path = store.join(uri, WEIGHTS)
    try:
        weights = store.read_bytes(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete") from None
    found = hashlib.sha256(weights).hexdigest()
    if found != card.weights_sha256:
        raise CheckpointError(
            f"{path}: its SHA-256 is {found[:12]}…, {MANIFEST} says "
            f"{card.weights_sha256[:12]}…: the weights are truncated, altered or of another model; "
            "take another checkpoint"
        )
    return weights


def load(uri: str) -> tuple[nn.Module, ModelCard]:
    """Load the network, in evaluation mode on the CPU, and its card.

    Raises:
        CheckpointError: a file is missing, damaged or altered, or the weights do not fit the
            network or hold NaN or infinity.
    """
    card = read_card(uri)
    weights = read_weights(uri, card)
    path = store.join(uri, WEIGHTS)
    try:
        model = build_model(card.model)
        tensors = safetensors.torch.load(weights)
        model.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path}: the weights do not fit the network of {MANIFEST}: {error}"
        ) from error
    broken = next(
        (name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None
    )
    if broken is not None:
        raise CheckpointError(
            f"{path}: {broken} holds NaN or infinity: the training diverged; "
            "take another checkpoint"
        )
    return model.eval(), card
