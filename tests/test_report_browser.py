"""The page of a report in a real browser: Chromium opens it from a file, as a reader would."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.test_report import EVIL, H, W, record, write_map, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright, which drives a browser")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

FLAGS = [
    f"--{flag}"
    for flag in (
        "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update",
        "disable-sync", "disable-quic",
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    return write_report(folder, write_map(folder))


@pytest.fixture
def open_page(browser):
    """Opens a file; in the end nothing may have been said on the console, and nothing asked of a network."""
    said, asked, contexts = [], [], []

    def opened(path, **how):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | how)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith(("file://", "data:")) for url in asked)
    assert sum(url.startswith("file://") for url in asked) == len(contexts)


@pytest.fixture
def page(open_page, built):
    return open_page(built)


def view(page):
    """Left, top, width and height of what the map shows, in metres."""
    return [float(v) for v in page.get_attribute("#map", "viewBox").split()]


def middle(page, selector):
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def coordinates(page):
    """Easting and northing that the page says, in metres."""
    return [int(v) for v in re.search(r"EPSG:32654: (\d+), (\d+)", page.inner_text("#place")).groups()]


def number_of(page, i):
    """Of the i-th largest landslide, as the page calls it."""
    return page.evaluate(f"JSON.parse(document.getElementById('data').textContent).rows[{i}][0]")


def test_all_of_the_scene_is_shown_at_first(page):
    left, top, width, height = view(page)
    assert left <= 0
    assert top <= 0
    assert left + width >= 10 * W
    assert top + height >= 10 * H
    assert max(width / (10 * W), height / (10 * H)) < 2
    assert page.locator("#landslides path").count() == 3


def test_the_wheel_zooms_at_the_pointer_and_the_mouse_moves(page):
    x, y = middle(page, '#landslides path[data-i="1"]')
    page.mouse.move(x, y)
    before = view(page)
    place = coordinates(page)
    page.mouse.wheel(0, -300)
    page.wait_for_function("w => Number(document.getElementById('map').getAttribute('viewBox').split(' ')[2]) < w",
                           arg=before[2])  # fmt: skip
    page.mouse.move(x, y)
    assert coordinates(page) == pytest.approx(place, abs=2)
    zoomed = view(page)
    page.mouse.down()
    page.mouse.move(x + 60, y + 40, steps=4)
    page.mouse.up()
    moved = view(page)
    metres = zoomed[2] / page.locator("#map").bounding_box()["width"]
    assert moved[2] == pytest.approx(zoomed[2])
    assert [zoomed[0] - moved[0], zoomed[1] - moved[1]] == pytest.approx([60 * metres, 40 * metres], rel=0.01)
    assert page.locator("#details h3").count() == 0  # a drag chooses nothing


def test_buttons_and_double_click_zoom(page):
    whole = view(page)
    page.click("#zoom-in")
    near = view(page)
    assert near[2] == pytest.approx(whole[2] / 1.6)
    page.click("#zoom-out")
    assert view(page)[2] == pytest.approx(whole[2])
    page.mouse.dblclick(*middle(page, "#map"))
    assert view(page)[2] == pytest.approx(whole[2] / 2)
    page.click("#whole")
    assert view(page) == pytest.approx(whole)


def test_everything_goes_by_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.id") != "map":  # the link has moved the focus there already
        page.focus("#map")
    assert page.locator("#cross").is_visible()
    start = view(page)
    page.keyboard.press("+")
    near = view(page)
    assert near[2] < start[2]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    moved = view(page)
    assert moved[0] > near[0]
    assert moved[1] > near[1]
    page.keyboard.press("-")
    page.keyboard.press("0")
    assert view(page) == pytest.approx(start)
    page.keyboard.press("n")
    assert page.inner_text("#details h3").startswith(f"Landslide {number_of(page, 0)}")
    page.keyboard.press("n")
    assert page.inner_text("#details h3").startswith(f"Landslide {number_of(page, 1)}")
    page.keyboard.press("Escape")
    assert page.locator("#details h3").count() == 0
    page.keyboard.press("Enter")  # the cross is on the second one
    assert page.inner_text("#details h3").startswith(f"Landslide {number_of(page, 1)}")
    page.keyboard.press("p")
    assert page.inner_text("#details h3").startswith(f"Landslide {number_of(page, 0)}")
    page.focus("#close")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "map"


def test_focus_can_be_seen_and_goes_in_order(page):
    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.dataset.layer || ''"))
        width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert float(width.removesuffix("px")) >= 2
    assert order[1:6] == ["map", "zoom-in", "zoom-out", "whole", "landslides"]


def test_a_click_shows_what_is_known(page):
    page.mouse.click(*middle(page, '#landslides path[data-i="0"]'))
    facts = dict(
        zip(page.locator("#details dt").all_inner_texts(), page.locator("#details dd").all_inner_texts(), strict=True)
    )
    assert re.fullmatch(r"(89|90),\d{3} m²", facts["Area"])  # 30 by 30 pixels
    assert facts["Probability, mean"] == "0.90"
    assert facts["Slope, mean"] == "26.6°"  # 5 m in 10 m
    assert facts["Cut off"] == "no"
    assert page.get_attribute("#chosen", "d") == page.get_attribute('#landslides path[data-i="0"]', "d")
    page.mouse.click(*middle(page, '#landslides path[data-i="2"]'))
    assert page.inner_text("#details h3").startswith(f"Landslide {number_of(page, 2)}")
    page.click("#close")
    assert not page.get_attribute("#chosen", "d")


def test_the_list_sorts_and_leads_to_the_map(page):
    def first():
        return page.locator("#list tbody tr").first.get_attribute("data-i")

    assert first() == "0"
    page.click("#list th[data-key=prob_mean] button")
    assert page.get_attribute("#list th[data-key=prob_mean]", "aria-sort") == "descending"
    assert page.locator("#list td:nth-child(4)").all_inner_texts() == ["0.90", "0.80", "0.60"]
    page.click("#list th[data-key=prob_mean] button")
    assert page.locator("#list td:nth-child(4)").all_inner_texts() == ["0.60", "0.80", "0.90"]
    page.locator("#list tbody tr").first.locator("button").press("Enter")
    box, outline = (page.locator(s).bounding_box() for s in ("#map", '#landslides path[data-i="1"]'))
    assert outline["x"] + outline["width"] / 2 == pytest.approx(box["x"] + box["width"] / 2, abs=2)
    assert outline["y"] + outline["height"] / 2 == pytest.approx(box["y"] + box["height"] / 2, abs=2)
    assert 0.15 < outline["width"] / box["width"] < 0.6
    assert page.inner_text("#details h3").startswith(f"Landslide {number_of(page, 1)}")


def test_layers_are_switched_faded_and_swiped(page):
    for layer in ("landslides", "layer-image", "layer-unseen"):
        assert page.locator(f"#{layer}").is_visible()
        page.uncheck(f"input[data-layer={layer}][type=checkbox]")
        assert not page.locator(f"#{layer}").is_visible()
    for layer in ("layer-probability", "layer-density"):
        assert not page.locator(f"#{layer}").is_visible()
        page.check(f"input[data-layer={layer}]")
        assert page.locator(f"#{layer}").is_visible()
        page.fill(f"input[data-layer={layer}][type=range]", "40")
        assert page.get_attribute(f"#{layer}", "opacity") == "0.4"
    page.fill("#swipe", "25")
    assert float(page.get_attribute("#curtain", "x")) == pytest.approx(0.25 * 10 * W, rel=1e-3)
    assert page.get_attribute("#parting", "hidden") is None


def colour(page, x, y):
    """Of a pixel of the screen."""
    from io import BytesIO

    from PIL import Image

    clip = {"x": x, "y": y, "width": 1, "height": 1}
    with Image.open(BytesIO(page.screenshot(clip=clip))) as picture:
        return picture.convert("RGB").getpixel((0, 0))


def test_the_image_before_appears_under_the_one_after(page):
    at = middle(page, '#landslides path[data-i="0"]')
    page.uncheck("input[data-layer=landslides]")
    assert min(colour(page, *at)) > 230  # bare ground
    page.fill("#swipe", "10")  # the line lies to the left of it
    assert min(colour(page, *at)) > 230
    page.fill("#swipe", "60")
    assert max(colour(page, *at)) < 100


def test_places_have_coordinates(page):
    page.mouse.move(*middle(page, '#landslides path[data-i="0"]'))
    said = page.inner_text("#place")
    assert coordinates(page) == pytest.approx([570450, 4729650], abs=10)
    lat, lon = map(float, re.search(r"([\d.]+)° N, ([\d.]+)° E", said).groups())
    assert (lat, lon) == (pytest.approx(42.7157, abs=2e-3), pytest.approx(141.8602, abs=2e-3))


def test_the_scale_bar_is_as_long_as_it_says(page):
    for _ in range(3):
        length, unit = page.text_content("#scale-text").split()
        metres = float(length) * (1000 if unit == "km" else 1)
        bar = page.locator("#scale rect.dark").bounding_box()["width"]
        assert bar * view(page)[2] / page.locator("#map").bounding_box()["width"] == pytest.approx(metres, rel=0.02)
        page.click("#zoom-in")


def test_fingers_move_and_pinch(open_page, built):
    page = open_page(
        built, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, device_scale_factor=2
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#map").scroll_into_view_if_needed()
    x, y = middle(page, "#map")
    session = page.context.new_cdp_session(page)

    def touch(kind, *points):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [
            {"x": px, "y": py, "id": i} for i, (px, py) in enumerate(points)]})  # fmt: skip

    start = view(page)
    touch("touchStart", (x - 40, y), (x + 40, y))
    for apart in (60, 80, 100):
        touch("touchMove", (x - apart, y), (x + apart, y))
    touch("touchEnd")
    near = view(page)
    assert start[2] / near[2] == pytest.approx(2.5, rel=0.15)
    touch("touchStart", (x, y))
    for step in (20, 40, 60):
        touch("touchMove", (x - step, y))
    touch("touchEnd")
    assert view(page)[0] - near[0] == pytest.approx(60 * near[2] / 390, rel=0.2)
    for _ in range(10):  # on a slow machine Chromium takes taps right after a gesture for a part of it
        page.wait_for_timeout(600)
        page.tap("#list tbody tr")
        if page.locator("#details h3").is_visible():
            break
    assert page.locator("#details h3").is_visible()


def test_it_prints_without_controls(page):
    page.click("#list tbody tr")
    printed = page.pdf(format="A4", print_background=True)
    assert printed.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 8
    page.emulate_media(media="print")
    for hidden in ("#zoom-in", "#place", "#details", "#keys", "input >> nth=0"):
        assert not page.locator(hidden).is_visible()
    for shown in ("#map", "#list", ".chart >> nth=0", ".key", "text=sha256 of its weights"):
        assert page.locator(shown).is_visible()


def test_it_is_dark_for_those_who_want_it(open_page, built):
    page = open_page(built, color_scheme="dark")
    red = int(re.search(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
    assert red < 60


def test_it_can_be_looked_at_without_scripts(open_page, built):
    page = open_page(built, java_script_enabled=False)
    assert page.locator("#landslides path").count() == 3
    assert page.locator("#map").is_visible()
    assert page.locator("#list tbody tr").count() == 3
    assert not page.locator("#zoom-in").is_visible()


def test_hostile_names_do_nothing(open_page, tmp_path):
    made = record(EVIL, [EVIL])
    made["command"] = made["inputs"]["scene"]["path"] = EVIL
    page = open_page(write_report(tmp_path, write_map(tmp_path), made=made))
    page.click("#list tbody tr")
    assert page.title() == f"Landslides in {EVIL}"
    assert page.locator("img").count() == 0


def test_the_browser_lets_the_page_ask_for_nothing(browser, built):
    context = browser.new_context()
    page = context.new_page()
    page.goto(built.as_uri())
    blocked = page.evaluate("""() => new Promise((done) => {
        document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective));
        fetch("http://127.0.0.1:9/").catch(() => {});
        setTimeout(() => done("let through"), 2000);
    })""")
    context.close()
    assert blocked == "connect-src"


def test_a_map_without_landslides_opens(open_page, tmp_path):
    page = open_page(write_report(tmp_path, write_map(tmp_path, places=()), before=False))
    page.focus("#map")
    for key in ("n", "Enter", "+", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator(".warnings").is_visible()
