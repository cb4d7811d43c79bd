"""The HTML page in headless Chromium, offline, with an accessibility checker."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plumbing.images import decode_image

import numpy as np
import pytest

from metrics import mean_ci
from oxford_pet import image_path, read_breeds, read_split, trimap_path
from recipes import RECIPES
from report import gallery_entry, group_tables, render_page, thumbnail, training_facts, write_run_page
from trimap import BOUNDARIES, decode_trimap

HOSTILE = "<script>document.title = 'bad'</script>"


def make_rows(drawn_pets: Path) -> list[dict[str, Any]]:
    """Rows of a score file: 120 images, sorted by Dice and by pet size. 3 targets are empty; others have other tags."""
    names, breeds = read_split(drawn_pets, "test"), read_breeds(drawn_pets)
    rows = []
    for index in range(120):
        row = {"name": f"{names[index % 20]}-{index}", "dice": index / 120, **breeds[names[index % 20]]}
        row |= {"empty_target": index < 3, "target_fraction": 0.0 if index < 3 else 0.1 + index / 400}
        row |= {"pred_fraction": 0.0 if index in (3, 4) else 0.2, "largest_part": 0.5 if 5 <= index < 9 else 1.0}
        rows.append(row)
    rows[7] |= {"name": f"{HOSTILE}_7", "breed": HOSTILE}
    return rows


def make_report(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of a score file."""
    scores = {key: {"mean": 0.5, "low": 0.4, "high": 0.6} for key in ("dice", "iou", "dice_set", "iou_set")}
    provenance = {"versions": {"torch": "2"}, "commit": "abc", "command": "python https://example.org", "history": None}
    report = {"name": "R", "split": "test", "boundary": "pet", "image_size": 128, "flip_average": False, "epoch": 3}
    report |= {"checkpoint": "R_best.pth", "data_path": HOSTILE, "fingerprint": "f", "images": len(rows)}
    report |= {"boundary_f": 0.5, "boundary_f_middle": 0.5, "perimeter_ratio": 1.0, "machine": "m", "seconds": 1.0}
    report |= {"conventions": {boundary: {"model": scores, "own": scores} for boundary in BOUNDARIES}}
    report |= {"config": RECIPES["cpu"]("UNet").to_dict(), "trained": provenance, "per_image": rows}
    return report | provenance


@pytest.fixture(scope="module")
def page_file(drawn_pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    history = [{"epoch": n, "valid_dice": n / 5, "valid_loss": 1 / n, "train_loss": 2 / n} for n in range(1, 5)]
    rows, name = make_rows(drawn_pets), read_split(drawn_pets, "test")[0]
    image, trimap = decode_image(image_path(drawn_pets, name)), decode_trimap(trimap_path(drawn_pets, name))
    small = thumbnail(image, trimap, np.roll(trimap != 2, 5, axis=1), "pet")
    entries = [gallery_entry(row, [small], [row["dice"]]) for row in rows]
    return write_run_page(tmp_path_factory.mktemp("page") / "report.html", make_report(rows), history, entries)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium found (Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-dev.txt")
    root = hasattr(os, "getuid") and os.getuid() == 0  # Chromium's sandbox refuses root
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """An empty page, offline."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900}, offline=True)
    yield context.new_page()
    context.close()


def cards(page: Any, where: str = "#cards") -> list[str]:
    return page.eval_on_selector_all(f"{where} button", "all => all.map(one => one.children[1].textContent)")


def pixels(page: Any, canvas: str) -> list[list[int]]:
    """The colours in a canvas, once it has been painted."""
    page.wait_for_function(f"document.querySelector('{canvas}').width !== 300")
    read = "one => [...one.getContext('2d').getImageData(0, 0, one.width, one.height).data]"
    return np.array(page.eval_on_selector(canvas, read)).reshape(-1, 4)[:, :3].tolist()


def test_the_page_is_self_contained_and_escapes_names(page: Any, page_file: Path) -> None:
    requests: list[str] = []
    errors: list[object] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(page_file.as_uri())
    page.select_option("#breed", HOSTILE)
    assert cards(page) == [f"{HOSTILE}_7"]
    page.click("#cards button")
    assert HOSTILE in page.inner_text("#about")
    assert HOSTILE in page.inner_text("main dl")
    assert "boundary counted" not in page.inner_text("main dl")  # all conventions score alike
    assert page.title() == "R, test split"
    labels = page.eval_on_selector_all(".charts text", "all => all.map(one => one.textContent)")
    assert {"0.2", "1.0", "2.0"} <= set(labels)  # of one axis: all with the same decimals
    assert errors == []
    assert {url for url in requests if not url.startswith("data:")} == {page_file.as_uri()}


def test_sorting_filtering_and_more(page: Any, drawn_pets: Path, page_file: Path) -> None:
    rows = make_rows(drawn_pets)
    names = [row["name"] for row in rows]  # in the order of Dice and of size
    page.goto(page_file.as_uri())
    assert cards(page) == names[3:63]
    assert cards(page, "#empty") == names[:3]  # targets without a pet are set apart
    assert page.inner_text("#shown") == "60 of 117 images shown"
    assert cards(page, "#worst") + cards(page, "#best") == names[3:9] + names[-6:]
    page.evaluate("document.querySelector('#more').scrollIntoView()")
    page.wait_for_selector("#more", state="hidden")
    assert cards(page) == names[3:]
    for order in ("highest Dice", "largest foreground"):
        page.select_option("#sort", order)
        assert cards(page)[:60] == names[:59:-1]  # more, where their end is in view
    page.select_option("#sort", "lowest Dice")
    for tag, chosen in enumerate((names[3:5], [], names[5:9], names[:3])):
        page.select_option("#tag", str(tag))
        assert cards(page) == chosen
    page.select_option("#tag", "")
    page.select_option("#breed", rows[20]["breed"])
    assert cards(page) == [row["name"] for row in rows[3:] if row["breed"] == rows[20]["breed"]]


def test_the_slider_and_the_keyboard(page: Any, page_file: Path) -> None:
    page.goto(page_file.as_uri())
    page.focus("#cards button")
    page.keyboard.press("Enter")
    first = page.inner_text("#name")
    page.focus("#cut")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("getComputedStyle(document.querySelector('#over')).clipPath") == "inset(0px 0px 0px 60%)"
    assert pixels(page, "#under") != pixels(page, "#over")
    page.focus("#next")
    page.keyboard.press("Enter")
    assert page.inner_text("#name") == cards(page)[1] != first
    page.keyboard.press("Escape")
    assert page.is_hidden("#detail")
    assert page.evaluate("document.activeElement === document.querySelector('#cards button')")


def test_the_error_map_shows_false_negatives_and_false_positives(page: Any, tmp_path: Path) -> None:
    """Left half pet, right half background, upper half predicted: blue below left, orange above right."""
    trimap, mask = np.full((40, 40), 2, np.uint8), np.zeros((40, 40), bool)
    trimap[:, :20], mask[:20] = 1, True
    trimap[:, 18:20], trimap[:, 20:22] = 4, 3
    row = {"name": "x", "target_fraction": 0.5, "pred_fraction": 0.5, "largest_part": 1.0, "empty_target": False}
    for boundary, end in (("pet", 22), ("middle", 20), ("ignore", 18)):  # the pet's last column
        entry = gallery_entry(row, [thumbnail(np.full((40, 40, 3), 200, np.uint8), trimap, mask, boundary)], [0.5])
        gallery = {"runs": ["R"], "note": "", "entries": [entry]}
        page.goto(render_page(tmp_path / f"{boundary}.html", boundary, gallery=gallery).as_uri())
        assert page.is_hidden("#breed")  # the data has none
        colours = np.array(pixels(page, "#cards canvas")).reshape(40, 40, 3)
        negative, positive = (np.abs(colours - colour).max(-1) < 40 for colour in ((0, 114, 178), (230, 159, 0)))
        assert positive[:19, 23:].all()
        assert not (negative[:19] | positive[:19])[:, :17].any()
        assert negative[21:, :end].all()
        assert not negative[21:, end:].any()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_an_accessibility_checker_finds_nothing_serious(page: Any, page_file: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install -r requirements-dev.txt")
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(page_file.as_uri())
    for _ in range(2):  # the page, then an image opened
        found = axe.Axe().run(page).response["violations"]
        assert [(one["id"], one["help"]) for one in found if one["impact"] in ("serious", "critical")] == []
        page.click("#cards button") if page.is_hidden("#detail") else None
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_groups_have_their_images_and_intervals(drawn_pets: Path) -> None:
    rows = make_rows(drawn_pets)
    by_size, by_tag, _, by_breed = group_tables(rows)
    small = np.array([row["dice"] for row in rows[3:] if row["target_fraction"] <= 0.2])
    assert by_size["rows"][0] == ["10% to 20%", len(small), mean_ci(small)]
    assert sum(row[1] for row in by_size["rows"]) == 117  # those with a pet
    assert [row[:2] for row in by_tag["rows"]] == [
        ["empty prediction", 2],
        ["fragmented prediction", 4],
        ["no foreground in the target", 3],
        ["none of these", 111],
    ]
    means = [row[2]["mean"] for row in by_breed["rows"]]
    assert means == sorted(means)
    plain = [{key: value for key, value in row.items() if key not in ("breed", "species")} for row in rows]
    assert len(group_tables(plain)) == 2


def test_the_page_says_what_differs_from_the_default_recipe() -> None:
    trained = {"versions": {"torch": "2"}, "commit": "abc", "command": "python"}
    assert training_facts(RECIPES["default"]("UNet"), trained)["recipe"] == "default"
    recipe = training_facts(RECIPES["cpu"]("UNet"), trained)["recipe"]
    assert recipe.startswith("cpu: epochs 56, image_size 128")
    assert "learning_rate" not in recipe
    bare = dict.fromkeys(trained)  # weights alone have no history
    assert training_facts(RECIPES["default"]("UNet"), bare) == {"network": "UNet"}
