"""Writing with and without a cache of keys and values: processor time against the number of tokens written.

A GPT of 4 layers, 4 heads and width 128 writes greedily from a single token, batch 1. Without a cache every new
token sends the whole text through the model again; with one, the new token alone. Weights are drawn, not trained:
time does not depend on them. Recorded too are the largest difference between the logits of the two ways, and the
bytes that the cache holds at the end.
"""

import time

import torch
from torch import Tensor
from torch.nn import functional as F

import lab
from lab import models, runs

VOCABULARY, WIDTH, HEADS, LAYERS = 80, 128, 4, 4
LENGTHS = (64, 128, 256, 512)


def model_of(seed: int) -> models.CausalTransformer:
    return models.CausalTransformer(
        VOCABULARY, WIDTH, HEADS, LAYERS, max(LENGTHS), generator=lab.generator(f"cache {seed}")
    ).eval()


def split_heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (batch heads length width/heads)


def one_more(model: models.CausalTransformer, token: Tensor, cache: list) -> Tensor:
    """Logits after one new token, (batch 1); its keys and values join the cache of each layer."""
    place = cache[0][0].shape[2] if cache[0] else 0
    x = model.embed.tokens(token) + model.embed.positions.weight[place]
    for block, kept in zip(model.blocks, cache, strict=True):
        attention = block.attention
        q, k, v = F.linear(
            block.attention_norm(x), attention.in_proj_weight, attention.in_proj_bias
        ).chunk(3, dim=-1)
        new = [split_heads(k), split_heads(v)]
        kept[:] = [torch.cat(pair, dim=2) for pair in zip(kept, new, strict=True)] if kept else new
        found = F.scaled_dot_product_attention(split_heads(q), *kept)  # the newest may see all
        x = x + attention.out_proj(found.transpose(1, 2).flatten(2))
        x = x + block.feed_forward(block.feed_forward_norm(x))
    return model.embed.logits(model.norm(x))


@torch.no_grad()
def write(model: models.CausalTransformer, count: int, *, cached: bool) -> tuple[Tensor, list]:
    """The logits before each of ``count`` tokens, (count vocabulary), and the cache at the end."""
    text = torch.zeros(1, 1, dtype=torch.int64)
    cache = [[] for _ in range(LAYERS)]
    found = []
    for _ in range(count):
        logits = one_more(model, text[:, -1:], cache) if cached else model(text)
        found.append(logits[:, -1])
        text = torch.cat([text, found[-1].argmax(-1, keepdim=True)], dim=1)
    return torch.cat(found), cache


def measure(seed: int) -> dict:
    model = model_of(seed)
    results = {}
    for cached in (False, True):
        write(model, 8, cached=cached)  # warm
    for count in LENGTHS:
        seconds, logits = {}, {}
        for name, cached in (("without", False), ("with", True)):
            start = time.process_time()
            logits[name], cache = write(model, count, cached=cached)
            seconds[name] = time.process_time() - start
        results[str(count)] = {
            "seconds": seconds,
            "largest_logit_difference": (logits["with"] - logits["without"]).abs().max().item(),
            "bytes": sum(t.numel() * t.element_size() for kept in cache for t in kept),
        }
    return results


if __name__ == "__main__":
    runs.record(__file__, measure, seeds=(0, 1, 2))
