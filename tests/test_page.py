"""The HTML page as a person meets it: headless Chromium, offline, with an accessibility checker."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbing.images import decode_image

import numpy as np
import pytest

from evaluate import estimate
from oxford_pet import image_path, read_breeds, read_split, trimap_path
from recipes import RECIPES
from report import changed_from_default, gallery_entry, group_tables, render_page, thumbnail, write_run_page
from trimap import BOUNDARIES, decode_trimap

HOSTILE = "<script>document.title = 'bad'</script>"


def a_report(drawn_pets: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A score file's content for 120 images, the 20 drawn ones six times, and their gallery entries.

    Image k has the Dice k / 120; the first targets show no pet, the next predictions are empty or fragmented.
    """
    names, breeds = read_split(drawn_pets, "test"), read_breeds(drawn_pets)
    pictures = {}
    for name in names:
        trimap = decode_trimap(trimap_path(drawn_pets, name))
        pictures[name] = thumbnail(
            decode_image(image_path(drawn_pets, name)), trimap, np.roll(trimap != 2, 5, axis=1), "pet"
        )
    rows, entries = [], []
    for index in range(120):
        name = names[index % 20]
        row = {
            "name": f"{name}-{index}" if index != 7 else f"{HOSTILE}_7",
            "dice": index / 120,
            "empty_target": index < 3,
            "pred_fraction": 0.0 if 3 <= index < 5 else 0.2,
            "target_fraction": 0.0 if index < 3 else 0.1 + index / 400,
            "largest_part": 0.5 if 5 <= index < 9 else 1.0,
            **(breeds[name] if index != 7 else {"breed": HOSTILE, "species": "cat"}),
        }
        rows.append(row)
        entries.append(gallery_entry(row, [pictures[name]], [row["dice"]]))
    score = {"mean": 0.5, "low": 0.4, "high": 0.6}
    one_size = dict.fromkeys(("dice", "iou", "dice_set", "iou_set"), score)
    provenance = {"versions": {"torch": "2"}, "commit": "abc", "command": "python https://example.org", "history": None}
    report = {
        "conventions": {boundary: {"model": one_size, "own": one_size} for boundary in BOUNDARIES},
        "config": RECIPES["cpu"]("UNet").to_dict(),
        "trained": provenance,
        "name": "R",
        "split": "test",
        "boundary": "pet",
        "image_size": 128,
        "checkpoint": "R_best.pth",
        "epoch": 3,
        "data_path": HOSTILE,
        "fingerprint": "f",
        "images": 120,
        "flip_average": False,
        "machine": "m",
        "seconds": 1.0,
        "boundary_f": 0.5,
        "boundary_f_middle": 0.5,
        "perimeter_ratio": 1.0,
        "per_image": rows,
        **provenance,
    }
    return report, entries


@pytest.fixture(scope="module")
def page_file(drawn_pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    history = [{"epoch": n, "valid_dice": n / 5, "valid_loss": 1 / n, "train_loss": 2 / n} for n in range(1, 5)]
    report, entries = a_report(drawn_pets)
    return write_run_page(tmp_path_factory.mktemp("page") / "report.html", report, history, entries)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium found (Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-dev.txt")
    root = hasattr(os, "getuid") and os.getuid() == 0  # whom Chromium's sandbox refuses
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


class Visit:
    """A page that was opened from the disk with the network off, and what happened in it."""

    def __init__(self, browser: Any, path: Path, width: int = 1440, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(path.as_uri())

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def cards(self, where: str = "#cards") -> list[str]:
        return self.page.eval_on_selector_all(f"{where} button", "all => all.map(one => one.children[1].textContent)")

    def pixels(self, canvas: str) -> list[list[int]]:
        """The colours in a canvas, once it has been painted."""
        self.page.wait_for_function(f"document.querySelector('{canvas}').width !== 300")
        data = self.page.eval_on_selector(
            canvas, "one => [...one.getContext('2d').getImageData(0, 0, one.width, one.height).data]"
        )
        return np.array(data).reshape(-1, 4)[:, :3].tolist()


def test_nothing_is_fetched_and_nothing_is_wrong(chromium: Any, page_file: Path) -> None:
    with Visit(chromium, page_file) as visit:
        visit.page.wait_for_selector("#cards button")
        visit.page.click("#cards button")
        assert visit.page.is_visible("#detail")
        assert visit.errors == []
        assert {url for url in visit.requests if not url.startswith("data:")} == {page_file.as_uri()}
    text = page_file.read_text()
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)""", text) == []
    assert not [url for url in re.findall(r"https?://[^\s<\"]*", text) if url != "https://example.org"]


def test_hostile_names_are_text(chromium: Any, page_file: Path) -> None:
    with Visit(chromium, page_file) as visit:
        page = visit.page
        assert f"{HOSTILE}_7" in visit.cards()
        page.select_option("#breed", HOSTILE)
        assert visit.cards() == [f"{HOSTILE}_7"]
        page.click("#cards button")
        assert HOSTILE in page.inner_text("#about")
        assert page.title() == "R, test split"
        assert page.locator("script").count() == 2  # the data and the page's own
        assert HOSTILE in page.inner_text("main dl")


def test_sorting_filtering_and_more(chromium: Any, page_file: Path) -> None:
    rows = json.loads(re.search(r'id="data">(.*?)</script>', page_file.read_text(), re.DOTALL)[1])["entries"]
    with_pet = [row["name"] for row in rows if row["size"]]  # in the order of Dice and of size
    with Visit(chromium, page_file) as visit:
        page = visit.page
        assert visit.cards() == with_pet[:60]
        assert page.inner_text("#shown") == "60 of 117 images shown"
        page.click("#more")
        assert visit.cards() == with_pet
        assert page.is_hidden("#more")
        assert page.evaluate("document.activeElement === document.querySelectorAll('#cards button')[60]")
        for order in ("highest Dice", "largest pet"):
            page.select_option("#sort", order)
            assert visit.cards() == with_pet[::-1][:60]
        page.select_option("#sort", "name")
        assert visit.cards() != with_pet[:60]
        page.select_option("#sort", "lowest Dice")
        for flag, chosen in enumerate((rows[3:5], [], rows[5:9], rows[:3])):
            page.select_option("#flag", str(flag))
            assert visit.cards() == [row["name"] for row in chosen]
        assert visit.cards("#empty") == [row["name"] for row in rows[:3]]  # set apart
        page.select_option("#flag", "")
        page.select_option("#breed", rows[20]["breed"])
        assert visit.cards() == [row["name"] for row in rows[3:] if row["breed"] == rows[20]["breed"]]


def test_the_slider_and_the_keyboard(chromium: Any, page_file: Path) -> None:
    with Visit(chromium, page_file) as visit:
        page, reached = visit.page, set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.closest('ul, .scroll')?.id"))
            if page.evaluate("document.activeElement.closest('#cards') !== null"):
                break
        assert {"sort", "breed", "flag", "view", "cards"} <= reached
        page.keyboard.press("Enter")
        first = page.inner_text("#name")
        for _ in range(6):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "cut":
                break
        clip = "getComputedStyle(document.querySelector('#over')).clipPath"
        before = page.evaluate(clip)
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        assert (before, page.evaluate(clip)) == ("inset(0px 0px 0px 50%)", "inset(0px 0px 0px 60%)")
        assert visit.pixels("#under") != visit.pixels("#over")
        page.focus("#next")
        page.keyboard.press("Enter")
        assert page.inner_text("#name") == visit.cards()[1] != first
        page.keyboard.press("Escape")
        assert page.is_hidden("#detail")
        assert page.evaluate("document.activeElement === document.querySelector('#cards button')")


def test_the_error_map_shows_what_was_missed_and_what_is_surplus(chromium: Any, tmp_path: Path) -> None:
    """Left half pet, right half background, upper half predicted: blue below left, orange above right."""
    trimap, mask = np.full((40, 40), 2, np.uint8), np.zeros((40, 40), bool)
    trimap[:, :20], mask[:20] = 1, True
    trimap[:, 18:20], trimap[:, 20:22] = 4, 3
    row = {"name": "x", "target_fraction": 0.5, "pred_fraction": 0.5, "largest_part": 1.0, "empty_target": False}
    for boundary, missed_to in (("pet", 22), ("middle", 20), ("background", 18), ("ignore", 18)):  # columns
        entry = gallery_entry(row, [thumbnail(np.full((40, 40, 3), 200, np.uint8), trimap, mask, boundary)], [0.5])
        path = tmp_path / f"{boundary}.html"
        gallery = {"runs": ["R"], "note": "", "entries": [entry]}
        with Visit(chromium, render_page(path, boundary, gallery=gallery)) as visit:
            colours = np.array(visit.pixels("#cards canvas")).reshape(40, 40, 3)
        missed = np.abs(colours - (0, 114, 178)).max(-1) < 40
        surplus = np.abs(colours - (230, 159, 0)).max(-1) < 40
        assert surplus[:19, 23:].all()
        assert not (missed[:19] | surplus[:19])[:, :17].any()
        assert missed[21:, :missed_to].all()
        assert not missed[21:, missed_to:].any()


def test_many_targets_without_a_pet_do_not_fill_the_page(chromium: Any, drawn_pets: Path, tmp_path: Path) -> None:
    """Of own data, half may be empty: 60 are set apart, and the flag shows the others too."""
    report, entries = a_report(drawn_pets)
    entries = [entry | {"flags": [3], "name": f"pet_{n}"} for n, entry in enumerate(entries[::-1])]
    with Visit(chromium, write_run_page(tmp_path / "report.html", report, [], entries)) as visit:
        assert visit.cards("#empty") == [f"pet_{n}" for n in range(119, 59, -1)]  # the lowest Dice first
        assert visit.cards() == []
        visit.page.select_option("#flag", "3")
        assert len(visit.cards()) == 60
        assert visit.page.inner_text("#shown") == "60 of 120 images shown"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_an_accessibility_checker_finds_nothing_serious(
    chromium: Any, page_file: Path, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install -r requirements-dev.txt")
    with Visit(chromium, page_file, width, scheme) as visit:
        page = visit.page
        for _ in range(2):  # the page, then an image opened
            found = axe.Axe().run(page).response["violations"]
            assert [(one["id"], one["help"]) for one in found if one["impact"] in ("serious", "critical")] == []
            page.click("#cards button") if page.is_hidden("#detail") else None
        assert page.evaluate("document.documentElement.scrollWidth") <= width


# ---------------------------------------------------------------------------------------------- without a browser


def test_groups_have_their_images_and_intervals(drawn_pets: Path) -> None:
    rows = a_report(drawn_pets)[0]["per_image"]
    by_size, by_flag, by_species, by_breed = group_tables(rows)
    assert [row[0] for row in by_size["rows"]] == ["10% to 20%", "20% to 30%", "30% to 50%"]
    assert sum(row[1] for row in by_size["rows"]) == 117  # those with a pet
    inside = np.array([row["dice"] for row in rows[3:] if row["target_fraction"] <= 0.2])
    assert by_size["rows"][0][1:] == [len(inside), estimate(inside)]
    counts = {row[0]: row[1] for row in by_flag["rows"]}
    assert counts == {
        "empty prediction": 2,
        "fragmented prediction": 4,
        "no pet in the target": 3,
        "none of these": 111,
    }
    for table in (by_species, by_breed):
        means = [row[2]["mean"] for row in table["rows"]]
        assert sum(row[1] for row in table["rows"]) == 120
        assert means == sorted(means)
    plain = [{key: value for key, value in row.items() if key not in ("breed", "species")} for row in rows]
    assert len(group_tables(plain)) == 2


def test_a_recipe_says_what_differs_from_the_default() -> None:
    assert changed_from_default(RECIPES["default"]("UNet")) == "default"
    said = changed_from_default(RECIPES["cpu"]("UNet"))
    assert said.startswith("cpu: epochs 56, image_size 128")
    assert "learning_rate" not in said
    assert changed_from_default(RECIPES["fast"]("UNet")).startswith("fast: ")
    assert "augmentation" not in changed_from_default(RECIPES["fast"]("UNet"))  # but its fields that differ
    assert "integer_degrees" not in changed_from_default(RECIPES["fast"]("UNet"))


def test_weights_alone_and_one_image_are_called_so(drawn_pets: Path, tmp_path: Path) -> None:
    report, entries = a_report(drawn_pets)
    unknown = dict.fromkeys(report["trained"])
    report |= {"trained": unknown, "epoch": None, "images": 1, "per_image": report["per_image"][:1]}
    text = write_run_page(tmp_path / "report.html", report, [], entries[:1]).read_text()
    assert "<dd>R_best.pth, weights alone</dd>" in text
    assert "over 1 image of the test split" in text
    assert "<dd>1 image at 128x128, " in text
    assert not re.findall("<dt>(seed|recipe|trained by)</dt>", text)  # a guess, of such weights
