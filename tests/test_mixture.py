"""mixture.py and support/augment.py: mixtures of data sets, the stream of segments, augmentation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_data import noise, numbers, write_numbered
from torchvision.transforms import v2

from data import draw_segments, prefetch, uniform
from mixture import MIXTURES, OXE, RLDS_SUFFIX, Mixture, open_data
from support.augment import DRAWS, KINDS, Change, augment, crop_box, plan
from support.writer import EpisodeWriter


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Three sets of the paper's, whose episodes have numbers of their own (green) and frame numbers (red)."""
    folder = tmp_path_factory.mktemp("sets")
    first = 0
    for name, n in (("bridge", 3), ("kuka", 5), ("viola" + RLDS_SUFFIX, 4)):
        write_numbered(folder / name, [60] * n, val_every=3, first=first)
        first += n
    return folder


OWNER = np.repeat([0, 1, 2], [3, 5, 4])


def test_the_mixture_is_table_4():
    whole = MIXTURES["oxe_sthsth"]
    total = sum(weight for weight, *_ in whole.values())
    percent = {name: round(100 * weight / total, 1) for name, (weight, *_) in whole.items()}
    assert len(whole) == 36 and sum(weight for weight, *_ in OXE.values()) == pytest.approx(100)
    assert (percent["bc_z"], percent["kuka"], percent["language_table"]) == (12.8, 8.5, 4.3)  # 4.25
    assert (percent["uiuc_d3field"], percent["viola"], percent["sthsth"]) == (2.2, 0.5, 15.0)
    assert (whole["toto"][1], whole["taco_play"][1:]) == (10, (5, "rgb_static"))


def test_each_set_has_its_share_of_the_draws(sets):
    mixture = Mixture(sets)
    which = mixture.choose(uniform(0, 0, 100_000, 1)[:, 0])
    shares = np.array([15, 10, 20 / 31]) / (25 + 20 / 31)
    error = np.sqrt(shares * (1 - shares) / 100_000)
    assert (np.abs(np.bincount(which) / 100_000 - shares) < 3 * error).all()
    _, episodes = numbers(mixture.batch(0, 2000, 2))
    assert (np.abs(np.bincount(OWNER[episodes[:, 0]]) / 2000 - shares) < 4 * error * np.sqrt(50)).all()
    assert set(episodes[:, 0].tolist()) == set(range(12)) - {0, 3, 6, 8, 11}  # of each set, every third


def test_each_set_keeps_its_step_and_the_rows_their_order(sets, capsys):
    mixture, steps = Mixture(sets), np.array([2, 3, 7])
    assert "kuka: weight 0.3899, every 3. frame, 3 episodes" in capsys.readouterr().out
    frames, episodes = numbers(mixture.batch(5, 64, 4))
    assert (frames.diff() == torch.from_numpy(steps[OWNER[episodes[:, :1]]])).all()
    again = torch.cat([mixture.batch(5, 24, 4)["frames"], mixture.batch(29, 40, 4)["frames"]])
    assert torch.equal(mixture.batch(5, 64, 4)["frames"], again)
    assert (numbers(mixture.batch(0, 64, 4, stride=2))[0].diff()[:, 0].unique().numpy() == 2 * steps).all()
    batch = mixture.batch(0, 3, 4, context=1, future=2)
    assert batch["frames"].shape[:2] == (3, 3) and batch["actions"].shape == (3, 3, 0)


def test_segments_of_a_mixture_are_spread_over_its_sets(sets):
    mixture = Mixture(sets, "val")
    frames, episodes = numbers(mixture.segments(20, 4))
    assert np.bincount(OWNER[episodes[:, 0]]).tolist() == [12, 7, 1]
    assert len(set(OWNER[episodes[:3, 0]])) == 2 and frames.shape == (20, 4)
    assert torch.equal(mixture.segments(20, 4)["frames"], mixture.segments(20, 4)["frames"])


def test_sets_that_a_mixture_does_not_name_are_left_out_and_said(sets, tmp_path, capsys):
    for name in ("bridge", "mine"):
        write_numbered(tmp_path / name, [20] * 4, val_every=2)
    assert len(Mixture(tmp_path).sets) == 1
    assert "left out, as the mixture does not name them: mine" in capsys.readouterr().out
    assert Mixture(tmp_path, name="all").weights.tolist() == [0.5, 0.5]
    assert isinstance(open_data(tmp_path), Mixture) and open_data(tmp_path / "mine").n_episodes == 2
    with pytest.raises(ValueError, match="mixture is 'rt1'; expected one of oxe, oxe_sthsth, all"):
        Mixture(tmp_path, name="rt1")
    with pytest.raises(ValueError, match="--episodes 2 is for one folder of episodes; .* is a mixture"):
        open_data(tmp_path, limit=2)
    (tmp_path / "bridge").rename(tmp_path / "yours")
    assert len(open_data(tmp_path).sets) == 2
    with pytest.raises(ValueError, match="has no set of mixture 'oxe'; --mixture all takes what is there"):
        open_data(tmp_path, mixture="oxe")
    with EpisodeWriter(tmp_path / "large", "test", val_every=2) as writer:
        writer.add(noise(3, 4, 4, 3))
    with pytest.raises(ValueError, match="frames .*; import all sets with the same --size"):
        open_data(tmp_path, "all", mixture="all")
    with pytest.raises(FileNotFoundError, match="no episodes at"):
        open_data(tmp_path / "nothing")


def test_numbers_depend_on_seed_use_and_row_alone():
    whole = uniform(3, 0, 20, 7)
    assert np.array_equal(whole[5:12], uniform(3, 5, 7, 7)) and len(np.unique(whole)) == 140
    for other in (uniform(4, 0, 20, 7), uniform(3, 0, 20, 7, use=1), uniform(3, 20, 20, 7)):
        assert not np.isin(whole, other).any()


def test_many_shards_need_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (24, 24))
    for name in ("bridge", "viola"):
        with EpisodeWriter(tmp_path / name, "test", val_every=2, shard_bytes=1) as writer:
            for i in range(40):
                writer.add(np.full((3, 4, 4, 3), i, np.uint8))
    mixture = Mixture(tmp_path)
    assert [data.meta["shards"] for data in mixture.sets] == [40, 40]
    frames = mixture.batch_u8(0, 200, 2)["frames_u8"]
    assert torch.equal(frames, Mixture(tmp_path).batch_u8(0, 200, 2)["frames_u8"])
    assert len(frames.unique()) == 20
    assert sum(len(data.files) for data in mixture.sets) <= 8


def test_what_an_import_has_not_finished_is_no_set(tmp_path):
    for name in ("bridge", "viola.partial"):
        with EpisodeWriter(tmp_path / name, "test", val_every=2) as writer:
            writer.add(noise(3, 4, 4, 3))
            writer.add(noise(3, 4, 4, 3))
    assert len(Mixture(tmp_path, name="all").sets) == 1


# ---- augmentation ----


def jittered(frames, factors, order):
    """Frames (..., 3, H, W) after torchvision's ColorJitter with these factors, a transform for each."""
    brightness, contrast, saturation, hue = factors
    transforms = (
        v2.ColorJitter(brightness=(brightness, brightness)),
        v2.ColorJitter(contrast=(contrast, contrast)),
        v2.ColorJitter(saturation=(saturation, saturation)),
        v2.ColorJitter(hue=(hue, hue)),
    )
    for k in order:
        frames = transforms[k](frames)
    return frames


@pytest.mark.parametrize("size", [12, 40])  # smaller and larger
def test_crops_are_those_of_torchvision(size):
    boxes, frames = [(0, 0, 20, 30), (3, 5, 10, 17), (7, 1, 13, 9)], torch.rand(3, 2, 3, 20, 30)
    ours = augment(frames, [Change(box, (1.0, 1.0, 1.0, 0.0), (0, 1, 2, 3)) for box in boxes], size)
    resize = v2.Resize([size, size], antialias=True)
    for b, (top, left, height, width) in enumerate(boxes):
        theirs = resize(frames[b, ..., top : top + height, left : left + width])
        assert (ours[b] - theirs).abs().max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_colours_are_those_of_torchvision(order):
    frames = (255 * torch.rand(2, 3, 3, 20, 20)).round() / 255
    frames[0, 0, :, :4] = frames[0, 0, :1, :4]  # greys
    factors = (1.3, 0.7, 1.2, 0.2), (0.8, 1.4, 0.6, -0.45)
    ours = augment(frames, [Change((0, 0, 20, 20), f, order) for f in factors], 20)
    for b in range(2):
        assert (ours[b] - jittered(frames[b], factors[b], order)).abs().max() < 1e-4


def test_plans_are_spread_over_torchvisions_ranges():
    how = KINDS["strong"]
    changes = plan(uniform(0, 0, 2000, DRAWS), 64, 64, "strong")
    factors = np.array([change.factors for change in changes])
    for k, (low, high) in enumerate(3 * [(1 - how["jitter"], 1 + how["jitter"])] + [(-how["hue"], how["hue"])]):
        assert low <= factors[:, k].min() < low + 0.01 and high - 0.01 < factors[:, k].max() <= high
        assert abs(factors[:, k].mean() - (low + high) / 2) < 0.03
    orders = [change.order for change in changes]
    assert len(set(orders)) == 24 and all(sorted(order) == [0, 1, 2, 3] for order in orders)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(64, how["scale"], how["ratio"])
    theirs = [crop.make_params([torch.zeros(3, 64, 64)]) for _ in range(2000)]
    ours = np.array([change.box for change in changes])
    for k, key in enumerate(("top", "left", "height", "width")):
        found = np.quantile(ours[:, k], (0.1, 0.5, 0.9))
        assert np.abs(found - np.quantile([box[key] for box in theirs], (0.1, 0.5, 0.9))).max() <= 2


def test_a_hue_goes_round_in_a_circle():
    def shifted(frames, hue):
        return augment(frames, [Change((0, 0, 5, 5), (1.0, 1.0, 1.0, hue), (3, 0, 1, 2))], 5)

    frames = (255 * torch.rand(1, 1, 3, 5, 5)).round() / 255
    assert torch.allclose(shifted(frames, 0.5), shifted(frames, -0.5), atol=1e-5)
    red, green = torch.eye(3)[:2].view(2, 1, 1, 3, 1, 1).expand(-1, -1, -1, -1, 5, 5)
    assert torch.allclose(shifted(red, 1 / 3), green, atol=1e-5)


def test_crops_have_the_papers_range_and_lie_inside():
    def crops(draws, H, W, scale, ratio):
        return np.array([crop_box(row, H, W, scale, ratio) for row in draws])

    boxes = crops(uniform(0, 0, 4000, 22), 64, 80, (0.8, 1.0), (0.9, 1.1))
    top, left, height, width = boxes.T
    assert (boxes[:, :2] >= 0).all() and (top + height <= 64).all() and (left + width <= 80).all()
    area, aspect = height * width / 64**2, width / height
    assert 0.77 < area.min() < 0.82 and 0.98 < area.max() < 1.02
    assert 0.87 < aspect.min() < 0.92 and 1.08 < aspect.max() < 1.13
    assert left.max() > 20  # of a wide picture both ends are seen
    none_fits = crops(np.full((2, 22), 0.99), 64, 64, (2, 3), (0.9, 1.1))
    assert (none_fits == (0, 0, 64, 64)).all()


def test_a_segment_is_augmented_as_one_and_the_same_on_any_process(sets):
    mixture = Mixture(sets)

    def first_batch(batch_size, rank, world):
        cfg = SimpleNamespace(batch_size=batch_size, seed=1, stride=1)
        return next(prefetch(draw_segments(mixture, cfg, 5, 8, rank, world, "strong"), 0, 1, "cpu"))

    whole, parts = first_batch(8, 0, 1), [first_batch(4, rank, 2) for rank in (0, 1)]
    assert set(whole) == {"frames", "actions", "rewards"}
    assert torch.equal(whole["frames"], torch.cat([part["frames"] for part in parts]))
    frames = torch.rand(4, 1, 3, 16, 16).expand(-1, 3, -1, -1, -1)
    out = augment(frames, plan(uniform(0, 0, 4, DRAWS), 16, 16), 16)
    assert torch.equal(out[:, 0], out[:, 2]) and (out[:, 0] - frames[:, 0]).abs().mean() > 0.02
    with pytest.raises(ValueError, match="augment is 'weak'; expected one of paper, strong, or nothing"):
        plan(uniform(0, 0, 4, DRAWS), 16, 16, "weak")
