"""Glioma segmentation in brain MRI on Ray: from a folder of scans to a table of tumor volumes."""

import warnings

# When imported, fastai compiles helpers with a deprecated call, about which users can do nothing.
warnings.filterwarnings(
    "ignore", message="`torch.jit.script` is deprecated", category=FutureWarning
)

__version__ = "0.1.0"
