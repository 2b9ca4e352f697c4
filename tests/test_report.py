"""The page and the index of results: what they say, and in a browser that charts are drawn and controls work."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import synthetic_results

import make_report
from src.experiments import durations
from src.reporting.captions import CAPTIONS, caption
from src.reporting.claim import examine_all
from src.reporting.compare import contestant
from src.reporting.figures import FIGURES, PICTURES, make_figures
from src.reporting.ledger import corrected_verdicts, verdict_counts
from src.reporting.report.commands import commands
from src.reporting.report.entries import entries
from src.reporting.report.forest import forest
from src.reporting.report.page import SECTIONS, page_of
from src.reporting.report.setup import setup
from src.reporting.runs import Runs
from src.reporting.tables import make_tables
from src.run import Run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = ((390, 844), (1400, 900))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of two seeds, tables, two figures, the page."""
    results = synthetic_results.write(tmp_path_factory.mktemp("report"), seeds=(1, 2))
    for jobs, seconds in ((4, {"addition": 6.0}), (2, {"fine-tuning": 90.0, "addition": 48.0, "tables": 1.9})):
        durations.record(results / "mini", "ViT-Mini", jobs, "cpu", seconds)
    runs = Runs("mini", "ViT-Mini", results)
    make_tables(runs)
    make_figures(runs, Run.of(device="cpu"), ("mask_density", "addition"))
    make_report.main(["--results", str(results)])
    return results


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "mini" / "report.html").read_text()


@pytest.fixture(scope="module")
def runs(folder) -> Runs:
    return Runs("mini", "ViT-Mini", folder)


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


class Loaded(HTMLParser):
    """What a page names to be loaded, and texts that stand in for pictures."""

    def __init__(self):
        super().__init__()
        self.sources: list[str] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag != "a":
            self.sources += [named[name] for name in ("src", "href", "srcset") if name in named]
        if named.get("role") == "img" and not named.get("aria-label"):
            self.silent.append(tag)
        if tag == "img" and "alt" not in named:
            self.silent.append(tag)


def test_the_page_is_one_small_file_that_loads_nothing(page):
    parser = Loaded()
    parser.feed(page.partition('<script id="data"')[0])
    assert parser.sources and all(source.startswith("data:") for source in parser.sources)
    assert not parser.silent and len(page.encode()) < 6e6
    assert [anchor for anchor, _ in SECTIONS] == re.findall(r'<section id="([\w-]+)"', page)


def test_the_page_counts_verdicts_as_the_ledger_does(folder, page, runs):
    findings = examine_all(runs)
    every = [finding for of_paper in findings.values() for finding in of_paper]
    shown = re.findall(r'class="claim" data-paper="\w+" data-verdict="([\w ]+)"', page)
    assert shown == [finding.verdict for finding in every] and {"holds", "undecided"} <= set(shown)
    changed = [f for f in every if corrected_verdicts(findings)[f.claim] != f.verdict]
    assert page.count(", corrected: ") == len(changed)
    counts = verdict_counts(finding.verdict for finding in every)
    assert f" {len(every)} claims of the papers: {counts}." in (folder / "mini" / "README.md").read_text()


def test_numbers_of_a_method_are_those_of_the_tables(page, runs):
    shown = next(row for row in data_of(page)["methods"] if row["method"] == "TIES" and row["tasks"] == 8)
    values = contestant(runs, "TIES").values()
    assert shown["values"]["accuracy"]["tuned"]["mean"] == pytest.approx(values.mean(), abs=1e-3)
    assert dict(shown["values"]["accuracy"]["tuned"]["seeds"]) == pytest.approx(values.to_dict(), abs=1e-3)
    worst = min(task["value"] for task in shown["byTask"]["accuracy"])
    assert worst < shown["values"]["accuracy"]["tuned"]["mean"] and shown["published"]
    kinds = {row["method"]: (row["kind"], row["model"]) for row in entries(runs)}
    assert kinds["TALL mask + TA"] == ("merged without images", "a model per task")
    assert kinds["AdaMerging, layer-wise"] == ("uses images", "one model")


def test_curves_over_alpha_are_means_of_the_results(page, runs):
    curves = next(iter(data_of(page)["explorer"].values()))
    assert list(curves) == ["standard", "posthoc", "linear"]
    recorded = [100 * values for values in runs.find("addition", mode="linear")[1]["val"]["accuracy"]["signs"]]
    others = [100 * values for values in runs.find("addition", mode="linear")[2]["val"]["accuracy"]["signs"]]
    means = [(a + b) / 2 for a, b in zip(recorded, others)]
    assert curves["linear"]["rows"]["signs"] == pytest.approx(means, abs=0.006)


def test_every_result_has_a_command(runs):
    made = commands(runs)
    assert all(line.startswith("python ") for entry in made for line in entry.command.splitlines())
    assert {entry.seeds for entry in made} == {"1, 2"}
    texts = [entry.command for entry in made]
    assert len(set(texts)) == len(texts)
    assert any("corruption=contrast" in text for text in texts) and any("unseen=[digits,land]" in t for t in texts)
    assert any("ViT-Mini__init__" in text for text in texts)


def _texts(page: str, table: str) -> list[list[str]]:
    """The cells of a table of the page, row by row."""
    rows = re.findall(
        r"<tr>(.*?)</tr>", re.search(rf'<table id="{table}">(.*?)</table>', page, re.DOTALL)[1], re.DOTALL
    )
    cells = (re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row, re.DOTALL) for row in rows)
    return [[re.sub("<.*?>", " ", cell).split("  ")[0].strip() for cell in row] for row in cells]


def test_the_page_has_the_minutes_of_each_stage(page, runs):
    """Of the machine that ran most of them: those of a seed, their sum, and those that run once."""
    shown = _texts(page, "stages")[1:]
    assert shown == [["fine-tuning", "1.5"], ["addition", "0.8"], ["a seed", "2.3"], ["tables", "&lt; 0.1"]]
    assert "with 2 tasks at once" in page and "No time is recorded of single-task, negation," in page
    kinds = {name: int(results) for name, results, _ in _texts(page, "work")[1:]}
    assert kinds["task addition"] == sum(result.experiment == "addition" for result in runs.read) + 2 * 2  # random-init


@pytest.mark.parametrize("damaged", ["", "{", '{"ViT-Mini": [{"jobs": 1}]}', '{"other": []}'])
def test_without_recorded_stages_the_page_shows_none(tmp_path, damaged):
    synthetic_results.write(tmp_path, seeds=(1,), merges=False)
    (tmp_path / "mini" / durations.NAME).write_text(damaged)
    assert setup(Runs("mini", "ViT-Mini", tmp_path)).reproduction is None


def test_a_section_without_results_says_what_makes_them(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1,))
    for file in tmp_path.rglob("*.json"):
        if file.stem != "zeroshot_accuracies":
            file.unlink()
    runs = Runs("mini", "ViT-Mini", tmp_path)
    shown = page_of(runs, forest(runs))
    for script in ("main.py", "eval_task_addition.py", "eval_disentanglement.py", "eval_ntk_localization.py"):
        missing = re.findall(r'absent">.*?</div>', shown, re.DOTALL)
        assert any(script in re.sub("<.*?>", "", block) for block in missing), script
    assert "none was run yet" in shown and data_of(shown)["charts"] == {}


def test_no_results_are_an_error_and_nothing_is_written(tmp_path, capsys):
    with pytest.raises(SystemExit):
        make_report.main(["--results", str(tmp_path / "none")])
    assert "python reproduce.py" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_index_links_what_is_there(folder):
    text = (folder / "mini" / "README.md").read_text()
    links = re.findall(r"\]\((\S+?)\)", text)
    assert len(links) > 20 and all((folder / "mini" / link).exists() for link in links)
    assert "figures/mask_density.png" in links and "figures/radar.png" not in links


def test_every_figure_has_a_caption():
    assert {*CAPTIONS} <= {*FIGURES, *PICTURES}
    assert all(caption(name).endswith(".") for name in (*FIGURES, *PICTURES))


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=SIZES, ids=lambda size: str(size[0]))
def opened(request, browser, folder):
    """The page in a window, dark in the narrow one; it must log no error and no warning."""
    width, height = request.param
    theme = "dark" if width < 500 else "light"
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    window, errors = context.new_page(), []
    logged = ("error", "warning")
    window.on("console", lambda message: errors.append(message.text) if message.type in logged else None)
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.on("request", lambda call: errors.append(call.url) if not call.url.startswith(("file:", "data:")) else None)
    window.goto((folder / "mini" / "report.html").as_uri())
    yield window
    assert errors == []
    context.close()


def test_every_chart_is_drawn(opened):
    names = opened.eval_on_selector_all(".chart", "all => all.map(e => e.dataset.chart)")
    assert len(names) > 15
    for name in names:
        opened.locator(f'.chart[data-chart="{name}"]').scroll_into_view_if_needed()
    opened.wait_for_function("[...document.querySelectorAll('.chart')].every(e => e.dataset.drawn)")
    sizes = opened.eval_on_selector_all(
        ".chart :is(svg, canvas)", "all => all.map(e => e.getBoundingClientRect().width)"
    )
    assert len(sizes) >= len(names) and min(sizes) > 150
    marks = opened.eval_on_selector_all('[data-chart="intervals"] svg .mark-symbol path', "all => all.length")
    assert marks > 20
    assert opened.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0  # nothing beyond the window


def _settled(window) -> None:
    """Wait until a while has passed in which the page has neither grown, nor moved, nor drawn a chart."""
    window.wait_for_function(
        """() => {
            const page = document.documentElement, drawn = document.querySelectorAll("[data-drawn]").length;
            const now = [page.scrollHeight, scrollY, drawn].join();
            if (now !== window.before) [window.before, window.since] = [now, performance.now()];
            return performance.now() - window.since > 400;
        }""",
        polling=50,
    )


def _off(window, section: str) -> float:
    """Pixels from where the browser scrolls a section to, clear of what sticks to the top."""
    return window.evaluate(
        """(id) => document.getElementById(id).getBoundingClientRect().top
            - parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop)""",
        section,
    )


@pytest.mark.parametrize("opened", SIZES[:1], ids=["390"], indirect=True)
def test_navigation_ends_at_its_section(opened, folder):
    """By an address in a window that has drawn nothing, and by clicks past charts that are not drawn yet."""
    address = (folder / "mini" / "report.html").as_uri()
    for section in ("kernel", "storage"):
        opened.goto("about:blank")
        opened.goto(f"{address}#{section}")
        _settled(opened)
        assert abs(_off(opened, section)) < 3, f"{section}, by its address"
    opened.goto("about:blank")
    opened.goto(address)
    for section in ("by-task", "storage", "kernel"):
        opened.locator(f'nav a[href="#{section}"]').click()
        _settled(opened)
        assert abs(_off(opened, section)) < 3, f"{section}, by a click"
    grow = (
        "(by) => { document.body.style.overflowAnchor = 'none'; document.querySelector('#ran').style.paddingTop = by; }"
    )
    opened.evaluate(grow, "500px")  # where a browser does not keep the place by itself
    _settled(opened)
    assert abs(_off(opened, "kernel")) < 3
    opened.mouse.wheel(0, 300)  # the reader moves on, and is not called back
    _settled(opened)
    opened.evaluate(grow, "1400px")
    _settled(opened)
    assert _off(opened, "kernel") == pytest.approx(600, abs=10)


@pytest.mark.parametrize("opened", SIZES[:1], ids=["390"], indirect=True)
def test_a_chart_is_drawn_in_the_room_that_is_kept_for_it(opened):
    heights = "all => all.map(e => [e.dataset.chart, e.offsetHeight])"
    kept = dict(opened.eval_on_selector_all(".chart:not([data-drawn])", heights))
    for name in kept:
        opened.locator(f'.chart[data-chart="{name}"]').scroll_into_view_if_needed()
    opened.wait_for_function("[...document.querySelectorAll('.chart')].every(e => e.dataset.drawn)")
    drawn = dict(opened.eval_on_selector_all(".chart", heights))
    assert len(kept) > 15 and {name: drawn[name] for name in kept} == pytest.approx(kept, abs=30)


@pytest.mark.parametrize("opened", SIZES[:1], ids=["390"], indirect=True)
def test_charts_of_methods_name_each_and_end_at_100(opened, page, tmp_path):
    """Narrow windows cut long names where they are alike, and no interval goes beyond what an accuracy can be."""
    data = data_of(page)
    for row in data["methods"]:
        row["values"]["accuracy"]["tuned"] |= {"overSeeds": [44, 124], "overImages": [52, 131]}
    start, _, rest = page.partition('<script id="data" type="application/json">')
    text = start + '<script id="data" type="application/json">' + json.dumps(data).replace("<", "\\u003c")
    (tmp_path / "wide.html").write_text(text + rest[rest.index("</script>") :])
    opened.goto((tmp_path / "wide.html").as_uri())
    for chart in ("intervals", "heat"):
        opened.locator(f'.chart[data-chart="{chart}"]').scroll_into_view_if_needed()
        opened.wait_for_selector(f'.chart[data-chart="{chart}"][data-drawn]')
        axes = opened.eval_on_selector_all(
            f'[data-chart="{chart}"] svg .role-axis-label',
            "all => all.map(axis => [...axis.querySelectorAll('text')].map(text => text.textContent))",
        )
        names = next(labels for labels in axes if "TIES" in labels)
        assert len({*names}) == len(names) > 8
        if chart == "intervals":
            (numbers,) = [labels for labels in axes if labels[0].isdigit()]
            assert max(map(float, numbers)) <= 100


def test_a_narrow_window_shows_whole_commands_and_names_points(opened):
    narrow = opened.viewport_size["width"] < 500
    assert opened.locator("#s-names").is_visible() == narrow
    copies = opened.eval_on_selector_all("#made .copy", "all => all.map(e => e.getBoundingClientRect().right)")
    assert copies and max(copies) < opened.viewport_size["width"]
    if narrow:
        widths = opened.eval_on_selector_all("#made pre", "all => all.map(e => e.getBoundingClientRect().width)")
        assert min(widths) > 220
    opened.locator("#c-search").fill("ties")
    shown = opened.eval_on_selector_all(
        "#made tbody tr", "all => all.filter(e => e.offsetHeight).map(e => e.innerText)"
    )
    assert shown and all("ties" in text.lower() for text in shown)
    numbers = opened.locator("#s-names li").count()
    opened.locator('.chart[data-chart="storage"]').scroll_into_view_if_needed()
    opened.wait_for_selector('.chart[data-chart="storage"][data-drawn]')
    texts = opened.eval_on_selector_all(
        '[data-chart="storage"] svg .mark-text.role-mark text', "all => all.map(e => e.textContent)"
    )
    assert {*map(str, range(1, numbers + 1))} <= {*texts} if narrow else any("TALL" in text for text in texts)


def test_the_table_sorts_and_filters(opened):
    def column(number: int) -> list[str]:
        return opened.eval_on_selector_all(
            f"#methods tbody td:nth-child({number})", "all => all.map(e => e.dataset.sort ?? e.textContent)"
        )

    accuracies = [float(text) for text in column(3)]
    assert len(accuracies) > 8 and accuracies == sorted(accuracies, reverse=True)
    opened.locator("#methods thead button", has_text="accuracy").press("Enter")  # by keyboard
    assert [float(text) for text in column(3)] == sorted(accuracies)
    opened.locator("#methods thead button", has_text="method").click()
    names = column(1)
    assert names[0].startswith("AdaMerging") and names[-1] == "zero-shot"
    opened.locator("#methods thead button", has_text="method").click()
    assert column(1) == names[::-1]
    opened.locator("#m-search").fill("ties")
    assert 0 < len(column(1)) < len(names) and all("TIES" in name for name in column(1))
    opened.locator("#m-search").fill("")
    opened.locator("#m-mode").select_option("linear")
    assert len(column(1)) == 3
    opened.locator("#claim-paper").select_option("tall")
    shown = opened.eval_on_selector_all(".claim:not([hidden])", "all => all.map(e => e.dataset.paper)")
    assert set(shown) == {"tall"}


def test_the_slider_moves_the_numbers(opened):
    def numbers() -> list[str]:
        return opened.eval_on_selector_all("#e-table td[data-mode='linear']", "all => all.map(e => e.textContent)")

    before, text = numbers(), opened.locator("#e-value").text_content()
    opened.locator("#e-alpha").focus()
    for _ in range(6):
        opened.keyboard.press("ArrowRight")
    assert numbers() != before and opened.locator("#e-value").text_content() != text
    opened.locator("#e-reset").click()
    assert numbers() == before


def test_commands_are_copied_and_themes_change(opened):
    opened.locator("#theme").click()
    opened.locator("#theme").click()
    assert opened.evaluate("document.documentElement.dataset.theme") == "dark"
    copy = opened.locator("#made .copy").first
    copy.click()
    opened.wait_for_function("document.querySelector('#made .copy').textContent == 'copied'")
