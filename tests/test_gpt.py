"""gpt.py and its variant: hand-computed numbers, the cache, loss, actions, rewards and sampling."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import GPT as SETTINGS

import gpt
from checkpoints import gpt_from, new_gpt
from gpt import GPT, Block, RMSNorm, linear, rope_table, rotate, sample_code, symexp, symlog
from tokenizer import TokenLayout
from variants import draft, tiny
from variants.tiny import TinyGPT

LAYOUT = TokenLayout(context_frames=2, tokens_context=9, tokens_future=4, context_codes=20, dynamics_codes=12)
PAPER = TokenLayout(2, 256, 16, 8192, 8192)
T = SETTINGS["segment_length"]  # 2 context and 4 future frames


def build(seed=0, **changes):
    """A small transformer, by default with actions and rewards; its weights give logits of order 1."""
    torch.manual_seed(seed)
    model = new_gpt(LAYOUT, {**SETTINGS, "action_dim": 3, "reward": True, **changes})
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, 0, 0.15)
    return model


def clip(B=2, frames=T, seed=0):
    """Random tokens (B, L), actions (B, T, 3) and rewards (B, T)."""
    g = torch.Generator().manual_seed(seed)
    context = torch.randint(20, (B, 2, 9), generator=g)
    dynamics = torch.randint(12, (B, frames - 2, 4), generator=g)
    actions, rewards = torch.rand(B, frames, 3, generator=g) * 2 - 1, torch.randn(B, frames, generator=g)
    return LAYOUT.pack(context, dynamics), actions, rewards


def imagine(model, tokens, actions=None, n_branches=1, frames=T - 2, **how):
    """Codes and rewards of `frames` futures of the context of tokens (B, L); actions (B n_b, T, A)."""
    cache = model.prefill(LAYOUT.pack(LAYOUT.unpack(tokens)[0]), n_branches=n_branches)
    return model.imagine(cache, frames, None if actions is None else actions[:, 1:], **how)


# ---- sizes and small blocks ----


def test_presets_have_exactly_the_authors_number_of_parameters():
    def count(settings, **changes):
        with torch.device("meta"):
            return sum(p.numel() for p in GPT(PAPER, **{**settings, **changes}).parameters())

    assert count(gpt.SMALL) == 138_434_304
    assert count(gpt.SMALL, action_dim=4) == 138_434_304 + 768 * (4 + 1)
    assert count(gpt.SMALL, action_dim=4, reward=True) == 138_438_913
    assert count(gpt.MEDIUM) == 436_261_888


def test_the_class_follows_from_the_settings():
    assert type(build()) is TinyGPT and type(build(pos_init=0.0)) is GPT


def test_rmsnorm_is_the_hand_computed_number():
    norm = RMSNorm(2)
    norm.weight.data = torch.tensor([1.0, 2.0])
    assert norm(torch.tensor([3.0, 4.0])).tolist() == pytest.approx([3 / 12.5**0.5, 8 / 12.5**0.5])


def test_rope_turns_a_dimension_with_the_one_half_a_head_away():
    rope = rope_table(3, 4)  # frequencies 1 and 0.01
    x = torch.tensor([[1.0, 2.0, 0.0, 0.0]] * 3)
    for position, row in enumerate(rotate(x, rope).tolist()):
        a, b = position, 0.01 * position
        assert row == pytest.approx([math.cos(a), 2 * math.cos(b), math.sin(a), 2 * math.sin(b)])


def test_rope_scores_depend_on_the_distance_alone():
    q, k, rope = torch.randn(8), torch.randn(8), rope_table(20, 8)
    score = [(rotate(q[None], rope[:, i, None]) * rotate(k[None], rope[:, j, None])).sum() for i, j in
             ((3, 1), (19, 17), (4, 1))]  # fmt: skip
    assert torch.isclose(score[0], score[1], atol=1e-5) and not torch.isclose(score[0], score[2], atol=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_large_weights_on_cpus_give_what_any_others_do_and_have_gradients(rows):
    weight, x = torch.randn(1024, 512) / 512**0.5, torch.randn(2, rows, 512)
    with torch.no_grad():
        assert torch.allclose(linear(x, weight), x @ weight.T, atol=1e-5)
        assert torch.allclose(linear(x.bfloat16(), weight.bfloat16()).float(), x @ weight.T, atol=0.05)
    linear(x, weight.requires_grad_()).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_symlog_is_undone_by_symexp():
    x = torch.tensor([-30.0, -1.0, 0.0, 0.5, 1000.0])
    assert torch.allclose(symexp(symlog(x)), x, rtol=1e-5)
    assert symlog(torch.tensor(math.e - 1)).item() == pytest.approx(1) and symlog(-x).equal(-symlog(x))


# ---- the cache ----


def cached_logits(model, tokens, actions, n_branches, chunk, step=None):
    """Logits over dynamics codes at all future positions, from at most `chunk` new tokens per call.

    step  in place of the cache's own, called for one shape of memory as on a GPU"""
    layout, start = model.layout, model.layout.prompt - 2  # the context's last token is still to be read
    context, _ = layout.unpack(tokens[::n_branches])
    cache, logits = model.prefill(layout.pack(context), n_branches=n_branches), []
    f, D = actions.shape[1] - layout.context_frames, model.embed.weight.shape[1]
    added = model.embed.weight.new_zeros(*tokens.shape, D)
    embedded = model.embed_actions(actions, actions.shape[:2])
    added[:, layout.slots(f)] = embedded[:, layout.context_frames - 1 : -1]
    for i in range(start, tokens.shape[1], chunk):
        new, acts = tokens[:, i : i + chunk], added[:, i : i + chunk]
        if step:
            positions = cache.length + torch.arange(new.shape[1])[None]
            h = step(cache, new, acts, positions, cache.sizes[3])
        else:
            h = model.extend(cache, new, acts)
        cache.length += new.shape[1]
        logits.append(model.code_logits(h))
    return torch.cat(logits, 1)[:, 1:]


@pytest.mark.parametrize("pos_init", [0.03, 0.0])
@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("n_branches", [1, 3])
def test_cached_logits_equal_uncached_ones(n_branches, chunk, pos_init):
    """For a batch, for branches of one context with actions of their own, for several tokens in one call."""
    model = build(pos_init=pos_init).eval()
    tokens, actions, _ = clip(2 * n_branches)
    tokens[:, : LAYOUT.prompt] = tokens[::n_branches, : LAYOUT.prompt].repeat_interleave(n_branches, 0)
    first = LAYOUT.context_codes
    with torch.no_grad():
        full = model(tokens, actions)[:, LAYOUT.prompt - 1 :, first : first + LAYOUT.dynamics_codes]
        cached = cached_logits(model, tokens, actions, n_branches, chunk)
    assert full.abs().max() > 1 and torch.allclose(cached, full, atol=1e-5)


def test_positions_start_with_where_a_token_and_the_next_one_lie():
    layout = TokenLayout(1, 16, 16, 8, 8)
    model = new_gpt(layout, {**tiny.TRANSFORMER, "n_layer": 1, "segment_length": 2})
    own, following = model.pos_emb.detach().chunk(2, 1)
    assert torch.equal(following[:-1], own[1:]) and not following[-1].any()  # a slot, which lies nowhere
    first = layout.prompt  # after the slot: as many tokens in a future frame as in the context's, here
    assert torch.equal(own[first:], own[:16]) and len(own[:16].unique(dim=0)) == 16


def test_all_future_frames_have_the_same_position_embeddings():
    model, first, n = build(), LAYOUT.prompt - 1, LAYOUT.tokens_future
    assert torch.equal(model.place[: first + n + 1], torch.arange(len(model.pos_emb)))
    assert torch.equal(model.place[first:], model.place[first : first + n + 1].repeat(T - 2))


def test_no_position_sees_a_later_one():
    model, (tokens, actions, _) = build().eval(), clip(1)
    logits = model(tokens, actions)
    for position in (0, 10, LAYOUT.prompt, 30):
        changed = tokens.clone()
        changed[0, position] = (tokens[0, position] + 1) % LAYOUT.context_codes
        differs = (model(changed, actions) - logits).abs().amax(-1)[0] > 1e-6
        assert not differs[:position].any() and differs[position:].all()


def test_sequences_may_end_in_the_middle_of_a_frame_but_not_be_longer_than_a_segment():
    tokens, actions, _ = clip(frames=T + 1)
    model, longer = build(), build(segment_length=T + 1)
    whole = longer(tokens, actions)
    with pytest.raises(ValueError, match="44 tokens; the segment has 39: take a new context"):
        model(tokens, actions)
    torch.testing.assert_close(model(tokens[:, :-5], actions[:, :T]), whole[:, :-5])
    torch.testing.assert_close(model(tokens[:, :-8], actions[:, :T]), whole[:, :-8])
    torch.testing.assert_close(model(tokens[:, :7], actions[:, :2]), whole[:, :7])


@pytest.mark.parametrize("n_branches", [1, 3])
def test_nothing_of_a_spoiled_frame_stays_in_memory_that_is_used_again(n_branches):
    model, (tokens, actions, _) = build().eval(), clip(2)
    prompt, actions = LAYOUT.pack(LAYOUT.unpack(tokens)[0]), actions[:, 1:2].repeat_interleave(n_branches, 0)
    cache = model.prefill(prompt, n_branches=n_branches)
    spoiled = model.imagine(cache, 1, actions * float("nan"))
    assert spoiled[1].isnan().all()
    assert model.prefill(prompt, n_branches=n_branches, reuse=cache) is cache
    for layer in cache.layers:
        assert layer.shared.isfinite().all()
        assert layer.keys.isfinite().all() and layer.values.isfinite().all()


def test_a_full_cache_is_refused_with_the_remedy():
    model = build(action_dim=0).eval()
    prompt = LAYOUT.pack(LAYOUT.unpack(clip()[0])[0])
    cache = model.prefill(prompt)
    for _ in range(T - 2):
        model.imagine(cache)
    with pytest.raises(ValueError, match="take a new context"):
        model.imagine(cache)
    with pytest.raises(ValueError, match="take a new context"):
        model.imagine(model.prefill(prompt), T - 1)
    with pytest.raises(ValueError, match="take a new context"):
        model.prefill(prompt, room=T - 1)


# ---- loss ----


def test_the_loss_is_cross_entropy_of_future_tokens_plus_the_error_of_symlog_rewards():
    model, (tokens, actions, rewards) = build().eval(), clip()
    loss, metrics = model.loss(tokens, actions, rewards)
    labels = tokens.clone()
    labels[:, : LAYOUT.prompt] = -100  # the context and the first slot; later slots are predicted
    logits = model(tokens, actions)
    ce = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert (labels != -100).sum(1).tolist() == [5 * (T - 2) - 1] * 2
    h = model.hidden(tokens, actions)
    predicted = torch.stack([model.reward(h[:, end])[:, 0] for end in (23, 28, 33, 38)], 1)
    error = F.mse_loss(predicted, rewards[:, 2:].sign() * (rewards[:, 2:].abs() + 1).log())
    assert metrics["ce"].item() == pytest.approx(ce.item(), rel=1e-5)
    assert metrics["reward_mse"].item() == pytest.approx(error.item(), rel=1e-5)
    assert loss.item() == pytest.approx((ce + error).item(), rel=1e-5)
    hits = logits[:, :-1].argmax(-1) == labels[:, 1:]
    assert metrics["accuracy"].item() == pytest.approx(hits.sum().item() / (labels != -100).sum().item())


def test_a_reward_head_needs_rewards():
    with pytest.raises(ValueError, match="has a reward head but the data has no rewards: --rewards false"):
        build().loss(*clip()[:2])


def test_every_parameter_gets_a_gradient():
    model = build()
    model.loss(*clip())[0].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_one_batch_is_overfitted():
    model, batch = build(), clip()
    optimizer = torch.optim.AdamW(model.param_groups(0.01), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss, metrics = model.loss(*batch)
        loss.backward()
        optimizer.step()
    assert metrics["ce"] < 0.2 and metrics["reward_mse"] < 0.05


def test_attention_dropout_is_on_in_training_alone():
    model, batch = build(att_dropout=0.5), clip()
    assert model.train().loss(*batch)[0] != model.loss(*batch)[0]
    assert model.eval().loss(*batch)[0] == model.loss(*batch)[0]


def test_param_groups_hold_every_parameter_once_and_decay_matrices_alone():
    model = build()
    decayed, others = model.param_groups(0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    held = [names[id(p)] for group in (decayed, others) for p in group["params"]]
    assert sorted(held) == sorted(names.values())
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0)
    plain = {names[id(p)] for p in others["params"]}
    assert {"embed.weight", "norm.weight", "action.bias", "reward.bias"} <= plain
    assert not plain & {"lm_head.weight", "action.weight", "reward.weight", "blocks.0.qkv.weight"}


# ---- actions ----


def test_an_action_enters_at_the_slot_of_the_frame_that_it_leads_to():
    model, (tokens, actions, _) = build().eval(), clip(1)
    logits = model(tokens, actions)
    for k in range(T):
        changed = actions.clone()
        changed[:, k] += 1
        differs = ((model(tokens, changed) - logits).abs().amax(-1)[0] > 1e-6).tolist()
        frame = k + 1  # of the segment; the first future frame is frame 2
        start = 19 + 5 * (frame - 2) if 2 <= frame < T else len(differs)  # those lead to no future frame
        assert differs == [False] * start + [True] * (len(differs) - start)


def test_a_new_action_projection_changes_nothing():
    torch.manual_seed(0)
    plain, (tokens, actions, _) = new_gpt(LAYOUT, SETTINGS), clip()
    acting = gpt_from(plain.checkpoint(), action_dim=3)
    assert torch.equal(plain.eval()(tokens), acting.eval()(tokens, actions))
    acting.train().loss(tokens, actions, torch.zeros(2, T))[0].backward()
    assert acting.action.weight.grad.abs().sum() > 0  # and yet it learns


def test_actions_must_fit_the_model():
    model, (tokens, actions, _) = build(), clip()
    with pytest.raises(ValueError, match=r"actions are \(2, 6, 2\); expected \(2, 6, 3\)"):
        model(tokens, actions[..., :2])
    with pytest.raises(ValueError, match=r"actions are \(2, 5, 3\); expected \(2, 6, 3\)"):
        model(tokens, actions[:, :5])
    with pytest.raises(ValueError, match=r"actions are none; expected \(2, 6, 3\)"):
        model(tokens)
    with pytest.raises(ValueError, match="expected none: no action_dim"):
        build(action_dim=0)(tokens, actions)


# ---- imagination ----


def test_greedy_sampling_takes_the_likeliest_and_top_k_no_other_than_the_k_likeliest():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).repeat(500, 1)
    g = torch.Generator().manual_seed(0)

    def sample(top_k, temperature):
        return sample_code(logits, torch.empty(500, top_k).exponential_(generator=g), temperature)

    assert sample_code(logits).tolist() == [1] * 500
    assert sample(2, 1.0).unique().tolist() == [1, 2]
    assert sample(4, 1.0).unique().tolist() == [0, 1, 2, 3]
    for temperature in (0.5, 1.0, 2.0):
        share = (sample(2, temperature) == 1).float().mean().item()
        assert share == pytest.approx(1 / (1 + math.exp(-1 / temperature)), abs=0.07)


def test_what_is_imagined_is_a_function_of_the_generator_and_holds_dynamics_codes_alone():
    model, (tokens, actions, _) = build().eval(), clip()
    model.lm_head.weight.data[: LAYOUT.context_codes] = 100.0  # context codes would win, were they drawn

    def roll(seed, **how):
        return imagine(model, tokens, actions, generator=torch.Generator().manual_seed(seed), **how)

    codes, rewards = roll(0)
    assert codes.shape == (2, T - 2, 4) and rewards.shape == (2, T - 2)
    assert 0 <= codes.min() and codes.max() < LAYOUT.dynamics_codes
    assert torch.equal(roll(0)[0], codes) and not torch.equal(roll(1)[0], codes)
    assert torch.equal(roll(0, temperature=0)[0], roll(1, temperature=0)[0])
    assert roll(0, frames=1)[0].shape == (2, 1, 4)


@pytest.mark.parametrize("pos_init", [0.03, 0.0])
def test_greedy_frames_equal_repeated_full_passes_without_a_cache(pos_init):
    model, (tokens, actions, _) = build(pos_init=pos_init).eval(), clip()
    context, dynamics = LAYOUT.unpack(tokens)
    codes, rewards = imagine(model, tokens, actions, temperature=0)
    dynamics, first = torch.zeros_like(dynamics), LAYOUT.context_codes
    with torch.no_grad():
        for i, slot in enumerate(range(*LAYOUT.slots(T - 2).indices(LAYOUT.length(T)))):
            for j in range(LAYOUT.tokens_future):
                logits = model(LAYOUT.pack(context, dynamics), actions)[:, slot + j]
                dynamics[:, i, j] = logits[:, first : first + LAYOUT.dynamics_codes].argmax(-1)
        h = model.hidden(LAYOUT.pack(context, dynamics), actions)
    assert torch.equal(codes, dynamics)
    assert torch.allclose(rewards, model.rewards(h[:, LAYOUT.ends(T - 2)]), atol=1e-5)


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("B, n_branches", [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_a_draft_changes_nothing_but_the_number_of_passes(monkeypatch, temperature, B, n_branches):
    """Of four codes: all right; the second one wrong in a future; all wrong; one guess at a time."""
    model, (tokens, actions, _) = build().eval(), clip(B)
    context = LAYOUT.pack(LAYOUT.unpack(tokens)[0])
    actions = actions[:, 1:].repeat_interleave(n_branches, 0)
    reads = []
    step = model.step

    def counted(cache, tokens, *how):
        reads.append(tokens.shape[1])
        return step(cache, tokens, *how)

    def dream(guesses, newest=None):
        monkeypatch.setattr(draft, "window", lambda M: guesses)
        cache = model.prefill(context, n_branches=n_branches)
        cache.newest = newest
        how = dict(temperature=temperature, top_k=5, generator=torch.Generator().manual_seed(0))
        return *model.imagine(cache, 2, actions, one_frame=draft.imagine_frame, **how), cache

    codes, rewards, cache = dream(0)
    half = codes[:, 0].clone()
    half[-1, 1] = (half[-1, 1] + 1) % 12
    monkeypatch.setattr(model, "step", counted)
    for newest, guesses, first_frame in (
        (codes[:, 0], 3, [5]), (half, 16, [5, 4]), ((codes[:, 0] + 1) % 12, 16, [5, 4, 4, 4]),
        (codes[:, 0], 1, [3, 2]), (None, 16, [2, 1, 1, 1]),
    ):  # fmt: skip
        reads.clear()
        drafted, estimates, other = dream(guesses, newest)
        assert reads[: len(first_frame)] == first_frame
        assert torch.equal(drafted, codes) and torch.allclose(estimates, rewards, atol=1e-5)
        assert other.length == cache.length and torch.equal(other.pending, cache.pending)


def test_the_plain_way_imagines_the_same_frames():
    model, (tokens, actions, _) = build().eval(), clip()
    codes, _ = imagine(model, tokens, actions, temperature=0)
    context, _ = LAYOUT.unpack(tokens)
    for i in range(T - 2):
        before = LAYOUT.pack(context, codes[:, :i])[:, : LAYOUT.length(2 + i)]
        assert torch.equal(model.imagine_plainly(before, actions[:, : 3 + i]), codes[:, i])


@pytest.mark.parametrize("n_branches", [1, 3])
def test_future_frames_that_are_read_go_on_as_imagined_ones_do(n_branches):
    model, (tokens, actions, _) = build().eval(), clip()
    codes, rewards = imagine(model, tokens, actions, temperature=0)
    prompt = LAYOUT.pack(LAYOUT.unpack(tokens)[0], codes[:, :2])
    cache = model.prefill(prompt, actions[:, :4], n_branches)
    others = actions[:, 3:].repeat_interleave(n_branches, 0)
    found = model.imagine(cache, 2, others, temperature=0)
    assert torch.equal(found[0], codes[:, 2:].repeat_interleave(n_branches, 0))
    assert torch.allclose(found[1], rewards[:, 2:].repeat_interleave(n_branches, 0), atol=1e-5)


def test_branches_of_one_context_equal_separate_contexts():
    model, (tokens, _, _) = build().eval(), clip()
    _, actions, _ = clip(6, seed=5)
    codes, rewards = imagine(model, tokens, actions, n_branches=3, temperature=0)
    apart = imagine(model, tokens.repeat_interleave(3, 0), actions, temperature=0)
    assert torch.equal(codes, apart[0]) and torch.allclose(rewards, apart[1], atol=1e-5)


@pytest.mark.parametrize("n_branches", [1, 3])
def test_imagination_in_bfloat16_stays_near_that_in_float32(n_branches):
    model, (tokens, actions, _) = build().eval(), clip(3)
    tokens[:, : LAYOUT.prompt] = tokens[0, : LAYOUT.prompt]  # one context

    def logits(model):
        with torch.no_grad():
            return cached_logits(model, tokens, actions, n_branches, 2).float()

    exact = logits(model)
    assert (logits(model.bfloat16()) - exact).abs().max() < 0.05 * exact.abs().max()
    codes, rewards = imagine(model, tokens[::n_branches], actions, n_branches)
    assert codes.shape == LAYOUT.unpack(tokens)[1].shape and rewards.dtype == torch.float32


def test_a_frame_costs_as_many_passes_as_it_has_tokens(monkeypatch):
    model, (tokens, actions, _) = build().eval(), clip()
    extend, passes = GPT.extend, []
    monkeypatch.setattr(GPT, "extend", lambda *args: passes.append(1) or extend(*args))
    imagine(model, tokens, actions)
    assert len(passes) == (T - 2) * LAYOUT.tokens_future + 1  # and one more for the last reward


@pytest.mark.parametrize("n_branches", [1, 3])
def test_a_compiled_step_extends_the_cache_as_a_plain_one_does(n_branches):
    model, (tokens, actions, _) = build().eval(), clip(3)
    tokens[:, : LAYOUT.prompt] = tokens[0, : LAYOUT.prompt]  # one context
    step = torch.compile(model.step, dynamic=False, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = cached_logits(model, tokens, actions, n_branches, 2)
        found = cached_logits(model, tokens, actions, n_branches, 2, step)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_caches_memory_serves_the_next_context_of_the_same_shape():
    model, (tokens, actions, _) = build().eval(), clip()
    first, second = LAYOUT.pack(LAYOUT.unpack(tokens)[0]).split(1)
    old = model.prefill(first)
    expected = model.imagine(model.prefill(second), 1, actions[1:, 1:2], temperature=0)[0]
    model.imagine(old, T - 2, actions[:1, 1:])
    new = model.prefill(second, reuse=old)
    assert new is old
    assert torch.equal(model.imagine(new, 1, actions[1:, 1:2], temperature=0)[0], expected)
    assert model.prefill(second, n_branches=2, reuse=old) is not old


def test_a_model_without_rewards_imagines_none():
    model = build(action_dim=0, reward=False).eval()
    assert imagine(model, clip()[0])[1] is None


# ---- settings and checkpoints ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(depth=3), "settings missing or unknown: depth"),
        (dict(n_head=3), "n_embd is 32, n_head 3; expected a multiple of 2 n_head, sizes above 0"),
        (dict(n_mlp=0), "expected a multiple of 2 n_head, sizes above 0"),
        (dict(segment_length=2), "segment_length is 2; the context alone is 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_a_checkpoint_rebuilds_the_same_model_and_takes_another_segment_length():
    model, (tokens, actions, _) = build().eval(), clip()
    again = gpt_from(model.checkpoint()).eval()
    assert again.config == model.config and again.layout == LAYOUT
    assert torch.equal(again(tokens, actions), model(tokens, actions))
    longer = gpt_from(model.checkpoint(), segment_length=T + 2).eval()
    assert torch.equal(longer(tokens, actions), model(tokens, actions))


def test_fewer_context_frames_keep_the_position_embeddings_of_the_last():
    model = build()
    one = gpt_from(model.checkpoint(), TokenLayout(1, 9, 4, 20, 12))
    assert torch.equal(one.pos_emb, model.pos_emb[10:]) and one.pos_emb.shape == (9 + 1 + 4, 32)


def test_a_checkpoint_may_get_new_heads_but_its_other_weights_must_fit(capsys):
    state = build(action_dim=0, reward=False).checkpoint()
    model = gpt_from(state, action_dim=2, reward=True)
    assert not model.action.weight.any() and model.reward is not None
    with pytest.raises(ValueError, match="another shape: embed.weight, lm_head.weight"):
        gpt_from(state, TokenLayout(2, 9, 4, 20, 13))
    other = gpt_from(build().checkpoint(), action_dim=2, reward=False)  # other data than before
    assert not other.action.weight.any() and other.action.in_features == 2 and other.reward is None
    assert "action head: starts anew\nreward head: left out" in capsys.readouterr().out
    headless = {k: v for k, v in build().state_dict().items() if k != "reward.weight"}
    with pytest.raises(ValueError, match="another shape: reward.weight"):  # not new: it must be there
        gpt_from({**build().checkpoint(), "weights": headless})
    weights = {k: v for k, v in state["weights"].items() if k != "norm.weight"}
    with pytest.raises(ValueError, match="another shape: norm.weight"):
        gpt_from({**state, "weights": weights})


def test_blocks_without_a_cache_accept_any_length():
    block, rope = Block(8, 2, 16, 0.0), rope_table(7, 4)
    assert block(torch.randn(3, 7, 8), rope).shape == (3, 7, 8)
    assert set(gpt.SMALL) == set(gpt.MEDIUM) == set(tiny.TRANSFORMER) - {"pos_init"}
