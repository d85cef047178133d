"""The report: says what the run folder says, escapes all of it, and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.engine import strict_json
from advdiff_core.engine.best import Standing
from advdiff_core.errors import DataError
from advdiff_core.hooks.specs import Section
from advdiff_core.report.facts import facts
from advdiff_core.report.measures import groups_of, main_names, protocol_of
from advdiff_core.report.page import render
from advdiff_core.report.record import RunRecord, read_record

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "javascript:alert(1)",
    '<a href="javascript:alert(1)">x</a>',
    "</title><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</pre><script>alert(1)</script>",
    "<!--",
    "-->",
    "<!-- <script>",
    "]]><script>",
    "<![CDATA[<script>alert(1)</script>]]>",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "{{ config }}",
    "${7*7}",
    "&lt;script&gt;",
    "&#60;script&#62;",
    "&amp;",
    "<iframe src=//evil.example>",
    "<link rel=stylesheet href=//evil.example>",
    "<meta http-equiv=refresh content=0>",
    "<base href=//evil.example>",
    "<body onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    '<math href="javascript:alert(1)">',
    "onmouseover=alert(1)",
    '" onmouseover="alert(1)',
    "' style='x:expression(alert(1))",
    "\x1b[2J\x1b]8;;http://evil\x07",
    "\u202etxt.exe",
    "\x00<script>",
    "\ufeff<script>",
    "=cmd|'/C calc'!A0",
    "<input autofocus onfocus=x>",
    "<details open ontoggle=alert(1)>",
    "%3Cscript%3E",
    "\\u003cscript\\u003e",
]


class Skeleton(HTMLParser):
    """The tags of a page with the names of their attributes, and every attribute's value."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(name, value or "") for name, value in attrs]

    def handle_comment(self, data: str) -> None:
        """A comment can only come from outside."""
        self.tags.append((f"comment {data}", ()))


def record_of(folder: Path, word: str = "word", **changes: Any) -> RunRecord:
    """A run in which `word` stands wherever a run folder can hold a text of its own."""
    recipe = {
        "run": {"name": word, "seed": 7, "images": 2000, "batch": 100},
        "data": {"use": word, "corrupt": [{"use": word, "std": 0.4}]},
        "schedule": {"use": word},
        "models": {word: {"use": word, "parametrization": word}},
        "views": {word: {"from": word, "perturb": {"use": word, "gamma": 0.1}}},
        "terms": {word: {"use": word, "view": word, "weight": 0.5}},
        "players": {word: {"terms": [word], "optimizer": {"use": word, "lr": 0.1}}},
        "sample": {"use": word, "steps": 5},
    }
    rows = tuple(
        {"nimg": n, f"loss/{word}": 1.0 / n, "images_per_s": 9.0, "seconds": n / 9}
        for n in (100, 1000, 2000)
    )
    protocols = {word: {word: word, "nfe": 5}}
    passes = {"forwards": 3, "input_backwards": 1, "parameter_backwards": 1, "parameters": 1234}
    known = {
        "folder": folder,
        "recipe": recipe,
        "lock": {"plugins": {word: word}, "git": {"commit": word, "changed": True}},
        "rows": rows,
        "evaluation": {"nimg": 2000, "metrics": {word: 1.25}, "protocols": protocols},
        "robust": ((word, robust_of(word)),),
        "checkpoints": (2000, 1000),
        "standing": Standing(number=word, value=0.5, nimg=1000, measured=2000),
        "plan": {"roles": {word: passes}},
        "provenance": {"device_name": word, "torch": word, "threads": 2, "autocast": "None"},
        "pictures": (),
        "holder": "",
        "problems": (word,),
    }
    return RunRecord(**{**known, **changes})


def robust_of(word: str) -> dict[str, object]:
    """An evaluation under attack, full of `word`."""
    share = {"hits": 3, "count": 4, "low": 0.3, "high": 0.95}
    stage = {
        "name": word, "case": word, "eps": 0.1, "tested": 4, "broken": 1, "max_norm": 0.1,
        "silent": 0, "not_finite": 0, "forwards": 8, "gradients": 4,
    }  # fmt: skip
    return {
        "config": {
            "objective": "classify", "role": word, "ema": -1, "nimg": 7, "weights": word,
            "samples": {"num": 4, "pick": word}, "norm": word, "eps": [0.1], "seed": 0, "batch": 4,
            "data": {"use": word, "split": word, "fingerprint": word, "count": 4},
            "attacks": [
                {"name": word, "use": word, "settings": {word: word}, "distribution": word}
            ],
        },
        "clean": {word: share},
        "curve": [{"case": word, "eps": 0.1, "attacks": {word: share}, "worst": share}],
        "stages": [stage],
        "notes": [word],
        "flags": [{"code": word, "message": word, "fix": word, "severity": word}],
        "time": {"seconds": 1.5, "stages": [1.5]},
    }  # fmt: skip


def sections_of(word: str) -> list[Section]:
    """A section of a listener, full of `word`."""
    return [
        Section(title=word, text=f"{word}\n\n{word}", rows=[[word], [word]], images={word: PNG})
    ]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder on disk, as a run leaves it."""
    folder = tmp_path / "00001-digits"
    (folder / "images").mkdir(parents=True)
    recipe = record_of(folder).recipe
    lock = {"torch": "2.15.0", "plugins": {"advdiff-core": "0.1.0"}}
    (folder / "recipe.lock.toml").write_text(tomli_w.dumps({"advdiff": 1, **recipe, "lock": lock}))
    rows = [{"nimg": n, "seconds": n / 10, "loss/denoise": 1000 / n} for n in (500, 1000, 2000)]
    (folder / "metrics.jsonl").write_bytes(b"".join(map(strict_json.dumps, rows)))
    protocol = {
        "features": "pixels",
        "samples": 1000,
        "seeds": "0-999",
        "sampler": "ddim",
        "nfe": 50,
    }
    found = {"metrics": {"frechet": 3.5}, "protocols": {"frechet": protocol}, "nimg": 2000}
    (folder / "evaluation.json").write_bytes(strict_json.dumps(found))
    for nimg in (1000, 2000):
        (folder / "images" / f"{nimg:09d}.png").write_bytes(PNG)
    return folder


def test_report_says_what_the_folder_says(run_folder: Path) -> None:
    """Metrics with protocol, NFE, curves, pictures, recipe, seed: all in one page."""
    html = render([read_record(run_folder)])
    text = re.sub(r"<[^>]+>", " ", html)
    for wanted in (
        "00001-digits", "frechet", "3.5", "features pixels", "seeds 0-999", "nfe 50",
        "Measured after 2,000 images", "loss/denoise", "torch", "2.15.0",
        "Samples after 2,000 images", "Earlier in the training (1)", "[players.word.optimizer]",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert html.count("data:image/png;base64,") == 2
    assert html.count("<svg") == 1


def test_report_fetches_and_runs_nothing(run_folder: Path) -> None:
    """No script, no address outside the file, and a policy that forbids both."""
    html = render([read_record(run_folder)])
    page = Skeleton(html)
    assert "script" not in {tag for tag, _ in page.tags}
    addresses = [
        v for name, v in page.values if name in {"src", "href", "action", "data", "srcset"}
    ]
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "@import" not in html
    assert "url(" not in html
    policy = next(v for name, v in page.values if v.startswith("default-src"))
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # The policy forbids style attributes, so none may be needed.
    assert not any(name == "style" or name.startswith("on") for name, _ in page.values)


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_report_escapes_whatever_a_run_holds(payload: str) -> None:
    """The page has the same tags and attributes as that of a harmless run (Q06)."""
    name = payload.replace("/", "_").replace("\0", "_")
    several = [record_of(Path("/r") / name, payload), record_of(Path("/r/other"), payload)]
    plain = [record_of(Path("/r/word")), record_of(Path("/r/other"))]
    for hostile, harmless in ((several[:1], plain[:1]), (several, plain)):
        html = render(hostile, lambda _: sections_of(payload))
        calm = render(harmless, lambda _: sections_of("word"))
        assert Skeleton(html).tags == Skeleton(calm).tags
        assert html.replace("\n", "").isprintable()


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_report_shows_hostile_text_as_text(payload: str) -> None:
    """Nothing is dropped: a reader sees what the run was called."""

    class Texts(HTMLParser):
        found = ""

        def handle_data(self, data: str) -> None:
            self.found += data

    reader = Texts()
    reader.feed(render([record_of(Path("/r/word"))], lambda _: [Section(title=payload)]))
    shown = "".join(ch if ch.isprintable() else repr(ch)[1:-1] for ch in payload)
    assert shown in reader.found


def test_report_compares_runs(run_folder: Path) -> None:
    """Several runs: a table with all metrics, what differs, one line each per chart."""
    first = read_record(run_folder)
    rows = ({"nimg": 500, "loss/denoise": 2.0}, {"nimg": 1000, "loss/denoise": 1.5})
    second = record_of(Path("/r/00002-b"), evaluation={
        "nimg": 1000, "metrics": {"frechet": 9.5}, "protocols": {"frechet": {"samples": 10}},
    }, robust=(), rows=rows)  # fmt: skip
    changed = {**second.recipe, "run": {**second.recipe["run"], "batch": 256}}
    html = render([first, read_record(run_folder), record_of(Path("/r/00002-b"), recipe=changed)])
    assert "run.batch" in html
    html = render([first, second])
    assert "Comparison of 2 runs" in html
    assert "measured by different protocols" in html
    assert html.count('<path class="line s0"') == html.count('<path class="line s1"') == 1


def test_comparison_gives_the_spread_over_seeds() -> None:
    """Runs that differ in their seed alone are summed up by mean and range, never by the best."""
    records = []
    for seed, value in ((1, 2.0), (2, 4.0), (3, 6.0)):
        one = record_of(Path(f"/r/0000{seed}-a"))
        recipe = {**one.recipe, "run": {**one.recipe["run"], "seed": seed}}
        evaluation = {**one.evaluation, "metrics": {"frechet": value}}
        records.append(record_of(one.folder, recipe=recipe, evaluation=evaluation))
    html = render(records)
    assert "mean of 3 seeds (00001, 00002, 00003)" in html
    assert "2 to 6" in html


def test_number_without_protocol_is_marked() -> None:
    """A number whose protocol was not stored must not be compared."""
    html = render([record_of(Path("/r/a"), evaluation={"metrics": {"frechet": 1.0}})])
    assert "Its protocol was not stored: do not compare these numbers." in html


PROTOCOLS = {
    "frechet": {"features": "pixels"},
    "residual-noise": {"mask": "3x3"},
    "other-dist:plane-distance": {"plane": "given"},
}


@pytest.mark.parametrize(
    ("metric", "owner"),
    [("frechet", "frechet"), ("residual_noise", "residual-noise"), ("frechet.tap", "frechet"),
     ("noise_level", "residual-noise"), ("plane_std", "other-dist:plane-distance"), ("x", None)],
)  # fmt: skip
def test_protocol_is_found_by_the_metrics_name(metric: str, owner: str | None) -> None:
    """A number belongs to the metric it shares most words with, or to the one that is stored."""
    assert protocol_of(metric, {"protocols": PROTOCOLS}) == owner
    stored = {"protocols": PROTOCOLS, "owners": {metric: "frechet"}}
    assert protocol_of(metric, stored) == "frechet"


def test_numbers_of_samples_stand_beside_those_of_the_data() -> None:
    """`x`, `x_data` and `x_clean` are one row; `x_to_data` is a quantity of its own."""
    metrics = {
        "noise_level": 0.3, "noise_level_clean": 0.1, "noise_level_data": 0.5,
        "residual_noise": 0.2, "residual_noise_data": 0.4, "frechet_to_data": 7.0,
    }  # fmt: skip
    record = record_of(Path("/r/a"), evaluation={"metrics": metrics, "protocols": PROTOCOLS})
    groups = {group.protocol.partition(":")[0]: group for group in groups_of(record.evaluation)}
    noise = groups["residual-noise"]
    assert noise.columns == ["samples", "training data", "clean data"]
    assert {row.name: row.cells for row in noise.rows} == {
        "noise_level": ["0.3", "0.5", "0.1"], "residual_noise": ["0.2", "0.4", ""],
    }  # fmt: skip
    assert groups["frechet"].columns == ["value"]
    assert main_names(metrics) == ["frechet_to_data", "noise_level", "residual_noise"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("metrics.jsonl", b"{broken}\n", "metrics.jsonl:1"),
        ("evaluation.json", b'{"metrics": NaN}', "evaluation.json"),
        ("evaluation.json", b"[]", "is not a JSON object"),
        ("plan.json", b"\xff", "plan.json"),
        ("images/000003000.png", None, "000003000.png"),
    ],
)
def test_damaged_files_are_named_and_the_rest_is_shown(
    run_folder: Path, name: str, content: bytes | None, problem: str
) -> None:
    """One damaged file costs its own part of the report, not the report."""
    if content is None:
        (run_folder / name).symlink_to(run_folder)
    else:
        (run_folder / name).write_bytes(content)
    html = render([read_record(run_folder)])
    assert "What could not be read" in html
    assert problem in html
    assert "frechet" in html or name == "evaluation.json"


def test_record_refuses_what_is_no_run(tmp_path: Path) -> None:
    """A folder without a lock, or with a broken one, is refused by name."""
    with pytest.raises(DataError, match=r"recipe\.lock\.toml"):
        read_record(tmp_path)
    (tmp_path / "recipe.lock.toml").write_text("a = [")
    with pytest.raises(DataError, match=r"recipe\.lock\.toml"):
        read_record(tmp_path)


def test_record_tells_the_state_of_a_run(run_folder: Path) -> None:
    """Stopped with rows and no final checkpoint; running while a live process holds it."""
    record = read_record(run_folder)
    assert (record.state, record.nimg, record.images) == ("stopped", 2000, 2000)
    import os
    import platform

    holder = {"host": platform.node(), "pid": os.getpid(), "since": "now"}
    (run_folder / ".lock").write_text(json.dumps(holder))
    assert read_record(run_folder).state == "running"
    (run_folder / ".lock").write_text(json.dumps({**holder, "pid": 2**22 + 1}))
    assert read_record(run_folder).state == "stopped"
    (run_folder / "metrics.jsonl").unlink()
    assert read_record(run_folder).state == "not begun"


def test_report_says_which_weights_are_the_best_and_draws_what_was_measured() -> None:
    """Of a run with `[validate]`; numbers of the log get a chart like any other."""
    rows = tuple({"nimg": n, "validate/robust": n / 1e4} for n in (0, 1000, 2000))
    standing = Standing(number="robust", value=0.5, nimg=1000, measured=2000)
    record = record_of(Path("/r/a"), rows=rows, standing=standing)
    assert ("best", "robust 0.5 at 1,000 images") in facts(record)
    assert "validate/robust" in render([record])
    assert "best" not in dict(facts(record_of(Path("/r/a"), standing=Standing())))


def test_run_that_ended_early_is_finished(run_folder: Path) -> None:
    """Patience is an end like the last image."""
    over = Standing(number="robust", value=0.5, nimg=500, measured=1000, over=True)
    stopped = record_of(run_folder, checkpoints=(1000,), standing=evolve(over, over=False))
    assert stopped.state == "stopped"
    assert evolve(stopped, standing=over).state == "finished"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
TABLE = st.dictionaries(
    st.sampled_from(["run", "data", "schedule", "models", "views", "terms", "players", "sample"]),
    VALUES | st.dictionaries(st.sampled_from(["use", "corrupt", "seed", "a"]), VALUES, max_size=4),
)


@given(recipe=TABLE, provenance=TABLE, rows=st.lists(TABLE, max_size=2))
def test_facts_of_any_tables_are_texts(recipe: Any, provenance: Any, rows: Any) -> None:
    """A lock file of another version may hold anything: the report still comes out."""
    record = record_of(
        Path("/r/a"), recipe=recipe, provenance=provenance, rows=tuple(rows), lock=provenance
    )
    assert all(isinstance(value, str) and value for _, value in facts(record))
