"""The Inception network of FID, through torch-fidelity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from advdiff_core.errors import DataError
from advdiff_metrics.extractor import Extractor
from advdiff_metrics.files import file_digest, installed, load_strictly, read_tensors

__all__ = ["FILE", "URL", "InceptionExtractor"]

#: TensorFlow's weights of 2015-12-05, converted by torch-fidelity, Apache-2.0.
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
FILE = "weights-inception-2015-12-05-6726825d.pth"
#: How the SHA-256 of that file begins.
PUBLISHED = "6726825d"


class InceptionExtractor(Extractor):
    """Pooled features [B, 2048], or logits [B, 1008] without bias, of FID's Inception V3.

    Args:
        weights: File of weights; torch.hub's cache if None.
        download: Fetch the published file into that cache if it is not there.
        unpublished: Take weights of another hash.
        layer: "2048" or "logits_unbiased", as torch-fidelity calls them.
        where: Metric that needs it.
    """

    def __init__(
        self,
        weights: Path | None,
        *,
        download: bool = False,
        unpublished: bool = False,
        layer: str = "2048",
        where: str,
    ) -> None:
        self.weights, self.download, self.unpublished = weights, download, unpublished
        self.layer, self.where = layer, where
        self.name = f"inception-{layer.replace('_', '-')}"

    @property
    def path(self) -> Path:
        """Where the weights are, or should be."""
        return self.weights or Path(torch.hub.get_dir()) / "checkpoints" / FILE

    @property
    def is_published(self) -> bool:
        """True for the very weights that FID is defined with."""
        return file_digest(self.path).startswith(PUBLISHED)

    def check(self) -> None:
        """See `Extractor.check`."""
        self._library()
        if not self.path.is_file() and self.download and self.weights is None:
            self._fetch()
        if not self.path.is_file():
            fix = f'put {URL}{FILE} there, name it with weights = "FILE", or set download = true'
            message = f"there are no Inception weights in {self.path}"
            raise DataError(message, code="D01", where=self.where, fix=fix)
        if not self.is_published and not self.unpublished:
            found = file_digest(self.path)[:8]
            message = f"{self.path} is not the published file: its SHA-256 begins with {found}"
            message += f", wanted {PUBLISHED}"
            fix = f"get {URL}{FILE}, or set unpublished = true for a number that is no FID"
            raise DataError(message, code="D04", where=self.where, fix=fix)

    def _fetch(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL + FILE, str(self.path), PUBLISHED, progress=False)
        except (OSError, RuntimeError) as cause:
            message = f"{URL}{FILE} cannot be fetched: {cause}"
            fix = f"put it at {self.path}"
            raise DataError(message, code="D01", where=self.where, fix=fix) from cause

    def provenance(self) -> Mapping[str, object]:
        """See `Extractor.provenance`."""
        kind = "published 2015-12-05" if self.is_published else "NOT the published ones"
        return {
            "features": f"Inception V3 of FID (torch-fidelity), {self.layer}",
            "weights": f"{kind}, sha256 {file_digest(self.path)[:16]}",
            "resize": "bilinear as in TensorFlow 1, 299 x 299",
            "normalise": "(x - 128) / 128 of 8-bit values",
            "dtype": "float32",
        }

    def load(self) -> nn.Module:
        """See `Extractor.load`."""
        library = self._library()
        tensors = read_tensors(self.path, where=self.where)
        # The library's constructor reads a file with weights_only=False, which can run code, or
        # asks the network. It gets its own initial weights back instead; ours follow, checked.
        network = library.FeatureExtractorInceptionV3
        with (
            mock.patch.object(network, "load_state_dict"),
            mock.patch.object(library, "load_state_dict_from_url"),
        ):
            net: nn.Module = network(self.name, [self.layer])
        load_strictly(net, tensors, where=str(self.path))
        return net

    def extract(self, net: nn.Module, x: Tensor) -> Tensor:
        """Features [B, D] of images `x` [B, 3, H, W]; see `Extractor.extract`."""
        features: Tensor = net((x * 255).round().to(torch.uint8))[0]
        return features

    def _library(self) -> Any:
        def read() -> Any:
            from torch_fidelity import feature_extractor_inceptionv3

            return feature_extractor_inceptionv3

        return installed(read, package="torch-fidelity", where=self.where)
