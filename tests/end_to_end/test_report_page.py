"""The report's page in a browser: what a reader sees, at a desk and on a telephone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from kd_lightning.report import drawing
from kd_lightning.report.dark_knowledge import clustered_order
from kd_lightning.report.page import Callout, Gallery, Headline, Picture, Report, Section, Tile, page
from kd_lightning.report.table import TableData

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")
DESK, TELEPHONE = 1280, 400
LEGIBLE = 9  # px
MARKUP = "<b>bear</b>"
CLASSES = ("apple", "aquarium fish", "baby & bottle", MARKUP, "beaver", "bed", "bee", "beetle", "$x$ bicycle", "c")
METHODS = ("alone", "kd", "dkd", "attention transfer", "kd + crd, weights of the paper", "<i>rkd</i>", "fitnets")
HEADINGS = ("", "top-1 %", "at the best checkpoint", "teacher's top-1 %", "agreement %", "KL (nats)", "ECE %")
ROW = ("70.12 ± 0.21", "70.40 ± 0.18", "72.30", "78.1 ± 0.2", "0.412 ± 0.003", "3.20 ± 0.15")


def pictures(count: int, noise: torch.Generator) -> dict[str, str]:
    """Every kind of picture, of so many classes."""
    classes = [CLASSES[number % 10] + (f" {number // 10}" if number >= 10 else "") for number in range(count)]
    centres = torch.randn(count // 5, 8, generator=noise).repeat_interleave(5, dim=0)
    alike = torch.corrcoef(centres + 0.8 * torch.randn(count, 8, generator=noise))
    soft = (4 * alike).softmax(dim=1)
    confidence = torch.linspace(0.05, 0.95, 10)
    inks = drawing.inks(METHODS)
    stages = [f"stage {number}" for number in range(1, 5)]
    student, teacher = torch.randn(2, count, generator=noise) * torch.tensor([[4], [6]])
    fall = torch.exp(-torch.arange(40) / 8)
    lines = {
        name: [(range(40), (fall + end + 0.01 * torch.randn(40, generator=noise)).tolist()) for _ in range(3)]
        for name, end in zip(METHODS, torch.linspace(0.1, 0.4, len(METHODS)), strict=True)
    }
    names = [f"{name} - alone" for name in METHODS[1:]]
    estimates = [
        (1.2, 0.8, 1.6),
        (1.7, 1.2, 2.3),
        (0.3, -0.2, 0.8),
        (2.1, 1.1, 3.0),
        (-0.9, -1.4, -0.2),
        (0.0, -1.0, 1.0),
    ]
    return {
        "intervals": drawing.intervals(names, estimates, "percentage points of top-1"),
        "curves": drawing.curves(lines, inks),
        "reliability": drawing.reliability(confidence, 0.8 * confidence, (5 * confidence).softmax(dim=0)),
        "confusion": drawing.confusion((alike.clamp(min=0) ** 3 * 12).int(), classes),
        "bars": drawing.bars(3 * torch.randn(count, generator=noise), classes, "percentage points"),
        "similarity": drawing.similarity(soft, classes, clustered_order(soft), "mean soft target, T = 4"),
        "cka": drawing.cka(torch.rand(3, 4, generator=noise), stages[:3], stages),
        "cka of blocks": drawing.cka(torch.rand(12, 12, generator=noise), stages * 3, stages * 3),
        "soft targets": drawing.soft_targets({"teacher": teacher, "student": student}, classes, target=3),
        "many soft targets": drawing.soft_targets(dict.fromkeys(METHODS[:6], student), classes, target=3),
    }


def made_up(count: int) -> Report:
    """A report with everything that a page can hold, of so many classes."""
    noise = torch.Generator().manual_seed(0)
    colour = torch.randint(0, 256, (3, 32, 32), generator=noise, dtype=torch.uint8)
    grey = torch.randint(0, 256, (1, 8, 8), generator=noise, dtype=torch.uint8)
    drawn = {name: Picture(svg, name, f"picture of {name}") for name, svg in pictures(count, noise).items()}
    said = ("student: bee, 81 %", "test image 12")
    return Report(
        title="runs/<script>document.title = 'changed'</script>",
        text="Seven ways to teach a student, three seeds each.\n\nLast epoch; mean ± std.",
        headlines=[
            Headline("student's top-1", "70.84 %", "dkd, 3 seeds"),
            Headline("gap recovered", "63 %"),
            Headline("compression", "3.1x", "parameters"),
        ],
        callouts=[Callout("Few seeds.", "A difference below 0.4 points is within the noise of a < b & c.")],
        sections=[
            Section("Figures", "The last epoch.", tables=[TableData(HEADINGS, [[name, *ROW] for name in METHODS])]),
            Section("Learning curves", key=drawing.inks(METHODS), pictures=[drawn["curves"]] * 4),
            Section("Pictures", pictures=list(drawn.values())),
            Section(
                "Images",
                galleries=[
                    Gallery("Wrong", [*[Tile(colour, MARKUP, said)] * 9, Tile(grey, "7")]),
                    Gallery("Least sure", [Tile(colour, MARKUP, said, drawn["soft targets"])] * 3),
                    Gallery("Folded", [Tile(grey, "7")], unfolded=False),
                ],
            ),
        ],
        footer="Made by kd-lightning",
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=[10, 100], ids=lambda count: f"{count} classes")
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a made-up report."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(made_up(request.param)), encoding="utf-8")
    return path


class Visit:
    """A page that is open, what it asked of the network, and what the browser complained of."""

    def __init__(self, page: Page, file: Path) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", self.requested)
        page.on("console", self.said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(file.as_uri())

    def requested(self, request: Request) -> None:
        self.requests.append(request.url)

    def said(self, message: ConsoleMessage) -> None:
        self.complaints.append(message.text)


@pytest.fixture(scope="module", params=[DESK, TELEPHONE], ids=lambda width: f"{width} px")
def visit(request: pytest.FixtureRequest, browser: Browser, file: Path) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": request.param, "height": 800})
    yield Visit(context.new_page(), file)
    context.close()


def test_the_page_asks_for_nothing_and_the_browser_has_nothing_to_complain_of(visit: Visit, file: Path) -> None:
    assert visit.requests == [file.as_uri()]
    assert visit.complaints == []
    assert visit.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_every_text_is_large_enough_to_be_read(visit: Visit) -> None:
    # The height of a turned text is its width; its size on the screen is that of its font, as the picture is scaled.
    sizes = visit.page.evaluate(
        """() => [...document.querySelectorAll('svg text, svg tspan')].map(text => {
            const { a, b } = text.getScreenCTM();
            return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
        })"""
    )
    assert len(sizes) > 100
    assert min(sizes) >= LEGIBLE
    written = visit.page.evaluate(
        """() => [...document.querySelectorAll('body *:not(svg *)')].filter(element => element.innerText)
            .map(element => parseFloat(getComputedStyle(element).fontSize))"""
    )
    assert min(written) >= LEGIBLE


def test_no_text_of_a_picture_is_cut_off(visit: Visit) -> None:
    cut = visit.page.evaluate(
        """() => [...document.querySelectorAll('.plot svg')].flatMap(svg => {
            const frame = svg.getBoundingClientRect();
            return [...svg.querySelectorAll('text')].filter(text => {
                const box = text.getBoundingClientRect();
                return box.left < frame.left - 1 || box.right > frame.right + 1
                    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
            }).map(text => `${svg.parentElement.ariaLabel}: ${text.textContent}`);
        })"""
    )
    assert cut == []


def test_nothing_but_a_wide_table_goes_beyond_the_window(visit: Visit) -> None:
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    beyond = visit.page.evaluate(
        """() => [...document.querySelectorAll('body *:not(.scrolls *)')]
            .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
            .map(element => element.outerHTML.slice(0, 80))"""
    )
    assert beyond == []


def test_every_picture_has_its_traces(visit: Visit) -> None:
    counts = {}
    for plot in visit.page.locator("section .plot").all():
        seen = plot.evaluate(
            """plot => [...plot.querySelectorAll('[id*="-trace-"]')].map(trace => trace.getBoundingClientRect())
                .filter(box => box.width + box.height > 0).length"""
        )
        counts[plot.get_attribute("aria-label")] = seen
    classes = counts.pop("picture of bars")
    assert counts == {
        "picture of intervals": 6,
        "picture of curves": 21,
        "picture of reliability": 11,
        "picture of confusion": 1,
        "picture of similarity": 1,
        "picture of cka": 1,
        "picture of cka of blocks": 1,
        "picture of soft targets": 20,
        "picture of many soft targets": 60,
    }
    assert classes in {10, 24}


def test_names_are_shown_as_they_are(visit: Visit) -> None:
    assert visit.page.title() == "runs/<script>document.title = 'changed'</script>"
    assert visit.page.locator("script, main b, main i").count() == 0
    assert visit.page.locator("tbody th").all_inner_texts() == list(METHODS)
    assert visit.page.locator(".key li").all_inner_texts() == list(METHODS)
    assert visit.page.locator(".tile strong").first.inner_text() == MARKUP
    drawn = visit.page.locator("svg text").all_text_contents()
    assert {MARKUP, "kd - alone"} <= {text.strip() for text in drawn}


def test_ids_are_unique_and_every_reference_finds_its_own(visit: Visit) -> None:
    ids = visit.page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))
    links = visit.page.evaluate("[...document.querySelectorAll('a[href]')].map(link => link.getAttribute('href'))")
    assert links == [f"#section-{number}" for number in range(1, 5)]
    used = visit.page.evaluate(
        """[...document.documentElement.outerHTML.matchAll(/(?:url\\(#|href="#)([^)"]+)/g)].map(found => found[1])"""
    )
    assert set(used) <= set(ids)


def test_small_images_keep_their_pixels(visit: Visit) -> None:
    image = visit.page.locator(".tile img").first
    assert image.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    box = image.bounding_box()
    assert box is not None
    assert (box["width"], box["height"]) == (96, 96)


def test_a_folded_gallery_opens_without_a_script(visit: Visit) -> None:
    tile = visit.page.locator("details").nth(2).locator("img")
    assert not tile.is_visible()
    visit.page.get_by_text("Folded").click()
    assert tile.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_on_the_page_of_either_colour(browser: Browser, file: Path, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    opened = context.new_page()
    opened.goto(file.as_uri())
    paper, body, drawn = (
        opened.evaluate(script)
        for script in (
            "getComputedStyle(document.body).backgroundColor",
            "getComputedStyle(document.body).color",
            "getComputedStyle(document.querySelector('svg text')).fill",
        )
    )
    light = {name: sum(map(int, rgb[4:-1].split(","))) / 765 for name, rgb in (("paper", paper), ("body", body))}
    assert drawn == body
    assert (light["paper"] > light["body"]) == (scheme == "light")
    assert abs(light["paper"] - light["body"]) > 0.7
    context.close()
