"""recipes.py: the paper's runs (Table 3), on 4 GPUs, as presets of train_tokenizer.py and train_gpt.py.

What a run does not set is as the script's defaults say. A transformer's run comes after the tokenizer's of
the same name; fine-tuning begins with the authors' models.

Run: torchrun --nproc_per_node=4 train_tokenizer.py --preset bair --data data/bair
     torchrun --nproc_per_node=4 train_gpt.py --preset bair --data data/bair"""

from official import OXE_64, OXE_256


def tokenizers(large):
    """{name: settings of train_tokenizer.py}; `large` is its preset of that name."""
    oxe = dict(data="data/oxe", augment="paper")
    tuned = dict(init_from=OXE_64, augment="paper", lr=1e-4, max_steps=100_000)
    runs = dict(
        oxe64=oxe,
        oxe64_goal=dict(oxe, init_from=OXE_64, lr=1e-4, shuffle=True, max_steps=275_000),
        oxe256=dict(large, **oxe, mixture="oxe"),
        bair=dict(tuned, data="data/bair", context_frames=1, future_frames=7),
        robonet64=dict(tuned, data="data/robonet", horizon=12, max_steps=300_000),
        robonet256=dict(
            tuned, data="data/robonet256", horizon=12, init_from=OXE_256, augment="", batch_size=2,
            accumulate=4,
        ),
        vp2=dict(tuned, data="data/vp2", horizon=12),
    )
    return {name: dict(run, out=f"out/{name}-tokenizer.pt") for name, run in runs.items()}


def transformers(medium):
    """{name: settings of train_gpt.py}; `medium` is its preset of that name."""
    oxe = dict(data="data/oxe", augment="paper")
    tuned = dict(augment="paper", att_dropout=0.1, rewards=False)  # rewards are predicted in mbpo.py alone
    bair = dict(tuned, init_from=OXE_64, data="data/bair", tokenizer="out/bair-tokenizer.pt")
    robonet = dict(tuned, segment_length=12, max_steps=600_000)
    runs = dict(
        oxe64=dict(oxe, tokenizer="out/oxe64-tokenizer.pt"),
        oxe64_medium=dict(medium, **oxe, tokenizer="out/oxe64-tokenizer.pt"),
        oxe64_goal=dict(oxe, goal_conditioned=True, segment_length=17),
        oxe256=dict(oxe, batch_size=4),
        bair=dict(bair, max_steps=100_000),
        bair_free=dict(bair, actions=False, max_steps=70_000),
        robonet64=dict(robonet, init_from=OXE_64, data="data/robonet"),
        robonet256=dict(robonet, init_from=OXE_256, data="data/robonet256", batch_size=4, accumulate=2),
        vp2=dict(tuned, init_from=OXE_64, data="data/vp2", segment_length=12, max_steps=200_000),
    )
    for name, settings in runs.items():
        settings.setdefault("tokenizer", f"out/{name}-tokenizer.pt")
        settings["out"] = f"out/{name}.pt"
    return runs
