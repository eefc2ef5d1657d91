"""experiments/gym_env.py: a world model behind Gymnasium's interface, for other people's agents.

    envs = WorldModelEnv(world, starts_from(world, "push"), n=16, horizon=15)    a gymnasium.vector.VectorEnv
    env = SingleWorldModelEnv(world, starts_from(world, "push"))                 a gymnasium.Env
    env = gymnasium.make("experiments.gym_env:iVideoGPT/Push-v0")                the same by name

Observations are bytes (n, H, W, 3 stack), the oldest frame first; actions (n, A) are in [-1, 1], rewards (n,)
in the environment's units. All worlds are truncated after `horizon` steps; the next one begins anew."""

import numpy as np

from data import to_u8
from envs.push import push_segments
from mixture import open_data
from sample import WorldModel

try:
    import gymnasium
    from gymnasium import Env, spaces
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError:
    raise ImportError("WorldModelEnv needs gymnasium: pip install gymnasium") from None


def starts_from(world, data):
    """Starts in a folder's training episodes, or in new ones of PushWorld ("push"): a function
    (n, seed) -> context frames (n, t, 3, H, W) in [0, 1]."""
    t = world.context_frames
    if data == "push":
        return lambda n, seed: push_segments(n, t, seed, world.tokenizer.config["resolution"])["frames"]
    episodes = open_data(data)
    return lambda n, seed: episodes.batch(0, n, t, seed, stride=world.trained["stride"])["frames"]


class WorldModelEnv(VectorEnv):
    """n imagined worlds; `starts` is a `starts_from`. Several environments can share one WorldModel."""

    def __init__(self, world, starts, n=1, horizon=15, stack=1):
        if not world.action_dim or world.gpt.reward is None:
            raise ValueError("the model has no actions or no rewards; train one on data that has both")
        if not 1 <= stack <= world.context_frames:
            raise ValueError(f"stack is {stack}; expected 1 to the {world.context_frames} context frames")
        self.world = world.session()
        self.starts = starts
        self.num_envs = n
        self.horizon = horizon
        self.stack = stack
        self.left = None  # decisions until all are truncated; None before the first reset
        size = world.tokenizer.config["resolution"]
        self.metadata = dict(autoreset_mode=AutoresetMode.NEXT_STEP, render_modes=[])
        self.single_observation_space = spaces.Box(0, 255, (size, size, 3 * stack), np.uint8)
        self.single_action_space = spaces.Box(-1, 1, (world.action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, n)
        self.action_space = batch_space(self.single_action_space, n)

    def observe(self):
        newest = to_u8(self.world.recent[:, -self.stack :])  # (n, stack, H, W, 3)
        return np.concatenate(list(newest.swapaxes(0, 1)), -1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.world.generator.manual_seed(seed)
        self.world.reset(self.starts(self.num_envs, int(self.np_random.integers(2**31))))
        self.left = self.horizon
        return self.observe(), {}

    def step(self, actions):
        if not np.isfinite(actions).all():
            raise ValueError("actions are not finite; expected numbers in [-1, 1]")
        no = np.zeros(self.num_envs, bool)
        if self.left == 0:
            return self.reset()[0], no.astype(np.float32), no, no.copy(), {}
        _, reward = self.world.step(np.asarray(actions, np.float32))
        self.left -= 1
        return self.observe(), reward.cpu().numpy(), no, np.full(self.num_envs, self.left == 0), {}


class SingleWorldModelEnv(Env):
    """One imagined world; arguments as WorldModelEnv."""

    def __init__(self, world, starts, horizon=15, stack=1):
        self.worlds = WorldModelEnv(world, starts, 1, horizon, stack)
        self.observation_space = self.worlds.single_observation_space
        self.action_space = self.worlds.single_action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.worlds.reset(seed=seed)[0][0], {}

    def step(self, action):
        frames, reward, _, truncated, _ = self.worlds.step(np.asarray(action)[None])
        return frames[0], float(reward[0]), False, bool(truncated[0]), {}


def push(kind, ckpt="assets/push-tiny.pt", device="", **how):
    """Imagined worlds of PushWorld as one of the classes above, by default with the released checkpoint."""
    world = WorldModel.load(ckpt, device)
    return kind(world, starts_from(world, "push"), **how)


def make_push(**how):
    return push(SingleWorldModelEnv, **how)


def make_push_vector(num_envs=1, **how):
    return push(WorldModelEnv, n=num_envs, **how)


gymnasium.register("iVideoGPT/Push-v0", make_push, vector_entry_point=make_push_vector)
