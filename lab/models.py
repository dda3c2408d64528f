"""Compact models for the book's pages and the exercises' experiments, from torch's own parts.

They stand for "a Transformer" and "a recurrent network" where a page needs one that trains in seconds. torch
computes the attention, the gates and the norms: how those work is what the exercises ask for, and is not here.
Positions are learnt, as in GPT and BERT; the 2017 paper found them nearly identical to its sinusoids (§3.5).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

__all__ = ["BidirectionalTransformer", "CausalTransformer", "RecurrentModel", "Translator"]


class CausalTransformer(nn.Module):
    """Decoder-only Transformer, pre-LN as GPT-2, which predicts at each position the token that follows.

    Args:
        vocab_size: number of different tokens.
        d_model: width of the vectors that pass through the model.
        num_heads: attention heads in each layer; divides ``d_model``.
        num_layers: number of blocks.
        max_length: longest input, since each position has a learnt vector.
        dropout: probability that a component of a sub-layer's output is dropped in training.
        generator: draws the first parameters; torch's global generator if ``None``.

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model``.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_heads: int,
        num_layers: int,
        max_length: int,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embed = _Embedding(vocab_size, d_model, max_length)
        self.blocks = nn.ModuleList(_Block(d_model, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        _initialise(self, generator)

    def forward(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocab_size"]:
        """Logits of the next token at every position, from that position and those before it.

        Raises:
            ValueError: ``tokens`` is not (batch length), or longer than ``max_length``.
        """
        return self.embed.logits(self.states(tokens))

    def states(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length d_model"]:
        """The vectors that the logits are read off, for a head of another kind.

        Raises:
            ValueError: as :meth:`forward`.
        """
        x = self.embed(tokens)
        mask = _future(x)
        for block in self.blocks:
            x, _, _ = block(x, mask=mask)
        return self.norm(x)

    @torch.no_grad()
    def attention_weights(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "layers batch heads queries keys"]:
        """What each position of each head attends to; every row sums to 1."""
        x = self.embed(tokens)
        mask = _future(x)
        found = []
        for block in self.blocks:
            x, weights, _ = block(x, mask=mask, need_weights=True)
            found.append(weights)
        return torch.stack(found)


class BidirectionalTransformer(nn.Module):
    """Encoder-only Transformer, pre-LN, which gives each position what it makes of the whole input, as BERT.

    Args:
        vocab_size: number of different tokens; token 0 is padding and never attended to.
        d_model: width of the vectors that pass through the model.
        num_heads: attention heads in each layer; divides ``d_model``.
        num_layers: number of blocks.
        max_length: longest input, since each position has a learnt vector.
        dropout: probability that a component of a sub-layer's output is dropped in training.
        generator: draws the first parameters; torch's global generator if ``None``.

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model``.
    """

    PADDING = 0

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_heads: int,
        num_layers: int,
        max_length: int,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embed = _Embedding(vocab_size, d_model, max_length)
        self.blocks = nn.ModuleList(_Block(d_model, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        _initialise(self, generator)

    def forward(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocab_size"]:
        """Logits of the token that stands, or stood, at every position.

        Raises:
            ValueError: ``tokens`` is not (batch length), or longer than ``max_length``.
        """
        return self.embed.logits(self.states(tokens))

    def states(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length d_model"]:
        """The vectors that the logits are read off, for a head of another kind.

        Raises:
            ValueError: as :meth:`forward`.
        """
        x = self.embed(tokens)
        padding = tokens == self.PADDING
        for block in self.blocks:
            x, _, _ = block(x, padding=padding)
        return self.norm(x)


class RecurrentModel(nn.Module):
    """Language model whose only memory of the past is the state of a simple RNN, a GRU or an LSTM.

    Args:
        vocab_size: number of different tokens.
        d_model: width of embeddings and state.
        num_layers: recurrent layers, one on top of the other.
        cell: ``"rnn"`` (tanh), ``"gru"`` or ``"lstm"``.
        forget_bias: what the forget gates of an LSTM start from; 1 keeps the cell at first
            (Gers et al. 2000; Jozefowicz et al. 2015). Other cells have no such gate.
        generator: draws the first parameters; torch's global generator if ``None``.

    Raises:
        ValueError: another ``cell``.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_layers: int = 1,
        *,
        cell: Literal["rnn", "gru", "lstm"] = "lstm",
        forget_bias: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        kinds: dict[str, Callable[..., nn.RNNBase]] = {
            "rnn": nn.RNN,
            "gru": nn.GRU,
            "lstm": nn.LSTM,
        }
        if cell not in kinds:
            raise ValueError(f"cell must be one of {', '.join(kinds)}, not {cell!r}.")
        self.embed = nn.Embedding(vocab_size, d_model)
        self.recurrent = kinds[cell](d_model, d_model, num_layers, batch_first=True)
        self.output = nn.Linear(d_model, vocab_size)
        # No norm stands between the embedding and the gates, so its components start with variance 1.
        _initialise(self, generator, embedding=1.0)
        if cell == "lstm":
            self._set_forget_bias(forget_bias)

    def forward(
        self, tokens: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length vocab_size"]:
        """Logits of the next token at every position, from that position and those before it."""
        states, _ = self.recurrent(self.embed(tokens))
        return self.output(states)

    def _set_forget_bias(self, value: float) -> None:
        # torch orders the gates input, forget, cell, output, and adds two biases to each.
        with torch.no_grad():
            for name, bias in self.recurrent.named_parameters():
                if name.startswith("bias_"):
                    forget = bias.view(4, -1)[1]
                    forget.fill_(value if name.startswith("bias_ih") else 0.0)


class Translator(nn.Module):
    """Encoder-decoder Transformer: reads the whole source, writes the target from left to right.

    Args:
        source_size: number of different tokens of the source; token 0 is padding and never attended to.
        target_size: number of different tokens of the target.
        d_model: width of the vectors that pass through the model.
        num_heads: attention heads in each layer; divides ``d_model``.
        num_layers: blocks of the encoder, and as many of the decoder.
        max_length: longest source and longest target.
        dropout: probability that a component of a sub-layer's output is dropped in training.
        generator: draws the first parameters; torch's global generator if ``None``.

    Raises:
        ValueError: ``num_heads`` does not divide ``d_model``.
    """

    PADDING = 0

    def __init__(
        self,
        source_size: int,
        target_size: int,
        d_model: int,
        num_heads: int,
        num_layers: int,
        max_length: int,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embed_source = _Embedding(source_size, d_model, max_length)
        self.embed_target = _Embedding(target_size, d_model, max_length)
        self.encoder = nn.ModuleList(_Block(d_model, num_heads, dropout) for _ in range(num_layers))
        self.decoder = nn.ModuleList(
            _Block(d_model, num_heads, dropout, cross=True) for _ in range(num_layers)
        )
        self.source_norm = nn.LayerNorm(d_model)
        self.target_norm = nn.LayerNorm(d_model)
        _initialise(self, generator)

    def forward(
        self, source: Int[Tensor, "batch source"], target: Int[Tensor, "batch target"]
    ) -> Float[Tensor, "batch target target_size"]:
        """Logits of the token after each position of ``target``, which starts with a begin token.

        Raises:
            ValueError: one of them is not (batch length), or longer than ``max_length``.
        """
        memory, padding = self._encode(source)
        x, _ = self._decode(target, memory, padding)
        return self.embed_target.logits(x)

    @torch.no_grad()
    def cross_attention(
        self, source: Int[Tensor, "batch source"], target: Int[Tensor, "batch target"]
    ) -> Float[Tensor, "layers batch heads target source"]:
        """Where in the source the decoder looks at each position of the target; rows sum to 1."""
        memory, padding = self._encode(source)
        _, weights = self._decode(target, memory, padding, need_weights=True)
        return torch.stack(weights)

    @torch.no_grad()
    def translate(
        self, source: Int[Tensor, "batch source"], *, begin: int, length: int
    ) -> Int[Tensor, "batch length"]:
        """``length`` tokens after ``begin``, each the likeliest after the ones before it."""
        memory, padding = self._encode(source)
        target = source.new_full((len(source), 1), begin)
        for _ in range(length):
            x, _ = self._decode(target, memory, padding)
            following = self.embed_target.logits(x[:, -1]).argmax(-1, keepdim=True)
            target = torch.cat([target, following], dim=1)
        return target[:, 1:]

    def _encode(self, source: Tensor) -> tuple[Tensor, Bool[Tensor, "batch source"]]:
        padding = source == self.PADDING
        x = self.embed_source(source)
        for block in self.encoder:
            x, _, _ = block(x, padding=padding)
        return self.source_norm(x), padding

    def _decode(
        self, target: Tensor, memory: Tensor, padding: Tensor, *, need_weights: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        x = self.embed_target(target)
        mask = _future(x)
        found = []
        for block in self.decoder:
            x, _, weights = block(
                x, mask=mask, memory=memory, memory_padding=padding, need_weights=need_weights
            )
            found.append(weights)
        return self.target_norm(x), found


class _Embedding(nn.Module):
    """Token and position vectors in, logits out: the matrix that reads tokens also writes them."""

    def __init__(self, vocab_size: int, d_model: int, max_length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(max_length, d_model)

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length d_model"]:
        if tokens.dim() != 2:
            raise ValueError(f"tokens must be (batch length), not of shape {tuple(tokens.shape)}.")
        length, longest = tokens.shape[1], self.positions.num_embeddings
        if length > longest:
            raise ValueError(f"{length} tokens do not fit into a max_length of {longest}.")
        return self.tokens(tokens) + self.positions.weight[:length]

    def logits(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab_size"]:
        return x @ self.tokens.weight.T


class _Block(nn.Module):
    """Self-attention, if asked for attention to a memory, and a feed-forward layer, each on a normed copy."""

    def __init__(
        self, d_model: int, num_heads: int, dropout: float, *, cross: bool = False
    ) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model = {d_model} does not divide into num_heads = {num_heads}.")
        self.attention_norm = nn.LayerNorm(d_model)
        self.attention = nn.MultiheadAttention(d_model, num_heads, batch_first=True)
        if cross:
            self.cross_norm = nn.LayerNorm(d_model)
            self.cross = nn.MultiheadAttention(d_model, num_heads, batch_first=True)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, 4 * d_model), nn.GELU(), nn.Linear(4 * d_model, d_model)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        *,
        mask: Bool[Tensor, "length length"] | None = None,
        padding: Bool[Tensor, "batch length"] | None = None,
        memory: Float[Tensor, "batch source d_model"] | None = None,
        memory_padding: Bool[Tensor, "batch source"] | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``x`` after the block, and the weights of both attentions where they are asked for.

        ``mask`` is :func:`_future`, or ``None`` where a position may look ahead. As everywhere in torch's
        own attention, and unlike the rest of the course, it is True where one may NOT look.
        """
        how = {"need_weights": need_weights, "average_attn_weights": False}
        normed = self.attention_norm(x)
        attended, weights = self.attention(
            normed,
            normed,
            normed,
            attn_mask=mask,
            key_padding_mask=padding,
            is_causal=mask is not None,
            **how,
        )
        x = x + self.dropout(attended)
        cross_weights = None
        if memory is not None:
            attended, cross_weights = self.cross(
                self.cross_norm(x), memory, memory, key_padding_mask=memory_padding, **how
            )
            x = x + self.dropout(attended)
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x, weights, cross_weights


def _future(x: Float[Tensor, "batch length d_model"]) -> Bool[Tensor, "length length"]:
    length = x.shape[1]
    return torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)


def _initialise(
    model: nn.Module, generator: torch.Generator | None, *, embedding: float = 0.02
) -> None:
    """Draw the first parameters: matrices keep the variance of what they multiply, biases are 0.

    Small embeddings, which also write the logits, make the first loss that of a uniform guess.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=embedding, generator=generator)
        elif not isinstance(module, nn.LayerNorm):
            for parameter in module.parameters(recurse=False):
                if parameter.dim() < 2:
                    nn.init.zeros_(parameter)
                else:
                    scale = 1 / math.sqrt(parameter.shape[1])
                    nn.init.normal_(parameter, std=scale, generator=generator)
