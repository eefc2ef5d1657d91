"""VP2's files and interface: imported episodes, tasks, classifiers, the model that its script drives."""

import numpy as np
import pytest
import torch

from data import Episodes
from envs import PushWorld, make_environment
from envs.push import push_segments
from envs.vp2 import load_classifier, read_goals
from experiments.vp2_model import VP2Model
from importers.hdf5 import import_vp2
from sample import WorldModel


@pytest.fixture(scope="module")
def segments():
    return push_segments(2, 12, seed=7, size=32)


# ---- VP2's files ----


@pytest.fixture
def vp2_file(tmp_path):
    """A file of RoboDesk's form with three demonstrations, two for training."""
    h5py = pytest.importorskip("h5py", reason="pip install h5py")
    rng, path = np.random.default_rng(0), tmp_path / "vp2" / "push_red.hdf5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        for i in range(3):
            demo = file.create_group(f"data/demo_{i}")
            demo["obs/camera_image"] = rng.integers(256, size=(13, 64, 64, 3), dtype=np.uint8)
            demo["actions"] = rng.uniform(-2, 2, (13 - (i == 1), 5))
        file["mask/train"] = [b"demo_0", b"demo_2"]
    return path


def test_vp2s_episodes_are_imported_as_they_are(vp2_file, tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    import_vp2(vp2_file.parent, tmp_path / "train", mask="train")
    import_vp2(vp2_file.parent, tmp_path / "all")
    assert Episodes(tmp_path / "train", "all").names.tolist() == [f"push_red.hdf5/demo_{i}" for i in (0, 2)]
    episodes = Episodes(tmp_path / "all", "all")
    with h5py.File(vp2_file) as file:
        for i in range(3):
            assert np.array_equal(episodes.read(i), file[f"data/demo_{i}/obs/camera_image"])
        clipped = np.clip(file["data/demo_1/actions"], -1, 1)
    assert episodes.actions[13:25] == pytest.approx(clipped) and not episodes.has_reward
    assert "clipped" in capsys.readouterr().out


def test_what_is_wrong_in_vp2s_files_is_told_and_the_rest_imported(vp2_file, tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    with h5py.File(vp2_file, "a") as file:
        del file["data/demo_0/obs/camera_image"]
        del file["data/demo_1/actions"]
        file["data/demo_1/actions"] = np.zeros((4, 5))
    import_vp2(vp2_file.parent, tmp_path / "rest")
    told = capsys.readouterr().out
    assert "imported 1, skipped 2" in told and "demo_0: it holds none of obs/camera_image" in told
    assert "demo_1: actions are (4, 5); expected finite (13 or 12, A)" in told
    with pytest.raises(ValueError, match="has no mask/valid; leave --mask out"):
        import_vp2(vp2_file.parent, tmp_path / "none", mask="valid")
    vp2_file.write_bytes(vp2_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="push_red.hdf5 is no file of VP2's"):
        import_vp2(vp2_file.parent, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="has no .hdf5, .h5 files"):
        import_vp2(tmp_path / "train", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_vp2s_tasks_start_where_their_files_say(vp2_file):
    h5py = pytest.importorskip("h5py")
    try:
        env = make_environment("push_red", seed=3)
    except ImportError as error:
        pytest.skip(str(error))
    with pytest.raises(ValueError, match="demo_0 is no task of VP2's"):
        read_goals(vp2_file, env)
    pressed, data = env.state(), env.physics.data
    pressed["qpos"][:9] += 0.01
    env.restore(pressed)
    flat = np.concatenate([data.qpos[:9], data.qvel[:9], data.qpos[9:], data.qvel[9:], np.zeros(3)])
    shown = env.render()[0]
    with h5py.File(vp2_file, "a") as file:
        for demo in file["data"].values():
            demo["states"] = np.stack([flat * 0, flat, flat])
            demo["start_index"] = 1
    tasks = read_goals(vp2_file, env)
    env.reset()
    env.restore(tasks[2].start)
    assert len(tasks) == 3 and np.array_equal(env.render()[0], shown)
    with pytest.raises(ValueError, match="--goals is for RoboDesk"):
        read_goals(vp2_file, PushWorld())
    env.close()



def test_vp2s_script_can_drive_the_world_model(trained, segments):
    model = VP2Model(trained.gpt, "cpu", temperature=0.0)
    assert model.num_context == 2 and model.base_prediction_modality == "rgb"
    video = segments["frames"][:1, :2].movedim(2, -1).numpy().repeat(5, 0)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 11, 2)).astype(np.float32)
    rgb = model(dict(video=video, actions=actions, state_obs=None))["rgb"]
    assert rgb.shape == (5, 11, 32, 32, 3) and rgb.min() >= 0 and rgb.max() <= 1
    assert np.array_equal(rgb[:, 0], video[:, 1])
    world = WorldModel.load(trained.gpt, "cpu", temperature=0.0)
    world.reset(segments["frames"][:1, :2], 5)
    expected = world.rollout(actions[:, 1:], 10)[0].movedim(2, -1)
    assert rgb[:, 1:] == pytest.approx(expected.numpy(), abs=1e-5)
    model.batch = 2  # in chunks
    assert model(dict(video=video, actions=actions))["rgb"] == pytest.approx(rgb, abs=1e-5)
    mixed = np.concatenate([video[:1], 1 - video[:1], video[:1]])
    mixed_rgb = model(dict(video=mixed, actions=actions[[0, 1, 2]]))["rgb"]
    assert mixed_rgb[[0, 2]] == pytest.approx(rgb[[0, 2]], abs=1e-5)
    assert np.array_equal(mixed_rgb[1, 0], mixed[1, 1])
    with pytest.raises(ValueError, match="tokens have no gradient"):
        model(dict(video=video, actions=actions), grad_enabled=True)
    model.close()



def test_vp2s_own_classifier_is_read(tmp_path):
    rng, conv = torch.Generator().manual_seed(0), torch.nn.functional.conv2d
    shapes = {"0": (32, 3, 3, 3), "7": (3, 32, 3, 3), "9": (1024, 12288), "11": (1, 1024)}
    shapes |= {f"{i}.cnv.{j}": (32, 32, 3, 3) for i in (1, 3, 5) for j in (0, 2)}
    w = {f"net.{k}.weight": 0.05 * torch.randn(v, generator=rng) for k, v in shapes.items()}
    b = {f"net.{k}.bias": torch.randn(v[0], generator=rng) for k, v in shapes.items()}
    torch.save(w | b, tmp_path / "push_red.pt")
    x = frames = torch.rand(5, 3, 64, 64, generator=rng)

    def layer(x, k):
        return conv(x, w[f"net.{k}.weight"], b[f"net.{k}.bias"], padding=1)

    x = layer(x, "0")
    for i in (1, 3, 5):
        x = (x + layer(layer(x, f"{i}.cnv.0").relu(), f"{i}.cnv.2")).relu()
    x = layer(x, "7").flatten(1) @ w["net.9.weight"].T + b["net.9.bias"]
    want = x.relu() @ w["net.11.weight"].T + b["net.11.bias"]
    network = load_classifier(tmp_path / "push_red.pt", torch.device("cpu"))
    assert torch.allclose(network(frames), want, rtol=1e-3, atol=1e-3)


