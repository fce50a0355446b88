"""The report in a real browser: headless Chromium, as its readers open it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from analysis.__main__ import main
from tests.recorded import base_curve, write_run

# Where Chromium must be (REQUIRE_CHROMIUM, set by .ci/run), its absence is a failure; elsewhere a skip that says why.
missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
needs_browser = pytest.mark.skipif(
    bool(missing) and "REQUIRE_CHROMIUM" not in os.environ,
    reason=f"no browser here ({', '.join(missing)} not found): `make system-deps` installs it",
)
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("report")]  # one page and one browser for all
HOSTILE = "<img src=x onerror=document.hacked=1>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """λ × precision × three seeds with a branch each, the precision's name an attack, and a run with an attack for a name."""
    root = tmp_path_factory.mktemp("report")
    rates = {"optim/lr": lambda s: np.full(len(s), 0.1), "weights/norm": lambda s: 5.0 + 0.01 * s}
    for precision in ("fp32", HOSTILE):
        for decay in (0.0, 0.1, 1.0):
            for seed in range(3):
                name = f"wd{decay}-{precision[:1].strip('<') or 'x'}-{seed}"
                trunk = write_run(
                    root / "runs" / name,
                    lambda s, k=decay: base_curve(s) + 0.01 * k * (1 - s / 300),  # type: ignore[misc]
                    decay=decay,
                    seed=seed,
                    steps=400,
                    precision=precision,
                    columns=rates,
                )
                branch = {"origin": f"{trunk}@400"}
                write_run(
                    root / "runs" / f"{name}-tiny",
                    steps=50,
                    seed=seed,
                    precision=precision,
                    branch=branch,
                    optim={"lr": 1e-4},
                )
    write_run(root / "runs" / f"{HOSTILE}&", decay=0.3, steps=400, columns=rates)
    out = root / "out"
    assert main(["report", str(root / "runs"), "--out", str(out), "--title", f"About {HOSTILE}"]) == 0
    return out / "index.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> webdriver.Chrome:
    """As it was when it was started: an empty page, a window of the first size, a screen, and nothing in its logs."""
    chromium.get("about:blank")
    chromium.set_window_size(800, 600)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    return chromium


def open_page(browser: webdriver.Chrome, page: Path) -> None:
    """Go to the page and wait for its figures: on a busy machine the driver may still have the page before."""
    browser.get(page.as_uri())
    is_there = "return location.href === arguments[0] && document.readyState === 'complete' && !!document.querySelector('.plot')"
    WebDriverWait(browser, 60).until(lambda one: one.execute_script(is_there, page.as_uri()))


def shown(browser: webdriver.Chrome, key: str) -> dict[str, Any]:
    """By panel of one figure: the names of the lines shown."""
    script = """const found = {};
    for (const plot of document.querySelectorAll(`[data-figure="${arguments[0]}"].plot`))
      found[plot.dataset.panel] = plot.data.filter(t => t.visible !== false && t.visible !== "legendonly").map(t => t.name ?? "");
    return found;"""
    return dict(browser.execute_script(script, key))


def figures(browser: webdriver.Chrome) -> list[str]:
    return sorted({plot.get_attribute("data-figure") or "" for plot in browser.find_elements(By.CSS_SELECTOR, ".plot")})


@needs_browser
def test_page_is_whole_and_asks_nothing(page: Path, browser: webdriver.Chrome) -> None:
    """Breaks if the page needs the network, logs an error, leaves a figure undrawn, or a run's name is taken for HTML."""
    browser.get("about:blank")
    browser.get_log("performance")  # of the browser's own first page
    open_page(browser, page)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    plots = browser.find_elements(By.CSS_SELECTOR, ".plot")
    assert len(plots) >= 10
    assert all(plot.find_elements(By.CSS_SELECTOR, ".main-svg") for plot in plots)
    assert browser.execute_script("return document.hacked") is None
    assert not browser.find_elements(By.CSS_SELECTOR, "img[src=x]")
    assert HOSTILE in browser.find_element(By.TAG_NAME, "h1").text
    sections = {e.get_attribute("id") for e in browser.find_elements(By.TAG_NAME, "h2")}
    assert {"loss_curves", "sweep", "bias_variance", "precision", "generalisation", "effective_lr", "runs"} <= sections
    links = [e.get_attribute("href") or "" for e in browser.find_elements(By.CSS_SELECTOR, "figcaption a")]
    assert links
    assert all(Path(link.removeprefix("file://")).stat().st_size > 0 for link in links)


@needs_browser
def test_lines_are_switched(page: Path, browser: webdriver.Chrome) -> None:
    """Breaks if a switch or a legend's entry leaves its lines shown, in any panel, or hides others."""
    open_page(browser, page)
    figure = "loss_curves-loss"
    every = [shown(browser, name) for name in figures(browser)]
    before = shown(browser, figure)
    assert set(before) == {"0", "1"}
    assert not any("seed" in name for names in before.values() for name in names)
    legend = browser.find_element(By.CSS_SELECTOR, f'.legend[data-figure="{figure}"]')
    entry = legend.find_elements(By.TAG_NAME, "button")[0]
    browser.execute_script("arguments[0].click()", entry)
    assert entry.get_attribute("aria-pressed") == "false"
    for panel, names in shown(browser, figure).items():
        assert len(names) < len(before[panel])
    browser.execute_script("arguments[0].click()", entry)
    assert [shown(browser, name) for name in figures(browser)] == every, (
        "off and on again is as before, in every figure"
    )
    box = browser.find_element(By.CSS_SELECTOR, 'input[data-key="λ"][value="0"]')
    browser.execute_script("arguments[0].click()", box)
    for names in shown(browser, figure).values():
        assert names
        assert not any(name.startswith("λ = 0,") for name in names)
    seed = browser.find_element(By.CSS_SELECTOR, 'input[data-key="seed"][value="1"]')
    browser.execute_script("arguments[0].click()", seed)
    assert any(name == "seed 1" for names in shown(browser, figure).values() for name in names)


@needs_browser
def test_only_the_pages_own_scripts_run(page: Path, browser: webdriver.Chrome) -> None:
    """Breaks if a script that a run's name or a damaged file brought in runs, if a figure cannot be pointed at, zoomed or saved
    under the policy, or if plotly offers to upload one."""
    text = page.read_text()
    policy = text.partition('Content-Security-Policy" content="')[2].partition('"')[0].replace("&#39;", "'")
    scripts = policy.partition("script-src ")[2].partition(";")[0].split()
    assert len(scripts) == 2
    assert all(source.startswith("'sha256-") for source in scripts)
    open_page(browser, page)
    for act in (
        "const s = document.createElement('script'); s.textContent = 'document.hacked = 1'; document.head.append(s);",
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.hacked=1\">');",
        "document.body.insertAdjacentHTML('beforeend', '<a id=a href=\"javascript:document.hacked=1\">a</a>'); a.click();",
    ):
        browser.execute_script(act)
    assert browser.execute_script("return document.hacked") is None
    assert browser.get_log("browser"), "what was refused is said"
    open_page(browser, page)
    for plot in browser.find_elements(By.CSS_SELECTOR, ".plot"):
        browser.execute_script(
            "arguments[0].scrollIntoView(); Plotly.Fx.hover(arguments[0], [{curveNumber: 0, pointNumber: 1}])", plot
        )
    plot = browser.find_element(By.CSS_SELECTOR, ".plot")
    browser.execute_script("Plotly.relayout(arguments[0], {'xaxis.range': [0, 100]})", plot)
    save = "const done = arguments[1]; Plotly.toImage(arguments[0], {format: 'png'}).then(done, done)"
    assert str(browser.execute_async_script(save, plot)).startswith("data:image/png")
    titles = {button.get_attribute("data-title") for button in browser.find_elements(By.CSS_SELECTOR, ".modebar-btn")}
    assert "Reset axes" in titles
    assert not [title for title in titles if "hare" in str(title) or "loud" in str(title)]
    assert browser.get_log("browser") == []


@needs_browser
def test_tables_sort(page: Path, browser: webdriver.Chrome) -> None:
    """Breaks if a click on a column's head does not order its table by number, and back."""
    open_page(browser, page)
    table = browser.find_element(By.XPATH, "//table[caption[text()='Runs and how they differ']]")
    heads = [head.text for head in table.find_elements(By.TAG_NAME, "th")]
    column = heads.index("step")
    for direction, reverse in (("ascending", False), ("descending", True)):
        head = table.find_elements(By.CSS_SELECTOR, "th")[column]
        browser.execute_script("arguments[0].click()", head.find_element(By.TAG_NAME, "button"))
        assert head.get_attribute("aria-sort") == direction
        values = [
            int(row.find_elements(By.TAG_NAME, "td")[column].text)
            for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")
        ]
        assert values == sorted(values, reverse=reverse)
        assert len(set(values)) == 2


@needs_browser
@pytest.mark.parametrize("width", [420, 1280])
def test_width(width: int, page: Path, browser: webdriver.Chrome) -> None:
    """Breaks if the page is wider than a phone's screen, or its figures are."""
    browser.set_window_size(width, 900)
    open_page(browser, page)
    inner, outer = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert inner <= outer
    for plot in browser.find_elements(By.CSS_SELECTOR, ".plot"):
        assert plot.size["width"] <= outer
        assert plot.find_element(By.CSS_SELECTOR, ".main-svg").size["width"] <= outer


@needs_browser
def test_a_phone_hides_nothing(page: Path, browser: webdriver.Chrome) -> None:
    """Breaks if on a phone a switch or a figure's tool stands outside the screen, a table widens the page instead of scrolling
    in its frame, or a reader scrolls four screens before the first figure."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        open_page(browser, page)
        ends = "const b = e.getBoundingClientRect(); return [b.left, b.right, b.width]"
        script = f"return [...document.querySelectorAll(arguments[0])].map(e => {{ {ends} }})"
        bars = browser.execute_script(script, ".switches label, .modebar-btn, .legend button")
        assert len(bars) >= 10
        assert all(left >= 0 and right <= 420 for left, right, width in bars if width)
        frames = browser.execute_script(
            "return [...document.querySelectorAll('.wide')].map(f => [f.scrollWidth, f.clientWidth, f.clientHeight])"
        )
        assert any(inner > outer for inner, outer, _ in frames), "some table is wider than a phone"
        assert all(outer <= 420 and height <= 500 for _, outer, height in frames)
        top = browser.execute_script("return document.querySelector('figure').getBoundingClientRect().top")
        assert top < 4 * 900
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_findings_are_folded(page: Path, browser: webdriver.Chrome) -> None:
    """Breaks if the page does not open with its sum, or undecided comparisons stand among the decided ones or are lost."""
    open_page(browser, page)
    said = browser.find_element(By.CSS_SELECTOR, ".sum").text
    decided, _, every = said.split(" comparisons")[0].split()[0:3]
    rows = browser.find_elements(By.CSS_SELECTOR, ".claims li")
    assert len(rows) == int(every) > int(decided) > 0
    folded = browser.find_element(By.CSS_SELECTOR, "details.undecided")
    assert len(folded.find_elements(By.CSS_SELECTOR, "li")) == int(every) - int(decided)
    assert not folded.find_element(By.TAG_NAME, "ul").is_displayed()
    browser.execute_script("arguments[0].click()", folded.find_element(By.TAG_NAME, "summary"))
    assert folded.find_element(By.TAG_NAME, "ul").is_displayed()
    first = browser.find_element(By.CSS_SELECTOR, ".claims li")
    assert first.is_displayed()


@needs_browser
def test_print(page: Path, browser: webdriver.Chrome) -> None:
    """Breaks if a table is cut off on paper, or what only a screen can use is printed."""
    browser.set_window_size(760, 900)
    open_page(browser, page)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    script = "return [...document.querySelectorAll('table')].map(t => [t.scrollWidth, t.closest('.wide').clientWidth])"
    for inner, outer in browser.execute_script(script):
        assert inner <= outer
    assert not browser.find_element(By.CSS_SELECTOR, ".switches").is_displayed()


def test_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks if a report without runs is written, or one over an older report leaves half a page."""
    assert main(["report", str(tmp_path / "none*"), "--out", str(tmp_path / "out")]) == 2
    assert "names no run folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    write_run(tmp_path / "runs" / "a", steps=100)
    for _ in range(2):
        assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figures", "index.html"]
