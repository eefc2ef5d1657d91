"""tokenizer.py and its variants: token layout, conditional VQGAN, quantizers, loss and discriminator."""

import urllib.error

import pytest
import torch
import torch.nn.functional as F
from conftest import TOKENIZER

import tokenizer
from checkpoints import new_tokenizer, tokenizer_from
from support.codes import code_use
from support.networks import perceptual_loss
from tokenizer import (
    Discriminator,
    RevivingQuantizer,
    Stack,
    Tokenizer,
    TokenLayout,
    VectorQuantizer,
    patchify,
    unpatchify,
)
from variants import tiny
from variants.fsq import FiniteScalarQuantizer
from variants.per_frame import PerFrameTokenizer
from variants.tiny import TinyTokenizer

TWO_LEVELS = {**TOKENIZER, "patch": 2, "channels": (8, 16), "pos_init": 0.0}
FSQ = {**TOKENIZER, "fsq": True, "context_codes": 240, "dynamics_codes": 240}
PLAIN = {**tokenizer.SMALL, **TWO_LEVELS, "channels": (8, 8, 16), "n_head": 2}  # the paper's class, but small
PLAIN = {key: PLAIN[key] for key in tokenizer.SMALL}


def build(settings=TOKENIZER, seed=0, **changes):
    torch.manual_seed(seed)
    return new_tokenizer({**settings, **changes})


def pictures(B=2, T=4, R=32, seed=1):
    """Smooth coloured frames (B, T, 3, R, R) in [0, 1], all different."""
    coarse = torch.rand(B * T, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(R, R), mode="bilinear").unflatten(0, (B, T))


def n_parameters(make):
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


# ---- presets and layout ----


def test_presets_have_exactly_the_authors_number_of_parameters():
    assert n_parameters(lambda: Tokenizer(**tokenizer.SMALL)) == 114_159_174
    assert n_parameters(lambda: Tokenizer(**tokenizer.LARGE)) == 310_472_774
    assert n_parameters(lambda: TinyTokenizer(**tiny.TOKENIZER)) < 2_000_000
    assert n_parameters(Discriminator) == 1_551_489


def test_layout_gives_the_numbers_of_the_paper():
    layout = TokenLayout(2, 256, 16, 8192, 8192)
    assert (layout.context_slot, layout.future_slot, layout.vocab_size) == (16384, 16385, 16386)
    assert (layout.prompt, layout.length(2), layout.length(16), layout.length(12)) == (514, 513, 751, 683)
    assert TokenLayout(1, 256, 16, 8192, 8192).length(16) == 511
    positions = torch.arange(layout.length(5))
    assert positions[layout.slots(3)].tolist() == [513, 530, 547]
    assert positions[layout.ends(3)].tolist() == [529, 546, 563]


def test_layout_packs_by_hand_computed_ids_and_unpacks_again():
    layout = TokenLayout(2, 2, 1, 10, 5)
    context, dynamics = torch.tensor([[[1, 2], [3, 4]]]), torch.tensor([[[0], [4]]])
    tokens = layout.pack(context, dynamics)
    assert tokens.tolist() == [[1, 2, 15, 3, 4, 16, 10, 16, 14]] and layout.length(4) == 9
    assert all(map(torch.equal, layout.unpack(tokens), (context, dynamics)))
    assert layout.unpack(tokens[:, :5])[1].shape == (1, 0, 1)  # a context alone


def test_unpack_refuses_wrong_lengths_and_ids_that_do_not_belong():
    layout = TokenLayout(2, 2, 1, 10, 5)
    tokens = torch.tensor([[1, 2, 15, 3, 4, 16, 10, 16, 14]])
    for length in (4, 6, 8):
        with pytest.raises(ValueError, match=f"{length} tokens; expected 5"):
            layout.unpack(tokens[:, :length])
    for position, token, message in (
        (0, 10, r"codes 2\.\.10; expected 0\.\.9"),
        (6, 9, r"codes -1\.\.4; expected 0\.\.4"),
        (8, 15, r"codes 0\.\.5; expected 0\.\.4"),
    ):
        wrong = tokens.clone()
        wrong[0, position] = token
        with pytest.raises(ValueError, match=message):
            layout.unpack(wrong)


# ---- frames <-> tokens ----


@pytest.mark.parametrize("settings", [TOKENIZER, TWO_LEVELS, PLAIN])
def test_encode_and_decode_have_the_documented_shapes_and_ranges(settings):
    model, frames = build(settings).eval(), pictures(2, 5)
    tokens = model.encode(frames)
    assert model.layout == TokenLayout(2, 64, 16, 32, 32) and tokens.shape == (2, model.layout.length(5))
    context, dynamics = model.layout.unpack(tokens)  # it checks that ids are in range
    assert (context.shape, dynamics.shape) == ((2, 2, 64), (2, 3, 16))
    assert model.decode(tokens).shape == frames.shape
    alone = model.encode(frames[:, :2])
    assert torch.equal(alone, tokens[:, : model.layout.prompt - 1])
    assert model.decode(alone).shape == (2, 2, 3, 32, 32)


def test_decoding_context_and_future_apart_equals_decoding_at_once():
    model = build(TWO_LEVELS).eval()
    tokens = model.encode(pictures(2, 5))
    context, dynamics = model.layout.unpack(tokens)
    future = model.decode_future(dynamics, model.decode_context(context))
    assert torch.allclose(future, model.decode(tokens)[:, 2:], atol=1e-5)


def test_a_future_frames_tokens_do_not_depend_on_other_future_frames_but_on_the_context():
    model, frames = build(TWO_LEVELS).eval(), pictures(2, 5)
    layout = model.layout
    _, dynamics = layout.unpack(model.encode(frames))
    _, last = layout.unpack(model.encode(frames[:, [0, 1, 4]]))
    assert torch.equal(last[:, 0], dynamics[:, 2])
    _, elsewhere = layout.unpack(model.encode(torch.cat([frames[:, [3, 2]], frames[:, 2:]], 1)))
    assert not torch.equal(elsewhere, dynamics)


@pytest.mark.parametrize("grid", [2, 8])
def test_per_frame_tokens_say_all_there_is_to_a_frame(grid):
    model = PerFrameTokenizer(grid, **TOKENIZER).eval()
    frames = torch.rand(2, 5, 3, 32, 32)
    tokens = model.encode(frames)
    assert tokens.shape == (2, model.layout.length(5)) and model.layout.tokens_future == grid**2
    decoded = model.decode(tokens)
    assert decoded.shape == frames.shape
    moved = model.encode(frames.roll(1, 1))  # frame 4 becomes frame 0: other ids, the same codes
    assert torch.allclose(model.decode(moved), decoded.roll(1, 1), atol=1e-5)
    with pytest.raises(ValueError, match="grid is 3; expected a divisor of 8"):
        PerFrameTokenizer(3, **TOKENIZER)


def test_a_per_frame_tokenizers_loss_is_the_sum_of_its_parts():
    frames = pictures(2, 4)
    model = PerFrameTokenizer(4, **{**TOKENIZER, "l2": 2.0}).eval()
    loss, metrics = model.loss(frames)
    recon, _, vq = model.reconstruct(frames)
    expected = vq
    for part in (slice(2), slice(2, None)):
        x, y = recon[:, part], frames[:, part]
        expected = expected + (x - y).abs().mean() + 2 * F.mse_loss(x, y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert {"recon_context", "recon", "vq", "psnr", "ppl_frames", "used_frames"} <= set(metrics)


def test_patchify_orders_row_column_channel_and_is_undone():
    z = torch.arange(2 * 8 * 8 * 8).view(2, 8, 8, 8)
    patches = patchify(z, 2)
    assert patches.shape == (2, 16, 2 * 2 * 8) and torch.equal(unpatchify(patches, 2), z)
    for row, column, d in ((0, 0, 0), (0, 1, 3), (1, 0, 5), (1, 1, 7)):  # patch 6 is in row 1, column 2 of 4
        assert patches[1, 6, (2 * row + column) * 8 + d] == z[1, d, 2 + row, 4 + column]


def test_downsampling_pads_on_the_right_and_below_alone():
    down = Stack(1, 1, 0, 1, "down")
    torch.nn.init.ones_(down.conv.weight)
    torch.nn.init.zeros_(down.conv.bias)
    assert down(torch.ones(1, 1, 4, 4)).tolist() == [[[[9, 6], [6, 4]]]]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(2, 3, 32, 32), r"frames are \(2, 3, 32, 32\); expected \(B, T >= 2, 3, 32, 32\)"),
        (torch.zeros(1, 3, 3, 64, 64), r"frames are \(1, 3, 3, 64, 64\)"),
        (torch.zeros(1, 3, 32, 32, 3), r"frames are \(1, 3, 32, 32, 3\)"),
        (torch.zeros(1, 1, 3, 32, 32), r"frames are \(1, 1, 3, 32, 32\)"),
    ],
)
def test_frames_of_another_shape_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        build().encode(frames)


def test_the_loss_needs_a_future_frame():
    with pytest.raises(ValueError, match=r"expected \(B, T >= 3, 3, 32, 32\)"):
        build().loss(torch.zeros(1, 2, 3, 32, 32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(depth=3), "settings missing or unknown: depth"),
        (dict(resolution=40), "resolution is 10; expected a multiple of"),
        (dict(resolution=34), "resolution is 34; expected a multiple of patch = 4"),
        (dict(channels=(6,)), r"channels are \(6,\): no multiples of norm_groups and n_head"),
        (dict(code_dim=0), "code_dim is 0; expected at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
    with pytest.raises(ValueError, match="missing or unknown: code_dim"):
        build({k: v for k, v in TOKENIZER.items() if k != "code_dim"})


# ---- quantizer ----


def quantizer(codes, commitment=1.0, revive_after=0):
    codes = torch.tensor(codes)
    vq = RevivingQuantizer(*codes.shape, commitment, revive_after)
    vq.embedding.weight.data.copy_(codes)
    return vq


@pytest.mark.parametrize("kind", [VectorQuantizer, RevivingQuantizer])
def test_the_quantizer_finds_hand_computed_codes_and_loss(kind):
    codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    vq = VectorQuantizer(3, 2, 0.25) if kind is VectorQuantizer else RevivingQuantizer(3, 2, 0.25, 0)
    vq.embedding.weight.data.copy_(codes)
    zq, ids, loss = vq(torch.tensor([[[0.9, 0.1], [0.1, 1.5]]]))
    assert ids.tolist() == [[1, 2]] and torch.allclose(zq, torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
    assert loss.item() == pytest.approx(1.25 * (0.01 + 0.01 + 0.01 + 0.25) / 4)


def test_the_decoders_gradient_passes_straight_through():
    vq, z = quantizer([[0.0, 0.0], [1.0, 0.0]]), torch.randn(5, 2, requires_grad=True)
    upstream = torch.randn(5, 2)
    zq, _, _ = vq(z)
    zq.backward(upstream)
    assert torch.equal(z.grad, upstream) and vq.embedding.weight.grad is None


def test_codes_without_use_are_revived_until_all_are_used():
    torch.manual_seed(0)
    vq = RevivingQuantizer(16, 2, 1.0, revive_after=3)
    assert len(vq(torch.randn(4, 2))[1].unique()) > 1  # the first batch fills the codebook
    for _ in range(30):
        vq(torch.randn(256, 2))
    used = torch.cat([vq(torch.randn(256, 2))[1] for _ in range(3)]).unique()
    assert len(used) == 16


def test_revival_draws_what_the_codebook_lacks():
    torch.manual_seed(0)
    vq = quantizer([[0.0, 0.0], [9.0, 9.0], [9.0, 9.0], [9.0, 9.0]], revive_after=1)
    vq.idle.copy_(torch.tensor([0, 1, 1, 1]))
    vq.revive(torch.tensor([[0.0, 0.0]] * 50 + [[5.0, 0.0]]))
    assert vq.embedding.weight.tolist() == [[0, 0], [5, 0], [5, 0], [5, 0]]


def test_codes_are_never_revived_with_revive_after_0_or_in_evaluation():
    for vq in (quantizer([[0.0, 0.0], [9.0, 9.0]]), quantizer([[0.0, 0.0], [9.0, 9.0]], 1.0, 1).eval()):
        for _ in range(5):
            vq(torch.randn(8, 2))
        assert vq.embedding.weight.tolist() == [[0, 0], [9, 9]]


def test_code_use_is_perplexity_with_and_without_the_most_frequent_code_and_the_share_in_use():
    vq = quantizer([[0.0], [1.0], [2.0], [3.0]])
    _, ids, _ = vq(torch.tensor([[0.0]] * 4 + [[1.0], [1.1], [2.1], [2.0]]))
    use = code_use("some", ids, vq.idle)
    assert use["ppl_some"].item() == pytest.approx(2**1.5)  # odds 1/2, 1/4, 1/4
    assert use["ppl_some_others"].item() == pytest.approx(2, rel=1e-4) and use["used_some"].item() == 0.75


# ---- variants ----


def test_fsq_numbers_the_points_of_a_grid_and_finds_them_again():
    torch.manual_seed(0)
    fsq = FiniteScalarQuantizer(240, 4)
    fsq.inward.weight.data.mul_(10)
    zq, ids, loss = fsq(torch.randn(500, 4))
    assert 0 <= ids.min() and ids.max() < 240 and len(ids.unique()) > 50 and loss == 0
    torch.testing.assert_close(fsq.embedding(ids), zq)
    digits = torch.tensor([7.0, 0.0, 4.0])  # of 8, 6 and 5
    assert ((digits * fsq.place).sum()) == 7 + 0 * 8 + 4 * 48
    torch.testing.assert_close(fsq.vectors(digits), fsq.outward(torch.tensor([1.0, -1.0, 1.0])))


def test_fsq_passes_the_gradient_through_rounding_and_refuses_other_numbers_of_codes():
    torch.manual_seed(0)
    z = torch.randn(8, 4, requires_grad=True)
    FiniteScalarQuantizer(1000, 4)(z)[0].sum().backward()
    assert z.grad.abs().min() > 0
    with pytest.raises(ValueError, match="4096 codes; with fsq, expected .* of 240, 1000, 4375, 15360"):
        build(fsq=True, context_codes=4096)


def still_but_for_one_patch():
    """Frames of which the second future one differs from the context at row 9, column 31 alone: patch 7."""
    frames = pictures(1, 4)
    frames[:, 2:] = frames[:, 1:2]
    frames[:, 3, :, 9, 31] += 0.5
    frames[:, 2, :, ::2] += 0.2  # noise, which cancels out
    frames[:, 2, :, 1::2] -= 0.2
    return frames


def test_code_0_stands_where_nothing_has_changed_since_the_context():
    model, frames = build().eval(), still_but_for_one_patch()
    changed = ~model.unchanged(frames)
    assert changed.shape == (1, 2, 16) and changed.nonzero().tolist() == [[0, 1, 7]]
    dynamics = model.layout.unpack(model.encode(frames))[1]
    w = model.encode_future(frames[:, 2:], model.encode_context(frames[:, :2])[1])
    assert dynamics[changed].tolist() == model.dynamics_quantize.ids(w[changed]).tolist()
    assert not dynamics[~changed].any()
    wq, ids, loss = model.quantize_future(frames, model.encode_context(frames[:, :2])[1])
    assert torch.equal(ids, dynamics)
    torch.testing.assert_close(wq, model.dynamics_quantize.embedding(ids))
    assert loss.item() == pytest.approx(model.dynamics_quantize(w[changed])[2].item() / 32)


@pytest.mark.parametrize("still", [0.03, 0.0])
def test_codes_learn_to_draw_their_cells_by_themselves(still):
    torch.manual_seed(0)
    model, frames = build(cell_loss=1.0, still=still).train(), pictures(2, 5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    changed = ~model.unchanged(frames) if still else torch.ones(2, 3, 16, dtype=torch.bool)

    def errors():
        z, features = model.encode_context(frames[:, :2])
        of_context = model.loss_of_cells("context", model.quantize_context(frames, z)[0], frames[:, :2])
        wq, ids, _ = model.quantize_future(frames, features)
        alone = model.loss_of_cells("dynamics", wq, frames[:, 2:], changed)
        cells = model.cells["dynamics"](wq.flatten(0, 1)).view(2, 3, 4, 4, 8, 8, 3)
        drawn = cells.permute(0, 1, 6, 2, 4, 3, 5).reshape(2, 3, 3, 32, 32)
        expected = (drawn - frames[:, 2:]).square()
        if not still:
            torch.testing.assert_close(alone, expected.mean())
        return of_context.item(), alone.item()

    before = errors()
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(frames)[0].backward()
        optimizer.step()
    assert all(now < 0.7 * then for now, then in zip(errors(), before, strict=True))


def test_with_the_loss_of_cells_a_code_stays_while_its_cell_does():
    model, frames = build(cell_loss=1.0, still=0.0).eval(), pictures(1, 6)
    frames[:, 3:, :, :8] = frames[:, 2:3, :, :8]  # the upper row of cells
    frames[:, 4] = frames[:, 3]
    dynamics = model.layout.unpack(model.encode(frames))[1][0]
    assert torch.equal(dynamics[:, :4], dynamics[:1, :4].expand(4, 4))
    assert torch.equal(dynamics[2], dynamics[1])
    _, features = model.encode_context(frames[:, :2])
    whole = model.dynamics_quantize.ids(model.encode_future(frames[:, 2:], features))
    assert torch.equal(dynamics[[0, 1, 3], 4:], whole[0, [0, 1, 3], 4:])


def test_code_0_is_not_revived_and_a_batch_without_changes_can_be_learned_from():
    model, frames = build(revive_after=2).train(), still_but_for_one_patch()
    model.loss(frames)[0].backward()
    code = model.dynamics_quantize.embedding.weight[0].clone()
    for _ in range(4):
        model.loss(frames)
    assert torch.equal(model.dynamics_quantize.embedding.weight[0], code)
    frames[:, 3] = frames[:, 2]
    idle = model.dynamics_quantize.idle.clone()
    loss, _ = model.loss(frames)
    loss.backward()
    assert loss.isfinite()
    assert not torch.equal(model.dynamics_quantize.idle, idle)  # several processes count together, always


def test_recolouring_changes_the_colours_of_half_of_the_clips_and_neither_shapes_nor_range():
    torch.manual_seed(0)
    frames = pictures(40, 3)
    frames[:, 2] = frames[:, 1]
    other = tiny.recolour(frames)
    assert other.shape == frames.shape and 0 <= other.min() and other.max() <= 1
    changed = (other != frames).flatten(1).any(1)
    assert 10 < changed.sum() < 30 and torch.equal(other[:, 2], other[:, 1])
    for a, b in zip(frames[changed][:4], other[changed][:4], strict=True):  # channels are affine images
        old, new = (x.transpose(0, 1).flatten(1) for x in (a, b))
        similar = torch.corrcoef(torch.cat([old, new]))[:3, 3:].abs()
        torch.testing.assert_close(similar.amax(0), torch.ones(3))


def test_a_closed_gate_copies_the_last_context_frame_and_an_open_one_draws():
    model, frames = build().eval(), pictures(2, 5)
    past = model.decode(model.encode(frames[:, :2]))
    last = model.cond_decoder.conv_out
    first = 3 * model.config["patch"] ** 2  # of the channels that are the gate
    last.weight.data[first:] = 0
    last.bias.data[first:] = -50
    copied = model.decode(model.encode(frames))
    torch.testing.assert_close(copied[:, 2:], past[:, 1:2].expand(-1, 3, -1, -1, -1))
    last.bias.data[first:] = 50
    drawn = model.decode(model.encode(frames))
    last.bias.data[:first] += 1
    torch.testing.assert_close(model.decode(model.encode(frames))[:, 2:], drawn[:, 2:] + 1)


# ---- training ----


@pytest.mark.parametrize("settings", [TOKENIZER, TWO_LEVELS, PLAIN, FSQ])
def test_every_parameter_gets_a_gradient(settings):
    model = build(settings).train()
    model.loss(pictures(2, 4))[0].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_one_batch_is_overfitted():
    model, frames = build(l2=1.0), pictures(2, 4)
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(60):
        optimizer.zero_grad()
        loss, metrics = model.loss(frames)
        loss.backward()
        optimizer.step()
        losses.append((metrics["recon"] + metrics["recon_context"]).item())
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize(("settings", "l2"), [({**TOKENIZER, "l2": 2.0}, 2), (PLAIN, 0)])
def test_the_loss_is_the_sum_of_its_parts(settings, l2):
    model, frames = build(settings).eval(), pictures(2, 4)
    seen = []

    def lpips(x, y):
        seen.append((x.shape, y))
        return (x - y).square().mean((1, 2, 3), keepdim=True)

    loss, metrics = model.loss(frames, lpips)
    recon, (_, vq_context), (_, vq) = model.reconstruct(frames)
    expected = vq_context + vq
    for part in (slice(2), slice(2, None)):
        x, y = recon[:, part], frames[:, part]
        expected += (x - y).abs().mean() + l2 * F.mse_loss(x, y) + F.mse_loss(2 * x, 2 * y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert [tuple(shape) for shape, _ in seen] == [(4, 3, 32, 32)] * 2
    assert torch.allclose(seen[0][1], 2 * frames[:, :2].flatten(0, 1) - 1)  # LPIPS alone sees [-1, 1]
    parts = ("recon_context", "recon", "vq_context", "vq", "lpips_context", "lpips")
    assert sum(metrics[k] for k in parts).item() == pytest.approx(loss.item(), rel=1e-5)
    error = (recon[:, 2:].clamp(0, 1) - frames[:, 2:]).square().mean((2, 3, 4))
    assert metrics["psnr"].item() == pytest.approx(-10 * error.log10().mean().item(), abs=1e-3)
    assert not any(value.requires_grad for value in metrics.values())


def test_the_adversarial_loss_gives_finite_gradients_of_balanced_size():
    model, discriminator, frames = build(PLAIN), Discriminator((8, 16, 16, 16)), pictures(2, 4)
    plain, _ = model.loss(frames)
    loss, metrics = model.loss(frames, discriminator=discriminator)
    loss.backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g.isfinite().all() for g in grads) and "gen" in metrics and loss != plain
    recon = model.reconstruct(frames)[0]
    l1, gen = F.l1_loss(recon[:, 2:], frames[:, 2:]), -discriminator(recon.flatten(0, 1)).mean()
    layer = model.cond_decoder.conv_out.weight
    weight = tokenizer.adversarial_weight(l1, gen, layer)
    a, b = (torch.autograd.grad(x, layer, retain_graph=True)[0].norm() for x in (l1, weight * gen))
    assert a.item() == pytest.approx(b.item(), rel=1e-4)


def test_the_discriminators_hinge_loss_is_zero_beyond_the_margins_and_leaves_the_decoder_alone(monkeypatch):
    discriminator, real = Discriminator((8, 8)), pictures(1, 2)[0]
    fake = pictures(1, 2, seed=2)[0].requires_grad_()
    assert discriminator(real).shape == (2, 1, 8, 8)
    discriminator.loss(real, fake).backward()
    assert fake.grad is None and all(p.grad.isfinite().all() for p in discriminator.parameters())
    monkeypatch.setattr(Discriminator, "forward", lambda self, x: x.mean((1, 2, 3)))
    ones = torch.ones(1, 3, 4, 4)
    losses = [discriminator.loss(a * ones, b * ones).item() for a, b in ((2, -2), (0.25, 0.5), (-1, 1))]
    assert losses == pytest.approx([0, 0.75 + 1.5, 4])


def test_missing_vgg_weights_are_named_with_their_place(monkeypatch):
    lpips = pytest.importorskip("lpips", reason="pip install lpips")

    def offline(**settings):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(FileNotFoundError, match="checkpoints/vgg16-397923af.pth, or .* --lpips false"):
        perceptual_loss("cpu")


# ---- checkpoints ----


def test_a_checkpoint_rebuilds_the_same_model():
    model, frames = build(TWO_LEVELS).eval(), pictures()
    again = tokenizer_from(model.checkpoint()).eval()
    assert again.config == model.config and torch.equal(again.encode(frames), model.encode(frames))


@pytest.mark.parametrize(("new", "kept"), [(1, [2]), (2, [1, 2]), (3, [0, 1, 2]), (5, [0, 0, 0, 1, 2])])
def test_another_context_length_keeps_the_last_position_embeddings_and_repeats_the_first(new, kept, capsys):
    state = build(TWO_LEVELS, context_frames=3).checkpoint()
    old = {k: torch.randn_like(v) for k, v in state["weights"].items() if k.endswith("kv_pos_emb")}
    assert len(old) == 4
    state["weights"].update(old)
    model = tokenizer_from(state, context_frames=new).eval()
    for key, value in old.items():
        frames = value.unflatten(0, (3, -1))
        assert torch.equal(model.state_dict()[key], frames[kept].flatten(0, 1))
    assert model.encode(pictures(1, 6)).shape == (1, model.layout.length(6))
    assert ("fine-tune before trusting" in capsys.readouterr().out) == (new > 3)


def test_sinusoids_differ_at_every_place_and_match_only_themselves():
    pos = tiny.sinusoids(16, 8)
    assert pos.shape == (64, 16) and (pos @ pos.T).argmax(1).tolist() == list(range(64))
