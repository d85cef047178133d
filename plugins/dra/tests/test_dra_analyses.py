"""The analyses as metrics: what they read, attack and write, and what they refuse."""

import csv

import helpers_dra_analyses as h
import pytest
import torch
import torch.nn.functional as F
from advdiff_dra.dimension import Basis
from advdiff_dra.geometry import alignment, uniformity
from advdiff_dra.images import Images
from advdiff_dra.judged import Judged
from advdiff_dra.kernel_alignment import cknna
from advdiff_dra.metrics_dimension import ClassificationDimension
from advdiff_dra.metrics_geometry import CKNNA, OtherSettings, UniformityAlignment
from advdiff_dra.metrics_noise_head import NoiseHeadEOT
from advdiff_dra.metrics_probe import LinearProbe, ProbeSweep
from advdiff_dra.metrics_sparse import SparseAutoencoder
from advdiff_dra.metrics_spectrum import FrequencySaliency
from advdiff_dra.reading import affine_head
from safetensors.torch import load_file

from advdiff_core import DataError, DataInfo, Domain, NumericsError, RecipeError

TEACHER = {"role": "teacher", "tap": "hidden"}


def other(count=30, seed=9, **info):
    """Other images as a recipe's table."""
    x, y = h.images(count, seed=seed)
    return h.placed("dataset", h.Given(x, y, **info))


def refused(cls, told=None, **keys):
    """The fault of these keys."""
    with pytest.raises(RecipeError) as caught:
        h.made(cls, told, **keys)
    return caught.value.faults[0]


# What is read.


def test_images_are_the_same_whatever_their_order():
    """Sorted by content, parts keep copies of an image together."""
    x, y = h.images(20)
    x[7] = x[3]
    turn = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    one, two = Images.of(x, y), Images.of(x[turn], y[turn])
    assert one.ids == two.ids
    assert torch.equal(one.x, two.x)
    for share in (0.1, 0.3, 0.5, 0.9):
        left, right = one.cut(share)
        assert len(left) + len(right) == 20
        assert not set(left.ids) & set(right.ids)
        assert abs(len(right) - 20 * share) <= 1
    with pytest.raises(DataError, match="1 different images cannot be cut") as caught:
        Images.of(x[[3, 7]], y[[3, 7]]).cut(0.5)
    assert "take more images" in caught.value.fix


def test_noise_belongs_to_the_image(tmp_path):
    """The features of an image do not depend on its batch, and change with the seed alone."""
    told = h.evaluation(tmp_path, h.Net(outputs=0))
    readers = [Judged(LinearProbe.Settings(**TEACHER, seed=s), h.build()).reader for s in (0, 0, 1)]
    every = Images.of(told.clean, told.labels)
    few = every.rows(torch.tensor([4, 2]))
    whole, part, others = (
        reader.features(told, one) for reader, one in zip(readers, (every, few, every), strict=True)
    )
    torch.testing.assert_close(part, whole[[4, 2]])
    assert not torch.allclose(others, whole)


def test_denoiser_is_read_at_the_level_that_is_named(tmp_path):
    """`sigma` is relative to the signal, `t` the schedule's own; the forward stops at the tap."""
    net = h.Net(outputs=0)
    told = h.evaluation(tmp_path, net)
    reader = Judged(LinearProbe.Settings(**TEACHER, sigma=0.4), h.build()).reader
    assert reader.level.t == pytest.approx(0.4, rel=1e-9)
    by_time = Judged(LinearProbe.Settings(**TEACHER, t=0.4), h.build()).reader
    one = Images.of(told.clean[:5], told.labels[:5])
    torch.testing.assert_close(reader.features(told, one), by_time.features(told, one))
    eps = reader.noise(one, told)
    t = torch.full((5,), 0.4)
    c_in = (1 + t.square()).rsqrt()[:, None, None, None]
    wanted = net(c_in * (one.x + 0.4 * eps), h.SCHEDULE.c_noise(t), taps=("hidden",))
    torch.testing.assert_close(reader.features(told, one), wanted.features["hidden"])


def test_maps_are_pooled_and_other_data_are_moved_to_the_run(tmp_path):
    """Features are means over places; images in [0, 1] are read in the run's [-1, 1]."""
    x, y = h.images(10, seed=4)
    info = DataInfo(shape=(1, 4, 4), count=10, classes=3, domain=Domain(0.0, 1.0))
    unit = h.placed("dataset", h.Given((x + 1) / 2, y, info=info))
    metric = h.made(UniformityAlignment, tap="maps", data=unit)
    net = h.Net()
    told = h.evaluation(tmp_path, net)
    found = metric.compute(told)
    maps = torch.einsum("oc,bchw->bohw", net.maps.detach(), x).mean((2, 3))
    assert found == {"uniformity": pytest.approx(uniformity(maps), abs=1e-5)}
    assert metric.protocol()["fingerprint"].startswith("given 10")


@pytest.mark.parametrize(
    ("keys", "key", "message", "fix"),
    [
        ({"role": "dino"}, "role", "'dino' is no network of this recipe", "role of kind backbone"),
        ({"role": "teacher"}, "tap", "a tap of 'teacher' has to be named", "maps, hidden"),
        ({"tap": "huh"}, "tap", "no tap 'huh'; there are maps, hidden", "choose one"),
        ({**TEACHER, "t": 99.0}, "t", "found 99, the schedule's time goes from", "between"),
        ({**TEACHER, "head": "own"}, "head", "is a denoiser and has no head", "probe"),
        ({**TEACHER, "condition": "label"}, "condition", "knows the class", "none"),
        ({"attack": h.attack(), "norm": "l1"}, "norm", "does not search in l1", "linf"),
        ({"data": other(info=DataInfo(shape=(1, 4, 4), count=30))}, "data", "no labels", "classes"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(keys, key, message, fix, monkeypatch):
    """Each with the key it is about, what was found, and the mend."""
    monkeypatch.setattr(h.ToyFGSM, "norms", ("linf", "l2"))
    fault = refused(ClassificationDimension, **keys)
    assert fault.key == f"evaluate.metrics[0].{key}"
    assert message in fault.message
    assert fix in fault.fix


def test_data_that_do_not_fit_are_refused(tmp_path):
    """Images of another shape, labels out of range, no labels, and networks without features."""
    shape = DataInfo(shape=(1, 8, 8), count=3, classes=3)
    small = h.placed("dataset", h.Given(torch.zeros(3, 1, 8, 8), torch.zeros(3), info=shape))
    assert "[1, 8, 8], the network's are [1, 4, 4]" in refused(LinearProbe, data=small).message
    flat = h.build(data=DataInfo(shape=(16,), count=3, classes=3))
    assert "have no spectrum" in refused(FrequencySaliency, flat).message
    assert "no noise schedule" in refused(LinearProbe, h.build(schedule=None), **TEACHER).message
    told = h.evaluation(tmp_path)
    told.labels = told.labels + 1
    with pytest.raises(DataError, match="an image has label 3, the run has 3 classes"):
        h.made(LinearProbe).compute(told)
    told = h.evaluation(tmp_path)
    told.labels = None
    with pytest.raises(DataError, match="the images have no labels"):
        h.made(LinearProbe).compute(told)
    net = h.Net()
    net.first.data[0, 0] = torch.nan
    with pytest.raises(NumericsError, match="features of 60 of 60 images are not finite"):
        h.made(UniformityAlignment).compute(h.evaluation(tmp_path, net))


# Probes.


def test_probe_is_scored_on_images_it_did_not_see(tmp_path):
    """With data on those; without on a part of the training images, and the names say so."""
    told = h.evaluation(tmp_path)
    found = h.made(LinearProbe, data=other(30)).compute(told)
    assert set(found) == {f"probe_{k}" for k in ("accuracy", "accuracy_low", "accuracy_high",
                                                 "fit_accuracy")}  # fmt: skip
    assert found["probe_accuracy_low"] < found["probe_accuracy"] < found["probe_accuracy_high"]
    assert told.notes == ["fitted on 60 images, scored on 30"]
    told = h.evaluation(tmp_path)
    metric = h.made(LinearProbe, holdout=0.25)
    assert all(name.startswith("train_probe_") for name in metric.compute(told))
    assert told.notes == ["fitted on 45 images, scored on 15"]
    assert "0.25 of the training images" in metric.protocol()["scored"]


def test_probe_under_attack_meets_the_frozen_noise(tmp_path):
    """No radius changes nothing, larger ones lower it, and repeating gives the same numbers."""
    net = h.Net(outputs=0)
    keys = {
        **TEACHER, "sigma": 0.3, "attack": h.attack(steps=3, random_start=True),
        "eps": (0.0, 0.05, 0.3), "data": other(40), "batch": 16,
    }  # fmt: skip
    found = h.made(LinearProbe, **keys).compute(h.evaluation(tmp_path, net))
    robust = [found[f"probe_robust_accuracy_{255 * eps:g}"] for eps in keys["eps"]]
    assert robust[0] == found["probe_accuracy"]
    assert robust[0] > robust[1] > robust[2]
    again = h.made(LinearProbe, **{**keys, "batch": 7}).compute(h.evaluation(tmp_path, net))
    assert again == pytest.approx(found, abs=0.03)
    with (tmp_path / "linear-probe-teacher-hidden.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["curve", "255 eps", "value"]
    assert float(rows[-1][2]) == robust[2]
    assert (tmp_path / "linear-probe-teacher-hidden.png").stat().st_size > 500


def test_sweep_chooses_by_images_that_do_not_score(tmp_path):
    """More noise reads worse; the level with the best held-out accuracy is scored apart."""
    keys = {"role": "teacher", "taps": ("maps", "hidden"), "sigmas": (8.0, 0.02), "holdout": 0.4}
    told = h.evaluation(tmp_path, h.Net(outputs=0))
    found = h.made(ProbeSweep, **keys, data=other(30)).compute(told)
    assert found["probe_best_sigma"] == 0.02
    assert found["probe_hidden_0.02"] > found["probe_hidden_8"]
    tap = ("maps", "hidden")[int(found["probe_best_tap"])]
    held = {k: v for k, v in found.items() if "best" not in k}
    assert held[f"probe_{tap}_0.02"] == max(held.values())
    assert "fitted on 36 images, chosen by 24, scored on 30" in told.notes[0]
    told = h.evaluation(tmp_path, h.Net(outputs=0))
    assert "train_probe_best_accuracy" in h.made(ProbeSweep, **keys).compute(told)
    assert "fitted on 36 images, chosen by 12, scored on 12" in told.notes[0]
    with (tmp_path / "probe-sweep-teacher.csv").open() as file:
        assert len(list(csv.reader(file))) == 5
    assert "no denoiser of this recipe" in refused(ProbeSweep).message
    with pytest.raises(ValueError, match="sigmas: found"):
        ProbeSweep.Settings(sigmas=(1.0, 1.0))


# Geometry.


def test_uniformity_is_that_of_the_features_and_alignment_of_the_attacked(tmp_path):
    """Without a radius the pairs are equal; an attack parts them, further than noise does."""
    told = h.evaluation(tmp_path)
    keys = {"attack": h.attack(steps=3, random_start=True), "batch": 16}
    still = h.made(UniformityAlignment, **keys, eps=0.0).compute(told)
    clean = torch.tanh(torch.einsum("oc,bchw->bohw", told._module.maps, told.clean).flatten(1)
                       @ told._module.first.T)  # fmt: skip
    assert still["train_uniformity"] == pytest.approx(uniformity(clean), abs=1e-5)
    assert still["train_alignment"] == pytest.approx(0, abs=1e-9)
    moved = h.made(UniformityAlignment, **keys, eps=0.1).compute(told)["train_alignment"]
    signs = torch.randint(0, 2, told.clean.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    shaken = told.clean + 0.4 * signs  # The same radius on [-1, 1].
    noise = torch.tanh(torch.einsum("oc,bchw->bohw", told._module.maps, shaken).flatten(1)
                       @ told._module.first.T)  # fmt: skip
    assert moved > 1.2 * alignment(clean, noise)
    logits = h.made(UniformityAlignment, **keys, eps=0.1, climb="logits").compute(told)
    assert 0 < logits["train_alignment"] < 4
    probe = h.made(UniformityAlignment, **keys, **TEACHER, climb="logits", sigma=0.2)
    assert probe.compute(h.evaluation(tmp_path, h.Net(outputs=0)))["train_alignment"] > 0


def test_uniformity_needs_no_labels(tmp_path):
    """Data without classes do, where nothing is classified."""
    told = h.evaluation(tmp_path)
    told.labels = None
    data = DataInfo(shape=(1, 4, 4), count=60, domain=Domain(-1.0, 1.0))
    found = h.made(UniformityAlignment, h.build(data=data)).compute(told)
    assert -8 <= found["train_uniformity"] <= 0


def test_cknna_compares_two_readings_of_the_same_images(tmp_path):
    """A network with itself gives 1; two taps what their features give, clipped or not."""
    told = h.evaluation(tmp_path)
    same = h.made(CKNNA, other=OtherSettings(), clip=0.9)
    assert same.compute(told)["train_cknna"] == pytest.approx(1, abs=1e-9)
    metric = h.made(CKNNA, other=OtherSettings(tap="maps"), clip=1.0, k=5)
    found = metric.compute(told)
    images = Images.of(told.clean, told.labels)
    features = [reader.features(told, images) for reader in metric.readers]
    assert found["train_cknna"] == pytest.approx(cknna(*features, k=5), abs=1e-12)
    assert metric.protocol()["other"]["tap"] == "maps"
    with pytest.raises(RecipeError, match="60 images do not have 60 neighbours each"):
        h.made(CKNNA, k=60).compute(told)
    fault = refused(CKNNA, other=OtherSettings(role="teacher"))
    assert fault.key == "evaluate.metrics[0].other.tap"


def test_cknna_refuses_features_without_structure(tmp_path):
    """Where all inner products are equal there is nothing to compare."""
    net = h.Net()
    net.first.data.zero_()
    told = h.evaluation(tmp_path, net)
    with pytest.raises(NumericsError, match="HSIC is not positive"):
        h.made(CKNNA).compute(told)


# Dimensions, spectra, codes.


def test_head_is_read_off_exactly_and_only_where_it_is_affine(tmp_path):
    """By differentiation, also behind a mean over places; a tap before a bend is refused."""
    net = h.Net()

    def forward(x):
        out = net(x, taps=("maps", "hidden"))
        return out.output, out.features

    x, _ = h.images(20)
    head = affine_head(forward, x, tap="hidden", where="here")
    torch.testing.assert_close(head.weight, net.last.detach().double())
    torch.testing.assert_close(head.bias, net.bias.detach().double(), atol=1e-6, rtol=1e-5)
    with pytest.raises(DataError, match="no affine map of the features at 'maps'") as caught:
        affine_head(forward, x, tap="maps", where="here")
    assert caught.value.fix == "name the tap before the last layer"

    def mean(x):
        maps = torch.einsum("oc,bchw->bohw", net.maps, x)
        return maps.mean((2, 3)) @ net.last[:, :2].T + net.bias, {"maps": maps}

    behind = affine_head(mean, x, tap="maps", where="here")
    torch.testing.assert_close(behind.weight, net.last[:, :2].detach().double())

    def elsewhere(x):
        return net(x).output, {"maps": torch.einsum("oc,bchw->bohw", net.maps, x)}

    with pytest.raises(DataError, match="the logits do not come from the tap 'maps'"):
        affine_head(elsewhere, x, tap="maps", where="here")


def test_dimensions_of_a_classifier_are_those_of_its_own_head(tmp_path):
    """Accuracy of all directions is the classifier's; fewer suffice for 95 % than for 99 %."""
    net = h.Net()
    told = h.evaluation(tmp_path, net)
    found = h.made(ClassificationDimension, attack=h.attack(steps=2), eps=0.05).compute(told)
    right = net(told.clean).output.argmax(1) == told.labels
    assert found["train_dimension_accuracy"] == pytest.approx(float(right.float().mean()))
    assert 1 <= found["train_cls_95"] <= found["train_cls_99"] <= 6
    assert 1 <= found["train_robust_dim"] <= 6
    best = found["train_dimension_best_robust_accuracy"]
    assert best >= found["train_dimension_robust_accuracy"]
    assert found["train_dimension_robust_accuracy"] < found["train_dimension_accuracy"]
    with (tmp_path / "classification-dimension-student.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 2 * 6


def test_dimensions_of_a_probe_may_take_the_directions_of_its_training_images(tmp_path):
    """The basis is that of the images that are named."""
    told = h.evaluation(tmp_path, h.Net(outputs=0))
    metric = h.made(ClassificationDimension, **TEACHER, data=other(30), basis="training")
    found = metric.compute(told)
    assert found["dimension_accuracy"] > 0.5
    bound = metric.judged.bind(told)
    features = metric.judged.reader.features(told, bound.fitted)
    basis = metric._basis(bound, metric.judged.reader.features(told, bound.scored))
    torch.testing.assert_close(basis.mean, Basis.of(features).mean)


def test_saliency_of_a_checkerboard_is_high(tmp_path):
    """The gradients of a network that sees one pattern have its spectrum; so do perturbations."""
    board = ((torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2.0 - 1).flatten()
    net = h.Net()
    net.first.data = torch.cat([board, board])[None].repeat(6, 1) / 32
    for keys, least in ({}, 1 - 1e-4), ({"attack": h.attack(), "norm": "l2"}, 0.9):
        told = h.evaluation(tmp_path, net)
        found = h.made(FrequencySaliency, **keys).compute(told)
        # What an attack did at the ends of the range was cut off.
        assert found["train_saliency_high"] > least
        assert found["train_saliency_energy_low"] < 1 - least
    maps = load_file(tmp_path / "frequency-saliency-student.safetensors")
    assert float(maps["magnitude"].sum()) == pytest.approx(1, abs=1e-6)
    assert (tmp_path / "frequency-saliency-student.png").is_file()
    assert (tmp_path / "frequency-saliency-student-radial.png").is_file()


def test_saliency_of_a_denoiser_is_that_of_a_probe(tmp_path):
    """Its shares sum to 1, and images that nothing moves are told of."""
    told = h.evaluation(tmp_path, h.Net(outputs=0))
    found = h.made(FrequencySaliency, **TEACHER, data=other(12)).compute(told)
    bands = ("low", "mid", "high")
    assert sum(found[f"saliency_{one}"] for one in bands) == pytest.approx(1, abs=1e-9)
    assert sum(found[f"saliency_energy_{one}"] for one in bands) == pytest.approx(1, abs=1e-9)
    net = h.Net()
    net.first.data.zero_()
    told = h.evaluation(tmp_path, net)
    h.made(FrequencySaliency).compute(told)
    assert told.notes == ["60 images were not moved, and left out"]


def test_sparse_codes_are_fitted_and_scored_apart(tmp_path):
    """Errors by k fall, both forms and the unused share are told, and the curve is written."""
    told = h.evaluation(tmp_path)
    keys = {"k": (4, 1), "steps": 150, "lr": 3e-3, "update": 16, "holdout": 0.5}
    metric = h.made(SparseAutoencoder, **keys)
    found = metric.compute(told)
    assert set(found) == {
        f"train_sae_{kind}_k{k}" for kind in ("fvu", "relative", "dead") for k in (1, 4)
    }
    assert found["train_sae_fvu_k4"] < found["train_sae_fvu_k1"]
    assert told.notes == ["fitted on 30 images, scored on 30"]
    assert metric.protocol()["normalisation"] == "scale"
    again = h.made(SparseAutoencoder, **keys).compute(h.evaluation(tmp_path))
    assert again == found
    with (tmp_path / "topk-sae-student.csv").open() as file:
        assert len(list(csv.reader(file))) == 7
    net = h.Net()
    net.first.data.zero_()
    with pytest.raises(NumericsError, match="the autoencoder of k = 1 has no finite error"):
        metric.compute(h.evaluation(tmp_path, net))
    with pytest.raises(ValueError, match="k: found"):
        SparseAutoencoder.Settings(k=())


# Heads that draw noise.


def test_averaged_gradients_see_what_single_draws_hide(tmp_path):
    """Much noise hides the gradient from single draws; with little there is nothing to hide."""
    keys = {**TEACHER, "attack": h.attack(), "data": other(60), "eps": 0.15, "samples": 40}
    found = {}
    for sigma in (0.02, 0.5):
        net = h.Net(outputs=0, width=24)
        net.first.data *= 3
        told = h.evaluation(tmp_path, net, count=150)
        found[sigma] = h.made(NoiseHeadEOT, **keys, sigma=sigma, verdicts=20).compute(told)
        gap = found[sigma]["noise_head_gap"]
        assert gap == found[sigma]["noise_head_single"] - found[sigma]["noise_head_eot"]
        assert bool([note for note in told.notes if "do not quote" in note]) == (gap > 0.02)
    assert found[0.5]["noise_head_gap"] > 0.05
    assert abs(found[0.02]["noise_head_gap"]) < 0.02
    assert all(one["noise_head_eot"] <= one["noise_head_accuracy"] for one in found.values())


def test_gradient_of_the_expectation_is_the_mean_of_gradients(tmp_path):
    """The loss of many draws has the mean of the gradients of each, and parts keep their draws."""
    told = h.evaluation(tmp_path, h.Net(outputs=0))
    metric = h.made(NoiseHeadEOT, **TEACHER, attack=h.attack())
    bound = metric.judged.bind(told)
    images = bound.scored.rows(torch.arange(4))
    x = images.x.clone().requires_grad_()
    victim = metric._victim(bound, images, 5, "a")
    (whole,) = torch.autograd.grad(victim.loss(victim.outputs(x)).sum(), x)
    single = metric._victim(bound, images, 1, "a")
    each = [torch.autograd.grad(single.loss(single.outputs(x)).sum(), x)[0] for _ in range(5)]
    torch.testing.assert_close(whole, torch.stack(each).mean(0))
    rows = torch.tensor([3, 1])
    part = metric._victim(bound, images, 5, "a").rows(rows)
    again = metric._victim(bound, images, 5, "a").outputs(x)
    torch.testing.assert_close(part.outputs(x[rows]), again[rows])
    assert part.broken(again[rows]).shape == (2,)


def test_noise_check_is_refused_where_there_is_none():
    """A classifier gets no noise; and without an attack there is nothing to compare."""
    assert "gets no noise" in refused(NoiseHeadEOT, attack=h.attack()).message
    assert "no attack to compare" in refused(NoiseHeadEOT, **TEACHER).message


def test_every_protocol_says_which_choice_it_used():
    """Each open choice of the paper is in the protocol of the number."""
    for cls, keys, wanted in (
        (UniformityAlignment, {"attack": h.attack()}, ("attack", "norm", "eps", "climbs", "t")),
        (CKNNA, {}, ("k", "clipped", "tap")),
        (LinearProbe, TEACHER, ("t", "alpha", "sigma", "noise", "condition", "c")),
        (SparseAutoencoder, {}, ("k", "latents per feature", "training", "normalisation")),
        (ClassificationDimension, {"attack": h.attack()}, ("basis", "ties", "attack")),
        (FrequencySaliency, {}, ("of", "map", "bands")),
        (NoiseHeadEOT, {**TEACHER, "attack": h.attack()}, ("eot", "scored by")),
    ):
        told = h.made(cls, **keys).protocol()
        assert set(wanted) <= set(told), cls


def test_cross_entropy_of_a_victim_is_that_of_torch(tmp_path):
    """Loss, verdict and parts of what attacks see."""
    told = h.evaluation(tmp_path)
    bound = Judged(ClassificationDimension.Settings(), h.build()).bind(told)
    victim = bound.victim(bound.scored)
    outputs = victim.outputs(bound.scored.x)
    wanted = F.cross_entropy(outputs, bound.labels, reduction="none")
    torch.testing.assert_close(victim.loss(outputs), wanted)
    rows = torch.tensor([5, 0])
    part = victim.rows(rows)
    torch.testing.assert_close(part.outputs(bound.scored.x[rows]), outputs[rows])
    assert torch.equal(part.broken(outputs[rows]), victim.broken(outputs)[rows])
