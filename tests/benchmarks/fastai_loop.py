"""python -m tests.benchmarks.fastai_loop FOLDER ENCODER SIZE BATCH EPOCHS

Times what a user of fastai would write. FOLDER holds train/ and masks/ with PNG files of the same
names. The last line is a JSON list: slices/s of each epoch.
"""

import json
import sys
import time
from pathlib import Path

import torch
import torchvision
from fastai.vision.all import (
    Callback,
    CrossEntropyLossFlat,
    DynamicUnet,
    Learner,
    Normalize,
    SegmentationDataLoaders,
    aug_transforms,
    create_body,
    imagenet_stats,
)


class Clock(Callback):
    """Slices a second of each epoch's training steps."""

    order = 70

    def __init__(self, batch_size: int) -> None:
        self.per_batch, self.rates = batch_size, []

    def before_train(self) -> None:
        self.started = time.monotonic()

    def after_train(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.rates.append(self.n_iter * self.per_batch / (time.monotonic() - self.started))


def main() -> None:
    folder, encoder = Path(sys.argv[1]), sys.argv[2]
    size, batch_size, epochs = (int(word) for word in sys.argv[3:])
    files = sorted((folder / "train").glob("*.png"))
    augmentation = aug_transforms(flip_vert=True, max_rotate=15.0, max_zoom=1.0, max_warp=0.0)
    loaders = SegmentationDataLoaders.from_label_func(
        folder,
        files,
        lambda file: folder / "masks" / file.name,
        codes=["background", "tumor"],
        bs=batch_size,
        valid_pct=batch_size / len(files),
        batch_tfms=[*augmentation, Normalize.from_stats(*imagenet_stats)],
    )
    body = create_body(getattr(torchvision.models, encoder)(weights=None), pretrained=False)
    clock = Clock(batch_size)
    learner = Learner(
        loaders, DynamicUnet(body, 2, (size, size)), loss_func=CrossEntropyLossFlat(axis=1)
    )
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(epochs, 1e-3, wd=1e-2, cbs=clock)
    print(json.dumps(clock.rates))


if __name__ == "__main__":
    main()
