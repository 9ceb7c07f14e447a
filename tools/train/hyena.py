#!/usr/bin/env python3
"""Makes the small Hyena of assets/hyena-model: the embedded model's stories and tokenizer, no attention.

    python3 tools/train/hyena.py

writes assets/hyena-model/{config.json, generation_config.json, model.safetensors, tokenizer.json,
expected.json, training.json}, as train.py does for the Llama: the same stories, windows, schedule, checks and
oracle (f64 on the saved weights). Needs torch, tokenizers, safetensors and numpy.

Smoke test (a minute on a CPU; no useful model):

    python3 tools/train/hyena.py --out /tmp/smoke --steps 20 --stories 2000 --batch 4 --samples 4

The model (arXiv 2302.10866): blocks of RMSNorm + Hyena operator of order 2 and RMSNorm + SwiGLU. The operator
projects to x0, x1 and v, each through a causal depthwise convolution of 3 taps, and gives
x0 * (h * (x1 v) + D x1 v), `*` being the causal convolution over the whole context. The filter h of a channel is
implicit: a small MLP with sines maps positional features of n to h(n), times a learned exponential decay.
"""

import json
import math
import os
import pathlib
import shutil
import time

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
import torch.nn.functional as F
import train as base
from grammar import Grammar
from tokenizers import Tokenizer
from torch import nn

CONFIG = {
    "architectures": ["HyenaForCausalLM"],
    "model_type": "hyena",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 272,
    "num_hidden_layers": 5,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "short_filter_size": 3,
    "filter_order": 32,
    "filter_emb_dim": 17,
    "filter_inner_layers": 1,
    "filter_sine_frequency": 10.0,
    "tie_word_embeddings": True,
    "bos_token_id": base.BOS,
    "eos_token_id": base.EOS,
    "torch_dtype": "float16",
}


# The model. Module names are the tensors' names in the file.


class Filter(nn.Module):
    """The implicit filter of every channel: h(n) = MLP(features(n)) exp(-n / (L - 1) |decay|)."""

    def __init__(self, config):
        super().__init__()
        self.positions = config["max_position_embeddings"]
        self.bands = (config["filter_emb_dim"] - 1) // 2
        self.frequency = config["filter_sine_frequency"]
        width, hidden = config["filter_order"], config["hidden_size"]
        sizes = [config["filter_emb_dim"]] + [width] * (1 + config["filter_inner_layers"])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.out = nn.Linear(width, hidden, bias=False)
        nn.init.normal_(self.out.weight, std=0.03)
        # After 30% of the context the fastest channel is down to a hundredth, the slowest after 150%.
        fast, slow = (math.log(100) / share for share in (0.3, 1.5))
        self.decay = nn.Parameter(torch.linspace(slow, fast, hidden))

    def forward(self, length):
        """Filters [hidden, length]."""
        like = self.decay
        n = torch.arange(length, dtype=torch.float64, device=like.device)
        t = (n / (self.positions - 1))[:, None]
        bands = torch.linspace(1e-4, self.bands - 1, self.bands, dtype=torch.float64, device=like.device)
        angle = (2 * math.pi / self.positions * n)[:, None] * bands
        x = torch.cat((t, angle.cos(), -angle.sin()), dim=1).to(like.dtype)
        for layer in self.layers:
            x = torch.sin(self.frequency * layer(x))
        return (self.out(x) * torch.exp(-t.to(like.dtype) * self.decay.abs())).T


class ShortFilter(nn.Module):
    """Causal depthwise convolution: weight[c, k - 1] multiplies the present value, weight[c, 0] the oldest."""

    def __init__(self, channels, size):
        super().__init__()
        self.weight = nn.Parameter((torch.rand(channels, size) - 0.5) * 0.8)
        self.weight.data[:, -1] += 0.8
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        """x, result: [batch, length, channels]."""
        length, size = x.shape[1], self.weight.shape[1]
        padded = F.pad(x, (0, 0, size - 1, 0))
        return sum(padded[:, i : i + length] * self.weight[:, i] for i in range(size)) + self.bias


class Hyena(nn.Module):
    """The Hyena operator of order 2."""

    def __init__(self, config):
        super().__init__()
        hidden = config["hidden_size"]
        self.in_proj = nn.Linear(hidden, 3 * hidden, bias=False)
        self.short_filter = ShortFilter(3 * hidden, config["short_filter_size"])
        self.filter = Filter(config)
        self.skip = nn.Parameter(torch.randn(hidden))
        self.out_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x):
        # One transform's size whatever the length: no wrap-around, and one plan.
        length, size = x.shape[1], 2 * self.filter.positions
        gate_out, gate_in, value = self.short_filter(self.in_proj(x)).transpose(1, 2).chunk(3, dim=1)
        z = gate_in * value
        spectrum = torch.fft.rfft(self.filter(length), n=size)
        long = torch.fft.irfft(torch.fft.rfft(z, n=size) * spectrum, n=size)[..., :length]
        return self.out_proj((gate_out * (long + self.skip[:, None] * z)).transpose(1, 2))


class Block(nn.Module):
    """One layer."""

    def __init__(self, config):
        super().__init__()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = base.RmsNorm(hidden, eps)
        self.hyena = Hyena(config)
        self.post_hyena_layernorm = base.RmsNorm(hidden, eps)
        self.mlp = base.Mlp(config)

    def forward(self, x):
        x = x + self.hyena(self.input_layernorm(x))
        return x + self.mlp(self.post_hyena_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Block(config) for _ in range(config["num_hidden_layers"]))
        self.norm = base.RmsNorm(config["hidden_size"], config["rms_norm_eps"])


class HyenaLm(nn.Module):
    """A Hyena language model whose output projection is its embedding table."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        depth = math.sqrt(2 * config["num_hidden_layers"])
        for name, weight in self.named_parameters():
            if name.endswith(("out_proj.weight", "down_proj.weight")):
                nn.init.normal_(weight, std=0.02 / depth)
            elif name.endswith("in_proj.weight"):
                # Three of its outputs are multiplied: they begin of unit size.
                nn.init.normal_(weight, std=config["hidden_size"] ** -0.5)
            elif name.endswith(("gate_proj.weight", "up_proj.weight", "embed_tokens.weight")):
                nn.init.normal_(weight, std=0.02)

    def forward(self, ids):
        """Logits [batch, length, vocab] of ids [batch, length]."""
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)


def train(model, windows, args):
    """As base.train, with the step recorded as a CUDA graph after a warm-up: a thousand small launches are one."""
    if args.device != "cuda":
        return base.train(model, windows, args)
    optimizer, started = base.make_optimizer(model, args.lr), time.time()
    for group in optimizer.param_groups:
        group["capturable"], group["lr"] = True, torch.tensor(args.lr, device=args.device)
    batch, graph = torch.empty_like(windows[: args.batch]), torch.cuda.CUDAGraph()

    def update():
        optimizer.zero_grad(set_to_none=True)
        loss = base.mean_loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    side = torch.cuda.Stream()
    for step, drawn in zip(range(args.steps), base.batches(windows, args.batch, args.seed)):
        batch.copy_(drawn)
        for group in optimizer.param_groups:
            group["lr"].fill_(group.get("rate", 1.0) * base.learning_rate(step, args))
        if step < 3:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loss = update()
            torch.cuda.current_stream().wait_stream(side)
        else:
            if step == 3:
                with torch.cuda.graph(graph):
                    loss = update()
            graph.replay()
        if step % 100 == 0 or step + 1 == args.steps:
            seconds = time.time() - started
            print(f"step {step:5} loss {loss.item():.4f} {seconds:6.1f} s", flush=True)
            if seconds > args.max_seconds:
                print(f"OUT OF TIME after {step} of {args.steps} steps: this run cannot be repeated exactly")
                return step + 1
    return args.steps


def main():
    """Draws, trains, saves, checks."""
    parser = base.make_parser(__doc__)
    parser.set_defaults(out=base.ROOT / "assets" / "hyena-model")
    parser.add_argument("--tokenizer", type=pathlib.Path, default=base.ROOT / "assets/default-model/tokenizer.json")
    args, started = parser.parse_args(), time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False

    grammar = Grammar(args.grammar)
    stories = base.draw_stories(grammar, args.stories, args.seed)
    seen = {story.text for story in stories}
    held_out = [story for story in base.draw_stories(grammar, 1000, args.seed + 1) if story.text not in seen]
    shutil.copyfile(args.tokenizer, args.out / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    windows = base.pack(base.encode_stories(tokenizer, stories), CONFIG["max_position_embeddings"] + 1).to(args.device)
    print(f"{windows.numel()} tokens, {time.time() - started:.1f} s", flush=True)

    model = HyenaLm(CONFIG).to(args.device)
    torch.backends.cuda.matmul.allow_tf32 = True
    train_started = time.time()
    steps = train(model, windows, args)
    train_seconds = time.time() - train_started
    torch.backends.cuda.matmul.allow_tf32 = False
    # The filters' sines amplify rounding: they stay f32, and are small.
    base.save_model(model, args.out, exact=("hyena.filter.",))

    figures = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "torch": torch.__version__,
        "steps": steps,
        "train_tokens": steps * args.batch * CONFIG["max_position_embeddings"],
        "train_seconds": round(train_seconds, 1),
        "train_loss": base.mean_loss(model, windows[:64]).item(),
    }
    print(json.dumps(figures), flush=True)
    figures |= base.evaluate(args.out, grammar, tokenizer, held_out, args, HyenaLm)
    base.write_json(args.out / "training.json", figures)
    base.write_oracle(args.out, grammar, tokenizer, held_out[0], args.device, HyenaLm)
    print(json.dumps(figures, indent=1))
    print(f"{time.time() - started:.1f} s in all")


if __name__ == "__main__":
    main()
