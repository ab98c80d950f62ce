"""A model with answers worked out by hand: a classical U-Net that thresholds FLAIR."""

import torch

from segmodel.models import checkpoint
from segmodel.models.checkpoint import ModelCard
from segmodel.models.registry import ModelSettings
from segmodel.models.unet import ClassicalUnet
from segmodel.sources.phantom import FLAIR

CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
SETTINGS = ModelSettings(arch="classical", channels=3, width=2)
FLOOR = 185
"""Between the brightest tissue (170) and the darkest lesion (200) of a phantom."""


def flair_threshold_model() -> ClassicalUnet:
    """Tumor logit FLAIR - 190 where FLAIR > 185, else -5; background logit 0.

    A lesion pixel (200 or more) has logit 10 or more, any other (170 or less) has -5: none is near
    a threshold of one half.
    """
    model = ClassicalUnet(channels=3, width=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        first, second = model.down[0][0], model.down[0][2]
        first.weight[0, FLAIR, 1, 1] = 1.0
        first.bias[0] = -FLOOR
        second.weight[0, 0, 1, 1] = 1.0
        for convolution in (model.merge[-1][0], model.merge[-1][2]):
            convolution.weight[0, 0, 1, 1] = (
                1.0  # of the skip connection; the way through the bottom stays 0
            )
        model.head.weight[1, 0, 0, 0] = 1.0
        model.head.bias[1] = -5.0
    return model


def card(
    image_size: int,
    training_patients: tuple[str, ...] = (),
    validation_patients: tuple[str, ...] = (),
) -> ModelCard:
    """Raw pixel values go in: mean 0 and standard deviation 1/255."""
    return ModelCard(
        model=SETTINGS,
        channels=CHANNELS,
        image_size=image_size,
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255, 1 / 255, 1 / 255),
        threshold=0.5,
        training_patients=training_patients,
        validation_patients=validation_patients,
        metrics={},
    )


def save(folder: str, image_size: int, training_patients: tuple[str, ...] = ()) -> str:
    """A checkpoint of the model; returns its folder."""
    checkpoint.save(folder, flair_threshold_model(), card(image_size, training_patients))
    return folder
