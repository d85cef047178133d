"""The grid of a sweep: values split where TOML lets them, points in order, names of their own."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.errors import RecipeError, UsageError
from advdiff_core.recipe import load_recipe
from advdiff_core.recipe.problems import is_name
from advdiff_core.sweep.grid import MAX_POINTS, axes_of, points_of, short_keys, split_values
from advdiff_core.sweep.recipes import recipes_of, with_seeds

VALUES = ["0.1", "3", "-2e5", "true", "8/255", "moons", '"a,b"', "'c,\"d'", '"e\\",f"', "[1, 2]",
          "[[1,2],[3]]", '{ use = "x", y = [1, 2] }']  # fmt: skip


@given(st.lists(st.sampled_from(VALUES), min_size=1, max_size=6))
def test_values_are_split_at_outer_commas_alone(values: list[str]) -> None:
    """Brackets, braces and quotes of TOML keep their commas."""
    assert split_values(" , ".join(values)) == tuple(values)


def test_points_are_the_product_with_the_last_axis_fastest() -> None:
    """A key with one value holds for every run and is no part of its name."""
    points = points_of(axes_of(["terms.a.weight=0.1,0.3", "run.batch=64", "run.seed=0,1,2"]))
    assert [point.overrides for point in points] == [
        (f"terms.a.weight={weight}", "run.batch=64", f"run.seed={seed}")
        for weight, seed in itertools.product(("0.1", "0.3"), range(3))
    ]
    assert points[4].name == "weight-0.3_seed-1"
    assert points[4].settings == {"terms.a.weight": "0.3", "run.seed": "1"}


def test_grid_without_axes_is_one_run() -> None:
    """Nothing varies: the recipe as it is."""
    (point,) = points_of(axes_of([]))
    assert (point.name, point.overrides, dict(point.settings)) == ("run", (), {})


@given(st.lists(st.sampled_from(VALUES), min_size=2, max_size=6, unique=True))
def test_names_are_unique_and_fit_a_run(values: list[str]) -> None:
    """Also where two values look the same once stripped to what names may hold."""
    joined = ",".join(values)
    points = points_of(axes_of([f"a.weight={joined}", f"b.weight={joined}"]))
    names = [point.name for point in points]
    assert len(set(names)) == len(values) ** 2
    assert all(map(is_name, names))


def test_short_keys_are_whole_where_their_ends_are_the_same() -> None:
    """`terms.a.weight` and `terms.b.weight` must not both be `weight`."""
    keys = ["terms.a.weight", "terms.b.weight", "run.seed"]
    assert short_keys(keys) == ["terms.a.weight", "terms.b.weight", "seed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.seed=1,2", "run.seed=3"], "-s run.seed is given 2 times - write -s run.seed=first"),
        (["run.seed=1,,2"], "-s run.seed=1,,2 has an empty value - write -s run.seed=first,sec"),
        (["run.seed="], "-s run.seed= has an empty value"),
        (["run.seed=1,2,1"], "-s run.seed has the value 1 2 times - name it once; to repeat runs"),
    ],
)
def test_grids_that_mean_nothing_are_refused(arguments: list[str], message: str) -> None:
    """Each with the argument and the mend."""
    with pytest.raises(UsageError) as error:
        axes_of(arguments)
    assert str(error.value).startswith(f"advdiff sweep: {message}")


def test_what_is_not_key_value_is_refused_as_everywhere() -> None:
    """The same fault as after -s of any verb."""
    with pytest.raises(RecipeError, match=r"'run seed': this is not key=value"):
        axes_of(["run seed"])


def test_grids_that_no_machine_could_run_are_refused() -> None:
    """Before a single recipe is looked at."""
    hundred = ",".join(map(str, range(100)))
    axes = axes_of([f"a.b={hundred}", f"c.d={hundred}", "run.batch=1,2"])
    with pytest.raises(UsageError, match=f"20,000 runs, the most is {MAX_POINTS:,} - give fewer"):
        points_of(axes)


@pytest.fixture
def moons(tmp_path):
    """The least recipe, with a seed of its own."""
    path = tmp_path / "moons.toml"
    path.write_text('run.seed = 5\n[data]\nuse = "two-moons"\n[models.student]\nuse = "mlp"\n')
    return path


def test_seeds_go_on_from_that_of_the_recipe(moons) -> None:
    """They are the last axis: repetitions of a setting follow each other."""
    axes = with_seeds(axes_of(["run.batch=32,64"]), 3, moons)
    assert (axes[-1].key, axes[-1].values) == ("run.seed", ("5", "6", "7"))
    with pytest.raises(
        UsageError, match=r"--seeds and -s run\.seed contradict - leave one of them"
    ):
        with_seeds(axes_of(["run.seed=1"]), 2, moons)


def test_recipes_are_those_of_train_with_a_name(moons) -> None:
    """A point is trained by just what `advdiff train -s ...` would be, under the point's name."""
    found = recipes_of(moons, points_of(axes_of(["run.batch=32,64", "run.images=100"])))
    assert [recipe.run.name for _, recipe in found] == ["batch-32", "batch-64"]
    plain = load_recipe(moons, ["run.batch=64", "run.images=100"])
    assert found[1][1].recipe_hash == plain.recipe_hash


def test_faults_of_all_points_are_reported_once_each(moons) -> None:
    """Every wrong value, and nothing twice."""
    points = points_of(axes_of(["run.batch=0,64,-1", "run.imagse=10", "run.seed=1,2"]))
    with pytest.raises(RecipeError) as error:
        recipes_of(moons, points)
    keys = sorted((fault.key, fault.message.split()[1]) for fault in error.value.faults)
    assert [key for key, _ in keys] == ["run.batch", "run.batch", "run.imagse"]


def test_points_that_mean_the_same_run_are_refused(moons) -> None:
    """`8/255` and `"8/255"` are one value."""
    points = points_of(axes_of(["terms.denoise.weight=1,1.0"]))
    moons.write_text(moons.read_text() + '[terms.denoise]\nuse = "denoise"\n')
    message = r"weight-1 and weight-1.0 are the same run - give each value once"
    with pytest.raises(UsageError, match=message):
        recipes_of(moons, points)
