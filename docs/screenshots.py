"""Make the pictures of docs/how-to/review-walkthrough.md from a run, by reviewing it in headless Chromium.

    tokenclean run demo_pool.jsonl --model demo --rows 60 --strategy fixed_model --proportion 0.85 \\
        --allow-weak-reference
    python docs/screenshots.py runs/demo_pool review.jsonl

``demo_pool.jsonl`` is a copy of the shipped pool, src/tokenclean/data/demo_pool.jsonl. The decisions are made up: every
second suggestion of twenty conversations is dropped. They go to the second argument, a new file.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ASSETS = Path(__file__).parent / "assets"
CONVERSATIONS = 20
DESK = {"viewport": {"width": 1240, "height": 760}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "color_scheme": "dark"}


def main(run: str, file: str) -> None:
    command = [sys.executable, "-m", "tokenclean", "review", run, "--name", "Ann", "--file", file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        try:
            assert server.stdout is not None
            printed = [server.stdout.readline() for _ in range(2)]
            link = re.findall(r"http://\S+", printed[1])[0]
            browser = playwright.chromium.launch(args=["--no-sandbox"], executable_path=shutil.which("chromium"))
            take_pictures(browser, link)
        finally:
            server.terminate()


def take_pictures(browser: Any, link: str) -> None:
    page = open_page(browser, link, DESK)
    page.screenshot(path=ASSETS / "review-suggestion.png")
    reviewed: list[str] = []
    for key in cycle("ad"):
        name = page.inner_text("#heading")
        if name not in reviewed:
            if len(reviewed) == CONVERSATIONS:
                break
            reviewed.append(name)
        page.keyboard.press(key)
        page.wait_for_timeout(150)
    page.focus("#list")
    page.keyboard.press("Home")
    page.wait_for_timeout(300)
    page.screenshot(path=ASSETS / "review-decided.png")
    phone = open_page(browser, link, PHONE)
    phone.screenshot(path=ASSETS / "review-phone.png")


def open_page(browser: Any, link: str, options: dict[str, Any]) -> Any:
    page = browser.new_page(**options)
    page.goto(link)
    page.wait_for_selector("html[data-ready]", state="attached")
    page.wait_for_timeout(500)  # the decisions so far are asked for
    return page


if __name__ == "__main__":
    main(*sys.argv[1:])
