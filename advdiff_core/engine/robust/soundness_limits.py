"""From which figure on something is a reason for doubt, each with where the figure comes from."""

from __future__ import annotations

__all__ = [
    "CLIMB_STEPS", "CONVERGED_POINTS", "DISAGREE_POINTS", "FREE_POINTS", "LEAST", "LEAST_GAIN",
    "NOISE_DRAWS", "PROBABILITY_SUM", "QUERIES", "REPEAT_TOLERANCE", "ROWS", "ROWS_TOLERANCE",
    "SCALE_POINTS", "SLOPE_GAP", "SLOPE_LENGTH", "SLOPE_PART", "SLOPE_ROUGH", "SLOPE_STEP", "SURE",
    "ZERO_SHARE", "points",
]  # fmt: skip

#: Samples that gradients are looked at on; ours.
ROWS = 32

#: Steps of the core's own searches, and their draws of noise and queries per sample; ours.
CLIMB_STEPS = 20
NOISE_DRAWS = 20
QUERIES = 60

#: Points by which an attack without gradients may be ahead: `check_square_sr` of AutoAttack (Croce
#: and Hein 2020).
FREE_POINTS = 0.2

#: Points that more steps or restarts may gain: Carlini et al. (2019, section 4.2) ask that they
#: gain nothing; one point is ours.
CONVERGED_POINTS = 1.0

#: Points by which attacks with cross-entropy and with the margin may differ; ours. Multiplied
#: logits made it 48 where honest networks have 0 to 3.
DISAGREE_POINTS = 2.0

#: Fewest samples that a difference is made of, lest one of a hundred be a percent; ours.
LEAST = 2

#: Fewest samples that more steps, or other steps, have to gain: of a converged attack on an honest
#: network a fresh start breaks up to two of a hundred; ours.
LEAST_GAIN = 4

#: Chance below which a difference between two attacks on the same samples is none; ours.
SURE = 0.01

#: Largest share of samples without a gradient; ours. AutoAttack allows none, which one dead unit
#: of a small network breaks.
ZERO_SHARE = 0.02

#: Change of logits between two calls, and between two batches, as a share of their spread; ours.
#: Sums in another order change 1e-6 of float32, and 1e-2 of bfloat16.
REPEAT_TOLERANCE = 1e-4
ROWS_TOLERANCE = 2e-2

#: How far rows of probabilities may be from a sum of one; ours.
PROBABILITY_SUM = 1e-3

#: Steps of finite differences as a share of the inputs' range: of each number, and of the length of
#: a step of all of them; the part of it that a second step is; the relative gap between slopes over
#: both from which a function is rough at that scale; and that between slopes and the gradient from
#: which it is the gradient of something else; ours.
SLOPE_STEP = 1e-3
SLOPE_LENGTH = 0.05
SLOPE_PART = 8
SLOPE_ROUGH = 0.3
SLOPE_GAP = 0.5

#: Points of accuracy that inputs in another usual range may gain; ours.
SCALE_POINTS = 10.0


def points(count: int, of: int) -> float:
    """`count` of `of` samples in points (percent)."""
    return 100.0 * count / max(of, 1)
