"""Pages in a headless Chromium: a browser for a module of tests, and what is asked of any page."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DRIVERS = ("chromedriver", "chromium-driver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


@contextmanager
def opened() -> Iterator[Any]:
    """A browser; the test is skipped, and says so, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, which is not there")
    program, driver = (next(filter(None, map(shutil.which, names)), None) for names in (BROWSERS, DRIVERS))
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver, which are not there")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    except Exception as error:
        pytest.skip(f"Chromium is there and does not start: {error}")
    yield browser
    browser.quit()


def show(browser: Any, page: Path, width: int, scheme: str = "light") -> None:
    """Open a page at a width, in light or dark."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())


def check_seen(browser: Any, width: int, scheme: str) -> None:
    """The page that is shown says nothing on its console, is as wide as the screen, and no blank in light or dark."""
    assert browser.get_log("browser") == []
    sizes = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert sizes == [width, width]  # a narrow screen would be made wider by what does not fit
    shot = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"])
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("L"), dtype=np.float64)
    assert pixels.std() > 10 and (np.median(pixels) > 128) == (scheme == "light")
