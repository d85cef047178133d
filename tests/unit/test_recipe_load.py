"""What a sound recipe becomes: defaults, bases, overrides, the Python door, the frozen copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tomli
from helpers_dists import Site
from helpers_recipes import FULL, LEAST, fault_of, faults_of, load

from advdiff_core.discovery import Catalogue, scan
from advdiff_core.discovery.shipped import shipped_recipes
from advdiff_core.errors import RecipeError
from advdiff_core.recipe import (
    check_recipe,
    load_recipe,
    loads_recipe,
    lock_table,
    lock_text,
    recipe_from_dict,
)
from advdiff_core.recipe.lock import git_state
from advdiff_core.recipe.schema import Ema


def test_the_least_recipe_is_a_whole_one(toys: Catalogue):
    """[data] and [models.student] are enough: schedule, term, player and sampler follow."""
    recipe = load(toys, LEAST)
    assert recipe.schedule.spec.use == "vp-linear"
    assert [term.spec.use for term in recipe.terms.values()] == ["denoise"]
    (player,) = recipe.players.values()
    assert (player.models, player.terms) == (("student",), ("denoise",))
    assert (player.optimizer.use, player.ema) == ("adamw", (Ema(rate=0.999),))
    assert recipe.sample is not None
    assert (recipe.sample.spec.use, recipe.sample.role, recipe.sample.ema) == ("ddim", "student", 0)
    assert recipe.warnings == ()


def test_the_one_denoiser_may_have_another_name(toys: Catalogue):
    """Where the only model is `net`, it is what is trained and sampled."""
    recipe = load(toys, LEAST.replace("student", "net"))
    assert recipe.terms["denoise"].spec.settings.role == "net"
    assert list(recipe.players) == ["net"]
    assert recipe.sample is not None
    assert recipe.sample.role == "net"


def test_a_classifier_gets_no_denoising_term_and_no_sampler(toys: Catalogue):
    """With parametrization "none" there is nothing to denoise: terms must be named."""
    text = '[data]\nuse = "digits"\n[models.net]\nuse = "net"\nparametrization = "none"\n'
    fault = fault_of(toys, text)
    assert (fault.code, fault.key) == ("R11", "players.net.terms")
    recipe = load(toys, text + '[terms.t]\nuse = "fool"\nrole = "net"\nview = "image"\n')
    assert recipe.sample is None
    assert recipe.players["net"].ema == ()


def test_a_second_trained_model_asks_for_players(toys: Catalogue):
    """Who trains what is not guessed where there are two networks."""
    fault = next(f for f in faults_of(toys, LEAST + '[models.b]\nuse = "net"\n') if f.code == "R11")
    assert fault.message == "no player trains anything"


def test_the_full_recipe_is_read_as_written(toys: Catalogue):
    """Every form of key and value in FULL arrives typed."""
    recipe = load(toys, FULL)
    net = recipe.models["student"].spec.settings
    assert (net.channels, net.gains, net.block.depth) == (64, {"a": 1.0, "b c": 2.0}, 3)
    assert net.label == "two\nlines"
    assert recipe.data.corrupt[0].settings.std == 8 / 255
    assert recipe.data.domain == (-1.0, 1.0)
    assert recipe.schedule.density.law == "log-normal"
    attack = recipe.views["adv"].perturb.settings.attack
    assert (attack.kind, attack.use, attack.path) == ("attack", "steps", "views.adv.perturb.attack")
    assert recipe.players["student"].optimizer.use == "torch:AdamW"
    assert recipe.players["student"].optimizer.settings.lr == 2e-4
    assert recipe.players["student"].ema == (
        Ema(rate=0.999), Ema(power=0.1), Ema(halflife=500.0),
    )  # fmt: skip
    assert recipe.models["critic"].parametrization == "none"
    assert recipe.hooks.options["progress"]["deep"] == {"on": True}
    assert (
        recipe.source["views.worse.from"].line == FULL[: FULL.index('from = "adv"')].count("\n") + 1
    )


def test_tables_are_sorted_so_that_order_never_matters(toys: Catalogue):
    """Models, views, terms and players come in the order of their names."""
    recipe = load(toys, FULL)
    for table in (recipe.models, recipe.views, recipe.terms, recipe.players):
        assert list(table) == sorted(table)


def test_specs_lists_every_component(toys: Catalogue):
    """Nested components, corruptions and metrics are among them."""
    uses = sorted(spec.use for spec in load(toys, FULL).specs())
    assert uses == sorted(
        ["digits", "gaussian", "gaussian", "flip", "vp-linear", "net", "judge", "teacher", "push",
         "push", "steps", "denoise", "denoise", "fool", "torch:AdamW", "adamw", "ddim", "distance",
         "distance"]
    )  # fmt: skip


def write(folder: Path, **files: str) -> Path:
    """Write recipes into a folder and return the path of `top`."""
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder / "top.toml"


def test_extends_merges_tables_and_replaces_arrays(toys: Catalogue, tmp_path: Path):
    """Keys join, arrays of the later recipe stand alone."""
    top = write(
        tmp_path,
        top='extends = "base.toml"\n[data]\nclasses = [7]\n[run]\nbatch = 8\n',
        base=LEAST.replace('"digits"', '"digits"\nclasses = [1, 2]') + "[run]\nseed = 3\n",
    )
    recipe = load_recipe(top, catalogue=toys)
    assert recipe.data.spec.settings.classes == (7,)
    assert (recipe.run.seed, recipe.run.batch) == (3, 8)


def test_the_last_base_lies_on_top(toys: Catalogue, tmp_path: Path):
    """Of several bases a later one wins, and the recipe itself wins over all."""
    top = write(
        tmp_path,
        top='extends = ["a.toml", "b.toml"]\n[run]\nbatch = 3\n',
        a=LEAST + "[run]\nseed = 1\nbatch = 1\nkeep = 5\n",
        b="[run]\nseed = 2\nbatch = 2\n",
    )
    run = load_recipe(top, catalogue=toys).run
    assert (run.seed, run.batch, run.keep) == (2, 3, 5)


def test_a_changed_component_drops_the_settings_of_the_old_one(toys: Catalogue, tmp_path: Path):
    """A new `use` keeps the core's own keys of the table and forgets the inherited settings."""
    top = write(
        tmp_path,
        top='extends = "base.toml"\n[models.student]\nuse = "other"\nwidth = 5\n'
        '[schedule]\nuse = "vp-cosine"\n[players.student.optimizer]\nuse = "torch:Lion"\n',
        base=LEAST + 'channels = 8\nparametrization = "v"\n[schedule]\nnum_steps = 10\n'
        "density.stratified = false\n"
        '[players.student]\nclip = 1.0\noptimizer = { use = "adamw", betas = [0.5, 0.5] }\n',
    )
    recipe = load_recipe(top, catalogue=toys)
    assert recipe.models["student"].parametrization == "v"
    assert recipe.models["student"].spec.settings.width == 5
    assert recipe.schedule.density.stratified is False
    assert recipe.players["student"].clip == 1.0
    assert recipe.players["student"].optimizer.settings.lr == 0.1


def test_the_same_component_keeps_inherited_settings(toys: Catalogue, tmp_path: Path):
    """Naming the component again changes nothing."""
    top = write(
        tmp_path,
        top='extends = "base.toml"\n[models.student]\nuse = "net"\ndropout = 0.5\n',
        base=LEAST + "channels = 8\n",
    )
    net = load_recipe(top, catalogue=toys).models["student"].spec.settings
    assert (net.channels, net.dropout) == (8, 0.5)


def test_faults_name_the_file_they_are_in(toys: Catalogue, tmp_path: Path):
    """A fault in a base is at the base's line, one in the recipe at its own."""
    top = write(
        tmp_path,
        top='extends = "base.toml"\n[run]\nbatch = 0\n',
        base=LEAST + "\nchannels = 0\n[run]\nseed = -1\nbatch = -5\n",
    )
    found = check_recipe(top, catalogue=toys)
    assert [(Path(f.file).name, f.line, f.key) for f in found] == [
        ("top.toml", 3, "run.batch"),
        ("base.toml", 6, "models.student.channels"),
        ("base.toml", 8, "run.seed"),
    ]


def ship(site: Site, name: str, recipes: dict[str, str], package: str) -> None:
    """Write a distribution that ships recipes in its import package."""
    files = {f"{package}/recipes/{file}": text for file, text in recipes.items()}
    files[f"{package}/__init__.py"] = "raise SystemExit('never imported')"
    site.dist(name, f"[advdiff.v1.attack]\na = {package}.m:A\n", modules=files)


def test_a_recipe_extends_one_that_a_distribution_ships(
    toys: Catalogue, site: Site, tmp_path: Path
):
    """`dist:name` finds `recipes/name.toml` and `name.recipe.toml` without importing anything."""
    ship(
        site,
        "advdiff-mine",
        {"base.toml": 'extends = "more.recipe.toml"\n' + LEAST, "more.recipe.toml": "run.seed = 5"},
        "advdiff_mine",
    )
    for reference in ("advdiff-mine:base", "Advdiff_Mine:base"):
        top = write(tmp_path, top=f'extends = "{reference}"\n[run]\nbatch = 4\n')
        run = load_recipe(top, catalogue=toys).run
        assert (run.seed, run.batch) == (5, 4)
    assert "advdiff_mine" not in sys.modules
    assert list(shipped_recipes("advdiff-mine") or ()) == ["base", "more"]


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("advdiff-mine:bsae", "R12", "did you mean 'base'?"),
        ("advdiff-mine:zzzz", "R12", "it ships: base"),
        ("advdiff-mine:../x", "R12", "ships no recipe '../x'"),
        ("advdiff-nine:base", "R11", "is not installed"),
        ("os:system", "R11", "is not installed"),
        (":base", "R11", "is not installed"),
        ("advdiff-mine:", "R12", "ships no recipe ''"),
    ],
)
def test_a_shipped_recipe_that_is_not_there_is_named(
    toys: Catalogue, site: Site, tmp_path: Path, reference: str, code: str, words: str
):
    """R11, R12: an unknown distribution and an unknown recipe get the nearest ones."""
    ship(site, "advdiff-mine", {"base.toml": LEAST}, "advdiff_mine")
    top = write(tmp_path, top=f'extends = "{reference}"')
    (fault,) = check_recipe(top, catalogue=toys)
    assert (fault.code, fault.key, fault.line) == (code, "extends", 1)
    assert words in fault.as_line()


def test_a_distribution_outside_the_allow_list_ships_nothing(site: Site, tmp_path: Path):
    """Q09: ADVDIFF_PLUGINS holds for recipes too."""
    ship(site, "advdiff-mine", {"base.toml": LEAST}, "advdiff_mine")
    catalogue = scan([site.folder], environ={"ADVDIFF_PLUGINS": "other"})
    (fault,) = check_recipe(write(tmp_path, top='extends = "advdiff-mine:base"'), (), catalogue)
    assert (fault.code, fault.fix) == ("P04", "add advdiff-mine to it")


def test_shipped_recipes_of_an_editable_project_are_found(site: Site, tmp_path: Path):
    """A project installed editable keeps its `recipes/` beside its sources."""
    project = tmp_path / "my project"
    (project / "recipes").mkdir(parents=True)
    (project / "recipes" / "own.toml").write_text(LEAST)
    folder = site.dist("advdiff-mine", "[advdiff.v1.attack]\na = nowhere:A\n")
    url = f'{{"url": "{project.as_uri()}", "dir_info": {{"editable": true}}}}'
    (folder / "direct_url.json").write_text(url)
    assert shipped_recipes("advdiff-mine") == {"own": project / "recipes" / "own.toml"}
    (folder / "direct_url.json").write_text(url.replace("true", "false"))
    assert shipped_recipes("advdiff-mine") == {}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"url": 3}', '{"url": "file:///x", "dir_info": {}}', "null"]
)
def test_shipped_recipes_survive_an_odd_direct_url(site: Site, text: str):
    """P06: a broken record of where a project came from is no crash."""
    folder = site.dist("advdiff-mine", "[advdiff.v1.attack]\na = nowhere:A\n")
    (folder / "direct_url.json").write_text(text)
    assert shipped_recipes("advdiff-mine") == {}
    assert shipped_recipes("not-installed") is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("run.batch=3", 3),
        (" run . batch = 3 ", 3),
        ("run.batch=1_000", 1000),
        ("run.batch=0x10", 16),
    ],
)
def test_overrides_are_toml(toys: Catalogue, argument: str, value: int):
    """Numbers in every form of TOML, with spaces where TOML allows them."""
    assert load(toys, FULL.replace("micro_batch = 16", ""), [argument]).run.batch == value


@pytest.mark.parametrize("word", ["my-run", "a.b_c-1", "'quoted'", '"quoted"', "1.2.3-x", "run1"])
def test_bare_words_are_strings(toys: Catalogue, word: str):
    """What is no TOML but a plain word needs no quotes, which shells eat."""
    assert load(toys, LEAST, [f"run.name={word}"]).run.name == word.strip("'\"")


def test_bare_paths_fractions_and_components_are_strings(toys: Catalogue):
    """Paths with spaces, 8/255 and `dist:name` need no quotes either."""
    recipe = load(
        toys,
        FULL,
        [
            "data.path=/data/my images/x.npz",
            "data.corrupt.1.std=4/255",
            "models.student.use=advdiff-core:net",
            "views.adv.perturb.radius=2 / 255",
        ],
    )
    assert str(recipe.data.spec.settings.path) == "/data/my images/x.npz"
    assert recipe.data.corrupt[1].settings.std == 4 / 255
    assert recipe.models["student"].spec.use == "advdiff-core:net"
    assert recipe.views["adv"].perturb.settings.radius == 2 / 255


def test_overrides_reach_keys_with_dots_and_entries_of_arrays(toys: Catalogue):
    """Quoted parts of keys and positions in arrays are addressed as TOML and Python write them."""
    recipe = load(
        toys,
        FULL.replace("gains = {", 'gains = { "x.y" = 0.0,'),
        ['models.student.gains."x.y"=3', "data.classes.1=9", "evaluate.metrics.0.features=mid"],
    )
    assert recipe.models["student"].spec.settings.gains["x.y"] == 3.0
    assert recipe.data.spec.settings.classes == (0, 9, 2)
    assert recipe.evaluate.metrics[0].settings.features == "mid"


def test_an_overridden_component_drops_the_settings_of_the_old_one(toys: Catalogue):
    """`-s x.use=...` works like a base's: the order of the arguments does not matter."""
    arguments = ["models.student.width=9", "models.student.use=other"]
    for order in (arguments, arguments[::-1]):
        recipe = load(toys, FULL, order)
        assert recipe.models["student"].spec.settings.width == 9


def test_an_overridden_table_is_merged(toys: Catalogue):
    """A table as a value joins the one that is there."""
    recipe = load(toys, FULL, ["models.student.block={ depth = 7 }"])
    block = recipe.models["student"].spec.settings.block
    assert (block.depth, block.act) == (7, "relu")


def test_the_last_of_two_equal_overrides_wins(toys: Catalogue):
    """As in every command line."""
    assert load(toys, LEAST, ["run.seed=1", "run.seed=2"]).run.seed == 2


def test_a_dict_gives_the_same_recipe_as_its_text(toys: Catalogue):
    """The Python door takes tuples for arrays and paths for strings."""
    tables = tomli.loads(FULL)
    tables["data"]["classes"] = (0, 1, 2)
    tables["data"]["path"] = Path("x/y")
    recipe = recipe_from_dict(tables, catalogue=toys)
    assert recipe == load(toys, FULL, ["data.path=x/y"])
    assert recipe_from_dict(tables, ["run.seed=9"], toys).run.seed == 9


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"run": {"seed": "x"}}, "found 'x' (string), wanted an integer"),
        ({"run": {"seed": None}}, "found None (NoneType), wanted an integer"),
        ({"run": {"seed": 1 + 2j}}, "wanted an integer"),
        ({"run": {3: 1}}, "found the key 3, wanted a string"),
        ({"models": {"student": {"use": "net", "gains": {"a": object}}}}, "wanted a number"),
        ({"run": {"name": b"x"}}, "wanted a string"),
        ({"run": None}, "found None (NoneType), wanted a table"),
        ({"data": None}, "found None (NoneType), wanted a table"),
        ({"terms": None}, "found None (NoneType), wanted a table"),
    ],
)
def test_a_dict_with_python_values_is_refused_like_a_text(toys: Catalogue, tables, words: str):
    """Faults of a dict have a key and no file."""
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict({**tomli.loads(LEAST), **tables}, catalogue=toys)
    fault = caught.value.faults[0]
    assert words in fault.message
    assert (fault.file, fault.line) == ("", 0)


def test_none_for_any_table_of_a_dict_is_one_fault(toys: Catalogue):
    """None is no way to leave a table out: TOML has none, and defaults must not depend on it."""
    for table in ("run", "data", "schedule", "models", "views", "terms", "players", "sample",
                  "evaluate"):  # fmt: skip
        with pytest.raises(RecipeError) as caught:
            recipe_from_dict({**tomli.loads(LEAST), table: None}, catalogue=toys)
        assert [(one.key, one.fix) for one in caught.value.faults if "None" in one.message] == [
            (table, "leave the key out for defaults")
        ]


def test_a_dict_that_contains_itself_is_refused(toys: Catalogue):
    """R05: the depth limit holds for dicts too."""
    tables: dict[str, object] = {}
    tables["run"] = tables
    with pytest.raises(RecipeError, match="more than 64 tables deep"):
        recipe_from_dict(tables, catalogue=toys)


def test_the_frozen_copy_holds_versions_hash_and_git_state(toys: Catalogue, tmp_path: Path):
    """`[lock]` says what the recipe was resolved with; loading it again gives an equal recipe."""
    recipe = load(toys, FULL)
    text = lock_text(recipe, tmp_path)
    lock = tomli.loads(text)["lock"]
    assert lock["recipe_hash"] == recipe.recipe_hash
    assert lock["plugins"] == {"advdiff-core": "1.0"}
    assert lock["python"].startswith("3.")
    assert lock["torch"][0].isdigit()
    assert "git" not in lock
    again = load(toys, text)
    assert again == recipe
    assert again.warnings == ()
    assert again.recipe_hash == recipe.recipe_hash


def test_the_frozen_copy_knows_the_commit(tmp_path: Path):
    """The state of a git repository is its commit and whether tracked files are changed."""
    assert git_state(tmp_path) == {}

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "x")
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["changed"] is False
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {**clean, "changed": True}


def test_another_version_than_the_frozen_one_is_warned_of(toys: Catalogue):
    """P14: plugins, torch and Python that differ from `[lock]` are named with both versions."""
    recipe = load(toys, LEAST)
    lock = {**lock_table(recipe), "torch": "1.0", "plugins": {"advdiff-core": "0.5", "other": "1"}}
    again = load(toys, recipe.dumps(lock))
    assert again == recipe
    lines = [warning.as_line("warning") for warning in again.warnings]
    assert len(lines) == 2
    assert any("torch was 1.0 when this recipe was frozen" in line for line in lines)
    assert any("advdiff-core was 0.5" in line and "it is 1.0 here" in line for line in lines)


def test_a_frozen_recipe_names_the_distribution_that_is_gone(toys: Catalogue):
    """R11: `[lock]` knows whose the unknown component was, even where another name is near."""
    text = LEAST.replace('"net"', '"nett"')
    assert fault_of(toys, text).fix == "did you mean 'net'?"
    gone = '"advdiff-swin" = "0.3"\n"advdiff-core" = "0.5"\n"rm -rf;" = "1"\nx = "$(id)"\n'
    fault = fault_of(toys, f"{text}[lock.plugins]\n{gone}")
    assert (fault.code, fault.key, fault.line) == ("R11", "models.student.use", 4)
    assert fault.fix == "pip install advdiff-swin==0.3, which the recipe was frozen with"


@pytest.mark.parametrize("lock", ["lock = 3", "[lock]\nplugins = 3", "[lock.plugins]\nx = []"])
def test_an_odd_lock_is_ignored(toys: Catalogue, lock: str):
    """`[lock]` informs and decides nothing."""
    text = f"{lock}\n{LEAST}" if lock.startswith("lock") else f"{LEAST}{lock}\n"
    assert load(toys, text) == load(toys, LEAST)


@pytest.mark.parametrize("version", ["2", "0", '"1"', "true", "1.0"])
def test_another_recipe_language_is_refused(toys: Catalogue, version: str):
    """R08: both versions are named."""
    fault = fault_of(toys, f"advdiff = {version}\n{LEAST}")
    assert (fault.code, fault.key, fault.line) == ("R08", "advdiff", 1)
    assert "this advdiff reads recipes of version 1" in fault.message


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('[hooks]\noff = ["proggress"]', "hooks.off.0", "did you mean 'progress'?"),
        ("[hooks.tensorboard]\nx = 1", "hooks.tensorboard", "install the one that offers it"),
        ("[hooks]\nprogress = 3", "hooks.progress", "wanted a table of options"),
        ("[hooks]\noff = 3", "hooks.off", "wanted an array"),
        ("[hooks.progress]\nx = nan", "hooks.progress.x", "a finite number"),
        ("[hooks.progress]\nx = [2020-01-01]", "hooks.progress.x.0", "a clean string"),
        ('[hooks.progress]\nx = "\\u001b"', "hooks.progress.x", "a clean string"),
    ],
)
def test_listeners_are_checked_by_name_and_form(toys: Catalogue, text: str, key: str, words: str):
    """R07, R11: a listener nobody offers, and options no listener can be handed."""
    fault = fault_of(toys, LEAST + text)
    line = 1 if key == "hooks.tensorboard" else 2
    assert (fault.key, fault.line) == (key, LEAST.count("\n") + line)
    assert words in fault.as_line()


def test_the_loader_imports_no_torch_by_itself():
    """The loader imports torch only with the components a recipe names."""
    code = "import sys; import advdiff_core.recipe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_loads_recipe_names_the_text_in_faults(toys: Catalogue):
    """A text has the name it is given."""
    with pytest.raises(RecipeError) as caught:
        loads_recipe("a = 1", "from-a-notebook", catalogue=toys)
    assert caught.value.faults[0].file == "from-a-notebook"
