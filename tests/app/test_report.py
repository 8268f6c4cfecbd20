import base64
import html
import io
import json
import math
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from wazuka.app.report import (
    Baseline,
    Picture,
    ReportData,
    bucket_means,
    claimed,
    confusion_chart,
    count,
    curve_panels,
    data_uri,
    duration,
    nice_ticks,
    number,
    percent,
    render_report,
)
from wazuka.evaluation import evaluate, wilson

HOSTILE = '"><script>alert(1)</script>'


def evaluation_of(right, total, classes):
    labels = np.arange(total) % len(classes)
    guesses = np.where(np.arange(total) < right, labels, (labels + 1) % len(classes))
    probs = np.full((total, len(classes)), 0.1 / max(1, len(classes) - 1))
    probs[np.arange(total), guesses] = 0.9
    return evaluate(probs, labels, classes, draws=50)


def picture(name="a/b.png", predicted="bee", label="ant", size=8, channels=1):
    image = np.random.default_rng(0).integers(0, 256, (channels, size, size)).astype(np.uint8)
    return Picture(image, name, predicted, 0.871, label)


def full(classes=("ant", "bee"), name="a/b.png", **changes):
    fields = {
        "title": f"photos of {name}",
        "run": {"method": "fixmatch", "n_labeled": 40, "n_unlabeled": 12345, "seconds": 41.7, "seed": 3,
                "images_per_second": 3120.4, "versions": {"torch": "2.13.0"}, "my_own_fact": True},
        "evaluation": evaluation_of(485, 500, classes),
        "measured": "test",
        "curves": [{"step": s, "seconds": s / 10, "loss": math.exp(-s / 50), "used": s / 400} for s in range(400)],
        "baselines": [Baseline("label spreading", wilson(462, 500), 0.3, "on all photos")],
        "surest": [picture(name)], "unsure": [picture(name, label=None)], "mistakes": [picture(name, channels=3)],
        "skipped": [(name, "the file ends before the picture does")],
        "duplicates": ["2 photos are the same."],
        "warnings": ["The unlabeled photos did not help."],
        "reproduce": "wazuka fit photos --seed 3",
        "predict": "wazuka predict runs/x PHOTOS",
        "created": "21 November 2025",
    }  # fmt: skip
    return ReportData(**(fields | changes))


def words(page):
    """What a reader reads: no tags, no styles, plain spaces."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)).replace("\xa0", " "))


@pytest.fixture(scope="module")
def page():
    return render_report(full())


def test_headline_is_the_sentence_a_manager_quotes(page):
    said = "Of 500 test photos it had never seen, 485 (97.0 %, 95 % interval 95.1–98.2 % ) were named right."
    assert said in words(page)


def test_every_part_is_there(page):
    text = words(page)
    for expected in (
        "photos of a/b.png", "21 November 2025", "labeled photos 40", "unlabeled photos 12,345", "time to learn 42 s",
        "photos per second 3,120", "seed 3", "torch 2.13.0", "my own fact yes",                    # facts
        "set aside before learning began",                                                         # protocol
        "Wazuka (fixmatch)", "label spreading", "92.4 %", "89.7–94.4 %", "61 % fewer mistakes",    # comparison
        "Mistakes", "Least sure", "Surest", "87.1 %", "is ant", "b.png",                           # pictures
        "Class by class", "What it mixes up", "bee taken for ant", "Brier score", "How it learned", "loss", "used",
        "1 file skipped", "the file ends before the picture does", "2 photos are the same.",
        "The unlabeled photos did not help.", "wazuka fit photos --seed 3", "wazuka predict runs/x PHOTOS",
    ):  # fmt: skip
        assert expected in text, expected


def test_page_asks_nothing_of_the_network_and_runs_nothing(page):
    class Reader(HTMLParser):
        tags: set[str] = set()  # noqa: RUF012
        links: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)
            self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
            assert not any(name.startswith("on") for name, _ in attrs)

    Reader().feed(page)
    assert not Reader.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert Reader.links
    assert all(link.startswith("data:") for link in Reader.links)
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert "@import" not in page
    assert '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;' in page


def test_hostile_names_stay_text():
    report = full(
        classes=(HOSTILE, "bee"), name=HOSTILE, warnings=[HOSTILE], duplicates=[HOSTILE], reproduce=HOSTILE,
        predict=HOSTILE, protocol=HOSTILE, run={"method": HOSTILE, HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}},
        curves=[{"step": s, HOSTILE: s} for s in range(3)], baselines=[Baseline(HOSTILE, wilson(1, 2), 1.0, HOSTILE)],
        mistakes=[picture(HOSTILE, HOSTILE, HOSTILE + "2")], skipped=[(HOSTILE, HOSTILE)],
    )  # fmt: skip
    page = render_report(report)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 20
    assert "{{" not in render_report(full(name="{{ 7 * 7 }}")).replace("{{ 7 * 7 }}", "")


def test_file_names_that_are_no_text_can_be_written():
    name = b"\xff\xfe.png".decode("utf-8", "surrogateescape")
    assert render_report(full(name=name)).encode("utf-8")


def test_a_run_without_measurement_says_so():
    page = render_report(full(evaluation=None, measured="none", baselines=[], mistakes=[]))
    text = words(page)
    assert "how often it is right has not been measured" in text
    assert "not measured" in text
    assert "What it mixes up" not in text
    assert "Surest" in text
    assert "Mistakes" not in text


def test_cross_validation_is_told_from_a_test_set():
    text = words(render_report(full(measured="cross-validation")))
    assert "Of 500 labeled photos, each kept back once while it learned from the others, 485" in text
    assert "never seen" not in text
    assert "mine" in words(render_report(full(protocol="mine")))


@pytest.mark.parametrize(("measured", "evaluation"), [("test", None), ("none", 1), ("guess", 1)])
def test_contradictions_are_refused(measured, evaluation):
    with pytest.raises(ValueError, match="measured"):
        ReportData(title="x", run={}, measured=measured, evaluation=evaluation)


def test_the_smallest_report():
    assert "nothing" in render_report(ReportData(title="nothing", run={}))


def test_comparison_tells_a_worse_result_as_well():
    better = words(render_report(full(baselines=[Baseline("boosting", wilson(499, 500))])))
    assert "The best alternative, boosting, did better here" in better
    assert "may be chance" not in better
    close = words(render_report(full(baselines=[Baseline("boosting", wilson(484, 500))])))
    assert "makes 6 % fewer mistakes" in close
    assert "may be chance" in close
    assert "right as often" in words(render_report(full(baselines=[Baseline("boosting", wilson(485, 500))])))


@pytest.mark.parametrize("n", [2, 10, 20, 36, 60, 100])
def test_confusion_matrix_fits_and_holds_every_image(n):
    classes = [f"a rather long name of class {k}" for k in range(n)]
    evaluation = evaluation_of(4 * n, 5 * n, classes)
    chart = confusion_chart(evaluation)
    assert sum(cell["count"] for cell in chart["cells"]) == 5 * n
    assert chart["width"] < 1000
    assert all(chart["left"] <= cell["x"] < chart["width"] for cell in chart["cells"])
    assert render_report(full(classes=classes)).count("<rect") > n
    wrong = next(cell for cell in chart["cells"] if not cell["right"])
    assert wrong["x"] != wrong["y"] - chart["top"] + chart["left"]


def test_confusion_rows_are_the_truth():
    evaluation = evaluate(np.array([[0.1, 0.9]]), [0], ["ant", "bee"], draws=10)
    (cell,) = confusion_chart(evaluation)["cells"]
    assert cell["title"] == "ant named bee: 1 of 1"
    assert cell["x"] - confusion_chart(evaluation)["left"] == 44  # second column, first row
    assert cell["y"] == confusion_chart(evaluation)["top"]


def test_mistakes_come_with_the_surest_first():
    pictures = [Picture(picture().image, f"{p}.png", "bee", p, "ant") for p in (0.6, 0.99, 0.7)]
    text = words(render_report(full(mistakes=pictures)))
    assert text.index("0.99.png") < text.index("0.7.png") < text.index("0.6.png")


def test_numbers_read_well_and_never_flatter():
    assert [percent(x).replace("\xa0", " ") for x in (0.97, 1, 0, 0.99996, 0.9996, 0.0004, 0.5)] == [
        "97.0 %", "100.0 %", "0.0 %", "99.996 %", "99.96 %", "0.04 %", "50.0 %",
    ]  # fmt: skip
    assert percent(math.nan) == "–"
    assert claimed(0.97) == percent(0.97)
    assert claimed(0.99995) == claimed(1.0) == "> 99.9\xa0%"
    assert [number(x) for x in (0, 0.12345, 2.3026, 12345.6, 1e-7, 250.4, math.nan)] == [
        "0", "0.123", "2.30", "12,346", "1e-07", "250", "–",
    ]  # fmt: skip
    assert [duration(x) for x in (4.21, 41.7, 119.6, 151, 600, 7300)] == [
        "4.2 s", "42 s", "2 min", "2 min 31 s", "10 min", "2 h 1 min",
    ]  # fmt: skip
    assert count(1234567) == "1,234,567"


def test_small_pictures_are_kept_to_the_bit_and_photos_shrunk():
    small = picture(size=8).image
    uri, crisp = data_uri(small)
    assert crisp
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))
    np.testing.assert_array_equal(decoded, small[0])
    color = picture(size=9, channels=3).image
    uri, _ = data_uri(color)
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    np.testing.assert_array_equal(decoded, color.transpose(1, 2, 0))
    uri, crisp = data_uri(picture(size=500, channels=3).image)
    assert not crisp
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (192, 192)
    with pytest.raises(ValueError, match="uint8"):
        data_uri(small.astype(np.float32))


def test_curves_follow_every_number_and_thin_out():
    rows = [{"step": s, "seconds": s, "loss": 1 / (1 + s), "odd": math.nan, "word": "x"} for s in range(5000)]
    rows[100]["test_accuracy"], rows[4999]["test_accuracy"] = 0.5, 0.975
    panels = {panel["name"]: panel for panel in curve_panels(rows)}
    assert list(panels) == ["test accuracy", "loss"]  # accuracy first; what is no number gets no curve
    assert panels["test accuracy"]["final"] == "97.5\xa0%"
    assert len(panels["loss"]["line"].split()) == 240
    ys = [float(point.split(",")[1]) for point in panels["loss"]["smooth"].split()]
    assert ys == sorted(ys)  # a falling loss runs down the page, where y grows
    xs = [float(point.split(",")[0]) for point in panels["loss"]["line"].split()]
    assert (xs[0], xs[-1]) == (panels["loss"]["left"], panels["loss"]["right"])


def test_curves_of_folds_lie_behind_the_final_one():
    rows = [{"stage": f"fold-{k}", "step": s, "loss": 1.0 + k} for k in range(3) for s in range(4)]
    rows += [{"stage": "final", "step": s, "loss": 0.5} for s in range(4)]
    (panel,) = curve_panels(rows)
    assert panel["final"] == "0.500"
    assert len(panel["others"]) == 3
    assert "Thin lines" in words(render_report(full(curves=rows)))


def test_thinning_keeps_the_mean():
    points = np.stack([np.arange(1000.0), np.random.default_rng(0).random(1000)], 1)
    thin = bucket_means(points, 100)
    assert thin.shape == (100, 2)
    assert thin[:, 1].mean() == pytest.approx(points[:, 1].mean())
    assert (thin[0, 0], thin[-1, 0]) == (0, 999)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.93, 0.97), (-3, 250), (5, 5), (0, 0), (1e-9, 3e-9), (0, 2.31)])
def test_ticks_are_round_and_span_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert f"{ticks[1] - ticks[0]:e}"[0] in "125"


def test_the_page_stays_small():
    classes = [f"class {k}" for k in range(100)]
    many = [picture(f"{k}.jpg", size=224, channels=3) for k in range(36)]
    assert len(render_report(full(classes=classes, mistakes=many))) < 2_500_000
    assert len(render_report(full())) < 100_000


def test_importing_the_report_is_light():
    code = "import sys, wazuka.app.report; print([m for m in ('torch','jinja2','sklearn','matplotlib','PIL','scipy') "
    code += "if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Browser:
    """Chromium through its driver's plain HTTP protocol."""

    def __init__(self, profile):
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.driver.stdout
        line = next(line for line in self.driver.stdout if "started successfully on port" in line)
        self.base = f"http://127.0.0.1:{int(line.strip().rstrip('.').split()[-1])}"
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   f"--user-data-dir={profile}"]  # fmt: skip
        wanted = {"goog:chromeOptions": {"args": options}, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = self.post("/session", capabilities={"alwaysMatch": wanted})["sessionId"]

    def post(self, path, **body):
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"})
        with self.opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def __call__(self, path, **body):
        return self.post(f"/session/{self.session}/{path}", **body)

    def ask(self, script):
        return self("execute/sync", script="return " + script, args=[])

    def width(self, width):
        self("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride",
             params={"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})  # fmt: skip

    def close(self):
        try:
            request = urllib.request.Request(f"{self.base}/session/{self.session}", method="DELETE")
            self.opener.open(request, timeout=30).close()
        finally:
            self.driver.terminate()
            self.driver.wait(10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not shutil.which("chromedriver") or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("needs chromium and chromedriver")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.browser
@pytest.mark.parametrize("n", [2, 60])
def test_a_real_browser_shows_it(browser, tmp_path, n):
    classes = [HOSTILE, *(f"a-class-name-that-is-long-and-has-no-space-in-it-{k}" for k in range(n - 1))]
    path = tmp_path / "report.html"
    path.write_text(render_report(full(classes=classes, name=HOSTILE)), encoding="utf-8")
    browser("url", url=path.as_uri())
    assert "Of 500 test photos it had never seen, 485 (97.0 %" in browser.ask("document.body.innerText").replace(
        "\xa0", " "
    )
    sources = browser.ask("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(source.startswith("data:") for source in sources)
    assert browser.ask("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    for width in (1200, 400):  # nothing may stick out sideways, on a phone either
        browser.width(width)
        deadline = time.monotonic() + 5
        while browser.ask("innerWidth") != width and time.monotonic() < deadline:
            time.sleep(0.05)
        assert browser.ask("document.documentElement.scrollWidth") <= width
    assert [entry["message"] for entry in browser("se/log", type="browser")] == []
