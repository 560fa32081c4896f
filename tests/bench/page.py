"""Pictures of a report's page as a browser shows it, wide and on a phone, light and dark, for people to look at, and for the README.

In: a `report.html`. Out: a PNG for each, in a folder. `.venv/bin/python -m tests.bench.page RUN_FOLDER/report.html --out FOLDER`
"""

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
_OVERLAPPING = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const words = [...svg.querySelectorAll('text')].map(each => [each.textContent, each.getBoundingClientRect()]);
  return words.flatMap(([one, a], place) => words.slice(place + 1)
    .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2)
    .map(([other]) => `${one} | ${other}`));
})"""


def pictures(page_file: Path, folder: Path) -> dict[str, int]:
    """Take the pictures; return by name how many pixels a page is wider than its window, which should be none."""
    folder.mkdir(parents=True, exist_ok=True)
    too_wide: dict[str, int] = {}
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in WIDTHS:
            for scheme in SCHEMES:
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page.goto(page_file.absolute().as_uri())
                name = f"report-{width}-{scheme}"
                too_wide[name] = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                page.screenshot(path=folder / f"{name}.png", full_page=True)
                page.close()
        browser.close()
    return too_wide


def overlapping(page_file: Path) -> list[str]:
    """Return the pairs of words in one picture of a page that lie on each other, on a phone."""
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTHS[-1], "height": 900})
        page.goto(page_file.absolute().as_uri())
        found: list[str] = page.evaluate(_OVERLAPPING)
        browser.close()
    return found


def cut_off(page_file: Path) -> list[str]:
    """Return the cells of tables that a phone shows only after scrolling sideways."""
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTHS[-1], "height": 900})
        page.goto(page_file.absolute().as_uri())
        found: list[str] = page.evaluate(
            "() => [...document.querySelectorAll('td')].filter(cell => cell.getBoundingClientRect().right > innerWidth + 1)"
            ".map(cell => cell.textContent)"
        )
        browser.close()
    return found


def main() -> None:
    """Take the pictures and say where they are."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("page", type=Path)
    options.add_argument("--out", type=Path, default=Path("var/bench/page"))
    chosen = options.parse_args()
    for name, wider in pictures(chosen.page, chosen.out).items():
        print(f"{chosen.out / name}.png{f': {wider} pixels wider than the window' if wider else ''}")


if __name__ == "__main__":
    main()
