"""play.py's page in a real browser: Chromium of Debian's packages, driven by playwright; skipped without."""

import base64
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import play
from common import configure
from play import Game
from sample import WorldModel
from support.browser import find_chromium, open_browser, open_page
from tokenizer import TokenLayout

pytest.importorskip("playwright", reason="pip install playwright")
pytestmark = pytest.mark.skipif(not find_chromium(), reason="apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def released():
    return WorldModel.load("assets/push-tiny.pt", "cpu")


class Visit:
    """A page of a server that plays one model. `close` fails if the browser had anything to complain of."""

    def __init__(self, browser, world, how=None, **settings):
        cfg = configure(play.CONFIG, "", [])
        vars(cfg).update(settings)
        self.game = Game(world.session(0), cfg)
        self.server = play.serve(self.game, "127.0.0.1", 0)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.page = open_page(browser, f"http://127.0.0.1:{self.server.server_port}/", **(how or {}))

    def close(self):
        port = self.server.server_port
        self.page.close()
        self.server.shutdown()
        self.server.server_close()
        assert not self.page.complaints and self.page.hosts <= {f"127.0.0.1:{port}", ""}

    def pixels(self, k=0):
        """Bytes (R, R, 3) of the k-th picture on the page."""
        url = self.page.locator(".frame canvas").nth(k).evaluate("canvas => canvas.toDataURL()")
        picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        return np.array(picture.convert("RGB")).astype(int)

    def captions(self):
        return self.page.locator("#views figcaption").all_inner_texts()

    def hold(self, key, steps):
        """Hold a key until the game has made so many steps."""
        goal = self.game.steps + steps
        self.page.keyboard.down(key)
        self.wait(lambda: self.game.steps >= goal)
        self.page.keyboard.up(key)
        self.rest()

    def rest(self):
        """Until the page has shown what it asked for."""
        self.page.evaluate("answered()")
        self.page.wait_for_timeout(50)
        self.page.evaluate("answered()")

    def wait(self, is_done, seconds=30):
        for _ in range(20 * seconds):
            if is_done():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError("the page did not do it in time")


@pytest.fixture
def visit(browser, released):
    visit = Visit(browser, released, data="push", seed=1)
    yield visit
    visit.close()


def gripper(pixels):
    """The red disc's centre (x, y), in pixels."""
    red, green, blue = pixels.transpose(2, 0, 1)
    rows, columns = np.nonzero((red > 170) & (green < 90) & (blue < 90))
    assert len(rows) > 20
    return np.array([columns.mean(), rows.mean()])


ARROWS = "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"


@pytest.mark.parametrize("keys", [ARROWS, "dsaw"], ids=["arrows", "letters"])
def test_keys_move_the_gripper_in_the_dream_as_in_the_simulator(visit, keys):
    assert visit.captions() == ["dream", "truth", "difference"]
    for key, way in zip(keys, [(1, 0), (0, 1), (-1, 0), (0, -1)], strict=True):
        before = [gripper(visit.pixels(k)) for k in (0, 1)]
        visit.hold(key, 3)
        for k in (0, 1):
            moved = gripper(visit.pixels(k)) - before[k]
            assert moved @ way > 4 and abs(moved @ way[::-1]) < 3
    assert np.abs(gripper(visit.pixels(0)) - gripper(visit.pixels(1))).max() < 2
    assert "frames/s" in visit.page.inner_text("#status") and "dB" in visit.page.inner_text("#status")


def test_dragging_on_the_dream_pulls_the_gripper_there(visit):
    before = gripper(visit.pixels())
    box = visit.page.locator(".dream canvas").bounding_box()
    visit.page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.5 * box["height"])
    visit.page.mouse.down()
    visit.wait(lambda: visit.game.steps >= 3)
    visit.page.mouse.up()
    visit.rest()
    assert gripper(visit.pixels())[0] > before[0] + 4


def test_a_game_pad_steers(visit):
    before = gripper(visit.pixels())
    visit.page.evaluate("navigator.getGamepads = () => [null, {axes: [0.9, 0.05, 0, 0]}]")
    visit.wait(lambda: visit.game.steps >= 3)
    visit.page.evaluate("navigator.getGamepads = () => []")
    visit.rest()
    assert gripper(visit.pixels())[0] > before[0] + 4
    np.testing.assert_allclose(visit.game.record[-1][1], [0.9, 0.05])


def test_undo_and_from_the_start_restore_frames_bit_for_bit(visit):
    shown = [visit.pixels()]
    for _ in range(3):
        visit.page.click("#once")
        visit.rest()
        visit.hold("ArrowRight", 1)
        visit.page.keyboard.press("z")  # no command
        shown.append(visit.pixels())
    while visit.game.steps > 0:
        steps = visit.game.steps
        visit.page.keyboard.press("u")
        visit.wait(lambda steps=steps: visit.game.steps < steps)
        visit.rest()
    assert (visit.pixels() == shown[0]).all() and visit.page.is_disabled("#undo")
    visit.hold("ArrowDown", 2)
    visit.page.click("#back")
    visit.rest()
    assert (visit.pixels() == shown[0]).all()


def test_a_fork_shows_four_futures_and_a_click_chooses_one(visit):
    visit.page.click("#fork")
    visit.wait(lambda: visit.page.locator(".dream").count() == 4)
    visit.hold("ArrowRight", 2)
    third = visit.pixels(2)
    visit.page.locator(".dream").nth(2).click()
    visit.wait(lambda: visit.page.locator(".dream").count() == 1)
    assert (visit.pixels() == third).all()
    visit.page.click("#undo")
    visit.wait(lambda: visit.page.locator(".dream").count() == 4)


def test_truth_can_be_switched_off_and_the_hood_opened(visit):
    visit.page.click("#truth")
    assert visit.captions() == ["dream"]
    visit.page.click("#hood")
    visit.page.click("#once")
    visit.wait(lambda: visit.captions() == ["dream", "without the context"])
    codes = visit.page.locator("#codes span").all_inner_texts()
    assert [int(code) for code in codes] == visit.game.inside["ids"]
    visit.hold("ArrowRight", 2)
    assert visit.page.locator("#codes .new").count() > 0


def test_a_picture_becomes_a_context_and_a_file_that_is_none_is_one_line(visit):
    file = io.BytesIO()
    Image.new("RGB", (300, 200), (10, 200, 90)).save(file, "PNG")
    picture = dict(name="a.png", mimeType="image/png", buffer=file.getvalue())
    visit.page.set_input_files("#file", picture)
    visit.wait(lambda: visit.captions() == ["dream"])
    assert np.abs(visit.pixels() - (10, 200, 90)).max() < 3
    visit.page.set_input_files("#file", dict(name="b.png", mimeType="image/png", buffer=b"nonsense"))
    visit.wait(lambda: "cannot be read" in visit.page.inner_text("#status"))
    visit.page.click("#once")
    visit.wait(lambda: visit.game.steps == 1)


def test_temperature_players_and_a_new_scene(visit):
    first = visit.pixels()
    visit.page.locator("#temperature").fill("1.5")
    visit.wait(lambda: visit.game.world.temperature == 1.5)
    visit.page.select_option("#player", "script")
    visit.wait(lambda: visit.game.steps >= 4)
    visit.page.select_option("#player", "")
    visit.page.fill("#seed", "12")
    visit.page.press("#seed", "Enter")
    visit.wait(lambda: visit.game.steps == 0)
    visit.rest()
    assert (visit.pixels() != first).any()


def test_a_second_tab_says_that_somebody_plays_until_the_first_is_closed(visit, browser):
    address = visit.page.url
    second = browser.new_page()
    wrong = []
    second.on("pageerror", lambda error: wrong.append(str(error)))
    second.goto(address)
    second.wait_for_selector("text=somebody else is playing")
    assert second.is_disabled("#once") and second.is_disabled("#hood")
    second.keyboard.press("h")
    second.set_viewport_size(dict(width=500, height=700))
    second.wait_for_selector("text=somebody else is playing")
    assert not wrong
    visit.page.goto("about:blank")  # as closing it
    second.reload()
    second.wait_for_selector(".frame canvas")
    second.close()


def test_five_dimensional_actions_have_a_slider_each(browser, released):
    from checkpoints import new_gpt
    from variants import tiny

    torch.manual_seed(0)
    settings = {**tiny.TRANSFORMER, "action_dim": 5, "reward": False, "segment_length": 8}
    gpt = new_gpt(TokenLayout(**vars(released.gpt.layout)), settings)
    visit = Visit(browser, WorldModel(released.tokenizer, gpt, trained=released.trained), data="push")
    assert visit.page.locator("#sliders input").count() == 5 and visit.captions() == ["dream"]
    visit.page.locator("#sliders input").nth(4).fill("-0.5")
    visit.page.click("#once")
    visit.wait(lambda: visit.game.steps == 1)
    assert visit.game.record[-1][1] == [0, 0, 0, 0, -0.5]
    visit.close()


def test_a_pull_steers_a_fork_and_a_double_click_chooses_once(visit):
    visit.page.click("#fork")
    visit.wait(lambda: visit.page.locator(".dream").count() == 4)
    box = visit.page.locator(".dream canvas").nth(2).bounding_box()
    visit.page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.5 * box["height"])
    visit.wait(lambda: visit.game.steps >= 2)
    visit.page.mouse.up()
    visit.rest()
    assert visit.page.locator(".dream").count() == 4 and visit.game.record[-1][1] == pytest.approx([1, 0])
    visit.page.locator(".dream").nth(1).dblclick()
    visit.wait(lambda: visit.page.locator(".dream").count() == 1)
    visit.rest()
    assert "error" not in (visit.page.get_attribute("#status", "class") or "")


def test_short_taps_are_steps_and_keys_steer_after_a_control_was_used(visit):
    visit.page.locator("#temperature").click()
    visit.page.click("#hood")
    visit.rest()
    for key in ("ArrowRight", "ArrowUp", "ArrowRight"):
        steps = visit.game.steps
        visit.page.keyboard.press(key)
        visit.wait(lambda steps=steps: visit.game.steps == steps + 1)
        visit.rest()
    assert visit.game.record[-1][1] == [1, 0] and visit.game.record[-2][1] == [0, -1]


def test_on_a_phone_nothing_is_wider_than_the_screen_and_nothing_goes_wrong(browser, released):
    phone = dict(viewport=dict(width=360, height=740), is_mobile=True, has_touch=True)
    visit = Visit(browser, released, phone, data="push")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
    visit.page.set_viewport_size(dict(width=740, height=360))
    visit.page.tap("#once")
    visit.wait(lambda: visit.game.steps == 1)
    visit.close()
