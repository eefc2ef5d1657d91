"""The authors' checkpoints: outputs of their code, names and shapes, errors, the way there and back."""

import itertools
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import GPT_TUNE, ROOT, TOKENIZER_TUNE, train
from torch import nn

import common
import gpt
import official
import sample
import tokenizer
import train_gpt
import train_tokenizer
from checkpoints import load_gpt, load_tokenizer, new_gpt, new_tokenizer
from gpt import GPT
from sample import WorldModel
from support.segments import segments_for
from tokenizer import CrossAttention, Tokenizer, TokenLayout

safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
GOLDEN = ROOT.parent / "shared" / "golden"
KEYS = ROOT.parent / "shared" / "official_keys.txt"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no outputs of the authors' code at {GOLDEN}")
needs_keys = pytest.mark.skipif(not KEYS.is_file(), reason=f"no list of the authors' tensors at {KEYS}")
SMALL_TOKENIZER = {
    **tokenizer.SMALL, "channels": (32, 32, 64), "layers_per_block": 1, "code_dim": 4, "context_codes": 24,
    "dynamics_codes": 16,
}  # fmt: skip
SMALL_GPT = {**gpt.SMALL, "n_layer": 2, "n_head": 2, "n_embd": 16, "n_mlp": 24, "segment_length": 4}


@pytest.fixture(scope="module", params=["free-64", "act-64"])
def golden(request):
    """A world model from the authors' files, the outputs of their code, and actions or None."""
    folder = GOLDEN / request.param
    numbers = {k: torch.from_numpy(v) for k, v in np.load(folder / "golden.npz").items()}
    actions = numbers["actions"].float() if "actions" in numbers else None
    return WorldModel.load(str(folder), "cpu"), numbers, actions


@pytest.fixture
def folder(tmp_path):
    """Small random models with heads, in the authors' layout."""
    torch.manual_seed(0)
    tok = Tokenizer(**SMALL_TOKENIZER)
    model = GPT(tok.layout, **{**SMALL_GPT, "action_dim": 3, "reward": True})
    for p in itertools.chain(tok.parameters(), model.parameters()):
        p.data += 0.02 * torch.randn_like(p)
    official.export(tmp_path / "official", tok, model)
    return tmp_path / "official"


def file_of(folder, part):
    return next((folder / part).glob("*.safetensors"))


# ---- against the authors' code ----


@needs_golden
def test_tokens_frames_and_losses_are_those_of_the_authors(golden):
    model, numbers, _ = golden
    tok, frames = model.tokenizer, numbers["video_u8"].float() / 255
    with torch.no_grad():
        assert torch.equal(tok.encode(frames), numbers["tokens"])
        decoded, (_, metrics) = tok.decode(numbers["tokens"]), tok.loss(frames)
    assert (decoded - numbers["frames"].float()).abs().max() < 1e-3  # stored in half precision
    assert (decoded[..., ::7, ::5] - numbers["frames32_sample"]).abs().max() < 1e-4
    theirs = dict(vq="dyn_commit_loss", vq_context="commit_loss")
    theirs.update(recon="recon_l1", recon_context="ref_recon_l1")
    for ours, name in theirs.items():
        assert abs(metrics[ours] - numbers[name]) < 1e-5, ours


@needs_golden
def test_logits_loss_and_rewards_are_those_of_the_authors(golden):
    model, numbers, actions = golden
    net, tokens, layout = model.gpt, numbers["tokens"], model.gpt.layout
    f = (tokens.shape[1] - layout.prompt + 1) // (layout.tokens_future + 1)
    with torch.no_grad():
        logits, hidden = net(tokens, actions), net.hidden(tokens, actions)
        rewards = None if actions is None else torch.zeros(actions.shape[:2])
        ce = net.loss(tokens, actions, rewards)[1]["ce"]
    assert (logits[:, -numbers["logits"].shape[1] :] - numbers["logits"]).abs().max() < 1e-4
    assert (logits[:, numbers["logits_ctx_positions"]] - numbers["logits_ctx"]).abs().max() < 1e-4
    assert abs(ce - numbers["loss"]) < 1e-5
    if actions is not None:
        assert (net.reward(hidden[:, layout.ends(f)]) - numbers["reward_pred"]).abs().max() < 1e-4


@needs_golden
def test_greedy_continuations_are_those_of_the_authors(golden):
    model, numbers, actions = golden
    net, layout, theirs = model.gpt, model.gpt.layout, numbers["greedy"]
    tokens, slots = theirs[:, : layout.prompt], range(*layout.slots(3).indices(theirs.shape[1] + 1))
    with torch.no_grad():
        while tokens.shape[1] < theirs.shape[1]:  # the authors mask nothing; without actions, not even slots
            begun = sum(slot < tokens.shape[1] for slot in slots)
            new = net(tokens, actions if actions is None else actions[:, : 2 + begun])[:, -1:].argmax(-1)
            if actions is not None and tokens.shape[1] in slots:
                new.fill_(layout.future_slot)
            tokens = torch.cat([tokens, new], 1)
    assert torch.equal(tokens, theirs)


# ---- names and shapes ----


def listed(section):
    """Names and shapes of one section of the list; its patterns are written out."""
    found, inside = {}, False
    for line in KEYS.read_text().splitlines():
        if line.startswith("## "):
            inside = line.startswith(f"## {section}")
        elif inside and line.startswith("["):
            shape, rest = line.split("]", 1)
            name = rest.split(maxsplit=1)[1]
            name, _, pairs = name.partition("  for (i,j) in ")
            names = [name.strip()]
            if pairs:
                names = [names[0].replace(".i.", f".{i}.").replace(".j.", f".{j}.")
                         for i, j in re.findall(r"\((\d+),(\d+)\)", pairs)]  # fmt: skip
            for start, end in re.findall(r"\{(\d+)\.\.(\d+)\}", name):
                numbers = range(int(start), int(end) + 1)
                names = [n.replace(f"{{{start}..{end}}}", str(i), 1) for n in names for i in numbers]
            found.update((n, tuple(map(int, shape[1:].split(",")))) for n in names)
    return found


def shapes(own, pairs):
    """Names and shapes of the authors' tensors that pairs of names make of a state dict of ours."""
    found = {}
    for ours, theirs in pairs:
        rows = sum(len(own[k]) for k in ours) // len(theirs)
        found.update({k: (rows, *own[ours[0]].shape[1:]) for k in theirs})
    return found


@needs_keys
@pytest.mark.parametrize(
    ("settings", "section"), [(tokenizer.SMALL, "TOKENIZER 64"), (tokenizer.LARGE, "TOKENIZER 256")]
)
def test_the_tokenizers_tensors_are_the_authors(settings, section):
    with torch.device("meta"):
        model = Tokenizer(**settings)
    assert shapes(model.state_dict(), official.tokenizer_pairs(model)) == listed(section)


@needs_keys
@pytest.mark.parametrize(
    ("heads", "section"),
    [({}, "TRANSFORMER plain"), (dict(action_dim=4, reward=True), "TRANSFORMER action")],
)
def test_the_transformers_tensors_are_the_authors(heads, section):
    with torch.device("meta"):
        model = GPT(TokenLayout(2, 256, 16, 8192, 8192), **{**gpt.SMALL, **heads})
    assert shapes(model.state_dict(), official.gpt_pairs(model, bool(heads))) == listed(section)


# ---- other implementations ----


def test_the_exported_transformer_gives_the_same_logits_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    torch.manual_seed(0)
    model = GPT(TokenLayout(2, 9, 4, 20, 12), **SMALL_GPT).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    pairs = official.gpt_pairs(model, wrapped=False)
    official.write(tmp_path, "transformer", official.gpt_config(model), model, pairs)
    llama = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "transformer").eval()
    tokens = torch.randint(34, (2, model.layout.length(4)))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), llama(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", [4, 8])
def test_encoders_and_decoders_equal_diffusers(groups):
    vae = pytest.importorskip("diffusers.models.autoencoders.vae", reason="pip install diffusers")
    blocks = pytest.importorskip("diffusers.models.unets.unet_2d_blocks")
    torch.manual_seed(0)
    cfg = {**SMALL_TOKENIZER, "channels": (8, 8, 16), "norm_groups": groups}
    ours = Tokenizer(**cfg).eval()
    theirs_of = {t[0]: o[0] for o, t in official.tokenizer_pairs(ours) if len(o) == len(t) == 1}
    settings = dict(block_out_channels=cfg["channels"], layers_per_block=1, norm_num_groups=groups)
    n = len(cfg["channels"])
    settings["mid_block_add_attention"] = False
    down = vae.Encoder(3, 4, ["DownEncoderBlock2D"] * n, double_z=False, **settings)
    up = vae.Decoder(4, 3, ["UpDecoderBlock2D"] * n, **settings)
    mid = blocks.UNetMidBlock2D(16, None, attention_head_dim=16, resnet_groups=groups, resnet_eps=1e-6)
    own = ours.state_dict()
    for prefix, theirs in (("encoder.", down), ("decoder.", up)):
        theirs.load_state_dict({k: own[theirs_of[prefix + k]] for k in theirs.state_dict()})
    attention = {}
    for o, t in official.tokenizer_pairs(ours):
        if o[0].startswith("cond_encoder.mid_block."):
            attention.update(zip(t, torch.cat([own[k] for k in o]).chunk(len(t)), strict=True))
    mid.load_state_dict({k.removeprefix("cond_encoder.mid_block."): w for k, w in attention.items()})
    frames, z, x = torch.rand(2, 3, 64, 64), torch.randn(2, 4, 16, 16), torch.randn(2, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours.encoder(frames)[0], down.eval()(frames), atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.decoder(z)[0], up.eval()(z), atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.cond_encoder.mid_block(x), mid.eval()(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("t", [1, 2])
def test_cross_attention_equals_torchs_multi_head_attention(t):
    torch.manual_seed(0)
    C, size = 32, 4
    cfg = dict(norm_groups=32, n_head=4, dropout=0.0, context_frames=t)
    ours = CrossAttention(cfg, C, size).eval()
    for embedding in (ours.q_pos_emb, ours.kv_pos_emb):
        torch.nn.init.normal_(embedding, 0, 0.5)
    theirs = nn.MultiheadAttention(C, 4, batch_first=True).eval()
    own = ours.state_dict()
    theirs.load_state_dict({
        **{f"in_proj_{x}": torch.cat([own[f"q.{x}"], own[f"kv.{x}"]]) for x in ("weight", "bias")},
        **{f"out_proj.{x}": own[f"out.{x}"] for x in ("weight", "bias")},
    })  # fmt: skip
    x, context = torch.randn(2 * 3, C, size, size), torch.randn(2, t, C, size, size)  # 3 future frames each
    flat = context.transpose(1, 2).reshape(2, C, t * size, size).repeat_interleave(3, 0)
    q = ours.q_norm(x).flatten(2).mT + ours.q_pos_emb
    k = ours.kv_norm(flat).flatten(2).mT + ours.kv_pos_emb
    with torch.no_grad():
        expected = F.silu(x + theirs(q, k, k, need_weights=False)[0].mT.reshape(x.shape))
        torch.testing.assert_close(ours(x, *ours.keys_values(context)), expected, atol=1e-5, rtol=0)


# ---- there and back ----


FIVE_BLOCKS = dict(resolution=256, channels=(32, 32, 32, 32, 64), max_att_resolution=32, context_frames=1)


@pytest.mark.parametrize("sizes", [{}, FIVE_BLOCKS])
@pytest.mark.parametrize("heads", [{}, dict(action_dim=3), dict(action_dim=2, reward=True)])
def test_export_then_import_is_the_identity(tmp_path, heads, sizes):
    torch.manual_seed(0)
    tok = Tokenizer(**{**SMALL_TOKENIZER, **sizes})
    net = GPT(tok.layout, **{**SMALL_GPT, **heads})
    official.export(tmp_path, tok, net)
    again = WorldModel.load(str(tmp_path), "cpu")
    for model, copy in ((tok, again.tokenizer), (net, again.gpt)):
        own, copied = model.state_dict(), copy.state_dict()
        assert own.keys() == copied.keys()
        assert all(torch.equal(own[k], copied[k]) for k in own if not k.endswith("idle"))
    settled = {**net.config, "segment_length": 16}  # their files do not hold it
    assert again.gpt.config == settled and again.tokenizer.config == {**tok.config, "revive_after": 0}
    alone = load_gpt(tmp_path / "transformer", segment_length=4)
    assert alone.config == net.config and alone.layout == tok.layout


def test_the_command_line_exports_what_it_loads_again(tmp_path):
    tok = Tokenizer(**SMALL_TOKENIZER)
    trained = dict(sample.TRAINED)
    common.save_checkpoint(tmp_path / "gpt.pt", gpt=GPT(tok.layout, **SMALL_GPT).checkpoint(),
                           tokenizer=tok.checkpoint(), train_config=trained)  # fmt: skip
    run = dict(ckpt=tmp_path / "gpt.pt", device="cpu", export_official=tmp_path / "official")
    sample.main(common.configure(sample.CONFIG, "", [f"--{k}={v}" for k, v in run.items()]))
    run = dict(ckpt=tmp_path / "official", device="cpu", data="push", n=1, horizon=2, out=tmp_path / "out")
    sample.main(common.configure(sample.CONFIG, "", [f"--{k}={v}" for k, v in run.items()]))
    assert (tmp_path / "out" / "sheet.png").is_file()
    run.pop("data")
    with pytest.raises(ValueError, match="pass --data or --episode"):
        sample.main(common.configure(sample.CONFIG, "", [f"--{k}={v}" for k, v in run.items()]))


@pytest.mark.parametrize(("sizes", "pos_init", "reward", "message"), [
    (dict(patch=4, channels=(32, 32)), 0.0, False, "cannot run this tokenizer: tricks of tiny"),
    (dict(channels=(32, 32)), 0.0, False, r"norm_groups are \(32, 4, 4, 32\), theirs \(16, 4, 4, 32\)"),
    (dict(norm_groups=16), 0.0, False, r"norm_groups are \(16, 4, 4, 16\), theirs \(16, 4, 4, 32\)"),
    ({}, 0.1, False, "no learned position embeddings"),
    ({}, 0.0, True, "only beside an action projection"),
])  # fmt: skip
def test_what_the_authors_code_cannot_run_is_not_exported(tmp_path, sizes, pos_init, reward, message):
    tok = new_tokenizer({**SMALL_TOKENIZER, **sizes})
    model = new_gpt(tok.layout, {**SMALL_GPT, "pos_init": pos_init, "reward": reward})
    with pytest.raises(ValueError, match=message):
        official.export(tmp_path / "none", tok, model)
    per_frame = new_tokenizer(SMALL_TOKENIZER, "4x4")
    with pytest.raises(ValueError, match="cannot run this tokenizer: .* tokens per frame"):
        official.export(tmp_path / "none", per_frame, new_gpt(per_frame.layout, SMALL_GPT))
    assert not (tmp_path / "none").exists()


def test_what_is_loaded_is_ready_for_use_and_keeps_its_codes_in_training(folder):
    tok, model = load_tokenizer(folder), load_gpt(folder, segment_length=4)
    assert not tok.training and not model.training
    codes = tok.quantize.embedding.weight.clone()
    tok.train().loss(torch.rand(1, 3, 3, 64, 64))
    assert torch.equal(tok.quantize.embedding.weight, codes)


@pytest.mark.slow
def test_fine_tuning_changes_no_setting_that_was_not_given(folder, push64, tmp_path):
    config = json.loads((folder / "tokenizer" / "config.json").read_text())
    (folder / "tokenizer" / "config.json").write_text(json.dumps({**config, "context_length": 1}))
    file = file_of(folder, "tokenizer")
    weights = safetensors.load_file(file)
    half = {k: w[len(w) // 2 :] for k, w in weights.items() if k.endswith("kv_pos_emb")}
    safetensors.save_file({**weights, **half}, file)
    out = tmp_path / "x.pt"
    for given, frames, dropout in ({}, 1, 0.1), (dict(context_frames=2, dropout=0.2), 2, 0.2):
        settings = {**TOKENIZER_TUNE, **given, "overwrite": True}
        train(train_tokenizer, data=push64, out=out, init_from=folder, **settings)
        kept = load_tokenizer(out).config
        assert (kept["context_frames"], kept["dropout"]) == (frames, dropout)


def test_one_context_frame_of_two_keeps_the_last_frames_position_embeddings(folder):
    two, one = load_tokenizer(folder), load_tokenizer(folder, context_frames=1)
    a, b = (m.cond_encoder.cross["1"].kv_pos_emb for m in (two, one))
    assert len(a) == 2 * len(b) and torch.equal(a[len(b) :], b)
    model = WorldModel.load(str(folder), "cpu", context_frames=1)
    frames = torch.rand(1, 4, 3, 64, 64)
    assert model.gpt.layout.length(4) == 256 + 3 * 17 == model.tokenizer.encode(frames).shape[1]
    model.reset(frames[:, :1])
    assert model.rollout(torch.zeros(1, 2, 3), 2)[0].shape == (1, 2, 3, 64, 64)


def test_an_authors_goal_conditioned_model_is_shown_the_goal_first(folder):
    given = dict(segment_length=5, goal_conditioned=True)
    model = WorldModel.load(str(folder), "cpu", **given)
    batch = segments_for(model, "push", 1, 4, 0)
    goal = batch["frames"][:, -1]
    assert torch.equal(batch["frames"][:, 0], goal) and model.gpt.config["segment_length"] == 5
    model.reset(batch["frames"][:, :2])
    model.rollout(torch.zeros(1, 4, 3), 4)  # 3 frames, then a new context
    assert torch.equal(model.recent[:, 0], goal)


@pytest.mark.slow
def test_training_starts_from_the_authors_models(folder, push64, tmp_path):
    out = tmp_path / "tokenizer.pt"
    train(train_tokenizer, data=push64, out=out, init_from=folder, **TOKENIZER_TUNE)
    assert load_tokenizer(out).config["channels"] == (32, 32, 64)
    run = {**GPT_TUNE, "lr": 0.0, "segment_length": 5}
    shutil.rmtree(folder / "transformer")
    official.export(folder, load_tokenizer(out), GPT(load_tokenizer(out).layout, **SMALL_GPT))
    train(train_gpt, data=push64, out=tmp_path / "gpt.pt", init_from=folder, **run)
    model = load_gpt(tmp_path / "gpt.pt")
    assert model.config["action_dim"] == 2 and not model.action.weight.any()
    theirs = load_gpt(folder, segment_length=5).state_dict()
    assert all(torch.equal(model.state_dict()[k], w) for k, w in theirs.items())


# ---- errors ----


@pytest.mark.parametrize(("part", "name"), [
    ("transformer", "llm.model.layers.1.mlp.up_proj.weight"),
    ("tokenizer", "cond_decoder.up_blocks.0.resnets.1.conv2.weight"),
    ("tokenizer", "cond_encoder.cross_att_blocks.0.att.in_proj_weight"),
])  # fmt: skip
def test_a_tensor_that_is_missing_left_over_or_of_another_shape_is_named(folder, part, name):
    file = file_of(folder, part)
    good = safetensors.load_file(file)
    expected = re.escape(str(tuple(good[name].shape)))
    changed = [
        ({k: w for k, w in good.items() if k != name}, rf"{name} \(expected {expected}, found none"),
        ({**good, "extra.weight": torch.zeros(1)}, r"extra.weight \(left over\)"),
        ({**good, name: torch.zeros(3, 16)}, rf"{name} \(expected {expected}, found \(3, 16\)"),
    ]
    for weights, message in changed:
        safetensors.save_file(weights, file)
        with pytest.raises(ValueError, match=message):
            WorldModel.load(str(folder), "cpu")


def test_an_optional_tensor_that_no_script_of_the_authors_uses_is_passed_over(folder):
    file = file_of(folder, "transformer")
    unused = {"action_recon_linear.weight": torch.zeros(3, 16)}
    safetensors.save_file({**safetensors.load_file(file), **unused}, file)
    load_gpt(folder)


def test_either_parts_folder_leads_to_the_other(folder, monkeypatch):
    for path in (folder / "tokenizer", folder / "transformer"):
        assert load_tokenizer(path).layout == load_gpt(path).layout
    monkeypatch.chdir(folder / "transformer")
    assert load_gpt(".").layout == load_tokenizer(folder).layout


@pytest.mark.parametrize(("part", "change", "message"), [
    ("tokenizer", dict(act_fn="relu"), "act_fn is relu; only silu is supported"),
    ("tokenizer", dict(latent_channels=None), "lacks latent_channels"),
    ("tokenizer", dict(vq_embed_dim=5), "vq_embed_dim other than latent_channels"),
    ("tokenizer", dict(patch_size=0), "patch_size is 0; expected numbers above 0"),
    ("transformer", dict(num_key_value_heads=1), "num_key_value_heads is 1; only 2 is supported"),
    ("transformer", dict(rope_theta=5e5), "rope_theta is 500000.0; only 10000.0"),
    ("transformer", dict(hidden_size="16"), "hidden_size is 16; expected numbers above 0"),
])  # fmt: skip
def test_settings_that_are_missing_or_not_supported_are_named(folder, part, change, message):
    path = folder / part / "config.json"
    config = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None or k == "vq_embed_dim"}))
    with pytest.raises(ValueError, match=message):
        WorldModel.load(str(folder), "cpu")


def test_newer_files_keep_the_rotary_base_elsewhere_and_may_leave_heads_unsaid(folder):
    path = folder / "transformer" / "config.json"
    config = {**json.loads(path.read_text()), "num_key_value_heads": None}
    del config["rope_theta"]
    for theta, kind in ((10000.0, "default"), (5e5, "default"), (10000.0, "llama3")):
        path.write_text(json.dumps({**config, "rope_parameters": dict(rope_theta=theta, rope_type=kind)}))
        if (theta, kind) == (10000.0, "default"):
            load_gpt(folder)
        else:
            with pytest.raises(ValueError, match="rope_theta is 5|rope_type is llama3"):
                load_gpt(folder)


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected config.json and diff.*, the authors' tokenizer"):
        WorldModel.load(str(tmp_path), "cpu")
    file = file_of(folder, "tokenizer")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{file.name} is damaged"):
        load_tokenizer(folder)


def test_torchs_own_format_loads_too(folder):
    file = file_of(folder, "transformer")
    torch.save(safetensors.load_file(file), folder / "transformer" / "pytorch_model.bin")
    before = load_gpt(folder).state_dict()
    file.unlink()
    assert all(torch.equal(before[k], w) for k, w in load_gpt(folder).state_dict().items())


def test_a_hub_name_is_downloaded_or_the_remedy_is_said(folder, monkeypatch):
    class Hub:
        @staticmethod
        def snapshot_download(name, allow_patterns):
            assert name == "thuml/some-model"
            return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert WorldModel.load("thuml/some-model", "cpu").action_dim == 3

    def offline(name, allow_patterns):
        raise OSError("no route to host")

    monkeypatch.setattr(Hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="no route to host.*get tokenizer/ and .* from https"):
        WorldModel.load("thuml/some-model", "cpu")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="pip install huggingface_hub"):
        WorldModel.load("thuml/some-model", "cpu")
    with pytest.raises(FileNotFoundError, match="no checkpoint at out/none.pt"):
        WorldModel.load("out/none.pt", "cpu")
