"""How large a report's page is, and how long a browser takes to open it: `python -m benchmarks.speed.page`.

Reports that nobody made, of 200 and of 4,000 layers with all that a page shows. Prints bytes, the time to write the
page, and from a headless Chromium (selenium, chromium and its driver are needed) the time from the navigation's start
until the page's scripts have run (domContentLoadedEventEnd), until it is painted, the CPU time of the page's main
thread, and what a click on a layer, a search and a sort take.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "report"))
from reports import make_report  # a part of the tests

from onnx_obc.report.plain_report import checked_reports
from onnx_obc.report.report_page import write_report_page

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")
TIMES = """const [n] = performance.getEntriesByType('navigation');
const [p] = performance.getEntriesByName('first-contentful-paint');
return [n.domInteractive, n.domContentLoadedEventEnd, p ? p.startTime : null];"""
ACT = """const begin = performance.now(); %s; document.body.getBoundingClientRect();
return performance.now() - begin;"""
ACTS = {
    "open": "document.querySelectorAll('.strip button')[100].click()",
    "find": "const w = document.getElementById('words'); w.value = '17'; w.dispatchEvent(new Event('input'))",
    "sort": "document.querySelectorAll('#layers thead button')[6].click()",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[200, 4000])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    browser = open_browser()
    with tempfile.TemporaryDirectory() as folder:
        for count in options.layers:
            plain = make_report(count)
            began = time.perf_counter()
            page = Path(folder) / f"{count}.html"
            write_report_page(checked_reports(plain, "benchmark"), page)
            wrote = time.perf_counter() - began
            size = len(json.dumps(plain))
            print(
                f"{count} layers: report {size:,} bytes, page {page.stat().st_size:,} bytes, written in {wrote:.2f} s"
            )
            rounds = [timed(browser, page) for _ in range(options.rounds)]
            for name in rounds[0]:
                print(f"  {name}: {statistics.median(one[name] for one in rounds):.0f} ms")
    browser.quit()


def open_browser() -> Any:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver") or ""))


def timed(browser: Any, page: Path) -> dict[str, float]:
    """Milliseconds of opening a page, and of what is done on it."""
    browser.execute_cdp_cmd("Performance.setTimeDomain", {"timeDomain": "threadTicks"})
    browser.execute_cdp_cmd("Performance.enable", {})
    browser.get("about:blank")
    began = busy(browser)
    browser.get(page.as_uri())
    time.sleep(0.5)
    worked = busy(browser) - began
    browser.execute_cdp_cmd("Performance.disable", {})
    interactive, ready, painted = browser.execute_script(TIMES)
    found = {"interactive": interactive, "scripts have run": ready, "first paint": painted or float("nan")}
    found["CPU time of the main thread"] = 1000 * worked
    return {**found, **{name: browser.execute_script(ACT % code) for name, code in ACTS.items()}}


def busy(browser: Any) -> float:
    """CPU seconds that the page's main thread has worked, whatever else the machine does."""
    found = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return float(next(one["value"] for one in found if one["name"] == "TaskDuration"))


if __name__ == "__main__":
    main()
