"""One step of each shipped recipe computes what it computed when it was last looked at."""

import json

import pytest

from advdiff_core.engine.golden import first_steps
from tests.golden.record import FILE, ROOT, overrides, shipped, stand_in

GOLDEN = json.loads(FILE.read_text())


def test_every_shipped_recipe_has_golden_numbers():
    """A new recipe is recorded, a removed one is taken out."""
    assert sorted(GOLDEN) == [str(path.relative_to(ROOT)) for path in shipped()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The stand-in for data that users bring."""
    folder = tmp_path_factory.mktemp("pictures")
    stand_in(folder)
    return folder


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_first_steps_compute_the_golden_numbers(name, pictures):
    """Losses and weights to rounding, passes exactly; `record.py` says how to renew them."""
    found, golden = first_steps(ROOT / name, overrides(ROOT / name, pictures)), GOLDEN[name]
    assert found["passes"] == golden["passes"]
    assert found["means"] == {key: pytest.approx(v, rel=2e-4) for key, v in golden["means"].items()}
    assert found["weights"] == {k: pytest.approx(v, rel=1e-6) for k, v in golden["weights"].items()}
