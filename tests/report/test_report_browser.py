"""The page of a report in a browser: by click and by keyboard, wide and narrow, light and dark."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from browser import check_seen, show
from reports import budgets, make_report
from studies import HOSTILE
from test_report_page import LATER

from onnx_obc.report.plain_report import checked_reports
from onnx_obc.report.report_page import write_report_page

pytestmark = pytest.mark.slow
LEFT, RIGHT, DOWN, END, ENTER = "\ue012", "\ue014", "\ue015", "\ue010", "\ue007"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    sentences = [{"name": f"s{i}", "loss": 0.1, "text": "a sentence of many words " * 8} for i in range(8)]
    old = {
        key: value for key, value in make_report(3).items() if key not in ("weights", "histograms", "order", "worst")
    }
    made: dict[str, object] = {
        "one": {**make_report(12), **LATER},
        "budgets": budgets("bops=8x", "bops=12x", "bops=16x", count=30),
        "hostile": make_report(8, HOSTILE, model=HOSTILE[4], notes=list(HOSTILE), worst=sentences),
        "many": make_report(900),
        "old": old,
    }
    for name, plain in made.items():
        write_report_page(checked_reports(plain, name), folder / f"{name}.html")
    return folder


def shown(browser: Any, column: int) -> list[str]:
    """The cells of a column in the rows that are seen, from the top."""
    code = """return [...document.querySelectorAll('#layers > tbody')].filter(x => x.getClientRects().length)
        .map(x => (x.rows[0].cells[arguments[0]] || {}).innerText || '')"""
    return [str(text) for text in browser.execute_script(code, column)]


def cells(browser: Any) -> list[Any]:
    return list(browser.find_elements("css selector", ".strip button"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000, 1600])
@pytest.mark.parametrize("name", ["one", "budgets", "hostile", "many", "old"])
def test_a_page_is_seen(browser: Any, pages: Path, name: str, width: int, scheme: str) -> None:
    show(browser, pages / f"{name}.html", width, scheme)
    check_seen(browser, width, scheme)
    browser.execute_script("document.querySelectorAll('.strip button')[1].click(); scrollTo(0, 0)")
    check_seen(browser, width, scheme)
    code = """return [...document.querySelectorAll('svg[role=img]')].map(x => x.getBoundingClientRect())
        .filter(x => x.width < 50 || x.height < 5).length"""
    assert browser.execute_script(code) == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_a_cell_of_the_strip_opens_its_row(browser: Any, pages: Path, width: int) -> None:
    show(browser, pages / "one.html", width)
    plain = make_report(12)
    cells(browser)[4].click()
    more = browser.find_elements("css selector", "#layers .more")
    assert len(more) == 1 and more[0].is_displayed()
    row = browser.execute_script("return arguments[0].parentNode.rows[0].innerText", more[0])
    assert plain["order"][4] in row.replace("\n", "")
    for part in ("greedy", "lower bound", "Lines: the 16 values", "its integers span"):
        assert part in more[0].text
    assert len(more[0].find_elements("css selector", "svg.histogram")) == 2
    focused = browser.switch_to.active_element
    assert focused.get_attribute("aria-expanded") == "true" and "on" in cells(browser)[4].get_attribute("class")
    code = """const [part, about] = ['.lazy', '.tall'].map(x => document.querySelector(x).getBoundingClientRect());
        return [part.left >= about.left, part.right <= about.right + 1]"""
    assert browser.execute_script(code) == [True, True]  # all of it is seen, however wide the table is
    focused.send_keys(ENTER)
    assert not more[0].is_displayed() and focused.get_attribute("aria-expanded") == "false"
    assert "on" not in cells(browser)[4].get_attribute("class").split()


def test_the_strip_by_keyboard(browser: Any, pages: Path) -> None:
    show(browser, pages / "one.html", 1280)
    first = cells(browser)[0]
    assert [cell.get_attribute("tabindex") for cell in cells(browser)].count("0") == 1
    first.send_keys(RIGHT)
    browser.switch_to.active_element.send_keys(RIGHT)
    here = browser.switch_to.active_element
    assert here == cells(browser)[2] and here.get_attribute("tabindex") == "0"
    assert make_report(12)["order"][2] in browser.find_element("id", "pointed").text
    here.send_keys(LEFT)
    browser.switch_to.active_element.send_keys(END)
    assert browser.switch_to.active_element == cells(browser)[-1]
    browser.switch_to.active_element.send_keys(ENTER)
    assert browser.find_element("css selector", "#layers .more").is_displayed()
    show(browser, pages / "many.html", 390)
    cells(browser)[0].send_keys(DOWN)
    below = browser.switch_to.active_element
    assert (
        below.location["y"] > cells(browser)[0].location["y"] and below.location["x"] == cells(browser)[0].location["x"]
    )


def test_the_strip_is_coloured_by_what_is_asked_for(browser: Any, pages: Path) -> None:
    show(browser, pages / "one.html", 1280)
    code = "return [...document.querySelectorAll('.strip button')].map(x => getComputedStyle(x).backgroundColor)"
    colours = {}
    for number, by in enumerate(("loss", "level", "time")):
        browser.find_elements("css selector", ".switch input")[number].click()
        colours[by] = browser.execute_script(code)
        legends = browser.find_elements("css selector", ".legend")
        assert [one.is_displayed() for one in legends] == [i == number for i in range(3)]
    assert len(set(map(tuple, colours.values()))) == 3 and len(set(colours["loss"])) >= 4
    plain = make_report(12)
    named = dict(zip(plain["order"], colours["level"], strict=True))
    levels = {layer["name"]: layer["level"] for layer in plain["layers"]}
    pairs = {(levels[name], named[name]) for name in levels}
    assert len(pairs) == len(set(levels.values())) == len({colour for _, colour in pairs})


def test_the_table_is_sorted_and_filtered(browser: Any, pages: Path) -> None:
    show(browser, pages / "one.html", 1280)
    plain = make_report(12)
    losses = sorted(layer["loss_relative"] for layer in plain["layers"])
    heads = browser.find_elements("css selector", "#layers thead button")
    heads[6].click()
    assert [float(text.replace("−", "-")) for text in shown(browser, 6)[:-1]] == pytest.approx(losses, rel=6e-3)
    assert shown(browser, 1)[-1] == "/odd/Conv"  # what has no figure comes last
    heads[6].send_keys(ENTER)
    assert shown(browser, 1)[-1] == "/odd/Conv"
    assert [float(text.replace("−", "-")) for text in shown(browser, 6)[:-1]] == pytest.approx(losses[::-1], rel=6e-3)
    heads[1].click()
    names = [text.replace("\n", "") for text in shown(browser, 1)]
    assert names == [*(f"/features/block.{i}/conv/Conv" for i in range(12)), "/odd/Conv"]  # 2 before 10
    words = browser.find_element("id", "words")
    words.send_keys("block.1/")
    assert len(shown(browser, 1)) == 1 and browser.find_element("id", "found").text == "1 of 13 layers"
    words.clear()
    words.send_keys("no constant")
    assert shown(browser, 1) == ["/odd/Conv"]
    cells(browser)[0].click()  # what is filtered away is shown again when it is asked for
    assert len(shown(browser, 1)) == 13 and words.get_attribute("value") == ""
    wanted = plain["layers"][0]["level"]
    browser.execute_script(
        "const s = document.getElementById('kind'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))",
        wanted,
    )
    assert len(shown(browser, 1)) == sum(layer["level"] == wanted for layer in plain["layers"])


def test_rows_come_as_the_table_is_scrolled(browser: Any, pages: Path) -> None:
    show(browser, pages / "many.html", 1280)
    assert len(shown(browser, 0)) == 200 and browser.find_element("id", "found").text == "901 of 901 layers"
    browser.execute_script("const t = document.querySelector('.tall'); t.scrollTop = t.scrollHeight")
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert 400 <= len(shown(browser, 0)) < 901
    cells(browser)[800].click()
    assert "801" in shown(browser, 0)
    browser.find_element("id", "words").send_keys("block.899/")
    assert shown(browser, 0) == ["901"]


def test_every_budget_opens(browser: Any, pages: Path) -> None:
    show(browser, pages / "budgets.html", 1000)
    assert len(browser.find_elements("css selector", ".strip")) == 3
    cells(browser)[0].click()
    more = browser.find_element("css selector", "#layers .more")
    assert [title.text for title in more.find_elements("css selector", "h3")] == ["bops=8x", "bops=12x", "bops=16x"]
    assert "Left as it is: float, as the budget allows" in more.text
    assert len(browser.find_elements("css selector", ".strip .on")) == 3


def test_hostile_names_are_text_in_rows(browser: Any, pages: Path) -> None:
    show(browser, pages / "hostile.html", 1000)
    for cell in cells(browser):
        browser.execute_script("arguments[0].click()", cell)
    assert browser.get_log("browser") == []
    rows = browser.find_element("id", "layers").text.replace("\n", "")
    assert "<script>alert(1)</script>" in rows and "x" * 400 in rows
    assert browser.execute_script("return document.scripts.length") == 2
    assert browser.execute_script("return document.querySelectorAll('#layers img, #layers script').length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth") == 1000


def test_a_page_prints(browser: Any, pages: Path) -> None:
    show(browser, pages / "many.html", 1280, "dark")
    cells(browser)[2].click()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    code = (
        "return [getComputedStyle(document.body).backgroundColor, document.querySelectorAll('#layers > tbody').length]"
    )
    assert browser.execute_script(code) == ["rgb(255, 255, 255)", 901]
    assert len(shown(browser, 0)) == 901  # all rows, also those that were not laid out
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert len(base64.b64decode(printed)) > 50_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_page_in_a_frame_works(browser: Any, pages: Path, tmp_path: Path) -> None:
    """As a notebook shows it: in a frame that may run scripts and nothing else."""
    text = (pages / "one.html").read_text(encoding="utf-8")
    outer = tmp_path / "outer.html"
    script = f"document.querySelector('iframe').srcdoc = {json.dumps(text).replace('<', chr(92) + 'u003c')}"
    frame = "<iframe sandbox='allow-scripts' width=900 height=700></iframe>"
    outer.write_text(f"<!DOCTYPE html><meta charset=utf-8>{frame}<script>{script}</script>", encoding="utf-8")
    show(browser, outer, 1000)
    browser.switch_to.frame(0)
    cells(browser)[1].click()
    assert browser.find_element("css selector", "#layers .more").is_displayed()
    browser.switch_to.default_content()
    assert browser.get_log("browser") == []
