"""The console in a real browser: numbers are those of the metrics; by keyboard, on a phone, light and dark, accessible.

Needs Debian's chromium, and npm for axe; takes pictures for docs/images when CONSOLE_PICTURES names a folder.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, async_playwright
from prometheus_client.parser import text_string_to_metric_families

from support.gateways.console_world import ADMIN_KEY, World, console_world

CHROMIUM = "/usr/bin/chromium"
pytestmark = [
    pytest.mark.prove,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="the console's pages are tried in Debian's chromium"),
]
ARGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
PAGES = ("promises", "replicas", "decisions", "requests", "canary")
WIDE, PHONE = {"width": 1180, "height": 860}, {"width": 390, "height": 800}
WAIT_MS = 60_000


@pytest.fixture(autouse=True)
def no_metric_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if npm is None or subprocess.run([npm, "pack", "axe-core@4.14.1"], cwd=folder, check=False).returncode:
        pytest.skip("axe-core comes from the npm registry, which can't be reached")
    with tarfile.open(next(folder.glob("axe-core-*.tgz"))) as packed:
        source = packed.extractfile("package/axe.min.js")
        assert source is not None
        return source.read().decode()


@contextlib.asynccontextmanager
async def opened(
    folder: Path, *, size: dict[str, int] | None = None, scheme: Any = "light"
) -> AsyncIterator[tuple[World, Page]]:
    """Yield a console and a page on it; errors in the page fail the test."""
    async with console_world(folder) as world, async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            str(folder / "browser"),
            executable_path=CHROMIUM,
            args=ARGS,
            viewport=size or WIDE,  # type: ignore[arg-type]
            color_scheme=scheme,
            bypass_csp=False,
        )
        page = await context.new_page()
        page.set_default_timeout(WAIT_MS)
        broken: list[str] = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("console", lambda said: broken.append(said.text) if said.type == "error" else None)
        yield world, page
        await context.close()
        assert [each for each in broken if "favicon" not in each and "status of" not in each] == []


async def on(page: Page, world: World, name: str, more: str = "") -> None:
    await page.goto(f"{world.url}/console?page={name}{more}")
    await page.wait_for_selector(f"main[data-page={name}] h2")


def exported(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    async with opened(tmp_path) as (world, page), httpx.AsyncClient() as client:
        metrics = exported((await client.get(f"{world.url}/metrics", timeout=60)).text)
        compared = 0
        for name in ("promises", "replicas", "canary"):
            await on(page, world, name)
            for each in await page.query_selector_all("[data-metric]"):
                metric, value = await each.get_attribute("data-metric"), await each.get_attribute("data-value")
                found = re.fullmatch(r"(\w+)\{(.*)\}", metric or "")
                if not found or not value:
                    continue
                labels = set(re.findall(r'(\w+)="([^"]*)"', found.group(2)))
                series = [v for (n, has), v in metrics.items() if n == found.group(1) and labels <= has]
                assert series, metric
                assert float(value) == pytest.approx(sum(series)), metric
                compared += 1
        assert compared >= 24
        await on(page, world, "promises")
        gold = await page.inner_text("tr[data-tier=gold]")
        assert re.search(r"40\s*tok/s", gold)
        assert "96.5%" in gold, "1930 of 2000 met"


async def test_a_latch_is_ordered_with_the_key_and_refused_without(tmp_path: Path) -> None:
    async with opened(tmp_path) as (world, page):
        await on(page, world, "replicas")
        card = page.locator("[data-replica=replica-0]")
        await card.get_by_role("button", name="Latch off").click()
        await page.get_by_label("Your name").fill("ann")
        await page.get_by_label("Why").fill("drill")
        await page.get_by_label("Admin key").fill("wrong")
        await page.locator("dialog .primary").click()
        await page.get_by_text("Send the admin key").wait_for()
        assert world.ranks[0].state.latched is None
        await page.get_by_label("Admin key").fill(ADMIN_KEY)
        await page.locator("dialog .primary").click()
        await card.get_by_text("latched off").first.wait_for()
        assert world.ranks[0].state.latched is not None
        await on(page, world, "canary")
        await page.get_by_role("button", name="Unlatch").click()
        await page.locator("dialog .primary").click()
        await page.locator("dialog").wait_for(state="detached")
        assert world.ranks[0].state.latched is None


async def test_decisions_open_are_filtered_and_the_link_keeps_all_of_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (world, page):
        await on(page, world, "decisions")
        await page.locator("details.decision").first.wait_for()
        assert await page.locator("details.decision").count() == 10
        await page.get_by_label("Kind").select_option("decision")
        await page.get_by_label("Replica").select_option("replica-1")
        assert await page.locator("details.decision").count() == 4
        await page.locator("details.decision summary").first.click()
        assert '"wanted"' in await page.inner_text("details.decision pre")
        assert "replica=replica-1" in page.url
        link = page.url
        await page.goto("about:blank")
        await page.goto(link)
        await page.locator("details.decision pre").wait_for()
        assert await page.locator("details.decision").count() == 4


async def test_keys_of_the_keyboard_change_pages_and_pause(tmp_path: Path) -> None:
    async with opened(tmp_path) as (world, page):
        await on(page, world, "promises")
        for number, name in enumerate(PAGES, start=1):
            await page.keyboard.press(str(number))
            await page.wait_for_selector(f"main[data-page={name}] h2")
        await page.keyboard.press("p")
        await page.wait_for_function("document.querySelector('#updated').textContent === 'paused'")
        await page.go_back()
        await page.wait_for_selector("main[data-page=requests] h2")


async def test_without_the_controller_it_says_so_and_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as (world, page):
        world.controller.should_exit = True
        await on(page, world, "replicas")
        await page.get_by_text("The controller does not answer").first.wait_for()
        assert await page.locator("[data-replica=replica-0]").get_by_text("tree").count() >= 1
        assert await page.get_by_role("button", name="Drain").first.is_disabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
async def test_every_page_is_accessible_and_fits(tmp_path: Path, axe: str, scheme: str, size: dict[str, int]) -> None:
    async with opened(tmp_path, size=size, scheme=scheme) as (world, page):
        for name in PAGES:
            await on(page, world, name)
            await page.wait_for_timeout(300)
            await page.evaluate(axe)
            found = await page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']})")
            assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == [], name
            wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{name} scrolls sideways"
            if pictures := os.environ.get("CONSOLE_PICTURES"):
                kind = f"{scheme}-{'wide' if size == WIDE else 'phone'}"
                await page.screenshot(path=str(Path(pictures) / f"console-{name}-{kind}.png"), full_page=True)
