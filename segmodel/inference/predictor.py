"""Batched inference: slices as bytes in, masks out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from segmodel.core.errors import ArchiveError, first_line
from segmodel.core.progress import say
from segmodel.data.preprocessing import normalise, pad_to_multiple, pixels_to_nchw, resize
from segmodel.inference.precision import Precision, convert_precision
from segmodel.models.checkpoint import ModelCard


@dataclass(frozen=True)
class Prediction:
    """The masks of N slices and their statistics."""

    bits_nhb: npt.NDArray[np.uint8]
    """Packed masks: eight columns a byte, the first in its highest bit; 8 KB a slice."""
    width: int
    tumor_pixels_n: npt.NDArray[np.int64]
    mean_probability_n: npt.NDArray[np.float32]
    """Mean tumor probability over the pixels of the mask; NaN where the mask is empty."""
    probability_sum_n: npt.NDArray[np.float32]
    """Sum of the tumor probabilities of all pixels: the expected area of the tumor."""

    @property
    def mask_nhw(self) -> npt.NDArray[np.bool_]:
        """The masks, unpacked."""
        return np.unpackbits(self.bits_nhb, axis=2, count=self.width).astype(bool)


_CUDA_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation, also of pinned host memory; the device stays usable."""

PendingPrediction = Callable[[], Prediction]
"""A prediction in progress; calling it waits for the result."""


class Predictor:
    """A loaded model, ready to segment.

    Slices are scaled as in training and padded to a size that the network takes. The probabilities
    are scaled back to the slice's own size before the threshold. If a batch does not fit in memory,
    slices of that size are processed in half batches from then on. On CUDA, a forward pass is
    padded with empty slices to one of a few batch sizes, so that the device sees few shapes.

    Args:
        model: in evaluation mode.
        card: of the model.
        batch_size: slices per forward pass.
        threshold: a pixel is tumor where its probability is greater.
        device: where to run.
        precision: of the network's numbers.
        tta: test-time augmentation: average the probabilities of a slice and its mirror images
            along rows, columns and both.
        compiled: compile the computation on the device with torch.compile, which takes a while for
            each size of slices.
    """

    def __init__(
        self,
        model: nn.Module,
        card: ModelCard,
        *,
        batch_size: int,
        threshold: float,
        device: torch.device,
        precision: Precision = "fp32",
        tta: bool = False,
        compiled: bool = False,
    ) -> None:
        model = convert_precision(model.to(device), precision, device)
        self.model = model.to(memory_format=torch.channels_last).eval()
        self.precision = precision
        self.card, self.batch_size, self.threshold = card, batch_size, threshold
        self.device, self.tta = device, tta
        self._pass_slices: dict[tuple[int, int], int] = {}
        """Slices per pass for sizes of which a batch did not fit in memory."""
        # Made once: making a constant in a pass makes the GPU wait for the CPU.
        self._bit_values = torch.tensor(BIT_VALUES, dtype=torch.uint8, device=device)
        self.mean = torch.tensor(card.mean, device=device)
        self.std = torch.tensor(card.std, device=device)
        self._uncompiled: set[tuple[int, int]] = set()
        """Sizes of slices beyond the number that torch.compile keeps."""
        self._compiled = (
            torch.compile(self._masks, dynamic=False, fullgraph=True) if compiled else None
        )

    def predict(self, pixels_nhwc: npt.NDArray[np.uint8]) -> Prediction:
        """`begin`, and wait for the result."""
        return self.begin(pixels_nhwc)()

    @torch.inference_mode()
    def begin(self, pixels_nhwc: npt.NDArray[np.uint8]) -> PendingPrediction:
        """Begin to segment at most `batch_size` slices of one size; a GPU works on meanwhile.

        Args:
            pixels_nhwc: uint8 (N, H, W, C), C as in training; the caller may change it afterwards.

        Raises:
            ArchiveError: another number of channels.
            MemoryError: a single slice does not fit in memory.
        """
        n, height, width, channels = pixels_nhwc.shape
        if channels != self.card.model.channels:
            raise ArchiveError(
                f"slices have {channels} channels, the model was trained on "
                f"{self.card.model.channels}"
            )
        if n > self.batch_size:
            raise ValueError(f"{n} slices do not fit a batch of {self.batch_size}")
        passes: list[tuple[Tensor, ...]] = []
        start = 0
        while start < n:
            size = self._pass_slices.get((height, width), self.batch_size)
            try:
                passes.append(self._pass(pixels_nhwc[start : start + size], size))
                start += size
                continue
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
            # Not in the handler: the traceback keeps the failed pass's tensors alive.
            self._halve(height, width, size)
        done = None
        if self.device.type == "cuda":
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()

        def wait() -> Prediction:
            if done is not None:
                done.synchronize()
            bits, tumor_pixels, mean_probability, probability_sum = (
                torch.cat(column).numpy() for column in zip(*passes, strict=True)
            )
            return Prediction(bits, width, tumor_pixels, mean_probability, probability_sum)

        return wait

    def _halve(self, height: int, width: int, size: int) -> None:
        if size == 1:
            raise MemoryError(f"one slice of {height}x{width} pixels does not fit in memory")
        self._pass_slices[height, width] = -(-size // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        say(
            f"out of memory: from now on a forward pass has {-(-size // 2)} slices of "
            f"{height}x{width}"
        )

    def _pass(self, pixels_nhwc: npt.NDArray[np.uint8], size: int) -> tuple[Tensor, ...]:
        """Run a forward pass; return the arrays of `Prediction`, perhaps still being copied."""
        n, on_gpu = len(pixels_nhwc), self.device.type == "cuda"
        padded = padded_size(n, size, compiled=self._compiled is not None) if on_gpu else n
        held_nhwc = torch.empty(
            (padded, *pixels_nhwc.shape[1:]), dtype=torch.uint8, pin_memory=on_gpu
        )
        held_nhwc.numpy()[:n], held_nhwc.numpy()[n:] = pixels_nhwc, 0
        back = []
        for result in self._run(held_nhwc.to(self.device, non_blocking=True)):
            back.append(torch.empty((n, *result.shape[1:]), dtype=result.dtype, pin_memory=on_gpu))
            back[-1].copy_(result[:n], non_blocking=True)
        return tuple(back)

    def _run(self, pixels_nhwc: Tensor) -> tuple[Tensor, ...]:
        height, width = pixels_nhwc.shape[1:3]
        if self._compiled is None or (height, width) in self._uncompiled:
            return self._masks(pixels_nhwc)
        # This import takes a second.
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        try:
            found: tuple[Tensor, ...] = self._compiled(pixels_nhwc)
        except FailOnRecompileLimitHit:
            say(f"slices of {height}x{width} run uncompiled: torch.compile keeps a limited number")
            self._uncompiled.add((height, width))
        except TorchDynamoException as error:
            say(
                "torch.compile does not work here, the network runs uncompiled: "
                f"{first_line(error)}"
            )
            self._compiled = None
        else:
            return found
        return self._masks(pixels_nhwc)

    def _masks(self, pixels_nhwc: Tensor) -> tuple[Tensor, ...]:
        """Compute the arrays of `Prediction` on the device."""
        probability_nhw = self._probability(pixels_nhwc)
        mask_nhw = probability_nhw > self.threshold
        tumor_pixels_n = mask_nhw.sum(dim=(1, 2))
        mean_probability_n = (probability_nhw * mask_nhw).sum(dim=(1, 2)) / tumor_pixels_n
        probability_sum_n = probability_nhw.sum(dim=(1, 2))
        bits_nhb = pack_bits(mask_nhw, self._bit_values)
        return bits_nhb, tumor_pixels_n, mean_probability_n, probability_sum_n

    def _probability(self, pixels_nhwc: Tensor) -> Tensor:
        """Tumor probability, float32 (N, H, W)."""
        height, width = pixels_nhwc.shape[1:3]
        scaled_nchw = pixels_to_nchw(pixels_nhwc, self.card.image_size)
        x_nchw = normalise(pad_to_multiple(scaled_nchw), self.mean, self.std)
        mirrored: list[tuple[int, ...]] = [(), (2,), (3,), (2, 3)] if self.tta else [()]
        probability_nchw = x_nchw.new_zeros(())
        for axes in mirrored:
            logits_nchw = self._logits(x_nchw.flip(axes))
            background_nchw, tumor_nchw = logits_nchw[:, :1], logits_nchw[:, 1:]
            # Softmax over two classes.
            probability_nchw = probability_nchw + (tumor_nchw - background_nchw).sigmoid().flip(
                axes
            )
        probability_nchw = probability_nchw / len(mirrored)
        cropped_nchw = probability_nchw[..., : scaled_nchw.shape[-2], : scaled_nchw.shape[-1]]
        # Interpolation may round to more than 1.
        return resize(cropped_nchw, height, width)[:, 0].clamp(0, 1)

    def _logits(self, x_nchw: Tensor) -> Tensor:
        """The network's output, float32 (N, 2, H, W)."""
        on_cpu = self.device.type == "cpu"
        in_bf16 = self.precision == "bf16"
        x_nchw = x_nchw.to(torch.bfloat16) if on_cpu and in_bf16 else x_nchw
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=in_bf16 and not on_cpu):
            logits_nchw: Tensor = self.model(x_nchw)
        return logits_nchw.float()


BIT_VALUES = (128, 64, 32, 16, 8, 4, 2, 1)
"""Values of the pixels in a byte, the first in its highest bit."""


def pack_bits(mask_nhw: Tensor, bit_values: Tensor) -> Tensor:
    """Pack eight columns of a mask into a byte, as numpy's packbits does.

    Args:
        mask_nhw: bool.
        bit_values: `BIT_VALUES` as uint8, on the same device.

    Returns:
        uint8, (N, H, ⌈W/8⌉).
    """
    padded_nhw = functional.pad(mask_nhw.to(torch.uint8), (0, -mask_nhw.shape[2] % 8))
    bits: Tensor = (padded_nhw.reshape(*mask_nhw.shape[:2], -1, 8) * bit_values).sum(
        dim=3, dtype=torch.uint8
    )
    return bits


def padded_size(slices: int, batch_size: int, compiled: bool) -> int:
    """Slices of a pass on a GPU: an eighth, a quarter, a half or a whole batch.

    Always a whole batch if compiled, because compiling each size takes half a minute.
    """
    sizes = [] if compiled else [max(1, batch_size // part) for part in (8, 4, 2)]
    return next((size for size in sizes if size >= slices), batch_size)


def _out_of_memory(error: RuntimeError) -> bool:
    if (
        isinstance(error, torch.OutOfMemoryError)
        or getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY
    ):
        return True
    # CPUs and the libraries on GPUs raise plain RuntimeErrors.
    return any(
        name in str(error)
        for name in (
            "DefaultCPUAllocator",
            "CUBLAS_STATUS_ALLOC_FAILED",
            "CUDNN_STATUS_ALLOC_FAILED",
        )
    )
