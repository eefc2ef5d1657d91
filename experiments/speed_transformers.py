"""experiments/speed_transformers.py: imagining, against `generate` of the package transformers.

The authors' code imagines so: for each new frame, the package's LLaMA reads the whole sequence again, and the
decoder decodes all frames again. Weights are random; sizes, sampling and actions are the same on both sides.

Run: python -m experiments.speed_transformers --preset tiny     (pip install transformers)"""

import torch
import torch.nn.functional as F

from common import configure, run
from experiments.speed import CONFIG, cost, imagine, random_scenes
from support.devices import find_device
from support.results import claim_result, write_result

CONFIG = {k: CONFIG[k] for k in ("preset", "horizon", "batches", "repeats", "device", "dtype", "overwrite")}
CONFIG["out"] = "results/speed-transformers.json"


@torch.no_grad()
def rollout_transformers(llama, model, frames, actions):
    """Imagine with a LlamaForCausalLM: frames (B, t, 3, H, W), actions (B, h, A) -> (B, t + h, 3, H, W)."""
    layout = model.tokenizer.layout
    sampling = dict(max_new_tokens=layout.tokens_future, do_sample=True, top_k=100, pad_token_id=0)
    with model.autocast:
        tokens = model.tokenizer.encode(frames)
    for i in range(actions.shape[1]):
        tokens = F.pad(tokens, (0, 1), value=layout.future_slot)
        x = llama.get_input_embeddings()(tokens)
        x[:, layout.slots(i + 1)] += model.gpt.action(actions[:, : i + 1].to(x.dtype))
        codes = llama.generate(inputs_embeds=x, attention_mask=torch.ones_like(tokens), **sampling)
        codes = codes % layout.dynamics_codes  # with random weights, some are no dynamics codes
        tokens = torch.cat([tokens, layout.context_codes + codes], 1)
        with model.autocast:
            decoded = model.tokenizer.decode(tokens)
    return decoded


def main(cfg):
    from transformers import LlamaConfig, LlamaForCausalLM

    out = claim_result(cfg.out, cfg.overwrite, endings=())
    cfg.device = find_device(cfg.device)
    numbers = {}
    for B in cfg.batches:
        model, frames, actions = random_scenes(cfg, B, 1, cfg.horizon)
        settings = model.gpt.config
        llama = LlamaForCausalLM(LlamaConfig(
            vocab_size=model.gpt.layout.vocab_size, hidden_size=settings["n_embd"],
            intermediate_size=settings["n_mlp"], num_hidden_layers=settings["n_layer"],
            num_attention_heads=settings["n_head"],
        )).to(model.device, model.gpt.embed.weight.dtype).eval()  # fmt: skip
        row = dict(ours=cost(cfg.repeats, imagine, model, frames, actions))
        row["transformers"] = cost(cfg.repeats, rollout_transformers, llama, model, frames, actions)
        row["vs_transformers"] = row["transformers"]["seconds"] / row["ours"]["seconds"]
        numbers[f"b{B}"] = row
        print(f"b{B}", row)
    write_result(out, numbers)


if __name__ == "__main__":
    run(main, configure(CONFIG, __doc__))
