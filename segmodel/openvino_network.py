"""A network through OpenVINO, which makes more of a CPU than PyTorch does."""

from typing import Any

import torch
from torch import Tensor, nn


class OpenVinoNetwork(nn.Module):
    """Stands in for a network in inference on a CPU: the same weights in float32, outputs equal to rounding.

    For each height and width that it meets it compiles the network anew, in seconds.

    Args:
        network: of one input (N, C, H, W), in evaluation mode.
        threads: of the CPU; None leaves their number to OpenVINO.

    Raises:
        ModuleNotFoundError: openvino is not installed.
    """

    def __init__(self, network: nn.Module, threads: int | None) -> None:
        import openvino

        super().__init__()
        self.network, self._openvino, self._compiled = network, openvino, dict[tuple[int, ...], Any]()
        self._options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads

    def forward(self, x_nchw: Tensor) -> Tensor:
        """What the network makes of images (N, C, H, W)."""
        shape = tuple(x_nchw.shape[1:])
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(shape)
        return torch.from_numpy(self._compiled[shape]([x_nchw.contiguous().numpy()])[0])

    def _compile(self, shape: tuple[int, ...]) -> Any:
        from torch.export import Dim, export  # costs a second that other workers need not pay

        with torch.inference_mode(False), torch.no_grad():
            # Two slices: a batch of one would be taken for a constant.
            exported = export(self.network, (torch.zeros(2, *shape),), dynamic_shapes=({0: Dim("n")},))
        model = self._openvino.convert_model(exported)
        return self._openvino.Core().compile_model(model, "CPU", self._options)
