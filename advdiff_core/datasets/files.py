"""Datasets in files: `tensor-file` and `image-folder`."""

from advdiff_core.datasets.image_folder import ImageFolder
from advdiff_core.datasets.tensor_file import TensorFile

__all__ = ["ImageFolder", "TensorFile"]
