#!/usr/bin/env python3
"""Makes the embedded default model: stories, tokenizer, a Llama of a million parameters, its oracle.

    python3 tools/train/train.py

writes assets/default-model/{config.json, generation_config.json, model.safetensors, tokenizer.json,
expected.json, training.json}. Needs torch, tokenizers, safetensors and numpy. Every draw is seeded and
PyTorch is held to deterministic algorithms: on one machine the command gives the same files again; on
another GPU the last bits of the weights, and so expected.json, may differ.

Smoke test on a CPU (a minute; no useful model):

    python3 tools/train/train.py --out /tmp/smoke --steps 20 --stories 2000 --batch 4 --samples 4

Steps: (1) draw stories from assets/grammar.json (grammar.py), (2) train a byte-level BPE tokenizer on them,
(3) pack whole stories, each as `<s> story newline </s>`, into windows of 512 tokens that begin with `<s>`,
train on them with AdamW and a warm-up, cosine schedule, (4) save f16 weights in Hugging Face's form, (5) reload
the file and check it: greedy and sampled text against the recogniser, and the oracle of the Rust tests in f64.

The committed files come from the plain command on one NVIDIA H200 (PyTorch 2.11.0, CUDA 13);
assets/default-model/training.json holds that run's time, losses and rates.
"""

import argparse
import json
import math
import os
import pathlib
import random
import re
import time

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import torch.nn.functional as F
from grammar import Grammar
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ["Once upon a time", "One day", "There was once", "In a small house"]
BOS, EOS = 0, 1

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.02,
    "pretraining_tp": 1,
    "use_cache": True,
    "torch_dtype": "float16",
}


# The model. Module names are chosen so that the state dict has Hugging Face's tensor names.


class RmsNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


def rotate(x, cos, sin):
    """Rotary embedding, half-split: channel i turns with channel i + dim / 2. x: [batch, heads, length, dim]."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class Attention(nn.Module):
    """Causal attention in which groups of query heads share a key/value head."""

    def __init__(self, config):
        super().__init__()
        hidden, self.dim = config["hidden_size"], config["head_dim"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.q_proj = nn.Linear(hidden, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, hidden, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        group = self.heads // self.kv_heads
        q, k = rotate(q, cos, sin), rotate(k, cos, sin).repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v.repeat_interleave(group, dim=1), is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    """The gated MLP, SwiGLU."""

    def __init__(self, config):
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One decoder layer."""

    def __init__(self, config):
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = RmsNorm(hidden, eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(hidden, eps)
        self.mlp = Mlp(config)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RmsNorm(config["hidden_size"], config["rms_norm_eps"])


class Llama(nn.Module):
    """A Llama whose output projection is its embedding table."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = math.sqrt(2 * config["num_hidden_layers"]) if residual else 1
                nn.init.normal_(weight, std=config["initializer_range"] / depth)

    def angles(self, length, like):
        """Cosine and sine of each position's and channel pair's angle, in the type of `like`."""
        half = self.config["head_dim"] // 2
        channel = torch.arange(half, dtype=torch.float64, device=like.device)
        frequency = self.config["rope_theta"] ** (-channel / half)
        position = torch.arange(length, dtype=torch.float64, device=like.device)
        angle = position[:, None] * frequency
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)

    def forward(self, ids):
        """Logits [batch, length, vocab] of ids [batch, length]."""
        x = self.model.embed_tokens(ids)
        cos, sin = self.angles(ids.shape[1], x)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


# The data.


def draw_stories(grammar, count, seed):
    """Draws stories; neighbours differ in hero and plot, so that a model told to go on tells another story."""
    rng, stories = random.Random(seed), []
    for _ in range(count):
        stories.append(grammar.draw(rng, stories[-1] if stories else None))
    return stories


def train_tokenizer(texts):
    """Byte-level BPE: any text can be encoded. `<s>` is put in front of an encoded text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    assert tokenizer.get_vocab_size() == CONFIG["vocab_size"]
    assert (tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")) == (BOS, EOS)
    return tokenizer


def encode_stories(tokenizer, stories):
    """Token ids of each story, `<s>` and `</s>` included."""
    encoded = tokenizer.encode_batch([story.text + "\n" for story in stories])
    return [encoding.ids + [EOS] for encoding in encoded]


def pack(encoded, length):
    """Windows [count, length]: whole stories one after another, the last one cut, each window starting a story."""
    rows, row = [], []
    for ids in encoded:
        row += ids
        if len(row) >= length:
            rows.append(row[:length])
            row = []
    return torch.tensor(rows, dtype=torch.int64)


# Training.


def learning_rate(step, args):
    """Linear warm-up over 5% of the steps, then a half cosine to nothing."""
    warmup = max(1, args.steps // 20)
    if step < warmup:
        return args.lr * (step + 1) / warmup
    return args.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (args.steps - warmup)))


def make_optimizer(model, lr):
    """AdamW; weight decay for matrices alone. A Hyena's filters have none, and a third of the rate: their sines are steep."""
    named = list(model.named_parameters())
    filters = [p for name, p in named if ".filter." in name]
    matrices = [p for name, p in named if p.dim() == 2 and ".filter." not in name]
    vectors = [p for name, p in named if p.dim() < 2 and ".filter." not in name]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    if filters:
        groups.append({"params": filters, "weight_decay": 0.0, "rate": 0.3})
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def batches(windows, size, seed):
    """Endless batches of windows, each epoch in an order of its own."""
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(windows), generator=shuffle).to(windows.device)
        for start in range(0, len(windows) - size + 1, size):
            yield windows[order[start : start + size]]


def mean_loss(model, windows):
    """Mean next-token loss over windows, in nats."""
    logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def train(model, windows, args):
    """Trains in place and returns the number of steps; fewer than asked, with a loud line, when the time is up."""
    optimizer, started = make_optimizer(model, args.lr), time.time()
    for step, batch in zip(range(args.steps), batches(windows, args.batch, args.seed)):
        for group in optimizer.param_groups:
            group["lr"] = group.get("rate", 1.0) * learning_rate(step, args)
        loss = mean_loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == args.steps:
            seconds = time.time() - started
            print(f"step {step:5} loss {loss.item():.4f} {seconds:6.1f} s", flush=True)
            if seconds > args.max_seconds:
                print(f"OUT OF TIME after {step} of {args.steps} steps: this run cannot be repeated exactly")
                return step + 1
    return args.steps


def save_model(model, folder, exact=()):
    """Writes config, generation config and f16 weights; f32 those whose names contain a part of `exact`."""
    write_json(folder / "config.json", model.config)
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": True, "temperature": 0.8}
    write_json(folder / "generation_config.json", generation)
    weights = {}
    for name, weight in model.state_dict().items():
        dtype = torch.float32 if any(part in name for part in exact) else torch.float16
        weights[name] = weight.detach().to(dtype).cpu().contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path, data):
    """Writes JSON a person can read; arrays of numbers stay on one line."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in data.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


# Checking what was saved.


def load_model(folder, dtype, device, architecture=Llama):
    """The saved weights in a model that computes in `dtype`."""
    config = json.loads((folder / "config.json").read_text())
    model = architecture(config).to(device, dtype)
    model.load_state_dict({name: w.to(dtype) for name, w in load_file(folder / "model.safetensors").items()})
    return model.eval()


@torch.no_grad()
def generate(model, prompts, count, temperature=0.0, seed=0):
    """Continues prompts of equal length by `count` tokens, past any `</s>`.

    Greedy at temperature 0. Returns the new ids [batch, count] and, of each step, the margin between the
    two largest logits.
    """
    device = model.model.norm.weight.device
    ids = torch.tensor(prompts, device=device)
    dice = torch.Generator(device).manual_seed(seed)
    margins = []
    for _ in range(count):
        logits = model(ids)[:, -1]
        top = logits.topk(2).values
        margins.append(top[:, 0] - top[:, 1])
        if temperature:
            chances = (logits / temperature).softmax(-1)
            chosen = torch.multinomial(chances, 1, generator=dice)
        else:
            chosen = logits.argmax(-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
    return ids[:, len(prompts[0]) :].tolist(), torch.stack(margins, dim=1)


def parse_rates(grammar, texts):
    """Shares of complete sentences, of stories, and of stories that keep their names, that are in the grammar."""
    good = {"sentences": 0, "stories": 0, "stories_in_agreement": 0}
    total = {"sentences": 0, "stories": 0, "stories_in_agreement": 0}
    for story in (story for text in texts for story in text.split("\n")[:-1]):
        for key, whole in (("stories", False), ("stories_in_agreement", True)):
            total[key] += 1
            good[key] += parses(grammar, story, whole)
        for sentence in split_sentences(story):
            total["sentences"] += 1
            good["sentences"] += parses(grammar, sentence, False)
    return {key: round(good[key] / max(total[key], 1), 4) for key in good} | {"stories_checked": total["stories"]}


def split_sentences(story):
    """Splits after full stops: every sentence of the grammar ends with one and holds no other."""
    return [sentence.strip() for sentence in re.findall(r"[^.]+\.?", story)]


def parses(grammar, text, whole_story):
    """Whether the text is nothing but sentences of the grammar, the last one complete."""
    try:
        return grammar.check(text + "\n", whole_story) > 0
    except ValueError:
        return False


def oracle_entry(model, tokenizer, prompt, count):
    """Greedy continuation of a prompt in the precision of `model`."""
    prompt_ids = tokenizer.encode(prompt).ids
    ids, margins = generate(model, [prompt_ids], count)
    return {
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "ids": ids[0],
        "text": tokenizer.decode(ids[0], skip_special_tokens=True),
        "first_story_tokens": ids[0].index(EOS) + 1 if EOS in ids[0] else None,
        "smallest_margin": margins.min().item(),
        "smallest_margin_at": margins.argmin().item(),
        "margins": [round(margin, 4) for margin in margins[0].tolist()],
    }


def held_out_entry(model, tokenizer, story):
    """Mean next-token loss of `<s> story newline </s>` in the precision of `model`."""
    ids = encode_stories(tokenizer, [story])[0]
    window = torch.tensor([ids], device=model.model.norm.weight.device)
    with torch.no_grad():
        nll = mean_loss(model, window).item()
    return {"text": story.text + "\n", "ids": ids, "mean_nll": nll}


def write_oracle(folder, grammar, tokenizer, held_out, device, architecture=Llama):
    """Writes expected.json: f64 arithmetic on the saved weights. Checks f32 against it."""
    exact, single = (load_model(folder, dtype, device, architecture) for dtype in (torch.float64, torch.float32))
    greedy = [oracle_entry(exact, tokenizer, prompt, 256) for prompt in [""] + PROMPTS]
    for entry in greedy:
        same = generate(single, [entry["prompt_ids"]], 256)[0][0] == entry["ids"]
        entry["sentences"] = check_text(grammar, entry["prompt"] + entry["text"])
        print(f"greedy {entry['prompt']!r}: smallest margin {entry['smallest_margin']:.4f}, f32 agrees: {same}")
        print("   ", entry["sentences"], "sentences:", entry["prompt"] + entry["text"])
    oracle = {
        "about": "Greedy continuations and a teacher-forced loss, computed in f64 from the f16 weights; "
        "ids leave out the prompt's, generation runs on past </s> (id 1), text leaves out <s> and </s>; "
        "a margin is the distance of a step's two largest logits.",
        "from_bos": greedy[0],
        "from_prompts": greedy[1:],
        "held_out": held_out_entry(exact, tokenizer, held_out),
    }
    write_json(folder / "expected.json", oracle)
    print("held-out story, mean NLL:", oracle["held_out"]["mean_nll"])


def check_text(grammar, text):
    """Number of complete sentences; None, with a loud line, if there is anything else in the text."""
    try:
        return grammar.check(text, whole_story=True)
    except ValueError as error:
        print("DOES NOT PARSE:", error)
        return None


def evaluate(folder, grammar, tokenizer, held_out, args, architecture=Llama):
    """Loss on unseen stories beside the grammar's own surprise, and parse rates of sampled text."""
    model = load_model(folder, torch.float32, args.device, architecture)
    encoded = encode_stories(tokenizer, held_out)
    windows = pack(encoded, 512).to(args.device)[:64]
    with torch.no_grad():
        loss = mean_loss(model, windows).item()
    tokens = sum(len(ids) - 1 for ids in encoded)
    rates = {}
    for temperature in (0.8, 1.0):
        ids, _ = generate(model, [[BOS]] * args.samples, 500, temperature, args.seed)
        texts = tokenizer.decode_batch(ids, skip_special_tokens=True)
        rates[f"temperature {temperature}"] = parse_rates(grammar, texts)
        print(f"sampled at {temperature}:", rates[f"temperature {temperature}"], "\n" + texts[0])
    return {
        "held_out_loss": loss,
        "grammar_nats_per_token": sum(story.nats for story in held_out) / tokens,
        "tokens_per_story": tokens / len(held_out),
        "sampled": rates,
    }


def make_parser(description):
    """Command line; the defaults are the committed model's."""
    parser = argparse.ArgumentParser(description=description.split("\n", 1)[0])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "assets" / "default-model")
    parser.add_argument("--grammar", type=pathlib.Path, default=ROOT / "assets" / "grammar.json")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64, help="windows of 512 tokens a step")
    parser.add_argument("--stories", type=int, default=120_000)
    parser.add_argument("--samples", type=int, default=128, help="sampled texts in the final check")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--max-seconds", type=float, default=140, help="give up training after this long")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main():
    """Draws, trains, saves, checks."""
    args, started = make_parser(__doc__).parse_args(), time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False

    grammar = Grammar(args.grammar)
    stories = draw_stories(grammar, args.stories, args.seed)
    seen = {story.text for story in stories}
    held_out = [story for story in draw_stories(grammar, 1000, args.seed + 1) if story.text not in seen]
    print(f"{len(seen)} different stories of {len(stories)}, {time.time() - started:.1f} s", flush=True)
    tokenizer = train_tokenizer(story.text for story in stories[:20_000])
    tokenizer.save(str(args.out / "tokenizer.json"))
    windows = pack(encode_stories(tokenizer, stories), CONFIG["max_position_embeddings"] + 1).to(args.device)
    print(f"{windows.numel()} tokens, {time.time() - started:.1f} s", flush=True)

    model = Llama(CONFIG).to(args.device)
    parameters = sum(weight.numel() for weight in model.parameters())
    torch.backends.cuda.matmul.allow_tf32 = True
    train_started = time.time()
    steps = train(model, windows, args)
    train_seconds = time.time() - train_started
    torch.backends.cuda.matmul.allow_tf32 = False
    save_model(model, args.out)

    figures = {
        "parameters": parameters,
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "torch": torch.__version__,
        "steps": steps,
        "train_tokens": steps * args.batch * CONFIG["max_position_embeddings"],
        "train_seconds": round(train_seconds, 1),
        "train_loss": mean_loss(model, windows[:64]).item(),
    }
    figures |= evaluate(args.out, grammar, tokenizer, held_out, args)
    write_json(args.out / "training.json", figures)
    write_oracle(args.out, grammar, tokenizer, held_out[0], args.device)
    print(json.dumps(figures, indent=1))
    print(f"{time.time() - started:.1f} s in all")


if __name__ == "__main__":
    main()
