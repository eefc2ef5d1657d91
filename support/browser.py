"""support/browser.py: Chromium without a window, driven by playwright."""

import contextlib
import shutil
from urllib.parse import urlparse

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


def open_page(browser, address, **how):
    """play.py's page, as fast as it can be -> playwright's Page; its `complaints` and `hosts` grow.

    how  of playwright's new_page, such as is_mobile"""
    how.setdefault("viewport", dict(width=1100, height=850))
    page = browser.new_page(**how)
    page.complaints = []  # of the browser's console
    page.hosts = set()  # that the page has asked for something
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.hosts.add(urlparse(request.url).netloc))
    page.goto(address)
    page.wait_for_selector(".frame canvas")
    page.select_option("#rate", "1000")
    return page
