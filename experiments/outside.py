"""experiments/outside.py: an agent of another library learns in imagination alone, then acts in the world.

    scenes of PushWorld --> WorldModelEnv --frames, rewards--> PPO or SAC of stable-baselines3
                                 ^                                    |
                                 +-------------- actions -------------+--> success in the real PushWorld

Run: python -m experiments.outside                   (needs stable-baselines3; half an hour on two cores)"""

import numpy as np
import torch

from common import configure, require_positive, run
from data import to_float
from envs import make_environment, play
from envs.base import HELD_OUT, random_policy
from envs.push import PushWorld
from experiments.gym_env import WorldModelEnv
from sample import WorldModel
from support.files import beside
from support.results import claim_result, draw_curves, write_result

CONFIG = dict(
    ckpt="assets/push-tiny.pt",
    algorithm="PPO",  # or SAC, with stable-baselines3's settings for pictures
    scene=3,  # of PushWorld; -1: a new one each time
    worlds=16,  # imagined at once
    horizon=30,
    stack=2,  # newest frames that the agent sees
    steps=200_000,  # imagined, of all worlds
    every=20_000,  # steps from one evaluation in the real world to the next
    episodes=50,
    device="",
    seed=0,
    out="out/outside/numbers.json",
    overwrite=False,
)


def starts_in(scene, t, size):
    """Frames (n,t,3,H,W) of a scene after up to 30 random moves: a function of n and a seed."""

    def starts(n, seed):
        world = PushWorld(n, size, seed, scene=scene)
        world.reset()
        moves = np.random.default_rng(seed).integers(t, 30)
        frames = [world.step(action)[0] for action in random_policy(n, moves, seed)]
        return to_float(np.stack(frames[-t:], 1))

    return starts


def as_stable_baselines(worlds):
    """A WorldModelEnv behind stable-baselines3's interface, which begins anew within the last step."""
    from stable_baselines3.common.vec_env import VecEnv

    class Imagined(VecEnv):
        def __init__(self):
            super().__init__(worlds.num_envs, worlds.single_observation_space, worlds.single_action_space)

        def reset(self):
            return worlds.reset(seed=self._seeds[0])[0]

        def step_async(self, actions):
            self.actions = actions

        def step_wait(self):
            frames, rewards, _, truncated, _ = worlds.step(self.actions)
            infos = [{} for _ in rewards]
            if truncated.all():  # all worlds end together
                for info, last in zip(infos, frames, strict=True):
                    info.update({"terminal_observation": last, "TimeLimit.truncated": True})
                frames = worlds.reset()[0]
            return frames, rewards, truncated, infos

        def close(self):
            pass

        def env_is_wrapped(self, wrapper_class, indices=None):
            return [False] * self.num_envs

        def get_attr(self, name, indices=None):
            return [getattr(worlds, name, None)] * self.num_envs

        set_attr = env_method = None  # of single worlds, which these are not

    return Imagined()


def success(agent, cfg, size):
    """Share of real episodes in which the agent succeeds, without noise."""
    env = make_environment("push", cfg.episodes, HELD_OUT + cfg.seed, size, cfg.scene)

    def act(frames):
        newest = [frames[0]] * (cfg.stack - len(frames)) + frames[-cfg.stack :]
        return agent.predict(np.concatenate(newest, -1), deterministic=True)[0]

    return float(np.mean([episode["success"] for episode in play(env, cfg.episodes, act)]))


def main(cfg):
    require_positive(cfg, "worlds", "horizon", "steps", "every", "episodes")
    try:
        import stable_baselines3
    except ImportError:
        raise ImportError("another library's agent: pip install stable-baselines3") from None
    if cfg.algorithm not in ("PPO", "SAC"):
        raise ValueError(f"algorithm is {cfg.algorithm!r}; expected PPO or SAC")
    out = claim_result(cfg.out, cfg.overwrite)
    torch.manual_seed(cfg.seed)
    world = WorldModel.load(cfg.ckpt, cfg.device, seed=cfg.seed)
    size = world.tokenizer.config["resolution"]
    starts = starts_in(cfg.scene, world.context_frames, size)
    envs = as_stable_baselines(WorldModelEnv(world, starts, cfg.worlds, cfg.horizon, cfg.stack))
    kind = getattr(stable_baselines3, cfg.algorithm)
    own = dict(n_steps=64, batch_size=256, n_epochs=4) if cfg.algorithm == "PPO" else dict(buffer_size=50_000)
    agent = kind("CnnPolicy", envs, gamma=0.95, seed=cfg.seed, device=world.device, **own)
    curve = [[0, success(agent, cfg, size)]]
    while agent.num_timesteps < cfg.steps:
        agent.learn(cfg.every, reset_num_timesteps=False)
        curve.append([agent.num_timesteps, success(agent, cfg, size)])
        print(f"{agent.num_timesteps} imagined steps: success {curve[-1][1]:.2f} in the world", flush=True)
        write_result(out, dict(success=curve))
    draw_curves(beside(out, ".png"), [("PushWorld", "imagined steps", "success", {cfg.algorithm: curve})])


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
