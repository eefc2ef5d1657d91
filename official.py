"""official.py: the authors' checkpoints, read and written (https://huggingface.co/thuml).

    FOLDER/tokenizer/    config.json, diffusion_pytorch_model.safetensors   <-->  tokenizer.Tokenizer
    FOLDER/transformer/  config.json, model.safetensors                     <-->  gpt.GPT

Pairs (our names, their names) say which tensors are the same: those of each side, stacked, are one matrix.
Every tensor must be there, of the right shape, and no other: else an error names it.

Run: python sample.py --ckpt thuml/ivideogpt-oxe-64-act-free --data data/mine
     python sample.py --ckpt out/gpt.pt --export_official FOLDER"""

import itertools
import json
import re
from pathlib import Path

import torch

import gpt
import tokenizer
from gpt import GPT
from support.files import require_content, write_whole
from tokenizer import Tokenizer

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
    files = []
    names = "diffusion_pytorch_model", "model", "pytorch_model"
    for name, end in itertools.product(names, ("safetensors", "bin")):
        files = files or sorted(folder.glob(f"{name}.{end}")) or sorted(folder.glob(f"{name}-*-of-*.{end}"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected {FILES[part]}, the authors' {part}")
    tensors = {}
    for file in files:
        tensors.update(read_file(file))
    return tensors


def our_settings(config, names, only, folder):
    """Our settings from the authors' config; `names` maps ours to theirs, `only` has the supported values.

    raises  ValueError naming what is missing or not supported"""
    missing = [theirs for theirs in names.values() if config.get(theirs) is None]
    if missing:
        raise ValueError(f"{folder}/config.json lacks {', '.join(missing)}")
    for key, value in only.items():
        if config.get(key) not in (None, value):
            raise ValueError(f"{folder}/config.json: {key} is {config[key]}; only {value} is supported")
    settings = {ours: config[theirs] for ours, theirs in names.items()}
    for name, value in settings.items():
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{folder}/config.json: {names[name]} is {value}; expected numbers above 0")
    return settings


def fill(model, weights, pairs, folder):
    """Fill a model from the authors' tensors.   raises ValueError naming tensors that do not fit"""
    own = model.state_dict()
    wrong = dict.fromkeys(weights, "left over")
    for ours, theirs in pairs:
        rows = sum(len(own[key]) for key in ours) // len(theirs)
        expected = (rows, *own[ours[0]].shape[1:])
        for key in theirs:
            found = tuple(weights[key].shape) if key in weights else None
            wrong[key] = "" if found == expected else f"expected {expected}, found {found or 'none'}"
    wrong = [f"{key} ({fault})" for key, fault in sorted(wrong.items()) if fault]
    if wrong:
        raise ValueError(f"{folder}: {len(wrong)} tensors do not fit its config.json: {', '.join(wrong[:6])}")
    for ours, theirs in pairs:
        stacked = torch.cat([weights[key].float() for key in theirs])
        for key, part in zip(ours, stacked.split([len(own[key]) for key in ours]), strict=True):
            own[key] = part
    model.load_state_dict(own)


def write(folder, part, config, model, pairs):
    """Write a model's config.json and tensors into FOLDER/part."""
    try:
        from safetensors.torch import save
    except ImportError:
        raise ImportError("pip install safetensors to write the authors' layout") from None
    own = model.state_dict()
    weights = {}
    for ours, theirs in pairs:
        parts = torch.cat([own[key] for key in ours]).chunk(len(theirs))
        for key, tensor in zip(theirs, parts, strict=True):
            weights[key] = tensor.float().cpu().contiguous().clone()
    write_whole(Path(folder) / part / FILES[part], save(weights, metadata={"format": "pt"}))
    write_whole(Path(folder) / part / "config.json", (json.dumps(config, indent=2) + "\n").encode())


# ---- the tokenizer ----


def read_tokenizer_config(path):
    """Our settings of the authors' tokenizer in a folder of theirs, and the folder of its tensors."""
    config, folder = read_config(path, "tokenizer")
    cfg = our_settings(config, {**TOKENIZER_SETTINGS, "patch_size": "patch_size"}, TOKENIZER_ONLY, folder)
    if config.get("vq_embed_dim") not in (None, cfg["code_dim"]):
        raise ValueError(f"{folder}/config.json: vq_embed_dim other than latent_channels is not supported")
    cfg["dynamics_grid"] = tokenizer.latent_grid(cfg) // cfg.pop("patch_size")
    cfg["max_att_resolution"] = config.get("max_att_resolution") or 32
    cfg["revive_after"] = 0  # their codebooks are trained
    return {**tokenizer.SMALL, **cfg}, folder


def load_tokenizer(path):
    """The authors' tokenizer, in eval mode, from a folder of theirs, tokenizer/ in it, or a hub name.

    raises  FileNotFoundError, or ValueError naming the tensor or setting that does not fit"""
    config, folder = read_tokenizer_config(path)
    model = Tokenizer(**config)
    fill(model, read_tensors(folder, "tokenizer"), tokenizer_pairs(model), folder)
    return model.eval()


def tokenizer_config(model):
    """The authors' config.json for a tokenizer.   raises ValueError where their code cannot run it"""
    cfg = model.config
    if not isinstance(model, Tokenizer) or "patch" in cfg:
        raise ValueError("the authors' code cannot run this tokenizer: tricks of tiny, or tokens per frame")
    found = (model.grid, cfg["dynamics_grid"], cfg["n_head"], cfg["norm_groups"])
    if found != (16, 4, 4, 32):
        raise ValueError("the authors' code cannot run this tokenizer: latent grid, dynamics_grid, n_head, "
                         f"norm_groups are {found}, theirs (16, 4, 4, 32)")
    n = len(cfg["channels"])
    config = {theirs: cfg[ours] for ours, theirs in TOKENIZER_SETTINGS.items()}
    return dict(
        **config,
        **TOKENIZER_ONLY,
        _class_name="CompressiveVQModel",
        patch_size=model.side,
        vq_embed_dim=None,
        max_att_resolution=cfg["max_att_resolution"],
        lookup_from_codebook=True,
        down_block_types=["DownEncoderBlock2D"] * n,
        up_block_types=["UpDecoderBlock2D"] * n,
    )


def tokenizer_pairs(model):
    """Names of a tokenizer's tensors, ours and theirs, as `fill` takes them."""
    pairs = []
    for ours in model.state_dict():
        if ours.endswith("idle") or re.search(r"cross\.\d+\.kv\.", ours):  # kv goes together with q
            continue
        theirs = ours
        for pattern, name in TOKENIZER_NAMES:
            theirs = re.sub(pattern, name, theirs)
        if ".cross." in theirs:  # theirs are numbered from 0, ours by the level they stand after
            net, level = re.match(r"(\w+)\.cross\.(\d+)", theirs).groups()
            number = list(getattr(model, net).cross).index(level)
            theirs = theirs.replace(f"cross.{level}", f"cross_att_blocks.{number}")
        if ".in_proj_" in theirs:  # one matrix for queries, keys and values
            pairs.append(([ours, ours.replace(".q.", ".kv.")], [theirs]))
        elif ".to_q." in theirs:  # three matrices
            pairs.append(([ours], [theirs.replace("to_q", f"to_{x}") for x in "qkv"]))
        else:
            pairs.append(([ours], [theirs]))
    return pairs


# ---- the transformer ----


def load_gpt(path, layout=None):
    """The authors' transformer, in eval mode, from a folder of theirs, transformer/ in it, or a hub name.

    layout  by default that of the tokenizer beside it
    The files do not say how long segments were: it is 16 frames (the authors: 16; 12 for RoboNet and VP2; 17
    goal-conditioned).   raises  FileNotFoundError, or ValueError naming the tensor or setting"""
    config, folder = read_config(path, "transformer")
    weights = read_tensors(folder, "transformer")
    weights = {key: w for key, w in weights.items() if "action_recon_linear." not in key}  # nothing uses it
    if layout is None:
        layout = tokenizer.layout_of(read_tokenizer_config(folder.absolute().parent)[0])
    model = GPT(layout, **{**gpt.SMALL, **gpt_settings(config, weights, folder)})
    wrapped = any(key.startswith("llm.") for key in weights)
    fill(model, weights, gpt_pairs(model, wrapped), folder)
    return model.eval()


def gpt_settings(config, weights, folder):
    """Our settings from the authors' config.json and, for the heads, their tensors."""
    config = {**(config.get("rope_parameters") or {}), **config}  # newer files keep rope_theta in there
    only = {**GPT_ONLY, "num_key_value_heads": config.get(GPT_SETTINGS["n_head"])}
    cfg = our_settings(config, GPT_SETTINGS, only, folder)
    cfg["att_dropout"] = config.get("attention_dropout") or 0.0
    if "action_linear.weight" in weights:
        cfg["action_dim"] = weights["action_linear.weight"].shape[-1]
    return {**cfg, "reward": "reward_linear.weight" in weights}


def gpt_config(model):
    """The authors' config.json for a transformer.   raises ValueError where their code cannot run it"""
    cfg = model.config
    if "pos_init" in cfg:
        raise ValueError("the authors' transformer has no learned position embeddings: pos_init is not 0")
    if cfg["reward"] and not cfg["action_dim"]:
        raise ValueError("the authors' transformer has a reward head only beside an action projection")
    config = {theirs: cfg[ours] for ours, theirs in GPT_SETTINGS.items()}
    config.update(GPT_ONLY)
    del config["rope_type"]
    return dict(
        **config,
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        num_key_value_heads=cfg["n_head"],
        vocab_size=model.layout.vocab_size,
        bos_token_id=50256,
        eos_token_id=50256,
        max_position_embeddings=max(1024, model.layout.length(cfg["segment_length"])),
        attention_dropout=cfg["att_dropout"],
    )


def gpt_pairs(model, wrapped):
    """Names of a transformer's tensors, ours and theirs, as `fill` takes them; `wrapped` for actions."""
    pairs = []
    for ours in model.state_dict():
        *block, module, kind = ours.split(".")
        prefix = f"model.layers.{block[1]}." if block else ""
        if wrapped and module not in ("action", "reward"):
            prefix = "llm." + prefix
        pairs.append(([ours], [f"{prefix}{name}.{kind}" for name in GPT_NAMES[module]]))
    return pairs


# ---- both ----


def export(folder, vqgan, transformer):
    """Write tokenizer/ and transformer/ into FOLDER.

    raises  ValueError, before anything is written, where the authors have no such model (that of `tiny`)"""
    vqgan_config = tokenizer_config(vqgan)
    gpt_json = gpt_config(transformer)
    write(folder, "tokenizer", vqgan_config, vqgan, tokenizer_pairs(vqgan))
    wrapped = transformer.action is not None
    write(folder, "transformer", gpt_json, transformer, gpt_pairs(transformer, wrapped))
