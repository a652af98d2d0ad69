"""The report in a browser: Debian's Chromium, without a window."""

import math
import shutil
import time

import pytest
from pages import HOSTILE, write_audit, write_run

from idrc_jax import report
from idrc_jax.report import page
from idrc_jax.results import runs

pytestmark = pytest.mark.peers
READY = "return document.getElementById(arguments[0])?.dataset.ready === 'true'"
# The first chart embedded is that of the curves.
# Milliseconds from the call of the page until the first chart is there.
WAIT = """const done = arguments[0]; const chart = document.getElementById("curves"); chart.scrollIntoView();
  const look = () => chart.dataset.ready ? done(performance.now()) : requestAnimationFrame(look); look()"""
VISIBLE = """return Bokeh.documents[0].roots()[0].renderers
  .filter((one) => one.visible && one.tags[0] === 'line').map((one) => one.tags.slice(1).join('-'))"""
BANDS = VISIBLE.replace("'line'", "'band'")
POINTED = "return document.getElementById('pointed').textContent"
# The place on the page of a point in the coordinates of the first chart.
POINT = """const view = Bokeh.index.roots[0]; const box = view.el.getBoundingClientRect(); const [x, y] = arguments;
  return [box.left + view.frame.x_scale.compute(x), box.top + view.frame.y_scale.compute(y)]"""
TOOLTIPS = """const texts = []; const walk = (node) => {
    for (const one of node.querySelectorAll('*')) {
      if (one.shadowRoot) walk(one.shadowRoot);
      if (one.classList?.contains('bk-Tooltip') && one.getBoundingClientRect().width) {
        texts.push(one.shadowRoot?.textContent ?? one.textContent);
      }
    }
  };
  walk(document); return texts"""


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromium-driver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def opened(browser, folder, *arguments, width=1200, scheme="light", **more):
    page = folder / "index.html"
    page.write_text(report.render(runs.read([str(one) for one in arguments]), **more))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser")
    browser.get(page.as_uri())


def ready(browser, chart):
    browser.execute_script("document.getElementById(arguments[0]).scrollIntoView({block: 'center'})", chart)
    until(lambda: browser.execute_script(READY, chart))


def no_complaints(browser):
    return [one for one in browser.get_log("browser") if one["level"] in ("SEVERE", "WARNING")]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    a = write_audit(write_run(folder / "a", gallery=True))
    b = write_run(folder / "b", seed=1)
    return folder, f"first={a}", f"second={b}"


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_it_renders_without_a_complaint_at_any_width(browser, two, width, scheme):
    opened(browser, *two, width=width, scheme=scheme)
    for chart in ("curves", "probabilities", "classes-0"):
        ready(browser, chart)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    colours = "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    text, page = (sum(int(part) for part in colour[4:-1].split(",")) for colour in browser.execute_script(colours))
    assert (text < page) == (scheme == "light")
    axis = browser.execute_script("return Bokeh.documents[0].roots()[0].below[0].major_label_text_color")
    assert (int(axis[1:3], 16) < 128) == (scheme == "light")
    # A chart in a closed part comes when it is opened.
    assert not browser.execute_script(READY, "classes-1")
    browser.execute_script("document.getElementById('run-1').open = true")
    ready(browser, "classes-1")
    assert no_complaints(browser) == []


def test_toggles_pick_runs_and_kinds_by_mouse_and_keyboard(browser, two):
    from selenium.webdriver.common.keys import Keys

    opened(browser, *two)
    ready(browser, "curves")
    assert browser.execute_script(VISIBLE) == ["valid-0", "valid-1"]
    browser.find_element("css selector", "input[value=published]").click()
    assert browser.execute_script(VISIBLE) == ["published-0", "published-1"]
    shown = "return [...document.querySelectorAll('tr.valid')].filter((row) => row.offsetParent !== null).length"
    assert browser.execute_script(shown) == 0
    browser.find_element("css selector", "input[value=published]").send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script(VISIBLE) == ["valid-0", "published-0", "valid-1", "published-1"]
    browser.find_element("css selector", "input[data-run='0']").send_keys(Keys.SPACE)
    assert browser.execute_script(VISIBLE) == ["valid-1", "published-1"]
    assert browser.execute_script(shown) == 1
    browser.find_element("css selector", "input[data-run='0']").click()
    assert len(browser.execute_script(VISIBLE)) == 4
    assert no_complaints(browser) == []


def test_a_run_whose_radii_are_the_same_is_shown_once_under_every_button(browser, two, tmp_path):
    same = write_run(tmp_path / "same", published=1, gallery=True, scheme="gaussian")
    opened(browser, tmp_path, f"same={same}", two[2])
    ready(browser, "curves")
    chosen = "section[aria-labelledby=curves-title] [data-of-run='0']"
    rows = f'return [...document.querySelectorAll("{chosen}")].filter((row) => row.offsetParent).length'
    for value, other in (("valid", ["valid-1"]), ("published", ["published-1"]), ("both", ["valid-1", "published-1"])):
        browser.find_element("css selector", f"input[value={value}]").click()
        assert browser.execute_script(VISIBLE) == ["same-0", *other]
        assert browser.execute_script(rows) == 1
    assert no_complaints(browser) == []


def hover(browser, x, y):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    left, top = browser.execute_script(POINT, x, y)
    builder = ActionBuilder(browser)
    for shift in (9, 4, 0):
        builder.pointer_action.move_to_location(round(left) + shift, round(top))
    builder.perform()
    ActionChains(browser).pause(0.2).perform()


def test_hovering_tells_a_curves_values(browser, two):
    opened(browser, *two)
    ready(browser, "curves")
    curve = page._page(runs.read([two[1]])[0], 0, (), 1).summary["curves"]["valid"]
    middle = len(curve.radius) // 2
    hover(browser, (curve.radius[middle - 1] + curve.radius[middle]) / 2, curve.accuracy[middle])
    until(lambda: browser.execute_script(TOOLTIPS))
    text = " ".join(browser.execute_script(TOOLTIPS))
    assert "first" in text
    low, high = math.floor(1000 * curve.low[middle]) / 1000, math.ceil(1000 * curve.high[middle]) / 1000
    assert f"{curve.accuracy[middle]:.3f} [{low:.3f}, {high:.3f}]" in text
    assert no_complaints(browser) == []


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twelve")
    return folder, *(f"run {number}={write_run(folder / str(number), seed=number)}" for number in range(12))


def test_of_many_runs_few_are_shown_at_first_and_all_on_demand(browser, twelve):
    opened(browser, *twelve)
    ready(browser, "curves")
    shown = "return document.querySelector('.runs legend').textContent"
    assert browser.execute_script(VISIBLE) == [f"valid-{number}" for number in range(5)]
    assert browser.execute_script(shown) == "Runs, 5 of 12 shown"
    rows = "return [...document.querySelectorAll('tr.valid')].filter((row) => row.offsetParent !== null).length"
    assert browser.execute_script(rows) == 5
    browser.find_element("id", "all").click()
    assert browser.execute_script(VISIBLE) == [f"valid-{number}" for number in range(12)]
    assert browser.execute_script(shown) == "Runs, 12 of 12 shown"
    assert browser.find_element("id", "all").text == "Show the first 5"
    browser.find_element("id", "all").click()
    assert len(browser.execute_script(VISIBLE)) == browser.execute_script(rows) == 5
    browser.find_element("css selector", "input[data-run='9']").click()
    assert browser.execute_script(VISIBLE)[-1] == "valid-9"
    assert no_complaints(browser) == []


def test_the_band_is_that_of_the_run_pointed_at(browser, twelve):
    from selenium.webdriver.common.action_chains import ActionChains

    opened(browser, *twelve)
    ready(browser, "curves")
    assert (browser.execute_script(BANDS), browser.execute_script(POINTED)) == (["valid-0"], "run 0")
    ActionChains(browser).move_to_element(browser.find_element("css selector", "input[data-run='2']")).perform()
    until(lambda: browser.execute_script(BANDS) == ["valid-2"])
    assert browser.execute_script(POINTED) == "run 2"
    browser.find_element("css selector", "input[data-run='2']").click()  # whose run is hidden gives its band to another
    assert (browser.execute_script(BANDS), browser.execute_script(POINTED)) == (["valid-0"], "run 0")
    browser.find_element("css selector", "input[data-run='7']").click()
    assert (browser.execute_script(BANDS), browser.execute_script(POINTED)) == (["valid-7"], "run 7")
    curve = page._page(runs.read([twelve[4]])[0], 3, (), 1).summary["curves"]["valid"]
    hover(browser, curve.radius[-2], curve.accuracy[-2] / 2)  # the last step down, which is its own
    until(lambda: browser.execute_script(BANDS) == ["valid-3"])
    assert browser.execute_script(POINTED) == "run 3"
    widths = """return Bokeh.documents[0].roots()[0].renderers.filter((one) => one.tags[0] === 'line' && one.visible)
      .map((one) => one.glyph.line_width.value)"""
    assert sorted(set(browser.execute_script(widths))) == [2.5, 4.0]
    assert no_complaints(browser) == []


def test_hostile_names_stay_text_also_where_they_are_pointed_at(browser, tmp_path):
    name = HOSTILE.replace("=", "-")
    folder = write_run(tmp_path / "run", gallery=True, data=HOSTILE)
    opened(browser, tmp_path, f"{name}={folder}", names=[HOSTILE] * 4)
    for chart in ("curves", "classes-0"):
        ready(browser, chart)
    ready(browser, "curves")
    curve = page._page(runs.read([str(folder)])[0], 0, (), 1).summary["curves"]["valid"]
    hover(browser, (curve.radius[9] + curve.radius[10]) / 2, curve.accuracy[10])
    until(lambda: browser.execute_script(TOOLTIPS))
    assert name in " ".join(browser.execute_script(TOOLTIPS))
    assert browser.execute_script("return window.hacked === undefined")
    assert HOSTILE in browser.find_element("css selector", ".settings").text
    assert no_complaints(browser) == []


def test_injected_scripts_would_not_run(browser, tmp_path):
    """The page's policy alone stops a script that escaping missed."""
    page = tmp_path / "index.html"
    text = report.render(runs.read([str(write_run(tmp_path / "run"))]))
    page.write_text(text.replace("<footer>", "<script>window.hacked = 1</script><footer>"))
    browser.get_log("browser")
    browser.get(page.as_uri())
    ready(browser, "curves")
    assert browser.execute_script("return window.hacked === undefined")
    assert any("Content Security Policy" in one["message"] for one in no_complaints(browser))


def test_an_older_browser_says_why_there_is_no_chart_and_shows_the_rest(browser, two):
    removal = {"source": "delete window.DecompressionStream"}
    made = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", removal)
    try:
        opened(browser, *two)
        for chart in ("curves", "probabilities"):
            browser.execute_script("document.getElementById(arguments[0]).scrollIntoView({block: 'center'})", chart)
        said = "return document.getElementById('probabilities').textContent"
        until(lambda: "needs a browser of 2023 or later" in browser.execute_script(said))
        assert "needs a browser of 2023 or later" in browser.find_element("id", "curves").text
        assert "first" in browser.find_element("css selector", "table").text
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", made)


def test_ten_thousand_rows_load_in_three_seconds(browser, tmp_path):
    """From the call of the page to its first chart; the fastest of a few loads, since others may use the machine."""
    opened(browser, tmp_path, write_run(tmp_path / "run", count=10_000))
    loads, toggles = [], []
    while len(loads) < 5 and not (loads and min(loads) <= 3000 and min(toggles) <= 500):
        browser.refresh()
        loads.append(browser.execute_async_script(WAIT))
        toggles.append(
            browser.execute_async_script("""const done = arguments[0]; const start = performance.now();
              document.querySelector("input[value=both]").click();
              requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)))""")
        )
    assert min(loads) <= 3000, loads
    assert min(toggles) <= 500, toggles


def test_the_boxes_show_and_hide_probabilities_too(browser, two):
    opened(browser, *two)
    ready(browser, "curves")
    ready(browser, "probabilities")
    visible, bands = (query.replace("documents[0]", "documents[1]") for query in (VISIBLE, BANDS))
    assert (browser.execute_script(visible), browser.execute_script(bands)) == (["same-0", "same-1"], ["same-0"])
    browser.find_element("css selector", "input[data-run='0']").click()
    assert (browser.execute_script(visible), browser.execute_script(bands)) == (["same-1"], ["same-1"])
    assert no_complaints(browser) == []
