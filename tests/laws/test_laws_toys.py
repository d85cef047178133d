"""The tests' own components keep the laws, but for those that are faulty on purpose."""

from __future__ import annotations

from advdiff_core.testing import laws

EXAMPLES = {
    "attack:toy-fgsm": [{}, {"steps": 3, "random_start": True}],
    "backbone:toy-net": [{}, {"batch_norm": True}, {"dropout": 0.2, "outputs": 4}],
    "perturbation:toy-shift": [{}, {"norm": "l1", "unit": "pixel", "follows": False}],
    "perturbation:toy-free": [{}, {"norm": "linf", "unit": "noise"}],
}

FAULTY = "faulty on purpose"
EXPECTED = {
    "loss_term:toy-in-place/edits-nothing": FAULTY,
    "loss_term:toy-in-place/repeats-itself": FAULTY,
    "loss_term:toy-in-place/gradients-are-finite": FAULTY,
    "loss_term:toy-inf-gradient/gradients-are-finite": FAULTY,
    "loss_term:toy-nan/gradients-are-finite": FAULTY,
    "loss_term:toy-nan/one-loss-per-sample": FAULTY,
    "loss_term:toy-nan/samples-are-independent": FAULTY,
    "loss_term:toy-nan/follows-the-order-of-samples": FAULTY,
    "loss_term:toy-nan/repeats-itself": FAULTY,
    "loss_term:toy-scalar/one-loss-per-sample": FAULTY,
    "loss_term:toy-scalar/samples-are-independent": FAULTY,
    "loss_term:toy-scalar/follows-the-order-of-samples": FAULTY,
    "loss_term:toy-undeclared/builds": FAULTY,
    "perturbation:toy-raising-search/builds": FAULTY,
}

test_toys_keep_the_laws = laws(
    "advdiff-toys", examples=EXAMPLES, expected_failures=EXPECTED, witnesses=5
)
