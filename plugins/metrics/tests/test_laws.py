"""The plugin's metrics keep the laws; Inception's place is taken by a network of one layer."""

import functools

import pytest
import torch
from advdiff_metrics.inception import InceptionExtractor
from advdiff_metrics.lite import LiteExtractor

from advdiff_core.testing import Example, laws

QUALITY = {"metric": {"use": "frechet"}}
TIMM = {"features": "timm:test_vit", "unpublished": True, "size": 32}


class _Layer(torch.nn.Module):
    """Features [B, 12] of 8-bit images, and nothing that depends on a batch."""

    def forward(self, x):
        """A tuple, as the library's network gives it."""
        pooled = torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, 2)
        return (pooled.flatten(1).sin(),)


def _inception(settings, best=None):
    """An example with a file of weights in the test's folder."""

    def make(folder):
        (folder / "weights.pth").write_bytes(b"taken by the layer above")
        keys = {"weights": str(folder / "weights.pth"), "unpublished": True, **settings}
        return Example(settings=keys, best=best or {})

    return make


EXAMPLES = {
    "metric:accuracy": [{}, {"batch": 7, "confidence": 0.9}],
    "metric:fd-lite": [Example(settings={"size": 32}, best={"fd_lite": 0.0})],
    "metric:fd:test_vit": [
        Example(settings={"random": True, "size": 32}, best={"fd_test_vit": 0.0}),
    ],
    "metric:few-steps": [
        {**QUALITY, "steps": [1, 3]},
        {**QUALITY, "steps": [2], "samplers": [{"use": "ddim"}, {"use": "heun"}], "num": 10},
    ],
    "metric:fid": [_inception({"batch": 5}, {"fid_unpublished": 0.0})],
    "metric:inception-score": [_inception({"splits": 2})],
    "metric:kid": [Example(settings={**TIMM, "subsets": 4, "subset": 10})],
    "metric:memorization": [
        Example(settings=TIMM, best={"memorization_q50": 1.0, "memorization_share": 1.0}),
        {**TIMM, "threshold": 0.5},
    ],
    "metric:precision-recall": [
        Example(settings=TIMM, best={"precision_test_vit": 1.0, "recall_test_vit": 1.0}),
    ],
}

test_metrics_keep_the_laws = laws(["advdiff-metrics"], examples=EXAMPLES, witnesses=2)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """The layer, and fd-lite's weights read once for all laws."""
    monkeypatch.setattr(InceptionExtractor, "load", lambda _: _Layer())
    read = functools.partialmethod(_read, LiteExtractor.load)
    monkeypatch.setattr(LiteExtractor, "load", read)


_NETS = {}


def _read(extractor, load):
    if extractor.name not in _NETS:
        _NETS[extractor.name] = load(extractor)
    return _NETS[extractor.name]
