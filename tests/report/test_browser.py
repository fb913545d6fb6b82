"""index.html in a real browser: from a file, offline, wide and narrow, light and dark, with mouse and keyboard."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmft.evaluation.predictions import predictions_file
from vlmft.report.matrix import matrix
from vlmft.report.page import page
from vlmft.report.scan import sweep

pytestmark = pytest.mark.slow  # trains, starts processes, or opens a browser


sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome")
HOSTILE = "</script><img src=x onerror=alert(1)>"
PER_PAGE = 24
_built: list[Path] = []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"there is no {', '.join(NAMES)} on the PATH")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def built(make_sweep: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 2 sets of 30 questions and 3 runs: one picture is missing, and no answer of the first trained run is
    right to the character."""
    if not _built:
        root = tmp_path_factory.mktemp("page")
        found = sweep(make_sweep(root, runs=2, sets=2, questions=30))
        (root / "images" / "demo_ct" / "000.png").unlink()
        for place, run in enumerate(run for run in found.runs if run.evaluations):
            for name in found.sets:
                file = predictions_file(run.folder, name)
                text = file.read_text(encoding="utf-8").replace("Is there a lesion?", HOSTILE)
                if place == 1:
                    text = text.replace("</answer>", ".</answer>")
                file.write_text(text, encoding="utf-8")
        normalized, strict = (matrix(found, protocol) for protocol in found.protocols)
        rows = [
            (label, run, [replace(c, value=c.value and 0.0123) for c in cells]) for label, run, cells in strict.rows
        ]
        _built.append(root / "index.html")
        _built[0].write_text(page(found, [normalized, replace(strict, rows=rows)]), encoding="utf-8")
    return _built[0]


@pytest.fixture
def visit(browser: Any, built: Path) -> Iterator[Callable[..., Any]]:
    """visit(width=1400, …): the page, opened; what it complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def opened(width: int = 1400, **how: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **how)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(5000)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append("a dialog") or dialog.dismiss())
        tab.goto(built.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def cards(tab: Any) -> int:
    return int(tab.locator("#cards > li").count())


def found(tab: Any) -> int:
    return int(tab.locator("#count").inner_text().split()[0])


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_opens(visit: Callable[..., Any], width: int, scheme: str) -> None:
    tab = visit(width, color_scheme=scheme)
    assert cards(tab) == PER_PAGE
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(253, 253, 252)", "dark": "rgb(23, 24, 26)"}[scheme]


def test_filters_choose_questions(visit: Callable[..., Any]) -> None:
    tab = visit()
    assert found(tab) == 60
    tab.select_option("#by-set", label="demo_xray")
    assert found(tab) == 30
    tab.select_option("#by-type", "closed")
    assert found(tab) == 15
    tab.select_option("#by-verdict", "right")
    right = found(tab)
    tab.select_option("#by-run", label="base")
    assert 0 < found(tab) < right
    assert set(tab.locator("#cards .who").all_inner_texts()) == {"base"}
    assert set(tab.locator("#cards li li > :last-child").all_inner_texts()) == {"right"}
    tab.fill("#by-text", "nothing like this")
    assert found(tab) == cards(tab) == 0


def test_search_reads_questions_and_answers(visit: Callable[..., Any]) -> None:
    tab = visit()
    tab.fill("#by-text", "STANDS out")
    assert 0 < found(tab) < 30
    assert set(tab.locator("#cards h3").all_inner_texts()) == {"What stands out & where?"}


def test_runs_that_disagree_can_be_found(visit: Callable[..., Any]) -> None:
    tab = visit()
    tab.select_option("#by-verdict", "differ")
    assert 0 < found(tab) < 60
    kinds = "[...document.querySelectorAll('#cards > li')].map(c => [...c.querySelectorAll('li > :last-child')]"
    assert all(len(set(said)) > 1 for said in tab.evaluate(kinds + ".map(one => one.className))"))


def test_pages_turn(visit: Callable[..., Any]) -> None:
    tab = visit()
    first = tab.locator("#cards h3").all_inner_texts()
    assert tab.locator("#before").is_disabled()
    tab.click("#after")
    tab.click("#after")
    assert tab.locator("#page").inner_text() == "Page 3 of 3"
    assert cards(tab) == 60 - 2 * PER_PAGE and tab.locator("#after").is_disabled()
    tab.select_option("#by-set", label="demo_ct")  # fewer: back to the first page
    assert tab.locator("#page").inner_text() == "Page 1 of 2"
    tab.select_option("#by-set", "")
    assert tab.locator("#cards h3").all_inner_texts() == first


def test_switch_shows_the_other_protocol(visit: Callable[..., Any]) -> None:
    tab = visit()
    values = tab.locator(".matrix td b:visible")
    right = tab.locator("#cards .right").count()
    assert "1.2" not in values.all_inner_texts()
    tab.check("input[value=strict]")
    assert set(values.all_inner_texts()) == {"1.2"}
    assert 0 < tab.locator("#cards .right").count() < right


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_a_cell_leads_to_its_questions(visit: Callable[..., Any], how: str) -> None:
    tab = visit()
    cell = tab.locator("a[data-run='1'][data-set='1']:visible")
    if how == "mouse":
        cell.click()
    else:
        cell.focus()
        tab.keyboard.press("Enter")
    assert found(tab) == 30
    assert tab.evaluate("document.activeElement.id") == "by-run"
    assert tab.url.endswith("#gallery")
    assert len(set(tab.locator("#cards .who").all_inner_texts())) == 1


def test_text_of_a_question_stays_text(visit: Callable[..., Any]) -> None:
    tab = visit()
    tab.fill("#by-text", "onerror")
    assert set(tab.locator("#cards h3").all_inner_texts()) == {HOSTILE}
    sources = tab.evaluate("[...document.images].map(image => image.src)")
    assert sources and all(source.startswith("data:image/jpeg") for source in sources)


def test_a_missing_picture_has_a_box_and_others_are_drawn(visit: Callable[..., Any]) -> None:
    tab = visit()
    assert tab.locator(".pictures div", has_text="picture cannot be read").count() == 4
    tab.wait_for_function("[...document.images].every(image => image.complete)")
    assert set(tab.evaluate("[...document.images].map(image => image.naturalWidth)")) == {56}


def test_button_turns_the_light_off_and_on(visit: Callable[..., Any]) -> None:
    tab = visit(color_scheme="light")
    grounds = []
    for said in ("Dark", "Light", "Dark"):
        assert tab.locator("#theme").inner_text() == said
        grounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        tab.click("#theme")
    assert grounds[0] == grounds[2] != grounds[1]


def test_print_opens_what_is_folded_and_hides_the_controls(visit: Callable[..., Any]) -> None:
    tab = visit(color_scheme="dark")
    folded = tab.locator("details:not([open])").count()
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print")
    assert folded and tab.locator("details:not([open])").count() == 0
    assert not tab.locator(".bar").is_visible() and tab.locator(".matrix").first.is_visible()
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("details:not([open])").count() == folded


def test_matrix_can_be_read_without_javascript(visit: Callable[..., Any]) -> None:
    tab = visit(java_script_enabled=False)
    assert tab.locator(".matrix td b").first.is_visible()
    assert tab.get_by_text("The questions are shown with JavaScript.").is_visible()
