"""`gorl report` and `gorl train --report`: what the page holds, read by an HTML parser and by a browser."""

import csv
import dataclasses
import html.parser
import importlib.util
import json
import shutil
import types

import numpy as np
import pytest

import gorl
import gorl_cli._report
from gorl_cli._log import Loggers, finish_report
from gorl_cli._run import Run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
NASTY = "<img src=x onerror=\"alert('1')\"></script><b>&amp;"


class Page(html.parser.HTMLParser):
    """The elements of a page with their attributes, the texts of its scripts, and the rows of its tables."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.words, self._rows = [], {}, [], []
        self._script = self._cell = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self._script = dict(attributes).get("id", len(self.scripts))
            self.scripts[self._script] = ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")
            self._cell = self._rows[-1]

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None
        if tag in ("td", "th"):
            self._cell = None

    def handle_data(self, data):
        if self._script is not None:
            self.scripts[self._script] += data
            return
        self.words.append(data)
        if self._cell is not None:
            self._cell[-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    @property
    def rows(self):
        return [[" ".join(cell.split()) for cell in row] for row in self._rows]

    @property
    def runs(self):
        return json.loads(self.scripts["data"])["runs"]


def flat(config):
    """The fields of a config by dotted name."""
    found, left = {}, [("", json.loads(config.to_json()))]
    while left:
        prefix, group = left.pop()
        for name, value in group.items():
            if isinstance(value, dict):
                left.append((f"{prefix}{name}.", value))
            else:
                found[prefix + name] = value
    return found


@pytest.fixture(scope="module")
def made(finished_run, tmp_path_factory):
    """The text of the page about a finished run, on a machine that cannot draw."""

    def render(*_, **__):
        raise gorl.InputError("there is <nothing> to draw with.")

    run = Run.open(shutil.copytree(finished_run.directory, tmp_path_factory.mktemp("made") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gorl, "render", render)
        return gorl_cli._report.page([run])


@pytest.fixture
def copied(finished_run, tmp_path):
    return Run.open(shutil.copytree(finished_run.directory, tmp_path / "run"))


@pytest.fixture
def idle(monkeypatch):
    """Spares the seconds in which a policy acts for the page."""
    monkeypatch.setattr(gorl_cli._report, "_acting", lambda run: {"note": "nobody acts here"})


def test_the_page_has_the_curve_of_every_seed(made, finished_run):
    (drawn,) = Page(made).runs
    with finished_run.curve_file.open() as file:
        rows = list(csv.DictReader(file))
    for place, seed in enumerate((5, 6, 7)):
        of_seed = [row for row in rows if row["seed"] == str(seed)]
        assert drawn["steps"] == [int(row["env_steps"]) for row in of_seed]
        assert drawn["stage"] == [int(row["stage"]) for row in of_seed]
        assert drawn["seeds"]["return_mean"][place] == [float(row["return_mean"]) for row in of_seed]
    assert drawn["mean"]["return_mean"] == [0, 4800, 4800, 9600]
    assert drawn["low"]["return_mean"] == [0, 4000, 4000, 8000]
    assert drawn["high"]["return_mean"] == [0, 5600, 5600, 11200]


def test_the_tables_say_what_the_files_say(made, finished_run):
    page = Page(made)
    # The returns of summary.json are 1, 3 and none.
    assert ["gorl-flow", "2.0", "[1.0, 3.0] smallest and largest", "1.0", "3.0", "–", "best policies"] in page.rows
    assert any(row[:5] == ["1", "800", "4,800.0", "9,600.0", "100 %"] for row in page.rows)
    # Of the two presets, the page takes the one that fewer fields differ from.
    fields = flat(finished_run.config)
    presets = {scale: flat(gorl.preset("MultiGoal", scale)) for scale in ("laptop", "paper")}
    differing = {
        scale: {name for name in fields | preset if fields.get(name) != preset.get(name)}
        for scale, preset in presets.items()
    }
    nearest = min(differing, key=lambda scale: len(differing[scale]))
    assert f"differ from the nearest preset, {nearest}" in page.text
    changed = {row[0]: row[1:] for row in page.rows if len(row) == 3 and "." in row[0]}
    assert changed.keys() == {name for name in differing[nearest] if "." in name}
    assert changed["learner.policy_width"] == ["16", str(presets[nearest]["learner.policy_width"])]
    assert ["learner.policy_width", "16"] in page.rows
    versions = json.loads((finished_run.directory / "run.json").read_text())["versions"]
    for name, version in versions.items():
        assert [name, version] in page.rows


def test_the_page_has_the_actions_and_says_why_there_is_no_film(made):
    page = Page(made)
    actions = page.runs[0]["actions"]
    assert [state["step"] for state in actions] == [0, 4, 8, 11, 15, 19]
    for state in actions:  # densities
        np.testing.assert_allclose(np.trapezoid(state["density"], state["grid"]), 1, atol=0.02)
        np.testing.assert_allclose(np.trapezoid(state["normal"], state["grid"]), 1, atol=0.02)
    assert "No film: there is <nothing> to draw with." in page.text
    assert "video" not in [tag for tag, _ in page.elements]


def test_nothing_is_loaded_from_elsewhere(made):
    for tag, attributes in Page(made).elements:
        for name in ("src", "href", "data", "srcset", "action", "poster"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), f"{tag} loads {target[:80]}"
        assert "url(" not in (attributes.get("style") or "")
    style = made.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_names_are_escaped(copied, idle):
    clean = Page(gorl_cli._report.page([copied]))
    copied.curve_file.write_text(copied.curve_file.read_text().replace("return_mean", f'return_mean,"{NASTY}"', 1))
    head, *rows = copied.curve_file.read_text().splitlines()
    head = head.replace(f'"{NASTY}"', '"' + NASTY.replace('"', '""') + '"')
    copied.curve_file.write_text("\n".join([head, *(f"{row},1" for row in rows)]))
    text = gorl_cli._report.page([dataclasses.replace(copied, method=NASTY)], settings={copied.directory: NASTY})
    page = Page(text)
    assert [tag for tag, _ in page.elements].count("img") == 0
    assert [tag for tag, _ in page.elements].count("script") == [tag for tag, _ in clean.elements].count("script")
    assert page.runs[0]["label"] == NASTY
    assert NASTY in page.runs[0]["seeds"]
    assert f"{NASTY} on MultiGoal" in page.text


def test_several_runs_are_compared(command, copied, finished_run, idle, tmp_path):
    config = gorl.replace(copied.config, {"learner.learning_rate": 0.123})
    (copied.directory / "config.json").write_text(config.to_json())
    copied.summary_file.write_text(copied.summary_file.read_text().replace("3.0", "30.0"))
    code, output, error = command("report", finished_run.directory, copied.directory, "-o", tmp_path / "out.html")
    assert (code, error) == (0, "")
    assert output.startswith(str(tmp_path / "out.html"))
    page = Page((tmp_path / "out.html").read_text())
    assert [np.nanmean(np.array(run["returns"], float)) for run in page.runs] == [15.5, 2.0]  # the best first
    before = json.loads(finished_run.config.to_json())["learner"]["learning_rate"]
    labels = [run["label"] for run in page.runs]
    place = page.rows.index(["field", *labels])
    assert page.rows[place + 1] == ["learner.learning_rate", "0.123", str(before)]
    assert page.rows[place + 2][:1] == ["stage"]  # nothing else differs
    assert [row[:3] for row in page.rows if "smallest and largest" in " ".join(row)] == [
        [page.runs[0]["label"], "15.5", "[1.0, 30.0] smallest and largest"],
        [page.runs[1]["label"], "2.0", "[1.0, 3.0] smallest and largest"],
    ]


def test_a_sweep_has_a_row_for_each_setting(command, finished_run, idle, tmp_path):
    sweep = tmp_path / "sweep"
    for name, value in (("0-slow", 1e-4), ("1-fast", 1e-2)):
        shutil.copytree(finished_run.directory, sweep / name)
        config = gorl.replace(finished_run.config, {"learner.learning_rate": value})
        (sweep / name / "config.json").write_text(config.to_json())
    (sweep / "1-fast" / "summary.json").unlink()
    names = {"learning_rate=1e-4": "0-slow", "learning_rate=1e-2": "1-fast"}
    values = {name: {"learner.learning_rate": name.partition("=")[2]} for name in names}
    content = {"format": 2, "versions": {"gorl": "0.2.0"}, "set": {}, "options": [], "values": values, "runs": names}
    (sweep / "sweep.json").write_text(json.dumps(content))
    code, _, error = command("report", sweep, "-o", tmp_path / "out.html")
    assert code == 0, error
    page = Page((tmp_path / "out.html").read_text())
    assert sorted(run["label"] for run in page.runs) == sorted(names)
    assert "A sweep of 2 settings, 1 of them finished" in page.text
    assert any(row[:2] == ["learning_rate=1e-4", "2.0"] for row in page.rows)
    # Nothing but its last evaluation is known: 5, 6 and 7 times 1600.
    assert any(row[:2] == ["learning_rate=1e-2", "9,600.0"] for row in page.rows)


def test_what_is_not_there_yet_is_shown_as_such(command, copied, tmp_path):
    for path in (copied.curve_file, copied.policies_file, copied.summary_file):
        path.unlink()
    code, _, error = command("report", copied.directory, "-o", tmp_path / "out.html")
    assert (code, error) == (0, "")
    page = Page((tmp_path / "out.html").read_text())
    assert "Nothing was evaluated yet" in page.text
    assert "The run has no policy yet" in page.text
    assert "not finished, 0 %" in page.text
    assert ["0", "800 planned", "not there yet", "not there yet"] in page.rows


@pytest.mark.parametrize("is_installed", [True, False])
@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("report.pdf", "must end in one of .html"),
        ("report", "must end in"),
        ("nowhere/report.html", "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(command, finished_run, tmp_path, monkeypatch, out, sentence, is_installed):
    monkeypatch.chdir(tmp_path)
    if not is_installed:
        without_plotly(monkeypatch)
        sentence = "gorl report needs plotly, which is not installed: pip install 'gorl[report]'"
    code, output, error = command("report", finished_run.directory, "-o", out)
    assert (code, output) == (2, "")
    assert sentence in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["curve.csv", "summary.json", "config.json", "run.json"])
def test_a_damaged_file_is_one_sentence(command, copied, idle, tmp_path, name):
    (copied.directory / name).write_text("seed,stage\n5,0\n")
    out = tmp_path / "out.html"
    out.write_text("the page of before")
    code, _, error = command("report", copied.directory, "-o", out)
    assert code == 2
    assert name in error
    assert error.count("\n") == 1
    assert out.read_text() == "the page of before"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out.html"}


def test_a_directory_is_no_page(command, finished_run, tmp_path):
    (tmp_path / "report.html").mkdir()
    code, _, error = command("report", finished_run.directory, "-o", tmp_path / "report.html")
    assert code == 2
    assert "is a directory: give a file" in error


def without_plotly(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "plotly" else found(name, *rest)
    )


def test_training_says_what_to_install_before_it_begins(command, tmp_path, monkeypatch):
    without_plotly(monkeypatch)
    code, _, error = command("train", "MultiGoal", "--report", "--out", tmp_path / "run")
    assert code == 2
    assert error == "gorl: --report needs plotly, which is not installed: pip install 'gorl[report]'.\n"
    assert not (tmp_path / "run").exists()


def test_the_page_of_a_run_that_trains(copied, monkeypatch, idle):
    """It is there before the first evaluation, is written anew after some time only, and says how the run is."""
    run = dataclasses.replace(copied, log=("report",))
    whole, summary = run.curve_file.read_text(), run.summary_file.read_text()
    now = [100.0]
    monkeypatch.setattr("gorl_cli._log.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    run.curve_file.unlink()
    run.summary_file.unlink()

    def page():
        text = run.report_file.read_text()
        return Page(text), 'http-equiv="refresh"' in text

    loggers = Loggers(run, [])
    shown, is_live = page()
    assert "Nothing was evaluated yet" in shown.text
    assert is_live
    for lines, seconds, expected in ((4, 1, [0]), (7, 2, [0]), (7, 31, [0, 800])):
        run.curve_file.write_text("\n".join([*whole.splitlines()[:lines], ""]))
        now[0] += seconds
        loggers.write([])
        shown, is_live = page()
        assert shown.runs[0]["steps"] == expected
        assert is_live
    assert "training, 50 %" in shown.text
    loggers.close()  # as a signal stops it
    shown, is_live = page()
    assert "not finished, 50 %" in shown.text
    assert not is_live

    loggers = Loggers(run, [])
    run.curve_file.write_text(whole)
    loggers.close()
    assert page()[1]  # the results are about to come
    run.summary_file.write_text(summary)
    finish_report(run)
    shown, is_live = page()
    assert not is_live
    assert "finished" in shown.text
    assert "training," not in shown.text


def test_a_page_that_cannot_be_written_does_not_end_a_run(copied, monkeypatch, capsys):
    run = dataclasses.replace(copied, log=("report",))
    run.curve_file.write_text("damaged")
    Loggers(run, []).close()
    assert "could not be written" in capsys.readouterr().err
    assert not run.report_file.exists()


@pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed: apt install chromium-driver"
)
def test_a_browser_shows_the_page(copied, monkeypatch):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    frames = np.random.default_rng(0).integers(0, 255, (1, 10, 30, 40, 3), np.uint8)
    film = gorl.Film(frames, np.array([10]), 10.0, np.array([1.0]))
    monkeypatch.setattr(gorl, "render", lambda *_, **__: film)  # MultiGoal has no model
    head, *rows = copied.curve_file.read_text().splitlines()
    head, rows = f"{head},a<b>_loss", [f"{row},{index}" for index, row in enumerate(rows)]
    copied.curve_file.write_text("\n".join([head, *rows]))
    path = copied.directory / "page.html"
    path.write_text(gorl_cli._report.page([copied]))

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=390,900"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        browser.get(path.as_uri())

        def lines():
            return browser.execute_script(
                "const shown = document.getElementById('curves-plot').data.filter(trace => trace.showlegend !== false);"
                "return shown.map(trace => [trace.name, trace.y])"
            )

        found = dict(lines())
        assert found["mean"] == [0, 4800, None, 4800, 9600, None]
        assert found["seed 7"] == [0, 5600, None, 5600, 11200, None]
        assert len(browser.find_elements(By.CSS_SELECTOR, "#curves-plot .scatterlayer .trace")) >= 4
        panels = browser.find_element(By.CSS_SELECTOR, ".panels")
        browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'end'})", panels)
        WebDriverWait(browser, 20).until(
            lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".panels .scatterlayer")) == 6
        )
        assert "128" not in browser.find_element(By.ID, "results-table").text
        assert "[1.0, 3.0]" in browser.find_element(By.ID, "results-table").text
        (shown,) = browser.find_elements(By.CSS_SELECTOR, ".film")
        width = "return arguments[0].videoWidth || arguments[0].naturalWidth"
        WebDriverWait(browser, 20).until(lambda _: browser.execute_script(width, shown) == 40)
        Select(browser.find_element(By.ID, "metric")).select_by_value("a<b>_loss")
        assert dict(lines())["mean"] == [1, 4, None, 7, 10, None]
        before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        browser.find_element(By.ID, "theme").click()
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != before
        # A telephone scrolls down only.
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        assert path.as_uri() in asked
        assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    finally:
        browser.quit()
