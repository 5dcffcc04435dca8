"""`orch compare --html`: the curves and figures of its page, and the page in a real browser."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from swept import swept

from orchestrator.cli import main
from orchestrator.clusters import observers
from orchestrator.layout import ExperimentPaths
from orchestrator.records.experiment import read_experiment
from orchestrator.report.curves import Curve, curves, mean, thin
from orchestrator.report.html.axes import axes, spread

GRID = [
    {"model.lr": lr, "model": model, "seed": seed}
    for lr, model, seed in itertools.product([1e-3, 1e-2, 1e-1], ["mlp", "convnet"], [0, 1, 2])
]
NASTY = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>&amp;\"%{x}"


def reached(point) -> float:
    value = {1e-3: 0.6, 1e-2: 0.8, 1e-1: 0.2}[point["model.lr"]] + (0.1 if point["model"] == "convnet" else 0)
    return value + 0.01 * point["seed"]


def how(point) -> str:
    if point["model.lr"] == 1e-1 and point["model"] == "mlp":
        return "failed"
    return "queued" if point["model.lr"] == 1e-3 and point["seed"] == 2 else "done"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("a folder") / "runs"
    swept(root, GRID, reach=reached, state=how)
    return root


# --- curves -----------------------------------------------------------------------------------------------


def curve(points: dict[int, float]) -> Curve:
    return Curve(steps=np.array([*points], dtype=float), values=np.array([*points.values()], dtype=float))


def test_a_mean_curve_has_the_standard_error_and_goes_on_with_the_runs_that_do():
    found = mean([curve({0: 1, 10: 3}), curve({0: 3, 10: 5}), curve({0: 2, 10: 4, 20: 7})], most=50)
    assert found.steps.tolist() == [0, 10, 20]
    assert found.values.tolist() == [2, 4, 7]
    assert found.error is not None
    assert found.error.tolist() == pytest.approx([1 / math.sqrt(3), 1 / math.sqrt(3), 0])


def test_between_its_steps_a_run_is_interpolated_and_beyond_them_never():
    found = mean([curve({0: 0, 10: 10}), curve({5: 7})], most=50)
    assert (found.steps.tolist(), found.values.tolist()) == ([0, 5, 10], [0, 6, 10])


@given(st.integers(1, 3000), st.integers(1, 200))
def test_thinning_keeps_the_mean_and_the_number_of_points(length, most):
    whole = curve({step: float(step) for step in range(length)})
    thinned = thin(whole, most=most)
    assert len(thinned.steps) == min(length, most)
    assert thinned.values.min() >= 0
    assert thinned.values.max() <= length
    assert np.all(np.diff(thinned.steps) > 0)


def test_no_number_is_a_gap_and_hides_no_neighbour():
    found = mean([curve({0: 1, 1: math.nan, 2: 3}), curve({0: 1, 1: 5, 2: 3})], most=10)
    assert found.values.tolist() == [1, 5, 3]


def test_a_resumed_run_is_one_curve_whose_first_values_count(runs):
    paths = ExperimentPaths(runs / "sweep")
    record = next(r for r in read_experiment(paths, observers()).records.values() if r.attempts)
    found = curves(paths, record)["val/acc"]
    assert found.steps.tolist() == list(range(12))
    assert found.values[-1] == pytest.approx(reached(record.point))


# --- the page's figures -----------------------------------------------------------------------------------


def sections(page: str) -> list[dict]:
    [text] = re.findall(r'<script type="application/json" id="sections">(.*?)</script>', page)
    return json.loads(text)


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pages") / "page.html"
    assert main(["compare", "sweep", "--runs", str(runs), "--html", str(file)]) == 0
    return file


def test_plotly_knows_every_property_of_every_figure(page):
    found = [
        figure
        for section in sections(page.read_text())
        for choice in section["choices"]
        for figure in choice["figures"]
    ]
    for figure in found:
        go.Figure(data=figure["data"], layout=figure["layout"])  # raises for what it does not know
    assert {trace["type"] for figure in found for trace in figure["data"]} == {"scatter", "parcoords", "heatmap"}


def test_the_curves_are_the_objectives_first_with_a_band_over_seeds(page):
    curves_of, sweep = sections(page.read_text())
    assert [choice["metric"] for choice in curves_of["choices"]] == ["val/acc", "val/loss"]
    [figure] = curves_of["choices"][0]["figures"]
    best = [trace for trace in figure["data"] if trace.get("legendgroup") == "model.lr=0.01 model=convnet"]
    low, high, trace = best
    assert trace["y"][-1] == pytest.approx(0.91)
    assert (high["y"][-1] - low["y"][-1]) / 2 == pytest.approx(0.01 / math.sqrt(3), rel=1e-3)
    assert [figure["name"] for figure in sweep["choices"][0]["figures"]] == [
        "parallel coordinates",
        "model.lr",
        "model",
        "model.lr and model",
    ]


def test_axes_are_logarithmic_linear_or_categories(page):
    figures = {figure["name"]: figure for figure in sections(page.read_text())[1]["choices"][0]["figures"]}
    assert figures["model.lr"]["layout"]["xaxis"]["type"] == "log"
    assert figures["model"]["layout"]["xaxis"]["type"] == "category"
    heat = figures["model.lr and model"]["data"][0]
    assert heat["z"][heat["y"].index("convnet")][heat["x"].index("0.01")] == pytest.approx(0.91)
    assert heat["z"][heat["y"].index("mlp")][heat["x"].index("0.1")] is None  # all of these have failed


def test_the_page_has_a_bound_however_many_runs(tmp_path):
    points = [{"model.lr": (index + 1) / 1000, "model.width": index % 7, "seed": 0} for index in range(1200)]
    swept(tmp_path / "runs", points, reach=lambda point: point["model.lr"] / 4, curves=False)
    assert main(["compare", "sweep", "--runs", str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<tr") == 501
    assert "700 more" in page
    assert len(page) < 7_000_000  # of which Plotly takes five


def test_items_are_spread_and_the_first_are_all_kept():
    assert spread(list(range(100)), 10, first=4) == [0, 1, 2, 3, 4, 20, 36, 52, 68, 84]


def test_keys_that_differ_are_axes_with_the_scale_of_their_values():
    points = [{"lr": 10.0**-i, "width": i, "on": i > 1, "name": f"n{i}", "same": 1} for i in range(4)]
    assert [(axis.key, axis.kind) for axis in axes([*points, {"lr": 1.0, "late": 1}, {"late": 2}])] == [
        ("lr", "log"),
        ("width", "linear"),
        ("on", "category"),
        ("name", "category"),
        ("late", "linear"),
    ]


# --- in a browser -----------------------------------------------------------------------------------------


def test_a_browser_draws_the_page_alone_and_without_complaint(page, browser):
    browser.open(page.as_uri())
    browser.wait("document.body.dataset.drawn")
    assert browser.ask("document.querySelectorAll('.plot .main-svg').length") >= 5
    assert browser.ask("document.querySelectorAll('.plot .parcoords').length") == 1
    assert browser.ask("document.querySelectorAll('.plot .heatmaplayer image').length") == 1
    assert browser.ask("document.querySelectorAll('#plots-0 .scatterlayer .trace').length") >= 5
    assert browser.requests() == []
    assert browser.complaints() == []


def test_choosing_a_metric_and_a_head_of_the_table_does_what_it_says(page, browser):
    browser.open(page.as_uri())
    browser.wait("document.body.dataset.drawn")
    browser.ask(
        "(() => { const s = document.querySelector('select[data-section=\"0\"]'); s.selectedIndex = 1;"
        " s.dispatchEvent(new Event('change')) })()"
    )
    browser.wait("document.querySelector('#plots-0 .ytitle').textContent === 'val/loss'")
    cells = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[1].textContent)"
    browser.ask("document.querySelectorAll('th button')[1].click()")
    assert browser.ask(cells) == ["0.001", "0.001", "0.01", "0.01", "0.1", "0.1"]
    browser.ask("document.querySelectorAll('th button')[1].click()")
    assert browser.ask(cells) == ["0.1", "0.1", "0.01", "0.01", "0.001", "0.001"]


def test_in_the_dark_the_letters_are_light(page, browser):
    browser.dark("dark")
    try:
        browser.open(page.as_uri())
        browser.wait("document.body.dataset.drawn")
        assert browser.ask("getComputedStyle(document.body).color") == "rgb(230, 232, 234)"
        assert browser.ask("document.querySelector('#plots-0 .xtitle').style.fill") == "rgb(230, 232, 234)"
    finally:
        browser.dark("light")


def test_names_and_values_are_shown_as_text_and_never_run(tmp_path, browser, capsys):
    points = [{f"model.{NASTY}": value, "seed": seed} for value in (NASTY, "plain") for seed in (0, 1)]
    swept(tmp_path / "runs", points, metrics=("val/acc", NASTY), reach=lambda point: 0.5 + 0.1 * point["seed"])
    file = tmp_path / "page.html"
    assert main(["compare", "sweep", "--runs", str(tmp_path / "runs"), "--html", str(file)]) == 0
    browser.open(file.as_uri())
    browser.wait("document.body.dataset.drawn")
    assert browser.ask("window.hit ?? null") is None
    assert browser.ask("document.querySelectorAll('img').length") == 0
    assert browser.ask("document.querySelectorAll('script').length") == 3
    assert browser.ask("document.querySelector('thead').textContent.includes(arguments[0])", NASTY)
    assert browser.ask("document.querySelector('#plots-1 .xtitle').textContent").startswith("model.</script><script>")
    assert browser.requests() == []
    assert browser.complaints() == []


def test_what_looks_like_a_credential_is_not_on_the_page(tmp_path, capsys):
    points = [{"model.api_key": key, "model.lr": lr} for key in ("hunter2a", "hunter2b") for lr in (0.1, 0.2)]
    swept(tmp_path / "runs", points)
    assert main(["compare", "sweep", "--runs", str(tmp_path / "runs"), "--html", str(tmp_path / "page.html")]) == 0
    assert "hunter2" not in (tmp_path / "page.html").read_text()
    swept(tmp_path / "runs", [{**point, "model.width": i} for i in range(20) for point in points], name="many")
    assert main(["status", "many", "--runs", str(tmp_path / "runs")]) == 0
    assert "hunter2" not in capsys.readouterr().out
