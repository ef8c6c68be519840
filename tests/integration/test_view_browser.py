"""The viewer and the pages of a run in a real browser: laid out at 400, 900 and 1,440 px, light and
dark, axe-core, keys, without JavaScript, hostile text."""

from __future__ import annotations

import asyncio
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.browser import Tab, browser, chromium
from support.run_folder import make_run
from support.scored import one, write
from support.viewing import HOSTILE, Viewer, dataset, prompt_of, viewing

from mora_data.cli import main
from mora_data.viewer.freeze import freeze

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"
)

CONTRAST = """(() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
                       return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
                        if (c.length === 3 || (c.length > 3 && c[3] === 1)) return c.slice(0, 3) } return [255, 255, 255] };
  const bad = [];
  for (const e of document.querySelectorAll('main *, nav *, footer *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('title, desc, option') || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e.ownerSVGElement;
    const a = light(rgb(svg ? style.fill : style.color).slice(0, 3)), b = light(behind(svg || e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push([e.tagName, e.getAttribute('class'), e.textContent.slice(0, 40)].join(' '));
  }
  return bad })()"""  # noqa: E501
NAMELESS = """[...document.querySelectorAll('a, button, input:not([type=hidden]), select, summary, svg[role]')].filter(e =>
  !(e.textContent.trim() || e.getAttribute('aria-label') || (e.labels && e.labels.length))).map(e => e.outerHTML.slice(0, 120))"""  # noqa: E501
FAULTS = """axe.run(document).then(found => JSON.stringify(found.violations.map(v =>
  [v.id, v.nodes.length, v.nodes[0].html.slice(0, 200)])))"""
WIDER = "document.documentElement.scrollWidth - window.innerWidth"


def axe() -> str | None:
    """axe-core's code, as a package of the dev extra carries it."""
    found = find_spec("axe_core_python")
    places = found.submodule_search_locations if found else None
    return (Path(places[0]) / "axe.min.js").read_text("utf-8") if places else None


async def faults(tab: Tab, code: str) -> list[object]:
    """What axe-core finds on the page that stands open."""
    await tab.run(f"{code};0")
    found = await tab.ask(
        "Runtime.evaluate", expression=FAULTS, awaitPromise=True, returnByValue=True
    )
    return list(json.loads(found["result"]["value"]))


async def checked(tab: Tab, url: str, width: int, dark: bool) -> None:
    """A page that stands in its width, can be read, and whose parts have names."""
    await tab.open(url, width, dark)
    assert await tab.run("document.querySelectorAll('main h1').length") == 1, url
    assert await tab.run(WIDER) <= 0, (url, width)
    assert await tab.run(CONTRAST) == [], (url, width, dark)
    assert await tab.run(NAMELESS) == [], url
    assert await tab.run("typeof window.hacked") == "undefined", url


def paths(v: Viewer, prompt_id: str) -> list[str]:
    pair = v.get("/pairs.json").tree["pairs"][0]["pair_id"]
    return [
        "/",
        "/pairs?texts=1",
        "/pairs?kind=one_dim&sort=margin_helpful&low=0&high=1",
        f"/pair/{pair}?texts=1",
        "/prompts",
        f"/prompt/{prompt_id}?texts=1",
        f"/prompt/{prompt_id}?calls=1",
        "/drops",
        "/requests",
        "/nope",
        "/review?texts=1",
    ]


def test_every_page_stands_at_both_widths_light_and_dark(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12)

    async def look(v: Viewer) -> None:
        async with browser(tmp_path / "home") as tab:
            await tab.open(v.server.url)
            for path in paths(v, prompt_of(run)):
                for width in (400, 900, 1440):
                    await checked(tab, v.url + path, width, dark=False)
                    await tab.scheme(dark=True)
                    assert await tab.run(CONTRAST) == [], (path, width, "dark")
            assert tab.requested and all(
                u.startswith(v.url) or u == "about:blank" for u in tab.requested
            )
            assert [c for c in tab.complaints if "404" not in c] == []

    with viewing(run, "ada") as v:
        asyncio.run(look(v))


@pytest.mark.slow
@pytest.mark.skipif(axe() is None, reason="no axe-core: pip install axe-core-python")
def test_axe_finds_nothing_on_any_page(tmp_path: Path) -> None:
    run, few, code = tmp_path / "run", tmp_path / "few", axe() or ""
    rows = ["--source", "pku-saferlhf", "--sample", "--limit"]
    assert main(["build", *rows, "12", "--arms", "identity,fused", "--out", str(run)]) == 0
    assert main(["preview", *rows, "2", "--html", "--out", str(few)]) == 0

    async def look(v: Viewer) -> None:
        async with browser(tmp_path / "home") as tab:
            await tab.open(v.server.url)
            await tab.run("document.documentElement.removeAttribute('lang')")
            assert "html-has-lang" in str(await faults(tab, code))  # it does look
            made = [(run / "report.html").as_uri(), (few / "preview.html").as_uri()]
            for url in [*(v.url + path for path in paths(v, prompt_of(run))), *made]:
                for width in (400, 1440):
                    await tab.open(url, width, dark=width == 400)
                    assert await faults(tab, code) == [], (url, width)
                    assert await tab.run(WIDER) <= 0, (url, width)

    with viewing(run, "ada") as v:
        asyncio.run(look(v))


def test_pages_are_read_and_filtered_without_javascript(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12)

    async def look(v: Viewer) -> None:
        async with browser(tmp_path / "home") as tab:
            await tab.open(v.server.url)
            await tab.ask("Emulation.setScriptExecutionDisabled", value=True)
            await tab.open(v.url + "/prompts", 900)
            await tab.run("document.querySelector('.jump').focus()")
            assert await tab.run("document.activeElement.hash") == "#filters"
            await tab.run("document.querySelector('#filters a[href*=\"arm=identity\"]').focus()")
            await tab.press("Enter")
            assert "arm=identity" in await tab.run("location.search")
            await tab.run("document.querySelector('table.pairs tbody a').focus()")
            await tab.press("Enter")
            await tab.run("document.querySelector('#calls a').focus()")
            await tab.press("Enter")
            assert "calls=1" in await tab.run("location.search")
            assert await tab.run("document.querySelectorAll('section#calls').length") == 1

    with viewing(run) as v:
        asyncio.run(look(v))


def test_a_vote_by_keyboard(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12)

    async def look(v: Viewer) -> None:
        async with browser(tmp_path / "home") as tab:
            await tab.open(v.server.url)
            await tab.open(v.url + "/review?texts=1")
            first = v.get("/review.json").tree["pair_id"]
            await tab.press("2", alt=True)
            assert "1 of 12 pairs judged" in await tab.run("document.body.innerText")
            assert "texts=1" in await tab.run("location.search")
            await tab.press("n", alt=True)
            assert "after=" in await tab.run("location.search")
            assert (
                '"vote":"second"' in (run / "reviews.jsonl").read_text()
                and first in (run / "reviews.jsonl").read_text()
            )

    with viewing(run, "ada") as v:
        asyncio.run(look(v))


def test_the_frozen_copy_opens_from_disk(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"identity": 0.2, "fused": 0.6}, 12, text=HOSTILE)
    freeze(run, tmp_path / "pages", 3)

    async def look() -> None:
        async with browser(tmp_path / "home") as tab:
            home = (tmp_path / "pages").as_uri()
            await checked(tab, f"{home}/index.html", 400, True)
            for link in (
                "nav a[href='pairs.html']",
                "table.pairs a[href^='pair-']",
                ".spaces svg a",
            ):
                await tab.run(f'document.querySelector("{link}").focus()')
                await tab.press("Enter")
            assert "prompt-" in await tab.run("location.pathname")
            assert await tab.run("document.querySelectorAll(':target').length") == 1
            await checked(tab, await tab.run("location.href.split('#')[0]"), 1600, False)
            assert (
                await tab.run("getComputedStyle(document.querySelector('.dot')).stroke") != "none"
            )
            assert all(u.startswith((home, "about:blank")) for u in tab.requested), tab.requested
            assert tab.complaints == []

    asyncio.run(look())


def test_filters_order_pages_and_points_by_keyboard(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "set", 130)

    async def look(v: Viewer) -> None:
        async with browser(tmp_path / "home") as tab:
            await tab.open(v.server.url)
            await tab.open(v.url + "/")
            await tab.press("p", alt=True)
            assert await tab.run("location.pathname") == "/pairs"
            first = await tab.run("document.querySelector('table.pairs tbody a').href")
            await tab.press("n", alt=True)
            assert "after=" in await tab.run(
                "location.search"
            ) and "51 to 100 of 130" in await tab.run("document.body.innerText")
            await tab.press("b", alt=True)
            assert await tab.run("document.querySelector('table.pairs tbody a').href") == first
            await tab.run("document.querySelector('.facets a[href*=\"kind=flat\"]').focus()")
            await tab.press("Enter")
            assert "kind=flat" in await tab.run("location.search")
            await tab.run(
                "document.querySelector('#sort').value = 'margin_helpful';"
                " document.querySelector('#q').focus()"
            )
            await tab.press("Enter")
            assert "sort=margin_helpful" in await tab.run(
                "location.search"
            ) and "kind=flat" in await tab.run("location.search")
            await tab.run("document.querySelector('.hist a').focus()")
            await tab.press("Enter")
            assert "low=" in await tab.run("location.search")
            await tab.run("document.querySelector('table.pairs tbody a').focus()")
            await tab.press("Enter")
            await tab.run("document.querySelector('.spaces a[href*=\"#fused-0\"]').focus()")
            await tab.press("Enter")
            assert await tab.run("document.querySelector(':target').id") == "fused-0"

    with viewing(folder) as v:
        asyncio.run(look(v))


def test_hostile_text_runs_nothing_and_breaks_no_layout(tmp_path: Path) -> None:
    answers = (HOSTILE + "x" * 300_000, HOSTILE + "\n" * 50, "W" * 500, "")
    write(tmp_path / "set", [one(0, question=HOSTILE * 2, answers=answers)])

    async def look(v: Viewer) -> None:
        row = v.get("/pairs.json").tree["pairs"][0]
        prompt_id = v.get(f"/pair/{row['pair_id']}.json").tree["pair"]["prompt_id"]
        async with browser(tmp_path / "home") as tab:
            await tab.open(v.server.url)
            for path in (
                *paths(v, prompt_id),
                "/pairs?q=%3Cimg%20src%3Dx%20onerror%3Dwindow.hacked%3D1%3E",
            ):
                await checked(tab, v.url + path, 400, False)
            assert all(u.startswith(v.url) or u == "about:blank" for u in tab.requested), (
                tab.requested
            )
            assert [c for c in tab.complaints if "404" not in c] == []

    with viewing(tmp_path / "set") as v:
        asyncio.run(look(v))
