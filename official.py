"""official.py: the authors' checkpoints, read and written (https://huggingface.co/thuml).

    FOLDER/tokenizer/    config.json, diffusion_pytorch_model.safetensors   <-->  tokenizer.Tokenizer
    FOLDER/transformer/  config.json, model.safetensors                     <-->  gpt.GPT

Which tensors are the same is said by pairs (our names, their names): the tensors of each side, one below the
other, are one matrix. Nothing is left at random: a tensor that is missing, left over or of another shape is
an error that names it. The models themselves are in the other two files, whose from_official call
what is here; nothing here imports them.

Run: python sample.py --ckpt thuml/ivideogpt-oxe-64-act-free --data data/mine
     python sample.py --ckpt out/gpt.pt --export_official FOLDER"""

import itertools
import json
import os
import re
from pathlib import Path

import torch

from files import require_content

OXE_64, OXE_256 = "thuml/ivideogpt-oxe-64-act-free", "thuml/ivideogpt-oxe-256-act-free"  # to fine-tune
FILES = dict(tokenizer="diffusion_pytorch_model.safetensors", transformer="model.safetensors")

# Our settings and theirs; what a setting must be, because nothing else is built here; tensors' names.
TOKENIZER_SETTINGS = dict(
    resolution="resolution", channels="block_out_channels", layers_per_block="layers_per_block",
    code_dim="latent_channels", context_codes="num_vq_embeddings", dynamics_codes="num_dyn_embeddings",
    context_frames="context_length",
)  # fmt: skip
TOKENIZER_ONLY = dict(
    act_fn="silu", norm_type="group", mid_block_add_attention=False, in_channels=3, out_channels=3,
    norm_num_groups=32,  # their cross-attention has 32 whatever is set
)
TOKENIZER_NAMES = (  # patterns and what they become; see tokenizer_pairs
    (r"mid_block\.attention\.norm", r"mid_block.attentions.0.group_norm"),
    (r"mid_block\.attention\.out", r"mid_block.attentions.0.to_out.0"),
    (r"mid_block\.attention\.qkv", r"mid_block.attentions.0.to_q"),
    (r"(down|up)_blocks\.(\d+)\.conv\.", r"\1_blocks.\2.\1samplers.0.conv."),
    (r"cross\.(\d+)\.out", r"cross.\1.att.out_proj"),
    (r"cross\.(\d+)\.q\.", r"cross.\1.att.in_proj_"),
)
GPT_SETTINGS = dict(
    n_layer="num_hidden_layers", n_head="num_attention_heads", n_embd="hidden_size",
    n_mlp="intermediate_size",
)  # fmt: skip
GPT_ONLY = dict(
    hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000.0, rope_scaling=None, rope_type="default",
    attention_bias=False, mlp_bias=False, tie_word_embeddings=False,
)  # fmt: skip
GPT_NAMES = dict(
    embed=["model.embed_tokens"], norm=["model.norm"], lm_head=["lm_head"],
    norm1=["input_layernorm"], norm2=["post_attention_layernorm"], out=["self_attn.o_proj"],
    qkv=["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    gate_up=["mlp.gate_proj", "mlp.up_proj"], down=["mlp.down_proj"],
    action=["action_linear"], reward=["reward_linear"],
)  # fmt: skip


# ---- files ----


def find(path):
    """The folder of the authors' layout that `path` means, downloaded if it is a hub name; else None.

    raises  FileNotFoundError if it cannot be downloaded"""
    path = Path(path)
    if path.is_dir():
        return path
    if path.exists() or path.suffix == ".pt" or path.parent.is_dir() or len(path.parts) != 2:
        return None
    fix = f"get tokenizer/ and transformer/ from https://huggingface.co/{path} and pass their folder"
    try:
        import huggingface_hub

        return Path(huggingface_hub.snapshot_download(str(path), allow_patterns=["tok*/*", "transf*/*"]))
    except ImportError:
        raise FileNotFoundError(f"no {path} here; pip install huggingface_hub, or {fix}") from None
    except Exception as error:  # of the network, of the hub, of the disk
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"no {path} here, and the download failed ({reason}); {fix}") from None


def read_file(file):
    """A dict from a .json, .bin or .safetensors file.   raises ValueError naming it if it is damaged"""
    require_content(file)
    try:
        if file.suffix == ".json":
            return json.loads(file.read_text())
        if file.suffix == ".bin":
            return torch.load(file, map_location="cpu", weights_only=True)
        from safetensors.torch import load_file

        return load_file(file)
    except ImportError:
        raise ImportError(f"{file}: pip install safetensors to read it") from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # json, pickle, zip and safetensors each raise their own kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} is damaged ({reason}); download it again") from None


def read_config(path, part):
    """config.json (a dict) of "tokenizer" or "transformer", and the folder that it lies in.

    path    that folder, the other part's, the one that holds both, or a hub name
    raises  FileNotFoundError or ValueError naming the file that is missing or damaged"""
    folder = find(path) or Path(path)
    if folder.absolute().name in FILES:
        folder = folder.absolute().parent
    folder = folder / part if (folder / part).is_dir() else folder
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: expected config.json and {FILES[part]}, the authors' {part}")
    return read_file(folder / "config.json"), folder


def read_tensors(folder, part):
    """All tensors of the folder that read_config returned; a file that was split into parts is joined."""
    names, files = ("diffusion_pytorch_model", "model", "pytorch_model"), []
    for name, end in itertools.product(names, ("safetensors", "bin")):
        files = files or sorted(folder.glob(f"{name}.{end}")) or sorted(folder.glob(f"{name}-*-of-*.{end}"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected {FILES[part]}, the authors' {part}")
    return {k: w for file in files for k, w in read_file(file).items()}


def settings(config, names, only, folder):
    """Our settings from the authors' config; `names` maps ours to theirs, `only` is all that we can do.

    raises  ValueError naming what is missing or not to be had here"""
    if missing := [k for k in names.values() if config.get(k) is None]:
        raise ValueError(f"{folder}/config.json lacks {', '.join(missing)}")
    for key, value in only.items():
        if config.get(key) not in (None, value):
            raise ValueError(f"{folder}/config.json: {key} is {config[key]}; only {value} is supported")
    ours = {k: config[theirs] for k, theirs in names.items()}
    numbers = [x for v in ours.values() for x in (v if isinstance(v, list) else [v])]
    if not numbers or not all(isinstance(x, int) and x > 0 for x in numbers):
        raise ValueError(f"{folder}/config.json: expected whole numbers above 0, got {ours}")
    return ours


def shapes(own, pairs):
    """Shapes of the authors' tensors, a dict, that our tensors `own` are by these pairs."""
    found = {}
    for ours, theirs in pairs:
        rows = sum(len(own[k]) for k in ours) // len(theirs)
        found.update({k: (rows, *own[ours[0]].shape[1:]) for k in theirs})
    return found


def fill(model, weights, pairs, folder):
    """Fill a model from the authors' tensors.   raises ValueError naming tensors that do not fit"""
    own = model.state_dict()
    expected = shapes(own, pairs)
    found = {k: tuple(w.shape) for k, w in weights.items()}
    if wrong := sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)):
        told = [f"{k} (expected {expected.get(k, 'none')}, found {found.get(k, 'none')})" for k in wrong[:6]]
        raise ValueError(f"{folder}: {len(wrong)} tensors do not fit its config.json: {', '.join(told)}")
    for ours, theirs in pairs:
        joined = torch.cat([weights[k].float() for k in theirs])
        own.update(zip(ours, joined.split([len(own[k]) for k in ours]), strict=True))
    model.load_state_dict(own)


def write(folder, part, config, model, pairs):
    """Write a model's config.json and tensors into FOLDER/part, each under a temporary name first."""
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ImportError("pip install safetensors to write the authors' layout") from None
    own, weights, folder = model.state_dict(), {}, Path(folder) / part
    for ours, theirs in pairs:
        parts = torch.cat([own[k] for k in ours]).chunk(len(theirs))
        weights.update((k, w.float().cpu().contiguous().clone()) for k, w in zip(theirs, parts, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "tensors.partial", metadata={"format": "pt"})
    (folder / "config.partial").write_text(json.dumps(config, indent=2) + "\n")
    os.replace(folder / "tensors.partial", folder / FILES[part])
    os.replace(folder / "config.partial", folder / "config.json")


# ---- the tokenizer ----


def tokenizer_settings(config, folder):
    """Our settings from the authors' config.json; those that it does not have are left out."""
    cfg = settings(config, {**TOKENIZER_SETTINGS, "patch_size": "patch_size"}, TOKENIZER_ONLY, folder)
    if config.get("vq_embed_dim") not in (None, cfg["code_dim"]):
        raise ValueError(f"{folder}/config.json: vq_embed_dim other than latent_channels is not supported")
    grid = cfg["resolution"] // 2 ** (len(cfg["channels"]) - 1)
    cfg["dynamics_grid"] = grid // cfg.pop("patch_size")
    # Their codebooks are trained: nothing is revived.
    return {**cfg, "max_att_resolution": config.get("max_att_resolution") or 32, "revive_after": 0}


def tokenizer_config(model):
    """The authors' config.json for a tokenizer.   raises ValueError where their code cannot run it"""
    cfg = model.config
    fixed = dict(patch=1, n_head=4, norm_groups=32)
    wrong = [f"{k} = {cfg[k]} (theirs: {v})" for k, v in fixed.items() if cfg[k] != v]
    if (model.grid, cfg["dynamics_grid"]) != (16, 4):
        wrong.append(f"{model.grid}^2 and {cfg['dynamics_grid']}^2 tokens a frame (theirs: 16^2 and 4^2)")
    if wrong:
        raise ValueError(f"the authors' code cannot run this tokenizer: {', '.join(wrong)}")
    n = len(cfg["channels"])
    config = {theirs: cfg[ours] for ours, theirs in TOKENIZER_SETTINGS.items()} | TOKENIZER_ONLY
    config |= dict(_class_name="CompressiveVQModel", patch_size=model.side, vq_embed_dim=None)
    config |= dict(max_att_resolution=cfg["max_att_resolution"], lookup_from_codebook=True)
    return config | dict(down_block_types=["DownEncoderBlock2D"] * n, up_block_types=["UpDecoderBlock2D"] * n)


def tokenizer_pairs(model):
    """Names of a tokenizer's tensors, ours and theirs, as `fill` takes them."""
    pairs = []
    for ours in model.state_dict():
        if ours.endswith("idle") or re.search(r"cross\.\d+\.kv\.", ours):  # kv goes together with q
            continue
        theirs = ours
        for pattern, name in TOKENIZER_NAMES:
            theirs = re.sub(pattern, name, theirs)
        if ".cross." in theirs:  # numbered from 0 there, by the level they stand after here
            net, level = re.match(r"(\w+)\.cross\.(\d+)", theirs).groups()
            number = list(getattr(model, net).cross).index(level)
            theirs = theirs.replace(f"cross.{level}", f"cross_att_blocks.{number}")
        both = [ours, ours.replace(".q.", ".kv.")] if ".in_proj_" in theirs else [ours]
        three = [theirs.replace("to_q", f"to_{x}") for x in "qkv"] if ".to_q." in theirs else [theirs]
        pairs.append((both, three))
    return pairs


# ---- the transformer ----


def gpt_settings(config, weights, folder):
    """Our settings from the authors' config.json and, for the heads, their tensors."""
    config = {**(config.get("rope_parameters") or {}), **config}  # newer files keep rope_theta in there
    only = {**GPT_ONLY, "num_key_value_heads": config.get(GPT_SETTINGS["n_head"])}
    cfg = settings(config, GPT_SETTINGS, only, folder)
    cfg["att_dropout"] = config.get("attention_dropout") or 0.0
    if "action_linear.weight" in weights:
        cfg["action_dim"] = weights["action_linear.weight"].shape[-1]
    return {**cfg, "reward": "reward_linear.weight" in weights}


def gpt_config(model):
    """The authors' config.json for a transformer.   raises ValueError where their code cannot run it"""
    cfg, layout = model.config, model.layout
    if cfg["places"]:
        raise ValueError("the authors' transformer has no learned position embeddings: places is not 0")
    if cfg["reward"] and not cfg["action_dim"]:
        raise ValueError("the authors' transformer has a reward head only beside an action projection")
    config = {theirs: cfg[ours] for ours, theirs in GPT_SETTINGS.items()} | GPT_ONLY
    del config["rope_type"]
    config |= dict(architectures=["LlamaForCausalLM"], model_type="llama", num_key_value_heads=cfg["n_head"])
    config |= dict(vocab_size=layout.vocab_size, bos_token_id=50256, eos_token_id=50256)
    config |= dict(max_position_embeddings=max(1024, layout.length(cfg["segment_length"])))
    return config | dict(attention_dropout=cfg["att_dropout"])


def gpt_pairs(model, wrapped):
    """Names of a transformer's tensors, ours and theirs, as `fill` takes them; `wrapped` for actions."""
    pairs = []
    for ours in model.state_dict():
        *block, module, kind = ours.split(".")
        prefix = f"model.layers.{block[1]}." if block else ""
        prefix = prefix if module in ("action", "reward") or not wrapped else "llm." + prefix
        pairs.append(([ours], [f"{prefix}{name}.{kind}" for name in GPT_NAMES[module]]))
    return pairs


# ---- both ----


def export(folder, tokenizer, gpt):
    """Write tokenizer/ and transformer/ into FOLDER.

    raises  ValueError, before anything is written, where the authors have no such model (that of `tiny`)"""
    configs = tokenizer_config(tokenizer), gpt_config(gpt)
    write(folder, "tokenizer", configs[0], tokenizer, tokenizer_pairs(tokenizer))
    write(folder, "transformer", configs[1], gpt, gpt_pairs(gpt, wrapped=gpt.action is not None))
