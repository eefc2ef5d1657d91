"""play.py: a Game followed command by command, and its server spoken to without a browser."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

import play
from checkpoints import new_gpt
from common import configure
from importers import load_episode
from play import FUTURES, Game
from sample import WorldModel
from support import history
from support import server as support_server
from support.segments import segments_for


def open_game(path, **settings):
    cfg = configure(play.CONFIG, "", [])
    vars(cfg).update(settings)
    return Game(WorldModel.load(path, "cpu"), cfg)


@pytest.fixture
def game(trained):
    """A dream beside PushWorld's truth, with three frames until a new context."""
    return open_game(trained.gpt, data="push")


def pixels(picture, size=32):
    return np.frombuffer(base64.b64decode(picture), np.uint8).reshape(size, size, 3).astype(int)


def picture_file(width, height, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), (200, 30, 60), np.uint8)).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


# ---- the game ----


def test_a_step_shows_dream_truth_difference_and_both_rewards(game):
    told = game.about()
    assert (told["size"], told["actions"], told["has_truth"], told["grid"]) == (32, 2, True, 4)
    found = game.step([1.0, -0.5])
    dream, truth = pixels(found["dream"][0]), pixels(found["truth"])
    assert np.abs(pixels(found["difference"]) - (127.5 + (dream - truth) / 2)).max() <= 1.5
    assert len(found["rewards"]) == 1 and isinstance(found["true_reward"], float) and found["steps"] == 1
    assert 0 < found["model_ms"] <= found["ms"] and (pixels(told["truth"]) != truth).any()


def test_undo_restores_every_step_bit_for_bit_across_contexts_forks_and_choices(game):
    def go(k):
        if k == 3:
            return game.fork()
        if k == 10:  # another context later
            return game.choose(2)
        return game.step([np.cos(k), np.sin(k)])

    first = [go(k) for k in range(14)]
    assert [len(found["dream"]) for found in first] == [1] * 3 + [FUTURES] * 7 + [1] * 4
    for k in reversed(range(1, 14)):
        found = game.undo()
        for name in ("dream", "truth", "steps"):
            assert found[name] == first[k - 1][name]
    again = [go(k) for k in range(1, 14)]
    assert [found["dream"] for found in again] == [found["dream"] for found in first[1:]]
    assert [found["truth"] for found in again] == [found["truth"] for found in first[1:]]


def test_what_can_be_undone_is_bounded_and_the_beginning_can_not(game):
    with pytest.raises(ValueError, match="nothing to undo"):
        game.undo()
    for _ in range(history.UNDO + 5):
        game.step([0.1, 0.2])
    caches = {id(mark["cache"]) for mark, *_ in game.history.marks}
    assert len(game.history) <= history.UNDO and len(caches) == history.CONTEXTS


def test_from_the_start_and_the_same_scene_show_the_first_frames_again(game):
    first = game.scene(3)
    game.step([1.0, 1.0])
    game.step([1.0, 1.0])
    back = game.back()
    assert (back["dream"], back["truth"], back["steps"]) == (first["dream"], first["truth"], 0)
    assert game.scene(4)["dream"] != first["dream"] and game.scene(3)["dream"] == first["dream"]


def test_futures_of_a_fork_differ_and_a_choice_goes_on_with_one(game):
    game.sampling(temperature=2.0, top_k=0)
    assert len(set(game.fork()["dream"])) == 1
    for _ in range(3):
        found = game.step([0.5, 0.5])
    assert len(set(found["dream"])) > 1 and len(found["rewards"]) == FUTURES
    assert game.choose(1)["dream"] == found["dream"][1:2]


def test_the_newest_frames_are_recorded_with_actions_and_rewards(game, tmp_path, monkeypatch):
    monkeypatch.setattr(play, "RECORD", 6 * 32 * 32 * 3)
    shown = []
    for k in range(4):
        shown.append(game.step([0.1 * k, -0.2])["dream"][0])
    (tmp_path / "a.npz").write_bytes(game.episode())
    frames_u8, actions = load_episode(tmp_path / "a.npz")
    assert frames_u8.shape == (6, 32, 32, 3) and (frames_u8[2:] == [pixels(x) for x in shown]).all()
    np.testing.assert_allclose(actions[:5], [[0, 0]] + [[0.1 * k, -0.2] for k in range(4)], atol=1e-6)
    assert np.load(tmp_path / "a.npz")["reward"].shape == (6,)
    game.fork()
    game.step([0.0, 0.0])
    chosen = game.choose(3)["dream"][0]
    for _ in range(4):
        game.step([0.0, 0.0])
    assert len(game.record) == 5  # one of the fork, as four futures take more, and four since
    (tmp_path / "b.npz").write_bytes(game.episode())
    assert (np.load(tmp_path / "b.npz")["image"][-5] == pixels(chosen)).all()
    assert iio.imread(game.gif()).shape[1:] == (256, 256, 3)


def test_under_the_hood_are_the_codes_their_entropy_and_the_frame_without_context(game):
    game.look(True)
    found = game.step([0.0, 0.0])
    assert found["changed"] == [False] * 16  # no frame before was imagined
    assert found["ids"] == game.world.codes.flatten().tolist()
    assert len(found["ids"]) == len(found["bits"]) == 16
    assert all(0 <= bits <= 5 for bits in found["bits"])  # of 32 codes
    assert pixels(found["alone"]).shape == (32, 32, 3) and found["alone"] != found["dream"][0]
    again = game.step([1.0, 0.0])
    assert again["changed"] == [a != b for a, b in zip(found["ids"], again["ids"], strict=True)]
    assert "ids" not in game.look(False) and "ids" not in game.step([0.0, 0.0])


def test_the_script_and_the_planner_play(game, monkeypatch):
    truth = game.truth
    expected = truth.expert()[0].clip(-1, 1).tolist()
    assert game.step(player="script")["action"] == expected
    monkeypatch.setattr(play.PLANNER, "candidates", 12)
    action = game.step(player="planner")["action"]
    assert len(action) == 2 and max(map(abs, action)) <= 1
    with pytest.raises(ValueError, match="no player 'me' here; expected script, planner"):
        game.step(player="me")


def test_pusht_is_played_beside_its_simulator(trained):
    pytest.importorskip("gym_pusht", reason="pip install gym-pusht")
    torch.manual_seed(0)
    model = WorldModel.load(trained.gpt, "cpu")
    gpt = new_gpt(model.gpt.layout, {**model.gpt.config, "action_dim": 10})
    cfg = configure(play.CONFIG, "", ["--data=pusht"])
    game = Game(WorldModel(model.tokenizer, gpt, trained=model.trained), cfg)
    told = game.about()
    assert told["has_truth"] and told["moves"] == 5 and told["spans"] == [[-0.4, 0.4]] * 10
    before = pixels(told["truth"])
    assert (pixels(game.step([0.4, 0.0] * 5)["truth"]) != before).any()
    assert len(game.step(player="script")["action"]) == 10
    game.undo()
    game.undo()
    assert (pixels(game.about()["truth"]) == before).all()


def test_a_picture_of_any_shape_becomes_a_context_that_stands_still(game):
    for kind in ("PNG", "JPEG"):
        found = game.picture(picture_file(90, 50, kind))
        assert np.abs(pixels(found["dream"][0]) - (200, 30, 60)).max() < 5 and "truth" not in found
    assert len(game.step([0.0, 0.0])["dream"]) == 1
    with pytest.raises(ValueError, match="the script sees the true world"):
        game.step(player="script")
    assert "truth" in game.scene(1)


def test_a_model_without_actions_dreams_on_and_a_data_set_gives_scenes(trained, push):
    game = open_game(trained.free, data=str(push))
    assert game.about()["actions"] == 0 and not game.about()["players"] and "truth" not in game.about()
    found = game.step()
    assert "rewards" not in found and found["action"] is None
    assert game.scene(5)["dream"] == game.scene(5)["dream"] and game.about()["seed"] == 5
    assert set(np.load(io.BytesIO(game.episode()))) == {"image"}


def test_sliders_span_the_actions_of_the_data(trained, push):
    spans = np.array(open_game(trained.gpt, data=str(push)).about()["spans"])
    assert spans.shape == (2, 2) and (spans[:, 0] < -0.5).all() and (spans[:, 1] > 0.5).all()
    assert np.abs(spans).max() <= 1 and open_game(trained.gpt, data="push").spans == [[-1, 1]] * 2
    assert open_game(trained.free, data=str(push)).spans == []


def test_an_episode_has_the_actions_and_rewards_of_the_data_before_it(trained, push):
    game = open_game(trained.gpt, data=str(push))
    game.scene(3)
    game.step([0.5, 0.25])
    segment = segments_for(game.world, str(push), 1, 1, 3)
    saved = np.load(io.BytesIO(game.episode()))
    np.testing.assert_allclose(saved["action"], [segment["actions"][0, 0].tolist(), [0.5, 0.25]])
    np.testing.assert_allclose(saved["reward"][:2], segment["rewards"][0, :2])
    with pytest.raises(ValueError, match="expected a number from"):
        game.step([1.5, 0.0])


def test_top_k_is_never_more_than_there_are_codes(trained):
    model = WorldModel.load(trained.gpt, "cpu", top_k=1000)
    game = Game(model, configure(play.CONFIG, "", ["--data=push"]))
    assert game.about()["top_k"] == game.about()["codes"] == 32


def test_a_model_whose_data_is_not_here_begins_with_pushworld(trained, capsys):
    model = WorldModel.load(trained.gpt, "cpu")
    model.trained = {**model.trained, "data": "data/nowhere"}
    game = Game(model, configure(play.CONFIG, "", []))
    assert "data/nowhere, its training data, is not here" in capsys.readouterr().out
    assert game.about()["has_truth"]


# ---- the server ----


WRONG = dict(
    nan=dict(do="step", action=[float("nan"), 0]),
    infinite=dict(do="step", action=[1e999, 0]),
    large=dict(do="step", action=[2, 0]),
    short=dict(do="step", action=[0]),
    text=dict(do="step", action="left"),
    truth=dict(do="step", action=[True, 0]),
    nothing=dict(do="step"),
    nested=dict(do="step", action=[[0], 0]),
    player=dict(do="step", player={"a": 1}),
    players=dict(do="step", player=["script"]),
    seed=dict(do="scene", seed=-1),
    seeds=dict(do="scene", seed="../../etc"),
    future=dict(do="choose", future=4),
    temperature=dict(do="sampling", temperature=-1, top_k=1),
    top_k=dict(do="sampling", temperature=1, top_k=99),
    picture=dict(do="picture", file="AAAA"),
    path=dict(do="picture", file="/etc/passwd"),
    number=dict(do="picture", file=7),
    method=dict(do="__init__"),
    inner=dict(do="begin", frames=0),
    unknown=dict(do="step", action=[0, 0], world=1),
    none=dict(do=None),
    list=dict(do=[1]),
    empty={},
)


@pytest.fixture
def server(game):
    server = play.serve(game, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, message, visitor="a", kind="application/json"):
    """What the server answers to a message, an object or bytes."""
    body = message if isinstance(message, bytes) else json.dumps({"visitor": visitor, **message}).encode()
    address = f"http://127.0.0.1:{server.server_port}/do"
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.parametrize("message", WRONG.values(), ids=WRONG)
def test_a_wrong_command_is_one_line_and_changes_nothing(server, message):
    before = ask(server, dict(do="about"))
    answer = ask(server, message)
    assert set(answer) == {"error"} and answer["error"] and "\n" not in answer["error"]
    assert ask(server, dict(do="about")) == before
    assert ask(server, dict(do="step", action=[0, 0]))["steps"] == 1


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"7"], ids=str)
def test_what_is_not_a_json_object_is_refused(server, body):
    assert "error" in ask(server, body)
    assert "error" in ask(server, dict(do="about"), kind="text/plain")  # a form of another site
    assert ask(server, dict(do="about"))["size"] == 32


def test_a_message_that_is_too_long_is_not_read(server):
    address = f"http://127.0.0.1:{server.server_port}/do"
    headers = {"Content-Type": "application/json", "Content-Length": str(support_server.MOST_BYTES + 1)}
    request = urllib.request.Request(address, b"{}", headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert "at most" in json.load(answer)["error"]


def test_a_command_that_fails_in_the_middle_changes_nothing(server, game, monkeypatch):
    ask(server, dict(do="step", action=[0.5, 0.5]))
    before = ask(server, dict(do="about"))
    with monkeypatch.context() as broken:
        broken.setattr(game.world.gpt, "prefill", lambda *_, **__: 1 / 0)
        broken.setattr(game.world.gpt, "imagine", lambda *_, **__: 1 / 0)
        for message in (dict(do="fork"), dict(do="step", action=[1, 1])):
            assert ask(server, message) == {"error": "division by zero"}
    assert ask(server, dict(do="about")) == before
    assert ask(server, dict(do="step", action=[1, 1]))["steps"] == 2


def test_numbers_that_json_does_not_have_are_an_error(server, game, monkeypatch):
    monkeypatch.setattr(game, "show", lambda: dict(psnr=float("nan")))
    assert "JSON" in ask(server, dict(do="about"))["error"]


def test_a_page_whose_name_leads_here_is_refused(server):
    address = f"http://127.0.0.1:{server.server_port}"
    for path, body in (("/do", b"{}"), ("/episode.npz", None), ("/", None)):
        request = urllib.request.Request(address + path, body, {"Host": f"evil.example:{server.server_port}"})
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(request, timeout=30)


def test_a_picture_of_another_format_is_not_opened(game):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    with pytest.raises(ValueError, match="cannot be read: cannot identify"):
        game.picture(base64.b64encode(eps).decode())


def test_a_picture_that_would_fill_memory_is_refused(server, monkeypatch):
    monkeypatch.setattr(play, "MOST_PIXELS", 50)
    assert "more than 50 pixels" in ask(server, dict(do="picture", file=picture_file(10, 10)))["error"]


def test_a_second_visitor_waits_until_the_first_leaves_or_falls_silent(server):
    assert "error" not in ask(server, dict(do="about"))
    assert "somebody else is playing" in ask(server, dict(do="about"), "b")["error"]
    assert ask(server, dict(do="leave")) == {}
    assert "error" not in ask(server, dict(do="about"), "b")
    server.heard -= support_server.IDLE
    assert "error" not in ask(server, dict(do="about"))


def test_a_port_that_is_taken_or_none_is_one_line(server, trained):
    settings = dict(ckpt=str(trained.gpt), data="push", open=False)
    for port, told in ((server.server_port, "in use.*; pass another"), (70_000, "expected 0 to 65535")):
        cfg = configure(play.CONFIG, "", [])
        vars(cfg).update(settings, port=port)
        with pytest.raises(ValueError, match=told):
            play.main(cfg)


def test_page_gif_and_episode_are_served_and_no_other_file(server):
    def get(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=30) as answer:
            return answer.headers["Content-Type"], answer.read()

    ask(server, dict(do="step", action=[0, 0]))
    kind, page = get("/")
    assert kind.startswith("text/html") and page.startswith(b"<!doctype html>")
    assert get("/episode.gif")[1].startswith(b"GIF8") and get("/episode.npz")[1].startswith(b"PK")
    for path in ("/play.py", "/../play.py", "/assets/push-tiny.pt", "//etc/passwd", "/episode.npz/.."):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(path)

