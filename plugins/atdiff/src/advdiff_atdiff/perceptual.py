"""LPIPS, the perceptual distance that consistency models of images were trained with."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_core import Build, Domain
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.pickles.objects import TensorRef
from advdiff_core.pickles.torch_files import read_legacy, read_zip

__all__ = ["Perceptual", "Vgg", "find_weights"]

#: Widths of VGG16's convolutions; 0 is a pooling.
LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
#: Layers after which features are compared, and their widths.
TAPS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}
#: Means and deviations of the colours that the network was trained on, for a range of [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
#: Size that smaller images are brought to (Song et al., 2023).
SIZE = 224
FILE = "vgg16-397923af.pth"
FETCH = "python -c 'import torchvision; torchvision.models.vgg16(weights=\"DEFAULT\")'"


class Vgg(nn.Module):
    """The features of VGG16 and the linear heads of LPIPS, version 0.1, on images in [-1, 1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in LAYERS:
            if width:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.ModuleList(layers)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in TAPS.values())
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.eval().requires_grad_(False)

    def read(self, trunk: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Take weights under the names that torchvision and the package lpips give them.

        Args:
            trunk: VGG16's, as `features.<layer>.weight` and `.bias`, of any shape.
            heads: Those of LPIPS, as `lin<number>.model.1.weight` [1, D, 1, 1].
        """
        self.features.load_state_dict(
            {key.removeprefix("features."): t for key, t in trunk.items() if "features" in key}
        )
        self.heads.load_state_dict(
            {f"{n}.weight": heads[f"lin{n}.model.1.weight"] for n in range(len(TAPS))}
        )

    def normalized(self, x: Tensor) -> list[Tensor]:
        """Features of unit length [B, C, H, W] at each tap, for images `x` [B, 3, H, W]."""
        found = []
        h = (x - self.shift) / self.scale
        for number, layer in enumerate(self.features):
            h = layer(h)
            if number in TAPS:
                # Under the root, as dead pixels would have no gradient outside of it.
                found.append(h / (h.square().sum(1, keepdim=True) + 1e-20).sqrt())
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance [B] of images `a` and `b` [B, 3, H, W] in [-1, 1]."""
        pairs = zip(self.normalized(a), self.normalized(b), self.heads, strict=True)
        parts = [head((p - q).square()).mean((1, 2, 3)) for p, q, head in pairs]
        return torch.stack(parts).sum(0)


class Perceptual:
    """LPIPS of Zhang et al. (2018) with VGG16, on images brought to 224 pixels at least.

    FOUND (Song et al., 2023): bilinear to 224 x 224. DERIVED: the poolings are those of VGG, where
    the released code of CM replaces them by averages.

    Args:
        build: What the term was told.

    Raises:
        RecipeError: R10 if the data are no pictures, or if the weights are not on this machine.
    """

    def __init__(self, build: Build) -> None:
        self.domain = _domain(build)
        self._network = Vgg()
        self._network.read(*find_weights(build))

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance [B] of samples `a` and `b` [B, C, H, W]."""
        # Kept out of the term's modules: nobody trains it, and no checkpoint needs it.
        self._network = self._network.to(a.device)
        found: Tensor = self._network(self._seen(a), self._seen(b))
        return found.to(a.dtype)

    def _seen(self, x: Tensor) -> Tensor:
        """Samples [B, C, H, W] as the network gets them: [B, 3, 224, 224] or larger, in [-1, 1]."""
        x = (x.float() - self.domain.low) * (2 / self.domain.span) - 1
        x = x.expand(-1, 3, -1, -1)
        if min(x.shape[2:]) < SIZE:
            x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        return x


def _domain(build: Build) -> Domain:
    """The range of pictures.

    Raises:
        RecipeError: R10 for other data.
    """
    data, fix = build.data, 'write distance = "l2"'
    if data is None or not data.is_image or data.shape[0] not in (1, 3):
        shape = None if data is None else list(data.shape)
        refuse(build, "distance", f"lpips compares grey or colour images, found {shape}", fix)
    assert data is not None
    if data.domain is None:
        refuse(build, "distance", "lpips needs to know the range of the data", "set data.domain")
    assert data.domain is not None
    return data.domain


def find_weights(build: Build) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Weights of VGG16 and of the heads, from where torchvision and lpips keep them.

    Nothing is fetched: a training does not begin with a download.

    Args:
        build: What the term was told, for the message.

    Raises:
        RecipeError: R10 if one of them is missing, naming what fetches it.
    """
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        message = "the heads of lpips come with the package of that name, which is not installed"
        refuse(build, "distance", message, 'pip install "advdiff-atdiff[lpips]"')
    trunk = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not trunk.is_file():
        message = f"lpips needs the weights of VGG16, and there is no file {trunk}"
        refuse(build, "distance", message, f"fetch it by {FETCH}, or put it there")
    assert package is not None
    heads = Path(str(package.origin)).parent / "weights" / "v0.1" / "vgg.pth"
    return _load(trunk), _load(heads)


def _load(path: Path) -> Mapping[str, Tensor]:
    """Tensors of a file of `torch.save`, by a reader that can run nothing."""
    with path.open("rb") as file:
        read = read_zip if zipfile.is_zipfile(file) else read_legacy
        file.seek(0)
        return {name: _tensor(ref) for name, ref in read(file, where=str(path)).items()}


def _tensor(ref: TensorRef) -> Tensor:
    numbers = torch.frombuffer(bytearray(ref.storage.read()), dtype=torch.float32)
    return numbers.as_strided(ref.shape, ref.stride, ref.offset).clone()
