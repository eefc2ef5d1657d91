"""evaluate.py: metrics against hand-computed numbers and others' code, the protocol."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, flags, python

import evaluate
from common import configure
from data import Episodes
from envs.push import push_segments
from evaluate import frechet_distance, mse, psnr, ssim
from sample import WorldModel
from support.networks import VGG, load_torchscript, perceptual_loss


def run_evaluation(path, out, **settings):
    """The numbers of evaluate.py on a checkpoint."""
    settings = {"device": "cpu", "lpips": False, "ckpt": path, "out": out, **settings}
    evaluate.main(configure(evaluate.CONFIG, "", flags(**settings), evaluate.PRESETS))
    return json.loads(out.read_text())


# ---- metrics ----


def test_mse_and_psnr_are_the_hand_computed_numbers_and_80_db_for_equal_frames():
    x = torch.rand(2, 4, 3, 16, 16)
    assert psnr(x, x).shape == mse(x, x).shape == (2, 4) and torch.allclose(psnr(x, x), torch.tensor(80.0))
    black, grey = torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.1)
    assert mse(black, grey).item() == pytest.approx(0.01)
    assert psnr(black, grey).item() == pytest.approx(20, abs=1e-3)


def test_ssim_is_the_hand_computed_number_and_1_for_equal_frames():
    x = torch.rand(2, 4, 3, 16, 16)
    assert ssim(x, x).shape == (2, 4) and torch.allclose(ssim(x, x), torch.tensor(1.0))
    flat = ssim(torch.full((3, 16, 16), 0.2), torch.full((3, 16, 16), 0.6)).item()
    assert flat == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4), abs=1e-4)  # no variance
    assert ssim(x, 1 - x).max() < 0


@pytest.mark.parametrize("kind", ["noise", "equal", "constant", "bytes"])
def test_psnr_and_ssim_equal_scikit_image(kind):
    metrics = pytest.importorskip("skimage.metrics", reason="pip install scikit-image")
    x = torch.rand(3, 32, 32)
    y = (x + 0.2 * torch.randn_like(x)).clamp(0, 1)
    x, y = dict(equal=(x, x), constant=(torch.full_like(x, 0.3), torch.full_like(x, 0.4))).get(kind, (x, y))
    theirs, data_range = (x.numpy(), y.numpy()), 1
    if kind == "bytes":
        theirs, data_range = tuple((255 * v).round().byte().numpy() for v in (x, y)), 255
        x, y = (torch.from_numpy(v) / 255 for v in theirs)
    how = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0)
    expected = metrics.structural_similarity(*theirs, data_range=data_range, **how)
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-5)
    if kind != "equal":  # where theirs is infinite
        expected = metrics.peak_signal_noise_ratio(*theirs, data_range=data_range)
        assert psnr(x, y).item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("metric", [mse, psnr, ssim])
def test_metrics_refuse_bytes_half_precision_and_other_shapes(metric):
    x, expected = torch.rand(2, 3, 16, 16), r"expected float32 frames of one shape \(\.\.\., 3, H, W\), in"
    for wrong in ((255 * x).byte(), x.bfloat16(), x[:1]):
        with pytest.raises(ValueError, match=expected):
            metric(x, wrong)
    with pytest.raises(ValueError, match=expected):
        metric(x.movedim(1, -1), x.movedim(1, -1))
    with pytest.raises(ValueError, match=r"frames are 0\.\.25\d; expected \[0, 1\]"):
        metric(0 * x, 255 * x)
    with pytest.raises(ValueError, match="SSIM needs 11"):
        ssim(x[..., :8], x[..., :8])


def test_lpips_is_asked_in_its_own_range_and_told_per_frame():
    x, y = torch.rand(2, 3, 3, 8, 8), torch.rand(2, 3, 3, 8, 8)
    distance = evaluate.perceptual_distance(x, y, lambda a, b: (a - b).abs().amax((1, 2, 3), keepdim=True))
    assert torch.allclose(distance, 2 * (x - y).abs().amax((2, 3, 4)))


def test_weights_of_lpips_that_are_not_torchvisions_are_refused(tmp_path, monkeypatch):
    lpips = pytest.importorskip("lpips", reason="pip install lpips")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    place = tmp_path / "checkpoints" / VGG
    place.parent.mkdir()
    place.write_bytes(b"of somebody else")
    monkeypatch.setattr(lpips, "LPIPS", lambda **settings: torch.nn.Identity())
    with pytest.raises(ValueError, match=f"{VGG} is not torchvision's file"):
        perceptual_loss("cpu")


# ---- FVD ----


class Detector(torch.nn.Module):
    """Called as StyleGAN-V's I3D: bytes' range in, features of the whole video out."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(192, 400) / 10)

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool):
        assert x.max() > 2 and rescale and resize and return_features
        return F.adaptive_avg_pool3d(x / 255 * 2 - 1, (4, 4, 4)).flatten(1) @ self.weight


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The path of a stand-in for i3d_torchscript.pt."""
    path = tmp_path_factory.mktemp("detector") / "i3d.pt"
    torch.manual_seed(0)
    torch.jit.script(Detector()).save(path)
    return path


def test_fvd_of_a_set_to_itself_is_0_and_grows_with_noise(detector):
    network = load_torchscript(detector, "cpu", evaluate.DETECTOR)
    videos = push_segments(24, 9, seed=1, size=32)["frames"]
    truth, noise = evaluate.video_features(videos, network), torch.randn_like(videos)
    noisy = [(videos + s * noise).clamp(0, 1) for s in (0, 0.1, 0.3, 1)]
    distances = [frechet_distance(truth, evaluate.video_features(v, network)) for v in noisy]
    assert abs(distances[0]) < 1e-6 and distances == sorted(distances) and distances[1] > 1e-3


def test_the_frechet_distance_is_that_of_the_formula_in_float64():
    torch.manual_seed(0)
    a, b = torch.randn(50, 400) @ torch.randn(400, 400) / 20, 1 + torch.randn(60, 400)
    pair = a.double().numpy(), b.double().numpy()
    (m1, S1), (m2, S2) = ((x.mean(0), np.cov(x.T, bias=True)) for x in pair)
    root = np.sqrt(np.clip(np.linalg.eigvals(S1 @ S2).real, 0, None)).sum()
    expected = ((m1 - m2) ** 2).sum() + np.trace(S1) + np.trace(S2) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_detectors_and_videos_that_do_not_fit_are_refused(tmp_path, detector):
    with pytest.raises(FileNotFoundError, match="no file .*none.pt; expected .*i3d_torchscript.pt"):
        load_torchscript(tmp_path / "none.pt", "cpu", evaluate.DETECTOR)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="text.pt is no TorchScript"):
        load_torchscript(tmp_path / "text.pt", "cpu", evaluate.DETECTOR)
    network = load_torchscript(detector, "cpu", evaluate.DETECTOR)
    with pytest.raises(ValueError, match="videos of 8 frames; the detector needs at least 9"):
        evaluate.video_features(torch.rand(1, 8, 3, 16, 16), network)


# ---- the protocol ----

ROWS = {"model", "repeat_last", "wrong_actions", "reconstruction"}
MANY = ROWS - {"model"} | {"best", "single"}


def test_one_future_of_each_is_measured_and_what_is_missing_is_told(trained, tmp_path, monkeypatch, capsys):
    def missing(device):
        raise FileNotFoundError("put torchvision's vgg16-397923af.pth there")

    monkeypatch.setattr(evaluate, "perceptual_loss", missing)
    out = tmp_path / "new" / "m.json"
    numbers = run_evaluation(trained.gpt, out, episodes=3, horizon=5, batch_size=2, lpips=True)
    assert {"episodes", "reward_correlation", "commit"} <= set(numbers) and "stderr" not in numbers
    assert all(set(numbers[m]) == ROWS for m in ("mse", "psnr", "ssim")) and numbers["episodes"] == 3
    assert set(numbers["missing"]) == {"lpips", "fvd"} and "lpips" not in numbers
    printed = capsys.readouterr().out
    assert "LPIPS: put torchvision's vgg16-397923af.pth there" in printed
    assert "repeat_last" in printed and "FVD: no detector" in printed
    assert "| repeat_last" in out.with_suffix(".md").read_text() and not list(out.parent.glob("*parts*"))


def test_the_best_of_many_beats_one_and_fvd_takes_them_all(trained, tmp_path, monkeypatch, detector):
    stand_in = lambda x, y: (x - y).abs().mean((1, 2, 3), keepdim=True)  # noqa: E731
    monkeypatch.setattr(evaluate, "perceptual_loss", lambda device: stand_in)
    settings = dict(episodes=4, samples=5, horizon=7, batch_size=3, repeats=2, lpips=True, fvd=detector)
    numbers = run_evaluation(trained.gpt, tmp_path / "m.json", **settings)
    for metric in ("mse", "lpips", "psnr", "ssim"):
        better, worse = (numbers[metric][k] for k in ("best", "single"))
        assert set(numbers[metric]) == MANY and (better > worse) == (metric in ("psnr", "ssim"))
    assert set(numbers["fvd"]) == ROWS - {"model"} | {"all"} and min(numbers["fvd"].values()) > 0
    assert numbers["stderr"]["psnr"]["single"] > 0 == numbers["stderr"]["psnr"]["reconstruction"]
    assert numbers["missing"] == {}


def test_videos_may_begin_with_their_episodes_and_one_has_no_wrong_actions(push, trained, tmp_path, capsys):
    settings = dict(data=push, horizon=3, from_start=True)
    numbers = run_evaluation(trained.gpt, tmp_path / "m.json", episodes=1, **settings)
    frames = Episodes(push, "val").segments(1, 5)["frames"]
    expected = psnr(frames[:, 1:2].expand(-1, 3, -1, -1, -1), frames[:, 2:]).mean().item()
    assert numbers["psnr"]["repeat_last"] == pytest.approx(expected, abs=1e-3)
    assert "wrong_actions" not in numbers["psnr"] and "2 or more" in numbers["missing"]["wrong_actions"]
    run_evaluation(trained.gpt, tmp_path / "m.json", episodes=4, **settings)
    assert "4 segments of 3 episodes" in capsys.readouterr().out


def test_an_action_free_model_on_a_folder_has_no_wrong_actions(push, trained, tmp_path):
    numbers = run_evaluation(trained.free, tmp_path / "m.json", data=push, episodes=2, horizon=2)
    assert set(numbers["psnr"]) == ROWS - {"wrong_actions"} and numbers["reward_correlation"] is None


def test_the_right_frames_are_compared_whatever_the_batch_size(trained, tmp_path):
    settings = dict(data="push", episodes=2, horizon=4, temperature=0.0)
    out = tmp_path / "m.json"
    one, two = (run_evaluation(trained.gpt, out, batch_size=size, **settings) for size in (1, 2))
    assert all(one[m] == pytest.approx(two[m], abs=1e-3) for m in ("psnr", "ssim"))
    frames = push_segments(2, 6, 0, 32)["frames"]
    repeated = frames[:, 1:2].expand(-1, 4, -1, -1, -1)
    assert one["psnr"]["repeat_last"] == pytest.approx(psnr(repeated, frames[:, 2:]).mean().item(), abs=1e-3)
    everything = run_evaluation(trained.gpt, tmp_path / "m.json", frames="all", **settings)
    tokenizer = WorldModel.load(trained.gpt, "cpu").tokenizer
    with torch.no_grad():
        expected = psnr(tokenizer.decode(tokenizer.encode(frames)).clamp(0, 1), frames).mean().item()
    assert everything["psnr"]["reconstruction"] == pytest.approx(expected, abs=1e-3)
    both = run_evaluation(trained.gpt, tmp_path / "m.json", frames="all,future", **settings)
    assert both["psnr"] == everything["psnr"] and both["psnr_future"] == pytest.approx(two["psnr"])
    with pytest.raises(ValueError, match="frames is 'some'; expected some of all, future, last"):
        run_evaluation(trained.gpt, tmp_path / "m.json", frames="some")


def test_frames_follow_from_the_actions_that_lead_to_them_and_from_anothers(trained, tmp_path, monkeypatch):
    rollout, given = WorldModel.rollout, []

    def watch(self, actions, horizon):
        given.append(actions[:, :horizon])
        return rollout(self, actions, horizon)

    monkeypatch.setattr(WorldModel, "rollout", watch)
    run_evaluation(trained.gpt, tmp_path / "m.json", data="push", episodes=2, horizon=4)
    own = push_segments(2, 6, 0, 32)["actions"][:, 1:5]  # frame 2 follows from action 1
    assert torch.equal(given[0], own) and torch.equal(given[1], own.flip(0))


def same(a, b):
    """The same numbers, but for time and origin."""
    return all(a[k] == pytest.approx(b[k], abs=1e-9) for k in ("mse", "psnr", "ssim", "reward_correlation"))


@pytest.mark.slow
def test_a_run_that_is_broken_off_goes_on_and_two_processes_give_the_same(trained, tmp_path, monkeypatch):
    settings = dict(episodes=3, samples=2, horizon=3, batch_size=2)
    whole, out = run_evaluation(trained.gpt, tmp_path / "whole.json", **settings), tmp_path / "m.json"
    work, calls = evaluate.measure, []

    def stop_at_the_second(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(*args)

    monkeypatch.setattr(evaluate, "measure", stop_at_the_second)
    with pytest.raises(SystemExit, match="m.parts-[0-9a-f]{8} keeps what was measured for the same command"):
        run_evaluation(trained.gpt, out, **settings)
    other = run_evaluation(trained.gpt, out, **{**settings, "horizon": 2})
    assert not same(other, whole) and len(calls) == 2 + 3  # another run's batches are never used
    assert same(run_evaluation(trained.gpt, out, **settings), whole) and len(calls) == 2 + 3 + 2
    assert not list(tmp_path.glob("*parts*"))
    monkeypatch.undo()
    flat = flags(ckpt=trained.gpt, out=tmp_path / "two.json", lpips=False, **settings)
    done = python("-m", "torch.distributed.run", "--nproc_per_node=2", "evaluate.py", *flat)
    assert done.returncode == 0, done.stderr
    assert same(json.loads((tmp_path / "two.json").read_text()), whole)


def test_batches_are_shared_only_by_runs_with_the_same_weights_videos_and_networks(trained, tmp_path):
    model, other = (WorldModel.load(path, "cpu") for path in (trained.gpt, trained.free))
    data, cfg = dict(frames=torch.rand(2, 6, 3, 32, 32)), configure(evaluate.CONFIG, "", [], evaluate.PRESETS)
    folder = evaluate.parts_folder(cfg, model, data, {})
    cfg.device, cfg.overwrite = "cpu", True  # these may change
    assert evaluate.parts_folder(cfg, model, data, {}) == folder
    assert evaluate.parts_folder(cfg, other, data, {}) != folder
    assert evaluate.parts_folder(cfg, model, dict(frames=1 - data["frames"]), {}) != folder
    assert evaluate.parts_folder(cfg, model, data, dict(lpips=None)) != folder


def test_presets_are_the_papers():
    bair = configure(evaluate.CONFIG, "", ["--preset", "bair"], evaluate.PRESETS)
    assert (bair.context_frames, bair.horizon, bair.episodes, bair.samples) == (1, 15, 256, 100)
    assert bair.frames == ("all", "future") and bair.from_start  # the authors count all frames
    robonet = configure(evaluate.CONFIG, "", ["--preset", "robonet"], evaluate.PRESETS)
    assert (robonet.context_frames, robonet.horizon) == (2, 10)


# ---- the released checkpoint ----


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Numbers of the released checkpoint on 32 fresh episodes."""
    path = ROOT / "assets" / "push-tiny.pt"
    if not path.is_file():
        pytest.skip(f"the released checkpoint is not at {path}")
    assert path.stat().st_size < 12_000_000
    return run_evaluation(path, tmp_path_factory.mktemp("released") / "m.json", episodes=32, seed=123)


@pytest.mark.slow
def test_the_released_checkpoint_knows_more_than_the_last_frame_heeds_actions_and_foresees_rewards(released):
    psnr = released["psnr"]
    assert psnr["model"] >= psnr["repeat_last"] + 5 and psnr["model"] >= psnr["wrong_actions"] + 5
    assert released["ssim"]["model"] >= released["ssim"]["repeat_last"] + 0.03
    assert psnr["reconstruction"] >= 29
    assert released["reward_correlation"] > 0.75  # 0.89 over 256 episodes, but few episodes scatter by 0.05
