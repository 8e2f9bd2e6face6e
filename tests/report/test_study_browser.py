"""The pages in a browser: wide and narrow, light and dark, by click and by keyboard."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import check_seen, show
from PIL import Image
from studies import HOSTILE, make_study, make_whole, without

from onnx_obc.report.study_page import write_study_page
from onnx_obc.report.theory_page import write_theory_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    full = make_study(30, chunks=3, names=HOSTILE, whole=make_whole())
    layers = (*full.layers[:-1], without(full.layers[-1], "its weights hold NaN or infinity"))
    write_study_page(replace(full, layers=layers), folder / "full.html")
    write_study_page(make_study(9, samples=0, bits=range(2, 9)), folder / "weights.html")
    write_theory_page(folder / "theory.html")
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["full", "weights", "theory"])
def test_a_page_is_seen(browser: Any, pages: Path, name: str, width: int, scheme: str) -> None:
    show(browser, pages / f"{name}.html", width, scheme)
    check_seen(browser, width, scheme)
    code = """return [...document.querySelectorAll('svg[role=img]')].filter(x => !x.closest('details:not([open])'))
        .map(x => [x.getBoundingClientRect().width, x.getBoundingClientRect().height])"""
    figures = browser.execute_script(code)
    assert len(figures) >= 2 and all(across > 50 and up > 5 for across, up in figures)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_small_figure_has_axes(browser: Any, pages: Path, scheme: str) -> None:
    """They are drawn once, and repeated in the colours of the page."""
    show(browser, pages / "full.html", 1280, scheme)
    for figure in browser.find_elements("css selector", ".small")[:3]:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
        pixels = np.asarray(Image.open(io.BytesIO(figure.screenshot_as_png)).convert("L"), dtype=np.float64)
        numbers = pixels[:, : pixels.shape[1] // 8]
        assert np.ptp(numbers) > 100


def cells(browser: Any, column: int) -> list[str]:
    code = """return [...document.querySelectorAll('#layers > tbody')].filter(x => !x.hidden)
        .map(x => (x.rows[0].cells[arguments[0]] || {}).innerText || '')"""
    return [str(text) for text in browser.execute_script(code, column)]


def test_the_table_is_sorted_and_filtered(browser: Any, pages: Path) -> None:
    show(browser, pages / "full.html", 1280)
    heads = browser.find_elements("css selector", "#layers thead button")
    heads[3].click()
    rising = [float(text) for text in cells(browser, 3)[:-1]]
    assert rising == sorted(rising) and cells(browser, 3)[-1] == "–"  # what is not known comes last
    heads[3].send_keys("\ue007")  # the enter key
    falling = [float(text) for text in cells(browser, 3)[:-1]]
    assert falling == rising[::-1] and cells(browser, 3)[-1] == "–"
    sorts = browser.execute_script("return [...document.querySelectorAll('#layers thead th')].map(x => x.ariaSort)")
    assert sorts[3] == "descending" and set(sorts[:3]) == {"none"}
    heads[0].click()
    assert [name for name in cells(browser, 0) if name.startswith("features")][:2] == [
        "features.6.conv",
        "features.7.conv",
    ]
    words = browser.find_element("id", "words")
    words.send_keys("features.1")
    assert len(cells(browser, 0)) == 10 and browser.find_element("id", "found").text == "10 of 30 layers"
    words.clear()
    words.send_keys("nan or inf")
    assert len(cells(browser, 0)) == 1


def test_a_layer_opens(browser: Any, pages: Path) -> None:
    show(browser, pages / "full.html", 390)
    button, more = (browser.find_element("css selector", f"#layers {name}") for name in (".open-row", ".more"))
    assert not more.is_displayed() and button.get_attribute("aria-expanded") == "false"
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    assert more.is_displayed() and button.get_attribute("aria-expanded") == "true" and "baseline" in more.text
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390


def test_a_page_prints(browser: Any, pages: Path) -> None:
    show(browser, pages / "full.html", 1280, "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb(255, 255, 255)"
    assert len(base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])) > 10_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
