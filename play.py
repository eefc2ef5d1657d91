"""play.py: step into the imagined world, live, in a browser.

    page --POST /do {"do": "step", "action": [..]}--> Game --WorldModel--> frames, rewards, codes
      ^                                                |  --simulator--> what would really have happened
      +-------- pictures and numbers, as JSON ---------+

The page (assets/play.html) asks for a step when the one before is nearly done: a slow model is slow, and
never behind. It is served to this machine alone unless --host says otherwise, and to one visitor at a time.

R pixels per side, A action size, n_b futures side by side (1, or FUTURES after a fork).

Run: python play.py                                              the released checkpoint, PushWorld
     python play.py --ckpt out/gpt.pt --data data/mine           scenes from your own episodes
     python play.py --ckpt out/mbpo/agent.pt --agent out/mbpo/agent.pt     an agent where it has learned"""

import base64
import contextlib
import io
import math
import os
import threading
import time
import webbrowser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageOps  # imageio brings it

import plan
from common import configure, require_not_negative, run
from data import to_float, to_u8
from drq import load_agent
from envs import make_environment
from envs.base import HELD_OUT
from sample import WorldModel
from support import recorder
from support.history import History
from support.hood import Hood
from support.segments import FRESH, segments_for, spans_of
from support.server import Server

CONFIG = dict(
    ckpt="assets/push-tiny.pt",
    tokenizer="",  # checkpoint of another tokenizer
    data="",  # a folder of episodes (its validation split), "push" or "pusht"; by default the model's own
    agent="",  # a checkpoint of mbpo.py, whose agent can be let play
    host="127.0.0.1",  # 0.0.0.0: anybody in the network may play
    port=8000,  # 0: any that is free
    open=True,  # the page, in the default browser
    device="",
    dtype="auto",
    seed=0,  # of the first scene
)
PAGE = Path(__file__).with_name("assets") / "play.html"
PLANNER = SimpleNamespace(**{**plan.CONFIG, **plan.PUSH})
FUTURES = 4
RECORD = 2**24  # bytes of frames that are recorded, the newest
MOST_PIXELS = 40_000_000  # of a picture that is dropped on the page
PICTURES = "PNG", "JPEG"  # its formats: some others start programs


def encoded(frame):
    """A frame (3, R, R) in [0, 1] -> base64 of its bytes (R, R, 3)."""
    return base64.b64encode(to_u8(frame).tobytes()).decode()


def number(value, least, most, name):
    """A finite number in a range.   raises  ValueError"""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]}; expected a number from {least} to {most}")
    return value


class Game:
    """A dream, the true world beside it, and a record of both. Public methods are the page's commands.

    raises  ValueError or TypeError at a command that cannot be followed, which leaves all as it was"""

    def __init__(self, world, cfg):
        self.world = world
        self.size = world.tokenizer.config["resolution"]
        self.data = cfg.data or world.trained["data"] or "push"
        if self.data not in FRESH and not cfg.data and not Path(self.data).is_dir():
            print(f"{self.data}, its training data, is not here; scenes are PushWorld's, or pass --data")
            self.data = "push"
        A = world.action_dim
        self.players = {}
        self.spans = spans_of(world, self.data)
        self.moves = int(A == 2)  # in the plane, of an action, that a stick can steer
        if self.data in FRESH:
            simulator = make_environment(self.data, size=self.size)
            self.rest = np.zeros((1, simulator.action_dim))
            if A == simulator.action_dim:
                self.players["script"] = self.script_action
                self.spans = [[-simulator.stick, simulator.stick]] * A
                self.moves = A // 2
        if cfg.agent:
            self.agent = load_agent(cfg.agent, A, self.size).to(world.device)
            self.players["agent"] = self.agent_action
        if A and world.gpt.reward is not None:
            self.mind = world.session()
            self.players["planner"] = self.planner_action
        self.hood = Hood(world)
        self.scene(cfg.seed)

    # ---- where a dream starts ----

    def scene(self, seed):
        """Another scene: the simulator's of this seed, or a segment of the data."""
        seed = int(number(seed, 0, 10**6 - 1, "seed"))
        t = self.world.context_frames
        if self.data not in FRESH:
            segment = segments_for(self.world, self.data, 1, 1, seed)
            columns = (segment[name][:, :t] for name in ("frames", "actions", "rewards"))
            return self.begin(*columns, seed=seed)
        truth = make_environment(self.data, 1, HELD_OUT + seed, self.size)
        frames_u8 = [truth.reset()] + [truth.step(self.rest)[0] for _ in range(t - 1)]
        truth = truth if "script" in self.players else None
        return self.begin(to_float(np.stack(frames_u8, 1)), truth=truth, seed=seed)

    def picture(self, file):
        """A picture of the visitor's, base64 of a file: cut to a square, it stands still."""
        try:
            image = Image.open(io.BytesIO(base64.b64decode(file, validate=True)), formats=PICTURES)
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has more than {MOST_PIXELS:,} pixels")
            square = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (self.size, self.size))
        except Exception as error:  # damaged files raise many kinds
            raise ValueError(f"this picture cannot be read: {str(error)[:100]}") from None
        frame = to_float(np.array(square))
        return self.begin(frame.repeat(1, self.world.context_frames, 1, 1, 1))

    def begin(self, frames, actions=None, rewards=None, truth=None, seed=None):
        """Dream on from context frames (1, t, 3, R, R); actions (1, t, A) and rewards (1, t) if known."""
        self.world.reset(frames)
        self.start = dict(frames=frames, actions=actions, rewards=rewards, truth=truth, seed=seed)
        self.start_state = truth.state() if truth else None
        self.seed = seed
        self.truth = truth
        self.steps = 0
        self.record = recorder.context_steps(frames, actions, rewards, self.world.action_dim)
        self.history = History(self.world, truth)
        self.memory = {}  # the planner's
        self.inside = {}  # what is under the hood
        return self.about()

    def back(self):
        """To the frames that this dream began with."""
        if self.truth:
            self.truth.restore(self.start_state)
        return self.begin(**self.start)

    # ---- steps ----

    def step(self, action=None, player=""):
        """One frame on.   action  A numbers in [-1, 1], without a player;  player  one of `players`"""
        began = time.perf_counter()
        world = self.world
        if player:
            if player not in self.players:
                raise ValueError(f"no player {str(player)[:40]!r} here; expected {', '.join(self.players)}")
            action = self.players[player]()
        elif world.action_dim:
            if not isinstance(action, list) or len(action) != world.action_dim:
                raise ValueError(f"action is {str(action)[:40]}; expected {world.action_dim} numbers")
            action = [number(x, *span, "action") for x, span in zip(action, self.spans, strict=True)]
        else:
            action = None
        if player != "planner":
            self.memory = {}
        decided = time.perf_counter()
        with self.change():
            actions = torch.tensor([action] * len(world.recent)) if world.action_dim else None
            with self.hood.watch(world):
                frames, rewards = world.step(actions)
            frames_u8 = to_u8(frames)
            numbers = dict(model_ms=1000 * (time.perf_counter() - decided), action=action)
            if rewards is not None:
                numbers["rewards"] = rewards.tolist()
            if self.truth:
                _, true_reward, _, _ = self.truth.step(np.array([action]))
                numbers["true_reward"] = float(true_reward[0])
            self.steps += 1
            newest = frames_u8, action, numbers.get("rewards")
            self.record = [*self.record, newest][-max(1, RECORD // frames_u8.nbytes) :]
            self.inside = self.look_inside()
        return {**self.show(), **numbers, "ms": 1000 * (time.perf_counter() - began)}

    def script_action(self):
        """The scripted player's action, which sees the true world."""
        if not self.truth:
            raise ValueError("the script sees the true world: it plays in the simulator's own scenes alone")
        return self.truth.expert()[0].clip(-1, 1).tolist()

    def agent_action(self):
        """The action of mbpo.py's agent, which sees the dream."""
        return self.agent.act(self.world.recent[:1])[0].tolist()

    def planner_action(self):
        """The first action of the plan of which the dream promises the highest rewards (plan.py)."""
        shape = PLANNER.candidates, PLANNER.horizon, self.world.action_dim
        frames = self.world.recent[0]

        def score(candidates):
            futures = plan.imagine_candidates(self.mind, frames, candidates)
            return torch.cat([rewards.sum(1) for _, rewards in futures]).double().cpu().numpy()

        std = np.full(shape[2], 0.5)
        rng = np.random.default_rng(self.steps)
        best, self.memory = plan.icem(score, self.memory, shape, std, PLANNER, rng)
        return best[0].tolist()

    @contextlib.contextmanager
    def change(self):
        """What happens in this context can be undone; an error in it undoes it at once."""
        self.history.remember(steps=self.steps, record=self.record, inside=self.inside)
        try:
            yield
        except BaseException:
            self.undo()
            raise

    def undo(self):
        """One step, fork or choice back: the same frame, and the same random numbers ahead."""
        if not self.history:
            raise ValueError("nothing to undo: the dream begins here")
        vars(self).update(self.history.back())
        self.memory = {}
        return self.show()

    def fork(self):
        """FUTURES futures of the present, which take the same actions and differ by chance."""
        return self.go_on_with(0, FUTURES)

    def choose(self, future):
        """Go on with one future of a fork alone."""
        return self.go_on_with(int(number(future, 0, len(self.world.recent) - 1, "future")), 1)

    def go_on_with(self, future, n_branches):
        """Make n_branches futures of what one future has come to."""
        with self.change():
            self.record = [recorder.only(step, future) for step in self.record]
            self.inside = {}
            self.world.cache = None
            self.world.reset(self.world.recent[future : future + 1], n_branches)
        return self.show()

    # ---- settings ----

    def sampling(self, temperature, top_k):
        """How codes are drawn from now on."""
        codes = self.world.gpt.layout.dynamics_codes
        temperature = float(number(temperature, 0, 10, "temperature"))
        self.world.top_k = int(number(top_k, 0, codes, "top_k"))
        self.world.temperature = temperature
        return {}

    def look(self, on):
        """Look under the hood from the next step on, or no longer."""
        self.hood.is_open = bool(on)
        self.inside = {}
        return self.show()

    # ---- what the page gets ----

    def about(self):
        """What it needs to know once, and `show`."""
        world = self.world
        return dict(
            self.show(), size=self.size, actions=world.action_dim, has_truth=self.truth is not None,
            has_rewards=world.gpt.reward is not None, players=list(self.players), data=self.data,
            grid=math.isqrt(world.gpt.layout.tokens_future), codes=world.gpt.layout.dynamics_codes,
            temperature=world.temperature, top_k=min(world.top_k, world.gpt.layout.dynamics_codes),
            looks=self.hood.is_open, spans=self.spans, moves=self.moves, seed=self.seed,
        )  # fmt: skip

    def show(self):
        """Pictures and numbers of the present."""
        newest = self.world.recent[:, -1].cpu()
        found = dict(self.inside, dream=[encoded(frame) for frame in newest])
        found.update(steps=self.steps, can_undo=bool(self.history))
        if self.truth:
            true = to_float(self.truth.render()[0])
            error = (newest[0] - true).square().mean().item()
            found["psnr"] = -10 * math.log10(error + 1e-8)
            found["truth"] = encoded(true)
            found["difference"] = encoded(0.5 + (newest[0] - true) / 2)
        return found

    def look_inside(self):
        """What is under the hood of the newest frame, for the page."""
        if not self.hood.is_open:
            return {}
        ids, changed, bits, alone = self.hood.look(self.world)
        return dict(ids=ids, changed=changed, bits=bits, alone=encoded(alone))

    def episode(self):
        """What was played, as the bytes of an .npz episode."""
        return recorder.episode(self.record, self.world.action_dim, self.world.gpt.reward is not None)

    def gif(self):
        """What was played, as the bytes of a GIF."""
        return recorder.gif(self.record)


COMMANDS = "scene", "picture", "back", "step", "undo", "fork", "choose", "sampling", "look", "about"


def serve(game, host, port):
    """A `Server` of a Game, which listens already."""
    commands = {name: getattr(game, name) for name in COMMANDS}
    files = {
        "/episode.npz": ("application/octet-stream", game.episode),
        "/episode.gif": ("image/gif", game.gif),
    }
    return Server(PAGE, commands, files, host, port)


def main(cfg):
    require_not_negative(cfg, "port", most=65535)
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # the browser needs a core, too
    world = WorldModel.load(cfg.ckpt, cfg.device, cfg.tokenizer, dtype=cfg.dtype)
    game = Game(world, cfg)
    try:
        server = serve(game, cfg.host, cfg.port)
    except OSError as error:
        where = f"{cfg.host}:{cfg.port}"
        raise ValueError(f"no page at {where} ({error.strerror}); pass another --port or --host") from None
    address = f"http://{cfg.host}:{server.server_port}"
    print(f"{address}   Ctrl-C ends it")
    if cfg.open:  # in a thread, as some browsers return when they are closed
        threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(flush=True)
        os._exit(0)  # without waiting for the steps that are asked for


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
