"""Glioma segmentation in brain MRI on Ray: from a folder of scans to a table of tumor volumes."""

import warnings

# fastai compiles helpers with a deprecated call as it is imported; a user, or a job's log, can do nothing about it.
warnings.filterwarnings(
    "ignore", message="`torch.jit.script` is deprecated", category=FutureWarning
)

__version__ = "0.1.0"
