"""Every component here keeps the laws of its kind."""

from __future__ import annotations

from typing import Any

from advdiff_core.testing import Example, Model, laws
from advdiff_core.testing.parts import BenchCritic, BenchNet

PATH = {"sampler": {"use": "ddim", "steps": 3}}
TWO_STEPS = {"sampler": {"use": "dpm++2m", "steps": 4}, "gradient": "drtune", "choice": "spaced"}

#: Who rewards: a critic, and a classifier of three classes.
CRITIC = {"scorer": Model(BenchCritic, kind="discriminator", frozen=True)}
KNOWS = {
    "scorer": Model(BenchNet, BenchNet.Settings(outputs=3), parametrization="none", frozen=True)
}

#: Who judges, and the term of the generator whose keys say what.
JUDGE = {"discriminator": Model(BenchCritic, kind="discriminator")}
TUNED = {"adversarial": {"use": "adversarial", **PATH, "augment": []}}


def judged(**keys: Any) -> Example:
    """A term of the discriminator beside one of the generator with these keys."""
    return Example(terms={"adversarial": {**TUNED["adversarial"], **keys}}, models=JUDGE)


#: Every rule, of a sampler that asks twice a step.
ALL_RULES = {"rules": ["adt", "drtune", "full", "last-k", "none"], "sampler": {"use": "heun"}}

EXAMPLES: dict[str, Any] = {
    "metric:rollout-gradients": [{}, {**ALL_RULES, "judge": "judge", "steps": 3, "batch": 7}],
    "metric:discriminator-accuracy": [{}, {"starts": [0.5], "num": 10, "batch": 3}],
    "metric:discriminator-hacking": [{"before": "teacher", "metric": {"use": "frechet"}}],
    "discriminator:conditional": [{"channels": 4}, {"channels": 4, "norm": True, "layers": 2}],
    "discriminator:patch": [{"channels": 4}, {"channels": 4, "norm": True, "layers": 1}],
    "discriminator:projected": [{"width": 8}, {"conditional": True, "taps": ["hidden"]}],
    "discriminator:siamese": [{"width": 8, "hidden": 8}, {"spectral_norm": False, "tau": 0.0}],
    "loss_term:adversarial": [
        {**PATH, "augment": []},
        {**PATH, "augment": [], "loss": "logistic", "scale": 2.0, "gradient": "full"},
        {**TWO_STEPS, "augment": [], "gradient_steps": 2, "early_stop": 0.5, "loss": "linear"},
    ],
    "loss_term:discriminate": [judged(), judged(loss="logistic", scale=2.0)],
    "loss_term:r1": [judged(), Example(settings={"at": "generated"}, terms=TUNED, models=JUDGE)],
    "loss_term:reward": [
        Example(settings={**PATH, "gradient": "last-k", "gradient_steps": 1}, models=CRITIC),
        Example(settings={**PATH, "start": "fixed", "first": 1, "gradient": "none"}, models=CRITIC),
        Example(
            settings={**PATH, "reads": "class", "wanted": 2, "ceiling": 9.0, "guidance": 0.0},
            models=KNOWS,
        ),
    ],
}

test_adt_keeps_the_laws = laws("advdiff-adt", examples=EXAMPLES, witnesses=5)
