"""post_train.py: log-probabilities of branches, the objective, two steps, what goes wrong."""

from types import SimpleNamespace

import pytest
import torch
from conftest import flags, python, train
from test_training import assert_same, lines

import post_train
from common import load_checkpoint
from gpt import GPT, SMALL
from post_train import Policy, normalize, surrogate, verify
from sample import WorldModel
from tokenizer import TokenLayout
from variants.tiny import TinyGPT

RUN = dict(
    lpips=0.0, horizon=3, batch_size=2, group=4, mini_batches=2, max_steps=2, eval_every=2, eval_segments=2,
    best_of=2, lr=1e-3,
)  # fmt: skip
LAYOUT = TokenLayout(2, 4, 4, 8, 16)


def policy_and_futures(tiny, action_dim):
    torch.manual_seed(0)
    cfg = {**SMALL, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_mlp": 48, "segment_length": 6}
    cfg["action_dim"] = action_dim
    model = (TinyGPT(LAYOUT, 0.5, **cfg) if tiny else GPT(LAYOUT, **cfg)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.2)
    prompt = LAYOUT.pack(torch.randint(8, (2, 2, 4)))
    codes = torch.randint(16, (2, 3, 4, 4))  # of 2 contexts, 3 futures of 4 frames
    actions = torch.rand(2, 6, action_dim) if action_dim else None
    return model, prompt, codes, actions


def plain_log_probs(model, prompt, codes, actions):
    """As Policy, but every future reads its own copy of the context."""
    B, G, f, n = codes.shape
    context, _ = LAYOUT.unpack(prompt)
    tokens = LAYOUT.pack(context.repeat_interleave(G, 0), codes.flatten(0, 1))
    h = model.hidden(tokens, None if actions is None else actions.repeat_interleave(G, 0))
    h = h[:, prompt.shape[1] :].unflatten(1, (f, n + 1))[:, :, :n]
    log_probs = model.code_logits(h).log_softmax(-1).unflatten(0, (B, G))
    return log_probs.gather(-1, codes[..., None])[..., 0], log_probs


# ---- log-probabilities ----


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("action_dim", [0, 3])
def test_branches_that_share_a_context_have_the_probabilities_and_gradients_of_whole_sequences(
    tiny, action_dim
):
    model, *inputs = policy_and_futures(tiny, action_dim)
    expected, whole = plain_log_probs(model, *inputs)
    found, entropy = Policy(model)(*inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, torch.special.entr(whole.exp()).sum(-1), atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(found)
    parameters = list(model.parameters())
    expected = torch.autograd.grad((weights * expected).sum(), parameters)
    found = torch.autograd.grad((weights * found).sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * b.abs().max().item(), rtol=1e-5)


def test_futures_of_a_group_do_not_see_each_other():
    model, prompt, codes, _ = policy_and_futures(False, 0)
    before = Policy(model)(prompt, codes)[0]
    codes[:, 1] = (codes[:, 1] + 1) % 16
    after = Policy(model)(prompt, codes)[0]
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_the_model_draws_codes_with_the_probabilities_that_the_policy_gives_them(trained):
    """Of 2,000 first codes of one context, each is drawn about as often as Policy says."""
    world = WorldModel.load(trained.gpt, "cpu", temperature=1.0, top_k=0)
    batch = dict(frames=torch.rand(1, 3, 3, 32, 32), actions=torch.rand(1, 3, 2))
    codes = post_train.imagine(world, batch, 2000, 1)[1]
    prompt = world.tokenizer.encode(batch["frames"][:, :2])
    found = Policy(world.gpt)(prompt, codes, batch["actions"])[0][0, :, 0, 0].exp()
    first = codes[0, :, 0, 0]
    drawn = first.bincount(minlength=32)[first] / 2000
    assert (drawn - found).abs().max() < 0.03


# ---- the objective ----


def test_the_gradient_of_the_surrogate_is_that_of_finite_differences():
    torch.manual_seed(0)
    old, start = torch.randn(2, 2, 3, 2, 2).double()
    A = torch.randn(2, 3).double()
    new = (old + 0.5 * torch.randn_like(old)).requires_grad_()  # some ratios are clipped, some are not
    loss, metrics = surrogate(new, old, start, A, 0.2, 0.3)
    assert 0 < metrics["clipped"] < 1
    assert torch.autograd.gradcheck(lambda x: surrogate(x, old, start, A, 0.2, 0.3)[0], new)


def test_the_surrogate_of_two_tokens_by_hand():
    old = torch.zeros(1, 2, 1, 1)
    new = torch.tensor([1.5, 0.5]).log().view(1, 2, 1, 1)
    loss, metrics = surrogate(new, old, old, torch.tensor([[1.0, -1.0]]), 0.2, 0.1)
    k3 = (1 / 1.5 - 1 + torch.tensor(1.5).log() + 1 / 0.5 - 1 + torch.tensor(0.5).log()) / 2
    torch.testing.assert_close(metrics["kl"], k3)
    torch.testing.assert_close(loss, 0.1 * k3 - (1.2 - 0.8) / 2)  # ratios 1.5, 0.5 -> 1.2, 0.8
    assert metrics["clipped"] == 1


def test_the_divergence_is_zero_at_the_start_and_never_negative():
    old = torch.randn(2, 3, 4, 2)
    assert surrogate(old, old, old, torch.zeros(2, 3), 0.2, 1)[1]["kl"] == 0
    assert surrogate(old, old, torch.randn_like(old), torch.zeros(2, 3), 0.2, 1)[0] > 0


def test_advantages_sum_to_zero_and_a_group_of_equals_has_none():
    rewards = torch.randn(5, 16)
    rewards[2] = -0.1234567
    A = normalize(rewards)
    torch.testing.assert_close(A.sum(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(A[[0, 1, 3, 4]].std(1), torch.ones(4), atol=1e-4, rtol=0)
    assert A[2].abs().max() < 1e-6


def test_rewards_are_minus_the_weighted_errors_summed_over_frames():
    truth = torch.zeros(1, 2, 3, 4, 4)
    futures = torch.stack([truth, truth + 0.5], 1)
    cfg = SimpleNamespace(l1=1.0, l2=2.0, lpips=3.0, reward_error=0.0)
    torch.testing.assert_close(verify(futures, truth, cfg), torch.tensor([[0.0, -2 * (0.5 + 2 * 0.25)]]))

    def lpips(x, y):
        return (x - y).mean((1, 2, 3))[:, None, None, None]

    expected = torch.tensor([[0.0, -2 * (0.5 + 2 * 0.25 + 3 * 1.0)]])  # it sees [-1, 1]
    torch.testing.assert_close(verify(futures, truth, cfg, lpips), expected)
    cfg = SimpleNamespace(l1=0.0, l2=0.0, reward_error=2.0)
    predicted = torch.tensor([[[0.0, 0.0], [0.0, torch.e - 1]]])
    found = verify(futures, truth, cfg, None, predicted, torch.zeros(1, 2))
    torch.testing.assert_close(found, torch.tensor([[0.0, -2.0]]))


def test_a_policy_of_one_token_learns_what_is_rewarded():
    torch.manual_seed(0)
    logits = torch.zeros(8, requires_grad=True)
    optimizer = torch.optim.AdamW([logits], 0.1)
    for _ in range(40):
        codes = torch.multinomial(logits.detach().softmax(0), 16, replacement=True).view(1, 16, 1, 1)
        new = logits.log_softmax(0)[codes]
        start = torch.full_like(new, 1 / 8).log()
        A = normalize((codes == 3).float()[..., 0, 0])
        optimizer.zero_grad()
        surrogate(new, new.detach(), start, A, 0.2, 1e-3)[0].backward()
        optimizer.step()
    assert logits.softmax(0)[3] > 0.9


# ---- runs ----


def test_two_steps_write_a_world_model_that_samples_at_temperature_1(trained, push, tmp_path):
    out = tmp_path / "p.pt"
    train(post_train, **RUN, ckpt=trained.gpt, data=push, out=out)
    steps = lines(out)
    assert [numbers["step"] for numbers in steps] == [1, 2, 2]
    assert {"reward", "spread", "kl", "entropy", "clipped", "repeated", "tok/s"} <= set(steps[0])
    names = [f"val_{m}_{T}{best}" for m in ("psnr", "ssim") for T in ("1", "0.5") for best in ("", "_best")]
    assert set(names) <= set(steps[-1])
    assert out.with_suffix(".png").stat().st_size > 0
    world = WorldModel.load(out, "cpu")
    assert (world.temperature, world.top_k) == (1.0, WorldModel.load(trained.gpt, "cpu").top_k)
    before, after = (load_checkpoint(path) for path in (trained.gpt, out))
    assert_same(before["tokenizer"], after["tokenizer"])
    assert torch.equal(before["gpt"]["weights"]["reward.weight"], after["gpt"]["weights"]["reward.weight"])
    assert not torch.equal(before["gpt"]["weights"]["embed.weight"], after["gpt"]["weights"]["embed.weight"])


def test_a_model_without_actions_and_rewards_is_improved_too(trained, push, tmp_path):
    train(post_train, **RUN, ckpt=trained.free, data=push, out=tmp_path / "p.pt")
    assert WorldModel.load(tmp_path / "p.pt", "cpu").action_dim == 0


def test_futures_that_are_all_as_good_change_nothing(trained, push, tmp_path):
    run = {**RUN, "l1": 0.0, "kl": 0.0}
    train(post_train, **run, ckpt=trained.gpt, data=push, out=tmp_path / "p.pt")
    before, after = (load_checkpoint(path)["gpt"] for path in (trained.gpt, tmp_path / "p.pt"))
    assert_same(before["weights"], after["weights"])


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(trained, push, tmp_path):
    how = dict(RUN, ckpt=trained.gpt, data=push, max_steps=4)
    train(post_train, **how, out=tmp_path / "whole.pt")
    train(post_train, **{**how, "max_steps": 2}, out=tmp_path / "parts.pt")
    train(post_train, out=tmp_path / "parts.pt", resume=True, max_steps=4)
    states = [load_checkpoint(tmp_path / name) for name in ("whole.pt", "parts.pt")]
    for state in states:
        del state["train_config"]
    assert_same(*states)


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(trained, push, tmp_path):
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "post_train.py"
    done = python(*torchrun, *flags(**RUN, ckpt=trained.gpt, data=push, out=tmp_path / "p.pt"))
    assert done.returncode == 0, done.stderr
    assert "4 contexts per step" in done.stdout


# ---- errors ----


@pytest.mark.parametrize("settings, message", [
    (dict(horizon=9), "horizon is 9; .*gpt.pt imagines 4 frames from a context"),
    (dict(group=1), "group is 1, .*; expected a group of 2 or more"),
    (dict(mini_batches=3), "expected a group of 2 or more, and a context or more per mini-batch"),
    (dict(kl=-1.0), "--kl is -1.0; expected 0 or more"),
    (dict(ckpt="nowhere.pt"), "no checkpoint at nowhere.pt"),
    (dict(data="nowhere"), "nowhere"),
])  # fmt: skip
def test_wrong_settings_are_refused_before_anything_is_written(settings, message, trained, push, tmp_path):
    how = {**RUN, "ckpt": trained.gpt, "data": push, "out": tmp_path / "p.pt", **settings}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(post_train, **how)
    assert not list(tmp_path.iterdir())


def test_rewards_need_a_model_that_predicts_them(trained, push, tmp_path):
    with pytest.raises(ValueError, match="predicts no rewards; pass --reward_error 0"):
        train(post_train, **RUN, ckpt=trained.free, data=push, out=tmp_path / "p.pt", reward_error=1.0)


def test_a_run_goes_on_from_its_own_start_alone(trained, push, tmp_path):
    out = tmp_path / "p.pt"
    train(post_train, **RUN, ckpt=trained.gpt, data=push, out=out)
    with pytest.raises(ValueError, match="began with other weights than those of .*p.pt; pass its --ckpt"):
        train(post_train, out=out, resume=True, max_steps=3, ckpt=out)
