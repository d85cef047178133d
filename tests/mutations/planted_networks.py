"""Mistakes in backbones, discriminators and alignment targets."""

from __future__ import annotations

import math
import random
from typing import ClassVar

import torch
import torch.nn.functional as F
from planted import planted
from torch import nn

from advdiff_core import AlignmentTarget, Backbone, BackboneOutput, Discriminator, TapInfo
from advdiff_core.settings import setting, settings

WIDTH = 4


class Healthy(Backbone):
    """Three layers on flattened input, with a tap after each of the first two."""

    @settings
    class Settings:
        """Keys."""

        width: int = setting(WIDTH, ge=1, help="features")

    def __init__(self, settings, build):
        super().__init__(settings, build)
        size = math.prod(build.data.shape)
        self.first = nn.Linear(size + 1, settings.width)
        self.second = nn.Linear(settings.width, settings.width)
        self.last = nn.Linear(settings.width, size)

    @property
    def taps(self):
        """Two."""
        return {name: TapInfo(width=self.settings.width) for name in ("one", "two")}

    def enter(self, x, c_noise):
        """Input of the first layer."""
        return torch.cat([x.flatten(1), c_noise[:, None].to(x.dtype) / 1000], dim=1)

    def leave(self, h, x):
        """Output."""
        return self.last(h).reshape(x.shape)

    def forward(self, x, c_noise=None, labels=None, *, taps=(), stop_at=None):
        """Run it."""
        features = {}
        h = self.enter(x, x.new_zeros(len(x)) if c_noise is None else c_noise)
        for name, layer in (("one", self.first), ("two", self.second)):
            h = torch.tanh(layer(h))
            if name in taps:
                features[name] = h
            if name == stop_at:
                return BackboneOutput(None, features)
        return BackboneOutput(self.leave(h, x), features)


@planted("shapes", "output of shape", "shape of x")
class Flattens(Healthy):
    """Forgets to restore the shape of images."""

    def leave(self, h, x):
        """Flat, and one number short."""
        return self.last(h)[None]


@planted("shapes", "a variance of shape", "along the channels")
class WholeHead(Healthy):
    """Hands over mean and variance in one as its variance."""

    def forward(self, x, c_noise=None, labels=None, *, taps=(), stop_at=None):
        """Twice as wide as the output."""
        out = super().forward(x, c_noise, labels, taps=taps, stop_at=stop_at)
        return out._replace(variance=torch.cat([x, x], dim=1))


@planted("taps-as-declared", "TapInfo", "shape")
class TapWidthLies(Healthy):
    """Declares a wider tap than there is."""

    @property
    def taps(self):
        """Twice the width."""
        return {name: TapInfo(width=2 * self.settings.width) for name in ("one", "two")}


@planted("taps-as-declared", "features", "only if its name is in `taps`")
class AllTaps(Healthy):
    """Returns every feature, asked for or not."""

    def forward(self, x, c_noise=None, labels=None, *, taps=(), stop_at=None):
        """Everything."""
        return super().forward(x, c_noise, labels, taps=("one", "two"), stop_at=stop_at)


@planted("stop-at-is-the-full-forward", "layers run after", "return as soon as")
class RunsOn(Healthy):
    """Computes all layers and then hides the output."""

    def forward(self, x, c_noise=None, labels=None, *, taps=(), stop_at=None):
        """Everything."""
        out = super().forward(x, c_noise, labels, taps=taps)
        return BackboneOutput(None if stop_at else out.output, out.features)


@planted("stop-at-is-the-full-forward", "stopped early", "same layers")
class StopsElsewhere(Healthy):
    """The feature of an early stop is another one."""

    def forward(self, x, c_noise=None, labels=None, *, taps=(), stop_at=None):
        """Scaled."""
        out = super().forward(x, c_noise, labels, taps=taps, stop_at=stop_at)
        scale = 0.5 if stop_at else 1.0
        return BackboneOutput(out.output, {name: scale * f for name, f in out.features.items()})


@planted("stop-at-is-the-full-forward", "an output although", "output None")
class IgnoresStop(Healthy):
    """Does not know stop_at."""

    def forward(self, x, c_noise=None, labels=None, *, taps=(), stop_at=None):
        """Everything."""
        return super().forward(x, c_noise, labels, taps=taps)


@planted("samples-are-independent", "batch against alone", "no statistics over the batch")
class BatchStatistics(Healthy):
    """Batch norm that never uses its running averages."""

    def leave(self, h, x):
        """Normalised over the batch."""
        return super().leave(F.batch_norm(h, None, None, training=True), x) if len(h) > 1 else x


@planted("leaves-everything-alone", "its input x", "in place")
class InPlace(Healthy):
    """A residual connection in place."""

    def leave(self, h, x):
        """+=."""
        x += super().leave(h, x)
        return x


@planted("leaves-everything-alone", "torch's global generator")
class NoiseInEval(Healthy):
    """Draws noise in eval mode."""

    def leave(self, h, x):
        """Noise."""
        return super().leave(h, x) + 1e-3 * torch.randn_like(x)


@planted("leaves-everything-alone", "draws_random")
class HiddenDropout(Healthy):
    """Functional dropout, which the core cannot see."""

    def leave(self, h, x):
        """Dropout."""
        return super().leave(F.dropout(h, 0.5, training=self.training), x)


@planted("leaves-everything-alone", "buffer", "left as it was")
class CountsForwards(Healthy):
    """Keeps a counter in a buffer, also in eval mode."""

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.register_buffer("seen", torch.zeros(()))

    def leave(self, h, x):
        """Counts."""
        self.seen += 1
        return super().leave(h, x)


@planted("channels-last", "no exception", "view")
class NeedsContiguous(Healthy):
    """`view` where memory may lie otherwise."""

    def enter(self, x, c_noise):
        """View."""
        return super().enter(x.view(len(x), -1), c_noise)


@planted("bf16-autocast", "no exception")
class MixesTypes(Healthy):
    """Multiplies by its weights by hand, in a type of its own."""

    def leave(self, h, x):
        """float32 weights with whatever comes in."""
        h = torch.tanh(self.second(h))
        out = torch.addcmul(self.last.bias, h.new_zeros(len(x), 1), self.last.bias[None])
        with torch.autocast("cpu", enabled=False):
            return (out + h @ self.last.weight.T).reshape(x.shape)


@planted("gradients-arrive", "gradient towards the input", "detach")
class DetachedInput(Healthy):
    """Sees a copy of the input."""

    def enter(self, x, c_noise):
        """Detached."""
        return super().enter(x.detach(), c_noise)


class Told(Healthy):
    """Embeds labels and the strength of guidance: healthy."""

    classes = 3
    guided = True
    added = ("strength.weight",)

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.label = nn.Embedding(4, settings.width)
        self.strength = nn.Linear(1, settings.width, bias=False)

    def embed(self, labels, guidance, x):
        """What both add to the features."""
        known = torch.full((len(x),), 3) if labels is None else labels
        w = x.new_zeros(len(x)) if guidance is None else guidance
        return self.label(known) + self.strength(w[:, None].to(x.dtype))

    def forward(self, x, c_noise=None, labels=None, *, taps=(), stop_at=None, guidance=None):
        """Run it."""
        out = super().forward(x, c_noise, labels, taps=taps, stop_at=stop_at)
        if out.output is None:
            return out
        moved = self.last(self.embed(labels, guidance, x)).reshape(x.shape)
        return out._replace(output=out.output + moved)


@planted("labels-as-declared", "with classes = 0", "self.classes")
class HidesLabels(Told):
    """Embeds labels and does not say so."""

    classes = 0


@planted("labels-as-declared", "other labels or none, with classes = 3", "embed the labels")
class ForgetsLabels(Told):
    """Says that it knows labels, and drops them."""

    def embed(self, labels, guidance, x):
        """The strength alone."""
        return super().embed(None, guidance, x)


@planted("guidance-as-declared", "whatever the strength", "embed `guidance`")
class Deaf(Told):
    """Takes the strength and does nothing with it."""

    def embed(self, labels, guidance, x):
        """Labels alone."""
        return super().embed(labels, None, x)


@planted("guidance-as-declared", "another output without guidance", "zeros where guidance is None")
class Presumes(Told):
    """Guides by 1 where it is told nothing."""

    def embed(self, labels, guidance, x):
        """One in place of zero."""
        return super().embed(labels, torch.ones(len(x)) if guidance is None else guidance, x)


@planted("guidance-as-declared", "another one is told another strength", "never its mean")
class Averages(Told):
    """Guides all samples alike."""

    def embed(self, labels, guidance, x):
        """The mean."""
        w = None if guidance is None else guidance.mean().expand(len(x))
        return super().embed(labels, w, x)


@planted("guidance-as-declared", "in `added` that it has not got", "state_dict")
class Misnames(Told):
    """Names a tensor that it has not got."""

    added = ("strength.bias",)


@planted("double-backward-as-declared", "double backward", "supports_double_backward = False")
class OnceOnly(Healthy):
    """A fused layer with one derivative."""

    def leave(self, h, x):
        """Once differentiable."""
        return super().leave(_OnceSine.apply(h), x)


class Honest(Healthy):
    """A fused layer with one derivative, that says so: healthy."""

    supports_double_backward = False

    def leave(self, h, x):
        """Once differentiable."""
        return super().leave(_OnceSine.apply(h), x)


@planted("double-backward-as-declared", "double backward that works", "remove")
class TooModest(Healthy):
    """Says that it has no second derivative, and has one."""

    supports_double_backward = False


class _OnceSine(torch.autograd.Function):
    """A sine whose backward has no graph."""

    @staticmethod
    def forward(ctx, x):
        """Sine."""
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """Cosine."""
        return grad * ctx.saved_tensors[0].cos()


@planted("shapes", "no exception", "labelled=False")
class NeedsLabels(Healthy):
    """Fails without labels."""

    def forward(self, x, c_noise=None, labels=None, *, taps=(), stop_at=None):
        """Labels may be None."""
        x = x + 0.0 * labels.reshape(-1, *([1] * (x.dim() - 1)))
        return super().forward(x, c_noise, labels, taps=taps, stop_at=stop_at)


@planted("building-is-repeatable", "Python's random", "global one")
class PythonInit(Healthy):
    """Initialises from Python's generator."""

    def __init__(self, settings, build):
        super().__init__(settings, build)
        scale = random.random()
        with torch.no_grad():
            self.first.weight.mul_(scale)


@planted("settings-hold-at-the-edge", "width = 0", "bound it")
class Unbounded(Healthy):
    """A width that may be zero."""

    @settings
    class Settings:
        """Keys."""

        width: int = setting(WIDTH, help="features")

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.share = 1 / settings.width


class Critic(Discriminator):
    """A small discriminator, healthy."""

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.first = nn.Linear(math.prod(build.data.shape), WIDTH)
        self.last = nn.Linear(WIDTH, 1)

    def hidden(self, x):
        """Hidden features."""
        return torch.tanh(self.first(x.flatten(1)))

    def forward(self, x, *, reference=None, labels=None):
        """Logits."""
        seen = x if reference is None else x - reference
        return self.last(self.hidden(seen)).squeeze(1)


@planted("samples-are-independent", "batch against alone", "minibatch")
class MinibatchDeviation(Critic):
    """Adds the deviation over the batch as a feature."""

    def hidden(self, x):
        """Minibatch discrimination."""
        h = super().hidden(x)
        return h + h.std(dim=0, unbiased=False)


@planted("one-row-per-sample", "logits of shape", "batch axis")
class OneScore(Critic):
    """Averages over the batch."""

    def forward(self, x, *, reference=None, labels=None):
        """A scalar."""
        return super().forward(x, reference=reference, labels=labels).mean()


@planted("leaves-everything-alone", "its input x", "in place")
class InPlaceActivation(Critic):
    """An activation that writes into its input."""

    def hidden(self, x):
        """relu_."""
        return super().hidden(F.relu_(x))


@planted("gradients-arrive", "no gradient towards the input", "generators learn")
class StopsGenerators(Critic):
    """Lets no gradient through."""

    def hidden(self, x):
        """Detached."""
        return super().hidden(x.detach())


@planted("double-backward-as-declared", "double backward", "supports_double_backward = False")
class NoR1(Critic):
    """A layer with one derivative."""

    def hidden(self, x):
        """Once differentiable."""
        return _OnceSine.apply(super().hidden(x))


@planted("double-backward-as-declared", "double backward that works", "remove")
class TooModestCritic(Critic):
    """Keeps penalties away that would work."""

    supports_double_backward = False


@planted("leaves-everything-alone", "draws_random")
class Augments(Critic):
    """Augments in train mode without saying so."""

    def hidden(self, x):
        """Noise."""
        return super().hidden(x + 0.1 * torch.randn_like(x) if self.training else x)


@planted("updated-leaves-what-is-trained", "moves first.weight", "requires_grad = False")
class ClipsWeights(Critic):
    """Clips what is trained after each update."""

    def updated(self):
        """As the first Wasserstein critics did."""
        self.first.weight.clamp_(-0.01, 0.01)


@planted("updated-leaves-what-is-trained", "torch's global generator")
class DrawsTwins(Critic):
    """Keeps an average that is noisy."""

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.register_buffer("average", torch.zeros(WIDTH))

    def updated(self):
        """Draws."""
        self.average.add_(torch.randn(WIDTH))


@planted("updated-leaves-what-is-trained", "average differs between two networks")
class CountsUpdates(Critic):
    """Goes on counting where another network of the process stopped."""

    updates: ClassVar[list[int]] = []

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.register_buffer("average", torch.zeros(WIDTH))

    def updated(self):
        """Count."""
        self.updates.append(1)
        self.average.fill_(len(self.updates))


class Target(AlignmentTarget):
    """Projected, slightly noised images, healthy."""

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.projection = nn.Linear(math.prod(build.data.shape), WIDTH)

    @property
    def width(self):
        """Width."""
        return WIDTH

    def noise(self, x0, rng):
        """Numbers of this target."""
        return rng.normal(x0.shape).to(x0.dtype)

    def forward(self, x0, labels, rng):
        """Features."""
        return self.projection((x0 + 0.1 * self.noise(x0, rng)).flatten(1))


@planted("width-and-shape", "width", "as declared")
class WidthLies(Target):
    """Declares another width."""

    @property
    def width(self):
        """Wrong."""
        return WIDTH + 1


@planted("samples-are-independent", "batch against alone", "no statistics")
class Standardises(Target):
    """Centres features over the batch."""

    def forward(self, x0, labels, rng):
        """Centred."""
        found = super().forward(x0, labels, rng)
        return found - found.mean(dim=0)


@planted("leaves-everything-alone", "torch's global generator", "generator or Draws")
class TargetNoise(Target):
    """Draws from the global generator."""

    def noise(self, x0, rng):
        """Global."""
        return torch.randn_like(x0)


@planted("has-no-memory", "after another batch", "nothing from one forward to the next")
class RunningMean(Target):
    """Subtracts a running mean."""

    mean = 0.0

    def forward(self, x0, labels, rng):
        """Remembers."""
        found = super().forward(x0, labels, rng)
        self.mean = 0.9 * self.mean + 0.1 * found.mean()
        return found - self.mean


@planted("is-detached", "graph", "detached features")
class SwitchesGradientsOn(Target):
    """Builds a graph although nobody asked."""

    def forward(self, x0, labels, rng):
        """enable_grad."""
        with torch.enable_grad():
            scale = torch.ones((), requires_grad=True)
            return super().forward(x0, labels, rng) * scale
