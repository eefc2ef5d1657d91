"""support/browser.py: Chromium without a window, driven by playwright."""

import contextlib
import shutil

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def find_chromium():
    """Its path, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def open_browser():
    """playwright's Browser.   raises  ImportError, FileNotFoundError: what to install"""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise ImportError("a browser is driven by playwright: pip install playwright") from None
    chromium = find_chromium()
    if not chromium:
        raise FileNotFoundError("no Chromium here; try: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
