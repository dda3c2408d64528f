# %% [markdown]
# # Omni: text, pictures and sound in one stream of tokens
#
# On 13 May 2024 OpenAI showed GPT-4o, where the *o* stands for *omni*: one network that reads text, pictures and sound
# and answers in text, pictures and sound. How it does so was not published. In the same week a paper of Meta described
# an open way for text and pictures (Chameleon Team 2024): make tokens of everything, put them into one stream, and
# train a Transformer to predict the next token. A picture of 512 × 512 pixels is there 1,024 tokens out of 8,192. You
# build such a way, with sound, for a small world: the name of a digit, its picture, and the tone of its key on a
# telephone. In the end one model turns each of the three into each other.
#
# **You build** a codebook with a straight-through gradient, a tokenizer for pictures and sound, telephone tones and a
# receiver that hears them, one vocabulary and one stream, generation of any modality from any other
# · **Minutes** 120 · **Points** 20 · **Difficulty** ●●○ ·
# **Before this** [Vision: an image as a sentence, and CLIP](vision.ipynb), [GPT](../pretraining/gpt.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

import lab
from lab import check, tones

device = lab.device()
lab.refuse(tones, "tone", instead="torch.sin")


def set_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """For the tests: loads the weights by name, and says which names or shapes are not as they should be."""
    check.equal(
        {name: tuple(value.shape) for name, value in module.state_dict().items()},
        {name: tuple(value.shape) for name, value in weights.items()},
        because="The module's parameters must have the names and shapes of its docstring, and there must be no others.",
    )
    module.load_state_dict(weights)


# %% [markdown]
# ## 1 · A codebook
#
# A language model chooses the next token from a list. Words come from a list. Pixels and the pressure of the air do
# not: they are real numbers. A *codebook* makes a list for them (van den Oord et al. 2017): $K$ vectors
# $e_0, \dots, e_{K-1}$, the *codes*. A vector $z$ that describes a piece of a picture is replaced by the nearest of
# them, and the token of the piece is that code's number:
#
# $$k(z) = \operatorname*{argmin}_j \lVert z - e_j \rVert^2, \qquad z_q = e_{k(z)}.$$
#
# This is rounding, in more than one dimension. And it has rounding's trouble. In the next part $z$ will come
# from a network, the encoder, and $z_q$ will go into another, the decoder. Move $z$ a little: the nearest code stays
# the same, so $z_q$ does not move at all. The derivative is 0 wherever there is one, and the encoder would never
# learn.
#
# **The straight-through estimator** (Bengio et al. 2013) cheats in the backward pass. Forward, the result is $z_q$.
# Backward, one acts as if it had been $z$: the gradient at $z_q$ is handed to $z$ as it is. If the decoder would like
# $z_q$ to be a little more to the left, then $z$ is told to go left, and after enough such steps another code is the
# nearest. In code it takes one line. Write $\mathrm{sg}[\cdot]$ (*stop gradient*, `detach` in torch) for what counts as
# a constant when one differentiates:
#
# $$z + \mathrm{sg}[z_q - z].$$
#
# Its value is $z_q$. Its derivative by $z$ is 1. Its derivative by the codes is 0, for they stand inside of
# $\mathrm{sg}$.
#
# So the codes learn nothing from the decoder. They have a loss of their own (Eq. 3 of the paper), with two terms that
# have one value and two gradients:
#
# $$\underbrace{\lVert \mathrm{sg}[z] - e_{k(z)} \rVert^2}_{\text{codes move to the vectors}}
# \; + \; \beta\, \underbrace{\lVert z - \mathrm{sg}[e_{k(z)}] \rVert^2}_{\text{vectors stay near their codes}}.$$
#
# The first draws each code to the vectors that chose it, as $k$-means does. The second, the *commitment*, keeps the
# encoder from running away faster than the codes can follow. The paper takes $\beta = 0.25$. Here the squares are
# averaged over all vectors and all of their numbers.


# %% solution="codebook"
def nearest(
    vectors: Float[Tensor, "... d_code"], codebook: Float[Tensor, "codes d_code"]
) -> Int[Tensor, "..."]:
    """The index of the code nearest to each vector, by Euclidean distance (van den Oord et al. 2017, Eq. 1).

    Args:
        vectors: any number of leading dimensions, also none.
        codebook: one code in each row. Of codes that are equally near, the one with the lowest index is taken.

    Returns:
        int64.

    Raises:
        ValueError: ``codebook`` is not a matrix of at least one code, as wide as the vectors (the message says
            ``codebook``).
    """
    ### BEGIN SOLUTION
    if codebook.dim() != 2 or not len(codebook) or codebook.shape[1] != vectors.shape[-1]:
        raise ValueError(f"no codebook for vectors of {vectors.shape[-1]}: {tuple(codebook.shape)}")
    differences = vectors.unsqueeze(-2) - codebook  # (... codes d_code)
    return differences.square().sum(dim=-1).argmin(dim=-1)
    ### END SOLUTION


def quantize(
    vectors: Float[Tensor, "... d_code"], codebook: Float[Tensor, "codes d_code"]
) -> tuple[Int[Tensor, "..."], Float[Tensor, "... d_code"]]:
    """The nearest codes, with a straight-through gradient.

    Returns:
        The indices, as ``nearest`` gives them, and the codes themselves. The gradient that reaches these is handed on
        to ``vectors`` as it is; none goes to ``codebook``.

    Raises:
        ValueError: as ``nearest``.
    """
    ### BEGIN SOLUTION
    indices = nearest(vectors, codebook)
    return indices, vectors + (codebook[indices] - vectors).detach()
    ### END SOLUTION


def codebook_loss(
    vectors: Float[Tensor, "... d_code"], codebook: Float[Tensor, "codes d_code"], beta: float
) -> Float[Tensor, ""]:
    """What draws codes and vectors together (van den Oord et al. 2017, second and third term of Eq. 3).

    The mean over all numbers of ``(sg[vectors] − codes)²``, plus ``beta`` times the mean of ``(vectors − sg[codes])²``,
    where ``codes`` are the nearest ones.

    Raises:
        ValueError: as ``nearest``.
    """
    ### BEGIN SOLUTION
    codes = codebook[nearest(vectors, codebook)]
    return F.mse_loss(codes, vectors.detach()) + beta * F.mse_loss(vectors, codes.detach())
    ### END SOLUTION


# %% [markdown]
# By hand: the codes are $(0, 0)$, $(4, 0)$ and $(0, 4)$. The vector $(1, 2)$ has the squared distances 5, 13 and 5: a
# tie, which the first code wins. The vector $(3, 1)$ has 10, 2 and 18.

# %% test="codebook_nearest" points=2
codes = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
check.equal(
    nearest(torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 9.0]]), codes),
    [0, 1, 2],
    because="The smallest distance to a row of the codebook; of equal ones the lowest index.",
)
check.equal(
    nearest(torch.tensor([3.0, 3.0]), torch.tensor([[9.0, 9.0], [2.0, 2.0]])),
    1,
    because="(2, 2) is nearest to (3, 3). (9, 9) has the larger dot product with it, and is far away.",
)
check.raises(
    ValueError,
    nearest,
    torch.zeros(2, 3),
    codes,
    mentions="codebook",
    because="Codes of two numbers are none for vectors of three: say codebook.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("multimodal", "omni")
rng = inputs("codebook_nearest")
cases = []
for leading, codes, width in [((), 4, 3), ((7,), 5, 2), ((2, 3), 6, 4), ((3, 1, 4), 1, 2)]:
    book = (3.0 * torch.randn(width, codes, generator=rng, dtype=torch.float64)).to(device).T
    vectors = 3.0 * torch.randn(*leading, width, 2, generator=rng, dtype=torch.float64).to(device)
    cases.append((vectors[..., 1], book))
# Codes of very different lengths: neither the dot product nor the cosine finds the nearest.
lengths = torch.linspace(0.2, 9.0, 8, dtype=torch.float64).to(device)[:, None]
book = lengths * F.normalize(torch.randn(8, 3, generator=rng, dtype=torch.float64), dim=-1).to(
    device
)
cases.append((2.0 * torch.randn(40, 3, generator=rng, dtype=torch.float64).to(device), book))
# Small whole numbers, with ties; and distances that rank otherwise when they are not squared.
whole = torch.randint(-2, 3, (60, 2), generator=rng).double().to(device)
cases.append((whole, torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], device=device).double()))
cases.append((torch.tensor([[0.0, 0]]).to(device), torch.tensor([[3.0, 0], [2, 2]]).to(device)))
cases.append((torch.zeros(0, 2, device=device), torch.ones(3, 2, device=device)))
for (vectors, book), indices in zip(cases, each(nearest, cases), strict=True):
    check.that(indices.dtype == torch.int64, "The indices must be int64.")
    check.equal(
        indices,
        theirs.nearest(vectors, book),
        because="The code with the smallest Euclidean distance, for any leading dimensions; of equal ones the lowest "
        "index.",
    )
for shape in [(0, 2), (3, 1), (3, 4), (2,), (1, 3, 2)]:
    check.raises(
        ValueError,
        nearest,
        torch.zeros(3, 2, device=device),
        torch.zeros(shape, device=device),
        mentions="codebook",
        because="A codebook is a matrix (codes, d_code) with at least one code, as wide as the vectors: say codebook.",
    )
### END HIDDEN TESTS

# %% test="codebook_straight_through" points=2
vectors = torch.tensor([[3.0, 1.0], [1.0, 1.0]], requires_grad=True)
codes = torch.tensor([[0.0, 0.0], [4.0, 0.0]], requires_grad=True)
indices, quantized = quantize(vectors, codes)
check.equal(indices, [1, 0], because="The indices are those of the nearest codes.")
check.close(
    quantized,
    [[4.0, 0.0], [0.0, 0.0]],
    because="Forward, the result is the nearest code itself.",
)
check.that(
    quantized.requires_grad, "No gradient can reach the vectors: the whole result is detached."
)
(quantized * torch.tensor([[10.0, 20.0], [30.0, 40.0]])).sum().backward()
check.that(
    vectors.grad is not None,
    "No gradient reaches the vectors: looking a code up has none. Let them in with derivative 1.",
)
check.close(
    vectors.grad,
    [[10.0, 20.0], [30.0, 40.0]],
    because="Backward, the gradient is handed to the vectors as it is, as if nothing had been replaced.",
)
check.that(
    codes.grad is None or not codes.grad.any(),
    "A gradient reaches the codebook: in quantize the codes count as constants.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("multimodal", "omni")
rng = inputs("codebook_straight_through")
for leading, codes, width in [((), 3, 4), ((6,), 5, 3), ((2, 3), 4, 2)]:
    vectors = (2.0 * torch.randn(*leading, width, generator=rng, dtype=torch.float64)).to(device)
    book = (2.0 * torch.randn(codes, width, generator=rng, dtype=torch.float64)).to(device)
    pull = torch.randn(*leading, width, generator=rng, dtype=torch.float64).to(device)
    vectors.requires_grad_()
    book.requires_grad_()
    indices, quantized = quantize(vectors, book)
    check.that(indices.dtype == torch.int64, "The indices must be int64.")
    check.equal(
        indices,
        theirs.nearest(vectors, book),
        because="The first result is the indices of the nearest codes.",
    )
    check.close(quantized, book[indices], because="The second result is the nearest codes.")
    check.that(quantized.requires_grad, "No gradient reaches the vectors.")
    (quantized.square() * pull).sum().backward()
    check.that(vectors.grad is not None, "No gradient reaches the vectors.")
    check.close(
        vectors.grad,
        2 * book[indices] * pull,
        because="The gradient at the codes is handed to the vectors unchanged.",
    )
    check.that(
        book.grad is None or not book.grad.any(),
        "A gradient reaches the codebook: in quantize the codes count as constants.",
    )
check.raises(
    ValueError,
    quantize,
    torch.zeros(3, 2, device=device),
    torch.zeros(3, 1, device=device),
    mentions="codebook",
    because="A codebook is as wide as the vectors: say codebook.",
)
### END HIDDEN TESTS

# %% [markdown]
# By hand: one vector $(3, 1)$, nearest to $(4, 0)$. The squares of the differences are 1 and 1, their mean is 1. With
# $\beta = \frac12$ the loss is $1 + \frac12$. The code is pulled towards the vector, along $(1, -1)$, and the vector
# half as strongly towards the code.

# %% test="codebook_pull" points=2
vectors = torch.tensor([[3.0, 1.0]], requires_grad=True)
codes = torch.tensor([[0.0, 0.0], [4.0, 0.0]], requires_grad=True)
loss = codebook_loss(vectors, codes, 0.5)
check.close(
    loss, 1.5, because="The mean of 1 and 1, once for the codes and β times for the vectors."
)
loss.backward()
check.that(
    codes.grad is not None and vectors.grad is not None,
    "Both learn: the first term moves the codes, the second the vectors.",
)
check.close(
    codes.grad,
    [[0.0, 0.0], [1.0, -1.0]],
    because="The first term, and it alone, moves the code that was chosen: 2·(code − vector) / 2 numbers.",
)
check.close(
    vectors.grad,
    [[-0.5, 0.5]],
    because="The second term, β times, and it alone, moves the vectors. What is detached in it is the code.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("multimodal", "omni")
rng = inputs("codebook_pull")
for leading, codes, width, beta in [((), 3, 4, 0.3), ((9,), 4, 3, 1.7), ((2, 5), 3, 2, 0.0)]:
    vectors = (2.0 * torch.randn(*leading, width, generator=rng, dtype=torch.float64)).to(device)
    book = (2.0 * torch.randn(codes, width, generator=rng, dtype=torch.float64)).to(device)
    mine, right = ([x.clone().requires_grad_() for x in (vectors, book)] for _ in range(2))
    loss, expected = codebook_loss(*mine, beta), theirs.codebook_loss(*right, beta)
    check.close(
        loss,
        expected,
        because="(1 + β) times the mean of the squares, over all vectors and all of their numbers.",
    )
    (3 * loss).backward()
    (3 * expected).backward()
    check.that(mine[1].grad is not None, "No gradient reaches the codebook.")
    check.close(
        mine[1].grad,
        right[1].grad,
        because="The codes are moved by the first term alone, with weight 1, and only those that were chosen.",
    )
    if beta:
        check.that(mine[0].grad is not None, "No gradient reaches the vectors.")
        check.close(
            mine[0].grad,
            right[0].grad,
            because="The vectors are moved by the second term alone, with weight β.",
        )
    else:
        check.that(
            mine[0].grad is None or not mine[0].grad.any(),
            "With β = 0 nothing moves the vectors: in the first term they count as constants.",
        )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · A tokenizer for what is no text
#
# Put the codebook between two networks. The encoder makes $z$ of a piece $x$ of a picture or a sound; the decoder makes
# of the code $z_q$ what it can of the piece. That is a *VQ-VAE*, a vector-quantised autoencoder. Its loss is
# how far what comes out is from what went in, plus the codebook's:
#
# $$\mathcal L = \operatorname{mean}\big(x - D(z_q)\big)^2 + \mathcal L_{\text{codebook}}\big(E(x)\big), \qquad
# z_q = \mathrm{quantize}\big(E(x)\big).$$
#
# The first term trains the decoder and, straight through the codes, the encoder. The second trains codes
# and encoder. Afterwards encoder and codebook read, $x \to k$, and codebook and decoder write, $k \to \hat x$. This
# is to pictures and sound what the tokenizer is to text, with one difference: text comes back exactly, a picture only
# about as it was. What the codes cannot say is lost.
#
# Both networks are small and given.


# %%
def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


# %% solution="tokenizer"
class Tokenizer(nn.Module):
    """A VQ-VAE for vectors: pieces of a picture or of a sound (van den Oord et al. 2017, §3).

    Args:
        features: numbers of a piece.
        width: of the hidden layers.
        d_code: numbers of a code.
        codes: how many there are.

    Attributes:
        encoder: ``mlp(features, width, d_code)``.
        decoder: ``mlp(d_code, width, features)``.
        codebook: a parameter of shape ``(codes, d_code)``, at first from a normal distribution of mean 0 and
            standard deviation 1. There are no other parameters.
    """

    def __init__(self, features: int, width: int, d_code: int, codes: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.encoder = mlp(features, width, d_code)
        self.decoder = mlp(d_code, width, features)
        self.codebook = nn.Parameter(torch.randn(codes, d_code))
        ### END SOLUTION

    def encode(self, pieces: Float[Tensor, "... features"]) -> Int[Tensor, "..."]:
        """The code of each piece: the one nearest to what the encoder makes of it."""
        ### BEGIN SOLUTION
        return nearest(self.encoder(pieces), self.codebook)
        ### END SOLUTION

    def decode(self, codes: Int[Tensor, "..."]) -> Float[Tensor, "... features"]:
        """What the decoder makes of each code.

        Raises:
            ValueError: a code is negative or not in the codebook (the message says ``codes``).
        """
        ### BEGIN SOLUTION
        if codes.numel() and not 0 <= codes.min() <= codes.max() < len(self.codebook):
            raise ValueError(f"codes must be 0 to {len(self.codebook) - 1}")
        return self.decoder(self.codebook[codes])
        ### END SOLUTION

    def forward(
        self, pieces: Float[Tensor, "... features"], beta: float = 0.25
    ) -> Float[Tensor, ""]:
        """The loss: the mean square of what reconstruction misses, over all numbers, plus ``codebook_loss``.

        The decoder reads the codes, and its gradient goes straight through them to the encoder.
        """
        ### BEGIN SOLUTION
        vectors = self.encoder(pieces)
        _, quantized = quantize(vectors, self.codebook)
        missed = F.mse_loss(self.decoder(quantized), pieces)
        return missed + codebook_loss(vectors, self.codebook, beta)
        ### END SOLUTION


# %% [markdown]
# By hand: pieces of one number, two hidden units that hold $x$ and $-x$ before the ReLU, and an output that takes their
# difference: $\mathrm{ReLU}(x) - \mathrm{ReLU}(-x) = x$. Encoder and decoder then change nothing. With the codes 0 and
# 10 the piece 4 becomes 0. It is missed by 4, so the loss is $16 + 16 + \frac14 \cdot 16 = 36$.

# %% test="tokenizer_loss" points=2
tokenizer = Tokenizer(features=1, width=2, d_code=1, codes=2)
same = {
    "0.weight": [[1.0], [-1.0]],
    "0.bias": [0.0, 0.0],
    "2.weight": [[1.0, -1.0]],
    "2.bias": [0.0],
}
weights = {
    f"{network}.{name}": torch.tensor(value)
    for network in ("encoder", "decoder")
    for name, value in same.items()
}
set_weights(tokenizer, weights | {"codebook": torch.tensor([[0.0], [10.0]])})
check.close(
    tokenizer(torch.tensor([[4.0]])),
    36.0,
    because="Reconstruction 16, codes 16, commitment a quarter of 16. The decoder reads the code, not the vector.",
)
check.close(
    tokenizer(torch.tensor([[4.0], [10.0]]), beta=1.0),
    24.0,
    because="Two pieces, of which one is met exactly: means, (16 + 0)/2 + (1 + β)·(16 + 0)/2.",
)
check.equal(
    tokenizer.encode(torch.tensor([[4.0], [-3.0], [6.0]])),
    [0, 0, 1],
    because="The index of the code nearest to the encoder's vector.",
)
check.close(
    tokenizer.decode(torch.tensor([[1, 0]])),
    [[[10.0], [0.0]]],
    because="The code of each index, through the decoder.",
)
for bad in ([2], [-1]):
    check.raises(
        ValueError,
        tokenizer.decode,
        torch.tensor(bad),
        mentions="codes",
        because="There are the codes 0 and 1. −1 is none, though Python would take the last: say codes.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import gradients, inputs, reference

theirs = reference("multimodal", "omni")
rng = inputs("tokenizer_loss")
for leading, features, width, d_code, codes, beta in [
    ((9,), 3, 6, 2, 4, 0.25),
    ((2, 5), 4, 7, 3, 5, 0.8),
]:
    sizes = (features, width, d_code, codes)
    mine = Tokenizer(*sizes).to(device).double()
    right = theirs.Tokenizer(*sizes).to(device).double()
    weights = {
        name: torch.randn(value.shape, generator=rng, dtype=torch.float64).to(device)
        for name, value in right.state_dict().items()
    }
    set_weights(mine, weights)
    right.load_state_dict(weights)
    pieces = torch.randn(*leading, features, generator=rng, dtype=torch.float64).to(device)
    loss, expected = mine(pieces, beta), right(pieces, beta)
    check.close(
        loss,
        expected,
        because="The mean square of pieces − decoder(codes), plus codebook_loss of the encoder's vectors.",
    )
    mine.zero_grad()
    loss.backward()
    expected.backward()
    mine_gradients, right_gradients = gradients(mine), gradients(right)
    for name in weights:
        check.that(mine_gradients.get(name) is not None, f"No gradient reaches {name}.")
        check.close(
            mine_gradients[name],
            right_gradients[name],
            because=f"The gradient of {name} is off. The encoder learns straight through the codes and from the "
            "commitment, the codebook from its own term, the decoder from the reconstruction.",
        )
    # A step of gradient descent: what differs in the gradients alone differs from here on in values too.
    for model, found in [(mine, mine_gradients), (right, right_gradients)]:
        model.load_state_dict({name: weights[name] - 0.1 * found[name] for name in weights})
    check.close(
        mine(pieces),
        right(pieces),
        because="After a step of gradient descent the loss is off. Unless it is given, beta is 0.25.",
    )
    check.equal(
        mine.encode(pieces),
        right.encode(pieces),
        because="encode gives the index of the code nearest to the encoder's vector, for any leading dimensions.",
    )
    indices = torch.randint(codes, (3, 2, 2), generator=rng).to(device)
    check.close(
        mine.decode(indices),
        right.decode(indices),
        because="decode looks each code up and runs the decoder, for any leading dimensions.",
    )
    for few in (indices[:0], indices[0, 0, :1]):
        check.close(
            mine.decode(few),
            right.decode(few),
            because="No codes give no pieces, and one code gives one.",
        )
    for bad in (codes, -1):
        indices[1, 0, 1] = bad
        check.raises(
            ValueError,
            mine.decode,
            indices,
            mentions="codes",
            because="One code that is not in the codebook is enough to refuse them: say codes.",
        )
torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
fresh = Tokenizer(2, 3, 50, 60).state_dict()["codebook"]
check.that(
    abs(fresh.std().item() - 1.0) < 0.1 and abs(fresh.mean().item()) < 0.12,
    "The codebook should start from a normal distribution of mean 0 and standard deviation 1.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · A sound, and who can hear it
#
# Sound is pressure that changes with time. A computer keeps it as numbers, *samples*, so many in a second: the
# *sampling rate* $r$. The numbers alone are no sound. Sample $n$ belongs to the time $t_n = n / r$, and only with the
# rate do they have a pitch. A sine of frequency $f$, in hertz (turns a second), is
#
# $$x_n = \sin\Big(2\pi f \frac nr + \varphi\Big).$$
#
# Made for one rate and played at twice the rate, everything is over in half the time and an octave higher. This is
# no rare mistake. Telephones take 8,000 samples a second, speech models often 16,000, music 44,100. A file read
# at the wrong one has the right shape and gives no error. There is a limit, too: a sine that turns faster than $r/2$
# has the same samples as a slower one, so only frequencies below $r/2$ can be told apart.
#
# **A key of a telephone** sounds two sines at once (ITU-T Q.23): one frequency for its row and one for its column.
#
# | Hz | 1209 | 1336 | 1477 | 1633 |
# |---|---|---|---|---|
# | **697** | 1 | 2 | 3 | A |
# | **770** | 4 | 5 | 6 | B |
# | **852** | 7 | 8 | 9 | C |
# | **941** | * | 0 | # | D |
#
# **A receiver** asks how much of each frequency there is. Multiply the sound by a cosine and a sine of that frequency
# and add up, in one line with a complex exponential:
#
# $$X(f) = \sum_{n=0}^{N-1} x_n\, e^{-2\pi i f n / r}, \qquad \text{energy}(f) = |X(f)|^2.$$
#
# A sine of the same frequency has always the same sign as one of the two, and the sum grows with every sample. For
# another frequency they are now of the same sign and now not, and the terms cancel. The square of the absolute value
# joins both parts, cosine and sine, so that the phase $\varphi$ does not matter. Goertzel (1958) found how to get the
# same number without complex numbers, with one multiplication a sample, from $s_n = x_n + 2\cos(\omega)\,
# s_{n-1} - s_{n-2}$ with $\omega = 2\pi f / r$ and $s_{-1} = s_{-2} = 0$:
#
# $$|X(f)|^2 = s_{N-1}^2 + s_{N-2}^2 - 2\cos(\omega)\, s_{N-1}\, s_{N-2}.$$
#
# Either way is right here. The receiver takes the loudest row and the loudest column. `tones.ROWS` and
# `tones.COLUMNS` hold the frequencies, and `tones.KEYS[row][column]` is the key.


# %% solution="sound"
def dual_tone(
    frequencies: tuple[float, float],
    seconds: float,
    rate: float,
    phases: Float[Tensor, "... 2"],
) -> Float[Tensor, "... samples"]:
    """Two sines at once: ½·sin(2π·f₁·n/rate + φ₁) + ½·sin(2π·f₂·n/rate + φ₂), for n = 0, 1, ….

    Args:
        frequencies: f₁ and f₂, in Hz.
        seconds: how long; there are ``round(seconds · rate)`` samples, the first at time 0.
        rate: samples a second.
        phases: φ₁ and φ₂ of each sound, in radians.

    Returns:
        In the type of ``phases``.

    Raises:
        ValueError: there would be no sample (the message says ``seconds``), or a frequency is not below half the rate
            (it says ``rate``).
    """
    ### BEGIN SOLUTION
    samples = round(seconds * rate)
    if samples < 1:
        raise ValueError(f"{seconds} seconds hold no sample")
    _check_rate(frequencies, rate)
    f = phases.new_tensor(frequencies, dtype=torch.float64)
    turns = torch.outer(f, torch.arange(samples, device=phases.device))
    angles = (2 * math.pi / rate * turns) + phases.unsqueeze(-1)
    return (angles.sin().sum(dim=-2) / 2).to(phases.dtype)


def _check_rate(frequencies: Sequence[float], rate: float) -> None:
    if max(frequencies) >= rate / 2:
        raise ValueError(f"a rate of {rate} is too low for {max(frequencies)} Hz")
    ### END SOLUTION


def energies(
    sounds: Float[Tensor, "... samples"], frequencies: Sequence[float], rate: float
) -> Float[Tensor, "... frequencies"]:
    """|Σₙ xₙ·exp(−2πi·f·n/rate)|² of each sound at each frequency (what Goertzel's algorithm of 1958 computes).

    Args:
        sounds: any number of leading dimensions, also none.
        frequencies: in Hz, at least one; they need not fit a whole number of times into the sound.
        rate: samples a second.

    Raises:
        ValueError: a frequency is not below half the rate (the message says ``rate``).
    """
    ### BEGIN SOLUTION
    _check_rate(frequencies, rate)
    n = torch.arange(sounds.shape[-1], device=sounds.device)
    f = sounds.new_tensor(frequencies)
    angles = 2 * math.pi / rate * torch.outer(n, f)  # (samples, frequencies)
    return (sounds @ angles.cos()).square() + (sounds @ angles.sin()).square()
    ### END SOLUTION


def hear(sounds: Float[Tensor, "sounds samples"], rate: float) -> str:
    """The key that each sound is heard as: that of the loudest row and the loudest column.

    Returns:
        One character of ``123A456B789C*0#D`` for each sound, in one string.

    Raises:
        ValueError: the rate is too low for the keys' frequencies (the message says ``rate``).
    """
    ### BEGIN SOLUTION
    loudest = [
        energies(sounds, possible, rate).argmax(dim=1) for possible in (tones.ROWS, tones.COLUMNS)
    ]
    places = torch.stack(loudest, dim=1).tolist()
    return "".join(tones.KEYS[row][column] for row, column in places)
    ### END SOLUTION


# %% [markdown]
# By hand: eight samples a second, frequencies 1 and 2, half a second. The samples stand at $0, \frac18, \frac28$ and
# $\frac38$ s, so the first sine is $0, \sqrt{\frac12}, 1, \sqrt{\frac12}$ and the second $0, 1, 0, -1$.

# %% test="sound_tone" points=2
root = math.sqrt(0.5)
check.close(
    dual_tone((1.0, 2.0), 0.5, 8, torch.zeros(2)),
    [0.0, (root + 1) / 2, 0.5, (root - 1) / 2],
    because="Half of each sine, added. Sample n stands at n/rate: the next one would be at 0.5 s, none is there. "
    "Frequencies are turns a second: 2π of angle each.",
    rtol=0.0,
    atol=1e-3,
)
check.close(
    dual_tone((1.0, 2.0), 0.5, 8, torch.tensor([[math.pi / 2, 0.0], [0.0, math.pi]])),
    [[0.5, (root + 1) / 2, 0.0, (-root - 1) / 2], [0.0, (root - 1) / 2, 0.5, (root + 1) / 2]],
    because="The first phase belongs to the first frequency, the second to the second; each sound has its own two.",
    rtol=0.0,
    atol=1e-3,
)
check.shape(
    dual_tone((697.0, 1209.0), 0.03995, 8000, torch.zeros(3, 2)),
    (3, 320),
    because="0.03995 s at a rate of 8000 are 319.6 samples, that is 320: round, do not cut off.",
)
check.raises(
    ValueError,
    dual_tone,
    (697.0, 1209.0),
    0.05,
    2000,
    torch.zeros(2),
    mentions="rate",
    because="A rate of 2000 cannot hold 1209 Hz, which is above 1000: say rate.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("multimodal", "omni")
rng = inputs("sound_tone")


def goertzel(sound, frequency, rate):
    """Goertzel's filter, sample by sample: it shares nothing with the answers."""
    twice = 2 * math.cos(2 * math.pi * frequency / rate)
    last = before = 0.0
    for sample in sound.tolist():
        last, before = sample + twice * last - before, last
    return last * last + before * before - twice * last * before


cases = []
for key, seconds, rate, leading in [
    ("1", 0.04, 8000, (2,)),
    ("6", 0.0303, 11025.0, ()),  # 334.06 samples: rounded down
    ("*", 0.05, 4000, (2, 1)),
    ("D", 0.02, 16000, (1,)),
    ("0", 0.0273, 7350, (3,)),
]:
    phases = (2 * math.pi * torch.rand(*leading, 2, generator=rng, dtype=torch.float64)).to(device)
    cases.append((tones.frequencies(key), seconds, rate, phases))
for (frequencies, seconds, rate, phases), sounds in zip(cases, each(dual_tone, cases), strict=True):
    check.shape(
        sounds,
        (*phases.shape[:-1], round(seconds * rate)),
        because="round(seconds · rate) samples, after the leading dimensions of phases.",
    )
    check.that(sounds.dtype == torch.float64, "The sound must have the type of phases.")
    for sound in sounds.reshape(-1, sounds.shape[-1]):
        for possible, there in zip((tones.ROWS, tones.COLUMNS), frequencies, strict=True):
            loudest = max(possible, key=lambda f: goertzel(sound, f, rate))
            check.that(
                loudest == there,
                "A Goertzel filter hears another frequency in your tone: which rate do its samples have?",
            )
    check.close(
        sounds,
        theirs.dual_tone(frequencies, seconds, rate, phases),
        because="½·sin(2π·f·n/rate + φ) for both frequencies, added; n counts from 0.",
        rtol=0.0,
        atol=1e-3,
    )
check.that(
    dual_tone((1.0, 2.0), 1.0, 5, torch.zeros(2)).dtype == torch.float32,
    "The sound must have the type of phases.",
)
check.shape(
    dual_tone((1.0, 2.0), 0.2, 5, torch.zeros(2)),
    (1,),
    because="One sample is a sound too, if a short one.",
)
for frequencies, seconds, rate, says in [
    ((697.0, 1209.0), 0.0, 8000, "seconds"),
    ((697.0, 1209.0), -0.01, 8000, "seconds"),
    ((697.0, 1209.0), 0.00005, 8000, "seconds"),
    ((697.0, 1209.0), 0.05, 2418, "rate"),
    ((1633.0, 697.0), 0.05, 3000, "rate"),
]:
    check.raises(
        ValueError,
        dual_tone,
        frequencies,
        seconds,
        rate,
        torch.zeros(2, device=device),
        mentions=says,
        because="At least one sample (say seconds); both frequencies below half the rate (say rate).",
    )
### END HIDDEN TESTS

# %% [markdown]
# By hand: at four samples a second the sound $1, 0, -1, 0$ is a cosine of 1 Hz. Its $X(1) = 1 + 1$ has the energy 4, as
# has the sine $0, 1, 0, -1$. At 0.5 Hz the cosine gives $1 - e^{-i\pi/2} = 1 + i$, which is an energy of 2.

# %% test="sound_receiver" points=2
check.close(
    energies(torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]]), [1.0, 0.0, 0.5], 4),
    [[4.0, 0.0, 2.0], [4.0, 0.0, 2.0]],
    because="|Σ x·exp(−2πi·f·n/rate)|²: both parts, cosine and sine, each summed and then squared. The rate is "
    "that of the sound. f need not fit a whole number of times.",
    rtol=1e-3,
    atol=1e-3,
)
for rate in (8000, 16000):
    n = torch.arange(rate // 25)
    five = torch.sin(2 * math.pi * 770 * n / rate) + torch.sin(2 * math.pi * 1336 * n / rate + 1)
    seven = torch.sin(2 * math.pi * 852 * n / rate) + torch.sin(2 * math.pi * 1209 * n / rate)
    check.equal(
        hear(torch.stack([five, seven]), rate),
        "57",
        because="770 Hz is the row and 1336 Hz the column of 5, at whatever rate the sound was made.",
    )
check.raises(
    ValueError,
    hear,
    torch.zeros(1, 100),
    3000,
    mentions="rate",
    because="At a rate of 3000 nobody can tell 1633 Hz from 1367 Hz: say rate.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("multimodal", "omni")
rng = inputs("sound_receiver")
cases = []
for shape, frequencies, rate in [
    ((17,), [100.0], 1000),
    ((3, 20), [0.0, 31.5, 207.3, 499.0], 1000.0),
    ((2, 2, 15), [697.0, 1633.0], 8000),
    ((2, 1), [3.0, 1.0], 7),
]:
    sounds = torch.randn(*shape, 2, generator=rng, dtype=torch.float64).to(device)[..., 0]
    cases.append((sounds, frequencies, rate))
for case, found in zip(cases, each(energies, cases), strict=True):
    check.close(
        found,
        theirs.energies(*case),
        because="|Σ x·exp(−2πi·f·n/rate)|² at each frequency as it is, not at the nearest that fits; the rate is that "
        "of the sound.",
        rtol=1e-3,
        atol=1e-3,
    )
every = "".join(tones.KEYS)
cases, expected = [], []
for rate, seconds, noise in [(8000, 0.04, 0.1), (4000, 0.05, 0.05), (22050, 0.04, 0.1)]:
    order = torch.randperm(len(every), generator=rng).tolist()
    sounds = []
    for key in order:
        phases = 2 * math.pi * torch.rand(2, generator=rng, dtype=torch.float64)
        sound = theirs.dual_tone(tones.frequencies(every[key]), seconds, rate, phases)
        loudness = 0.2 + 2 * torch.rand((), generator=rng, dtype=torch.float64)
        sounds.append(
            loudness * (sound + noise * torch.randn(len(sound), generator=rng, dtype=torch.float64))
        )
    cases.append((torch.stack(sounds).to(device), rate))
    expected.append("".join(every[key] for key in order))
cases.append((torch.zeros(0, 50, device=device), 8000))
expected.append("")
for right, heard in zip(expected, each(hear, cases), strict=True):
    check.equal(
        heard,
        right,
        because="One character for each sound: the key of the loudest row and the loudest column, at the sound's "
        "rate, however loud it is.",
    )
for frequencies, rate in [([300.0, 500.0], 1000), ([500.1], 1000.0)]:
    check.raises(
        ValueError,
        energies,
        torch.zeros(9, device=device),
        frequencies,
        rate,
        mentions="rate",
        because="Frequencies must be below half the rate: say rate.",
    )
check.raises(
    ValueError,
    hear,
    torch.zeros(2, 50, device=device),
    3266,
    mentions="rate",
    because="All eight frequencies must be below half the rate, 1633 Hz too: say rate.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · One stream
#
# Now there are three lists: letters, codes of pictures, codes of sound. Each counts from 0. A model with one embedding
# table cannot know which 7 is meant. So each list gets a stretch of its own in one vocabulary. A few tokens that
# belong to none come first:
#
# | token | meaning |
# |---|---|
# | 0 | padding |
# | 1 | end of a segment |
# | 2, 3, 4 | a segment of text, of a picture, of sound begins |
# | from 5 on | the text's codes, then the picture's, then the sound's |
#
# With sizes $(T, I, S)$, code $c$ of text is token $5 + c$, of a picture $5 + T + c$, of sound $5 + T + I + c$. If the
# stretches overlapped, no shape would be wrong and no error raised. The model would just learn one vector for a letter
# and for a piece of a picture. Chameleon does the same on a larger scale: its vocabulary of 65,536 tokens holds the
# 8,192 codes of the pictures.
#
# A stream is segments one after the other. Each is put between its begin and an end:
#
# ```
# <image> 40 37 52 38 <end> <text> 18 12 11 <end> <padding> <padding>
# ```
#
# A model that has learned such streams answers whatever begin one puts there. And what comes back has to be taken
# apart: what does not follow the rules is refused, and not guessed at.

# %%
MODALITIES = ("text", "image", "sound")
PADDING, END = 0, 1
BEGIN = {"text": 2, "image": 3, "sound": 4}
FIRST = 5  # of the tokens that are codes

Sizes = tuple[int, int, int]  # how many codes text, image and sound have


# %% solution="stream"
def token_range(modality: str, sizes: Sizes) -> tuple[int, int]:
    """The tokens of a modality's codes: the first, and the one after the last.

    Raises:
        ValueError: there is no such modality (the message says ``modality``).
    """
    ### BEGIN SOLUTION
    if modality not in MODALITIES:
        raise ValueError(f"no modality: {modality!r}")
    place = MODALITIES.index(modality)
    first = FIRST + sum(sizes[:place])
    return first, first + sizes[place]
    ### END SOLUTION


def interleave(
    segments: Sequence[tuple[str, Int[Tensor, "n"]]], sizes: Sizes
) -> Int[Tensor, "length"]:
    """One stream of segments: for each its ``BEGIN``, its codes as tokens, ``END``.

    Args:
        segments: each a modality and codes of it, which count from 0; a segment may be empty. They are left unchanged.
        sizes: how many codes each modality has.

    Returns:
        int64; without segments, of length 0.

    Raises:
        ValueError: there is no such modality (the message says ``modality``), or a code is negative or not below its
            modality's size (it says ``codes``).
    """
    ### BEGIN SOLUTION
    parts = []
    for modality, codes in segments:
        first, past = token_range(modality, sizes)
        if ((codes < 0) | (codes >= past - first)).any():
            raise ValueError(f"codes of {modality} must be 0 to {past - first - 1}")
        parts += [codes.new_tensor([BEGIN[modality]]), codes + first, codes.new_tensor([END])]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
    ### END SOLUTION


def separate(tokens: Int[Tensor, "length"], sizes: Sizes) -> list[tuple[str, Int[Tensor, "n"]]]:
    """The segments of a stream, as ``interleave`` takes them. Padding at the end of the stream is left out.

    Raises:
        ValueError: this is no such stream (the message says ``stream``): a segment does not start with a ``BEGIN`` or
            lacks its ``END``, a token in it is no code of its modality, or anything but padding follows padding.
    """
    ### BEGIN SOLUTION
    segments = []
    left = tokens.tolist()
    while left and left[-1] == PADDING:
        left.pop()
    while left:
        modality = next((name for name in MODALITIES if BEGIN[name] == left[0]), None)
        if modality is None or END not in left:
            raise ValueError(f"no stream: {left} begins with no segment that ends")
        end = left.index(END)
        inside, left = left[1:end], left[end + 1 :]
        first, past = token_range(modality, sizes)
        if not all(first <= token < past for token in inside):
            raise ValueError(f"no stream: {inside} are not all codes of {modality}")
        segments.append((modality, tokens.new_tensor(inside) - first))
    return segments
    ### END SOLUTION


# %% [markdown]
# By hand: three codes of text, two of pictures, four of sound. Text has the tokens 5 to 7, pictures 8 and 9, sound 10
# to 13.

# %% test="stream_interleaved" points=2
sizes = (3, 2, 4)
for modality, expected in [("text", (5, 8)), ("image", (8, 10)), ("sound", (10, 14))]:
    check.equal(
        tuple(token_range(modality, sizes)),
        expected,
        because="Five tokens belong to none. Then text, picture, sound, each after the one before, without overlap.",
    )
check.equal(
    interleave([("text", torch.tensor([2, 0])), ("image", torch.tensor([1]))], sizes),
    [2, 7, 5, 1, 3, 9, 1],
    because="<text>, 5 + 2, 5 + 0, <end>, <image>, 8 + 1, <end>: codes of pictures begin where text ends.",
)
check.equal(
    interleave(
        [("sound", torch.tensor([3])), ("sound", torch.tensor([], dtype=torch.int64))], sizes
    ),
    [4, 13, 1, 4, 1],
    because="Segments come in the order given. An empty one is its begin and its end.",
)
check.raises(
    ValueError,
    interleave,
    [("image", torch.tensor([0, 2]))],
    sizes,
    mentions="codes",
    because="Pictures have the codes 0 and 1; 2 would be a token of sound: say codes.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("multimodal", "omni")
rng = inputs("stream_interleaved")
ranges = [(modality, sizes) for sizes in [(7, 4, 9), (1, 6, 2)] for modality in MODALITIES]
for case, found in zip(ranges, each(token_range, ranges), strict=True):
    check.equal(
        tuple(found),
        theirs.token_range(*case),
        because="Text from token 5 on, pictures after all of text, sound after all of pictures.",
    )
cases = [([], (3, 2, 4))]
for sizes in [(7, 4, 9), (1, 6, 2), (5, 5, 5)]:
    for count in (1, 2, 5):
        segments = []
        for _ in range(count):
            place = int(torch.randint(3, (), generator=rng))
            length = int(torch.randint(5, (), generator=rng))
            codes = torch.randint(sizes[place], (2 * length,), generator=rng).to(device)
            segments.append((MODALITIES[place], codes[::2]))
        cases.append((segments, sizes))
    # Each modality's first code and its last.
    cases.append(
        (
            [
                (m, torch.tensor([0, s - 1], device=device))
                for m, s in zip(MODALITIES, sizes, strict=True)
            ],
            sizes,
        )
    )
before = [[codes.clone() for _, codes in segments] for segments, _ in cases]
expected = [theirs.interleave(segments, sizes) for segments, sizes in cases]
for right, stream in zip(expected, each(interleave, cases), strict=True):
    check.that(stream.dtype == torch.int64, "The stream must be int64.")
    check.equal(
        stream,
        right,
        because="For each segment: its begin, its codes moved to its modality's tokens, the end.",
    )
for (segments, _), codes in zip(cases, before, strict=True):
    for (_, now), then in zip(segments, codes, strict=True):
        check.equal(now, then, because="The segments' codes were changed in place.")
for segments, says in [
    ([("text", [0]), ("video", [0])], "modality"),
    ([("text", [1]), ("image", [4])], "codes"),
    ([("text", [-1])], "codes"),
    ([("text", [7])], "codes"),
    ([("image", [0, -1, 0])], "codes"),
    ([("sound", [0, 9])], "codes"),
]:
    check.raises(
        ValueError,
        interleave,
        [(modality, torch.tensor(codes, device=device)) for modality, codes in segments],
        (7, 4, 9),
        mentions=says,
        because="Unknown: say modality. A code below 0, or not below its modality's size: say codes.",
    )
check.raises(
    ValueError,
    token_range,
    "video",
    (7, 4, 9),
    mentions="modality",
    because="There are text, image and sound. Of anything else say that it is no modality.",
)
### END HIDDEN TESTS

# %% test="stream_separated" points=1
try:
    found = separate(torch.tensor([3, 9, 8, 1, 2, 7, 1, 0, 0]), (3, 2, 4))
except ValueError:
    check.that(False, "A stream was refused that follows the rules. Which tokens are a modality's?")
check.equal(
    [(modality, codes.tolist()) for modality, codes in found],
    [("image", [1, 0]), ("text", [2])],
    because="A picture of the codes 1 and 0, a text of the code 2. Codes count from 0 again; padding is no segment.",
)
for bad in ([3, 9, 8], [3, 6, 1], [9, 1]):
    check.raises(
        ValueError,
        separate,
        torch.tensor(bad),
        (3, 2, 4),
        mentions="stream",
        because="No end; a token of text in a picture; no begin: none of these is a stream. Say stream.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("multimodal", "omni")
rng = inputs("stream_separated")
cases, expected = [(torch.zeros(2, dtype=torch.int64, device=device), (3, 2, 4))], [[]]
for sizes in [(7, 4, 9), (1, 6, 2), (5, 5, 5)]:
    for count, padding in [(0, 0), (1, 0), (2, 1), (5, 3)]:
        segments = []
        for _ in range(count):
            place = int(torch.randint(3, (), generator=rng))
            length = int(torch.randint(5, (), generator=rng))
            codes = torch.randint(sizes[place], (length,), generator=rng).to(device)
            segments.append((MODALITIES[place], codes))
        cases.append((F.pad(theirs.interleave(segments, sizes).to(device), (0, padding)), sizes))
        expected.append([(modality, codes.tolist()) for modality, codes in segments])
    ends = [
        (m, torch.tensor([0, s - 1], device=device)) for m, s in zip(MODALITIES, sizes, strict=True)
    ]
    cases.append((theirs.interleave(ends, sizes), sizes))
    expected.append([(modality, codes.tolist()) for modality, codes in ends])
try:
    answers = each(separate, cases)
except ValueError:
    check.that(
        False,
        "A stream was refused that follows the rules. Segments may be empty, there may be none, padding may follow.",
    )
for right, found in zip(expected, answers, strict=True):
    check.equal(
        [(modality, codes.tolist()) for modality, codes in found],
        right,
        because="separate undoes interleave: every segment, in order, also empty ones; padding at the end is left out.",
    )
for bad in [
    [1],
    [5, 1],
    [2],
    [2, 1, 3],
    [2, 5, 3, 8, 1],
    [2, 5, 0, 1],
    [2, 5, 0],
    [0, 2, 5, 1],
    [2, 5, 1, 0, 2, 5, 1],
    [2, 8, 1],
    [3, 7, 1],
    [3, 10, 1],
    [4, 9, 1],
    [4, 14, 1],
    [4, 4, 1],
    [2, 5, 1, 1],
    [2, 5, 1, 6],
    [2, -1, 1],
]:
    check.raises(
        ValueError,
        separate,
        torch.tensor(bad, device=device),
        (3, 2, 4),
        mentions="stream",
        because="Every segment has its begin and its end and only codes of its modality between them; padding stands "
        "at the end alone. Of all else say that it is no stream.",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · Any to any
#
# A model of the stream gives, after every token, a logit for each token of the vocabulary. To ask for a
# picture, put `<image>` behind the prompt and let the model go on. What may come then is known: codes of pictures, or
# the end. All other logits are set to $-\infty$ before one is chosen. The model need not be perfect for its answer to
# be a picture:
#
# $$p_i = \frac{e^{\ell_i / \tau}}{\sum_{j \text{ allowed}} e^{\ell_j / \tau}} \quad \text{for allowed } i,
# \qquad p_i = 0 \quad \text{for all others}.$$
#
# The temperature $\tau$ is that of text: below 1 it favours the likely, and $\tau = 0$ stands for always taking the
# likeliest. Several prompts are answered at once, in a batch. Some answers end before others; behind their end stands
# padding, as in any batch.


# %% solution="any_to_any"
def generate(
    next_logits: Callable[[Int[Tensor, "batch length"]], Float[Tensor, "batch vocabulary"]],
    prompts: Int[Tensor, "batch prompt"],
    modality: str,
    sizes: Sizes,
    limit: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch limit+2"]:
    """One more segment for each prompt, token by token.

    Args:
        next_logits: gives for streams their next token's logits. It is asked about the prompts with what was
            generated so far, ``BEGIN`` included.
        prompts: streams of one length, each of whole segments.
        modality: of the new segment.
        sizes: how many codes each modality has.
        limit: the most codes that the segment may have; after as many comes ``END``, whatever the logits say.
        temperature: divides the logits; 0 takes the token with the largest logit, of equal ones the lowest.
        generator: draws where the temperature is not 0: a token with the probability that the softmax over the
            allowed tokens gives it.

    Returns:
        For each prompt ``BEGIN``, then codes of the modality as tokens, ``END``, and ``PADDING`` up to the length of
        ``limit + 2``. The prompt is not repeated.

    Raises:
        ValueError: there is no such modality (the message says ``modality``), ``limit`` is negative (it says
            ``limit``), or ``temperature`` is (it says ``temperature``).
    """
    ### BEGIN SOLUTION
    first, past = token_range(modality, sizes)
    if limit < 0:
        raise ValueError(f"limit must not be negative, but is {limit}")
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, but is {temperature}")
    begin = prompts.new_full((len(prompts), 1), BEGIN[modality])
    tokens = torch.cat([prompts, begin], dim=1)
    ended = prompts.new_zeros(len(prompts), dtype=torch.bool)
    for _ in range(limit):
        logits = next_logits(tokens)
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        allowed[:, first:past] = True
        allowed[:, END] = True
        logits = logits.masked_fill(~allowed, -math.inf)
        chosen = torch.where(ended, PADDING, _choose(logits, temperature, generator))
        ended = ended | (chosen == END)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    last = torch.where(ended, PADDING, END)
    return torch.cat([tokens[:, prompts.shape[1] :], last[:, None]], dim=1)


def _choose(
    logits: Float[Tensor, "batch vocabulary"],
    temperature: float,
    generator: torch.Generator | None,
) -> Int[Tensor, " batch"]:
    if temperature == 0:
        return logits.argmax(dim=1)
    # The generator lives on the CPU.
    probabilities = (logits / temperature).softmax(dim=1).cpu()
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return drawn.flatten().to(logits.device)
    ### END SOLUTION


# %% [markdown]
# By hand: a model whose largest logit is always that of the last token, 13, then 12, and so on down. Of pictures it
# may choose 8, 9 or the end.

# %% test="any_to_any_likeliest" points=2
sizes = (3, 2, 4)


def downwards(tokens):
    """Prefers token 13, then 12, and so on."""
    return torch.arange(14.0, device=tokens.device).repeat(len(tokens), 1)


def until_nine(tokens):
    """Prefers a picture's token 9, and, once there is a 9, the end."""
    nine = (tokens == 9).any(dim=1)
    return downwards(tokens) + 20.0 * F.one_hot(torch.where(nine, 1, 9), 14)


prompt = torch.tensor([[2, 6, 1], [2, 5, 1]])
check.equal(
    generate(downwards, prompt, "image", sizes, 3),
    [[3, 9, 9, 9, 1], [3, 9, 9, 9, 1]],
    because="<image>, three times the likeliest of what is allowed, then the end: the limit is reached. Only the new "
    "segment is returned.",
)
check.equal(
    generate(downwards, prompt, "text", sizes, 1),
    [[2, 7, 1], [2, 7, 1]],
    because="Of text the tokens 5, 6 and 7 are allowed, and the end. Others may have larger logits.",
)
check.equal(
    generate(until_nine, torch.tensor([[3, 8, 1], [3, 9, 1]]), "image", sizes, 3),
    [[3, 9, 1, 0, 0], [3, 1, 0, 0, 0]],
    because="The end is allowed at every step. What follows a row's own end is padding.",
)
check.raises(
    ValueError,
    generate,
    downwards,
    prompt,
    "image",
    sizes,
    -1,
    mentions="limit",
    because="A negative limit is bad input: say limit.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("multimodal", "omni")
rng = inputs("any_to_any_likeliest")


def model_of(weights, decay):
    """Logits that depend on every token of the stream and on its place."""

    def next_logits(tokens):
        ages = torch.arange(tokens.shape[1] - 1, -1, -1, device=tokens.device)
        return torch.einsum("bnv,n->bv", weights[tokens], decay ** ages.double())

    return next_logits


for sizes, modality, batch, length, limit, ending in [
    ((3, 2, 4), "text", 2, 4, 3, 0.0),
    ((2, 6, 3), "image", 4, 3, 5, 1.0),
    ((4, 3, 5), "sound", 5, 1, 4, 2.0),
    ((4, 3, 5), "sound", 1, 2, 0, 0.0),
    ((1, 2, 1), "text", 3, 0, 2, 0.5),
]:
    vocabulary = FIRST + sum(sizes)
    weights = torch.randn(vocabulary, vocabulary, generator=rng, dtype=torch.float64).to(device)
    weights[:, END] += ending
    model = model_of(weights, 0.7)
    prompts = torch.randint(vocabulary, (batch, length), generator=rng).to(device)
    before = prompts.clone()
    found = generate(model, prompts, modality, sizes, limit)
    check.that(found.dtype == torch.int64, "The tokens must be int64.")
    check.equal(
        found,
        theirs.generate(model, prompts, modality, sizes, limit),
        because="At each step the largest logit among the modality's tokens and END, from the whole stream so far; "
        "after its END a row is padded; after limit codes END is put.",
    )
    check.equal(prompts, before, because="The prompts were changed in place.")
flat = torch.zeros(14, 14, dtype=torch.float64, device=device)
flat[:, END] = -1.0
check.equal(
    generate(model_of(flat, 0.5), torch.tensor([[2, 5, 1]], device=device), "sound", (3, 2, 4), 2),
    [[4, 10, 10, 1]],
    because="Of equal logits the lowest token is taken.",
)
check.equal(
    generate(
        model_of(flat - 50, 0.5), torch.tensor([[2, 1]], device=device), "image", (3, 2, 4), 2
    ),
    [[3, 8, 8, 1]],
    because="All logits are negative here: what is not allowed must get −∞, not 0.",
)
for modality, limit, temperature, says in [
    ("video", 2, 0.0, "modality"),
    ("text", -2, 0.0, "limit"),
    ("text", 2, -0.5, "temperature"),
]:
    check.raises(
        ValueError,
        generate,
        model,
        prompts,
        modality,
        (1, 2, 1),
        limit,
        temperature,
        mentions=says,
        because="Unknown: say modality. Negative: say limit, or temperature.",
    )
### END HIDDEN TESTS

# %% [markdown]
# By hand: with the temperature 2 and the logits $2\ln 3$ for token 8, 0 for token 9 and nothing likely else, the two
# have the probabilities $\frac34$ and $\frac14$.

# %% test="any_to_any_drawn" points=1
logits = torch.full((1, 14), 50.0)  # what is not allowed is liked best
logits[0, [1, 8, 9]] = torch.tensor([-90.0, 2 * math.log(3), 0.0])
answers = generate(
    lambda tokens: logits.expand(len(tokens), -1),
    torch.zeros(400, 0, dtype=torch.int64),
    "image",
    (3, 2, 4),
    1,
    2.0,
    lab.generator("any_to_any_drawn"),
)
share = (answers[:, 1] == 8).double().mean().item()
check.that(
    0.65 < share < 0.85,
    "Token 8 should be drawn in about 3 of 4 cases: softmax over the allowed logits divided by the temperature.",
)
### BEGIN HIDDEN TESTS
import functools

from autograder.hidden import inputs

rng = inputs("any_to_any_drawn")
DRAWN = 600


def fixed_logits(row, tokens):
    """The same logits after every stream."""
    return row.expand(len(tokens), -1)


for temperature in (0.5, 2.0):
    row = 3.0 * torch.randn(14, generator=rng, dtype=torch.float64)
    # Sound has four tokens here, and there is the end. Each is drawn often enough to be counted.
    allowed = torch.tensor([END, 10, 11, 12, 13])
    spread = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
    row[allowed] = temperature * spread[torch.randperm(5, generator=rng)] - 1.0
    row = row.to(device)
    fixed = functools.partial(fixed_logits, row)
    seed = int(torch.randint(2**31, (), generator=rng))
    prompts = torch.zeros(DRAWN, 0, dtype=torch.int64, device=device)
    few = [
        generate(fixed, prompts[:30], "sound", (3, 2, 4), 2, temperature, lab.generator(seed))
        for _ in range(2)
    ]
    check.equal(
        few[0],
        few[1],
        because="Two generators in one state must give the same answers: all that is drawn comes from generator.",
    )
    answers = generate(
        fixed, prompts, "sound", (3, 2, 4), 1, temperature, lab.generator(seed)
    ).cpu()
    counts = (answers[:, 1, None] == allowed).sum(dim=0).double()
    check.that(
        counts.sum().item() == DRAWN,
        "A token was drawn that is not allowed: only the modality's tokens and END are.",
    )
    expected = DRAWN * (row[allowed] / temperature).softmax(-1).cpu()
    # With a right answer this sum is larger once in 100 million runs.
    check.that(
        ((counts - expected) ** 2 / expected).sum().item() < 45.0,
        "The shares of the tokens drawn are not the softmax over the allowed logits divided by the temperature.",
    )
    check.equal(
        answers[:, 2],
        torch.where(answers[:, 1] == END, PADDING, END),
        because="A row that drew the end is padded; to the others the limit puts it.",
    )
### END HIDDEN TESTS

# %% [markdown] written="omni_why" points=2
# **In your own words.** A colleague returns `codebook[indices]` from `quantize`. Which of the three, encoder, codebook
# and decoder, still learn something from the reconstruction, and which does so though it should not? Another lets the
# codes of pictures begin at 0, like the letters. Nothing crashes: what goes wrong in the model's embedding, and what in
# `generate`? At last: a tone of the key 1 was made for 8,000 samples a second and is played at 16,000. Which
# frequencies sound, and can a receiver that knows nothing of it find a key? (5 to 9 sentences.)

# %% [markdown]
# ## Experiment: say it, draw it, dial it
#
# A digit has three forms here: its English name, letter by letter; a scan of 8 × 8 pixels that somebody wrote by hand;
# and the tone of its key, 40 ms at 8,000 samples a second, with random phases and a little noise. Your `Tokenizer` is
# trained twice. A scan becomes four codes, one for each quarter, and a tone five codes, one for every 8 ms. Codebooks
# have a way of wasting their codes: one that starts far from all vectors is never the nearest, so nothing ever moves
# it. During training such codes are put where vectors are, as Dhariwal et al. (2020) do.
#
# Then one small Transformer learns streams of two segments: a digit in one form, and the same digit in another. All six
# directions stand in one training set. It is asked about digits it has not seen: scans of the test set, tones with
# other phases.
#
# Who says whether an answer is right? Nobody who took part. A name must be spelled exactly. A picture is shown to a
# classifier that was fitted to the training scans themselves, a support vector machine. A tone is heard by your
# receiver. How well the judges do with real scans and tones, before and after the tokenizer, is measured beside it:
# what the codes have lost no model can say.
#
# Three seeds. On a GPU a larger preset runs. Before you run it: six directions, which will be the hardest?

# %% experiment=true
import itertools

import matplotlib.pyplot as plt
from IPython.display import Audio, display
from sklearn.svm import SVC

from lab import digits, figures, training
from lab.models import CausalTransformer

WIDTH, LAYERS, STEPS, BATCH = (128, 4, 3000, 192) if device.type == "cuda" else (64, 2, 700, 48)
SEEDS, RATE, TEMPERATURE = (0, 1, 2), 3e-3, 0.5
CODES, D_CODE, HIDDEN, TOKENIZER_STEPS = 256, 8, 64, 500
SECONDS, FRAME, PATCH, SIDE, NOISE = 0.04, 64, 4, 8, 0.02
HEARD, TESTED = 200, 10  # tones of each digit: to train with, to test with
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZES = (26, CODES, CODES)
LIMITS = {"text": 5, "image": (SIDE // PATCH) ** 2, "sound": round(SECONDS * tones.RATE) // FRAME}
LENGTH = sum(sorted(LIMITS.values())[1:]) + 4
DIRECTIONS = list(itertools.permutations(MODALITIES, 2))
TRAIN, TEST = digits.digits("train"), digits.digits("test")
JUDGE = SVC().fit(TRAIN.images.flatten(1), TRAIN.labels)


def patches_of(images: Float[Tensor, "n 8 8"]) -> Float[Tensor, "n patches pixels"]:
    """The squares of each scan, row by row."""
    squares = images.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
    return squares.reshape(len(images), -1, PATCH**2)


def images_of(patches: Float[Tensor, "n patches pixels"]) -> Float[Tensor, "n 8 8"]:
    """The scans that have these squares."""
    side = SIDE // PATCH
    squares = patches.reshape(-1, side, side, PATCH, PATCH)
    return squares.movedim(3, 2).reshape(-1, SIDE, SIDE)


def tones_of_all(count: int, rng: torch.Generator) -> Float[Tensor, "10 count samples"]:
    """So many noisy tones of each digit's key."""
    sounds = []
    for digit in range(10):
        phases = 2 * math.pi * torch.rand(count, 2, generator=rng)
        sounds.append(dual_tone(tones.frequencies(str(digit)), SECONDS, tones.RATE, phases))
    sounds = torch.stack(sounds)
    return sounds + NOISE * torch.randn(sounds.shape, generator=rng)


@torch.no_grad()
def revive(tokenizer: Tokenizer, pieces: Float[Tensor, "n features"], rng: torch.Generator) -> None:
    """Puts each code that none of the pieces chose where the encoder has put one of them."""
    idle = tokenizer.encode(pieces).bincount(minlength=CODES) == 0
    chosen = torch.randint(len(pieces), (int(idle.sum()),), generator=rng).to(device)
    tokenizer.codebook[idle] = tokenizer.encoder(pieces[chosen])


def fitted(pieces: Float[Tensor, "n features"], seed: int, label: str) -> Tokenizer:
    """A tokenizer for such pieces."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer(pieces.shape[1], HIDDEN, D_CODE, CODES).to(device)
    steps = itertools.count()

    def batch(rng: torch.Generator) -> Tensor:
        rows = pieces[torch.randint(len(pieces), (256,), generator=rng).to(device)]
        step = next(steps)
        if step % 20 == 0 and step < 0.8 * TOKENIZER_STEPS:
            many = torch.randint(len(pieces), (2048,), generator=rng).to(device)
            revive(tokenizer, pieces[many], rng)
        return rows

    rng = lab.generator(f"{label} {seed}")
    training.train(
        tokenizer,
        batch,
        lambda model, rows: model(rows),
        TOKENIZER_STEPS,
        RATE,
        generator=rng,
        label=f"{label}, seed {seed}",
    )
    return tokenizer


# %% [markdown]
# Both tokenizers and the model of one seed are a *world*: what reads and writes each form, and what goes from one to
# another.


# %% experiment=true
class World:
    """Tokenizers for scans and tones, and one model of their streams."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = lab.generator(f"tones {seed}")
        heard = tones_of_all(HEARD, rng).to(device)
        scans = TRAIN.images.to(device)
        self.tokenizers = {
            "image": fitted(patches_of(scans).flatten(0, 1), seed, "scans"),
            "sound": fitted(heard.reshape(-1, FRAME), seed, "tones"),
        }
        # What there is of each digit, as segments: streams[modality][digit] is (n, length).
        self.streams = {
            "text": [self.spelled(digit)[None] for digit in range(10)],
            "image": [self.segments("image", scans[TRAIN.labels == digit]) for digit in range(10)],
            "sound": [self.segments("sound", sounds) for sounds in heard],
        }
        self.model = self.trained()

    def spelled(self, digit: int) -> Int[Tensor, "length"]:
        """The name of a digit as a segment."""
        letters = torch.tensor([ord(letter) - ord("a") for letter in WORDS[digit]], device=device)
        return interleave([("text", letters)], SIZES)

    def segments(self, modality: str, given: Float[Tensor, "n ..."]) -> Int[Tensor, "n length"]:
        """Scans or sounds as segments."""
        pieces = patches_of(given) if modality == "image" else given.unflatten(1, (-1, FRAME))
        codes = self.tokenizers[modality].encode(pieces)
        return torch.stack([interleave([(modality, row)], SIZES) for row in codes])

    @torch.no_grad()
    def decoded(self, modality: str, segment: Int[Tensor, "length"]) -> Tensor | None:
        """The scan or sound that a segment stands for; none if it has not as many codes as it needs."""
        [(_, codes)] = separate(segment, SIZES)
        if len(codes) != LIMITS[modality]:
            return None
        pieces = self.tokenizers[modality].decode(codes)
        return images_of(pieces[None])[0] if modality == "image" else pieces.flatten()

    def right(self, modality: str, segment: Int[Tensor, "length"], digit: int) -> bool:
        """Whether a judge takes a segment for this digit."""
        if modality == "text":
            return segment[segment != PADDING].tolist() == self.spelled(digit).tolist()
        made = self.decoded(modality, segment)
        if made is None:
            return False
        if modality == "image":
            return int(JUDGE.predict(made.flatten()[None].cpu())[0]) == digit
        return hear(made[None], tones.RATE) == str(digit)

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Digits in one form and then in another; the loss is that of the second form, its begin left out."""
        streams = torch.full((BATCH, LENGTH), PADDING, device=device)
        targets = torch.full((BATCH, LENGTH), -100, device=device)
        drawn = torch.randint(10, (BATCH,), generator=rng).tolist()
        places = torch.rand(BATCH, 2, generator=rng).tolist()
        for i, digit in enumerate(drawn):
            pair = [self.streams[modality][digit] for modality in DIRECTIONS[i % len(DIRECTIONS)]]
            first, second = (
                rows[int(place * len(rows))] for rows, place in zip(pair, places[i], strict=True)
            )
            middle, end = len(first), len(first) + len(second)
            streams[i, :middle], streams[i, middle:end] = first, second
            targets[i, middle + 1 : end] = second[1:]
        return streams[:, :-1], targets[:, 1:]

    def trained(self) -> CausalTransformer:
        """The model of the streams."""
        torch.manual_seed(self.seed)
        model = CausalTransformer(FIRST + sum(SIZES), WIDTH, 4, LAYERS, LENGTH).to(device)
        rng = lab.generator(f"streams {self.seed}")
        label = f"streams, seed {self.seed}"
        training.train(
            model, self.batch, training.token_loss, STEPS, RATE, generator=rng, label=label
        )
        return model

    @torch.no_grad()
    def answers(self, prompts: Int[Tensor, "n length"], modality: str) -> Int[Tensor, "n longest"]:
        """What the model says in another form."""
        rng = lab.generator(f"answers {self.seed} {modality}")
        return generate(
            lambda tokens: self.model(tokens)[:, -1],
            prompts,
            modality,
            SIZES,
            LIMITS[modality],
            TEMPERATURE,
            rng,
        )

    def prompts(self) -> dict[str, list[Int[Tensor, "n length"]]]:
        """Digits that were not trained with, in each form, by digit; the names are always the same."""
        scans = TEST.images.to(device)
        sounds = tones_of_all(TESTED, lab.generator(f"test {self.seed}")).to(device)
        return {
            "text": [self.spelled(digit).repeat(TESTED, 1) for digit in range(10)],
            "image": [
                self.segments("image", scans[TEST.labels == digit][:TESTED]) for digit in range(10)
            ],
            "sound": [self.segments("sound", one) for one in sounds],
        }


def share(world: World, source: str, target: str) -> float:
    """How many answers a judge takes for the digit that was meant; with one form, how many real ones after coding."""
    hits = []
    for digit, prompts in enumerate(world.prompts()[source]):
        answers = prompts if source == target else world.answers(prompts, target)
        hits += [world.right(target, answer, digit) for answer in answers]
    return sum(hits) / len(hits)


worlds = [World(seed) for seed in SEEDS]
found = {pair: [share(world, *pair) for world in worlds] for pair in DIRECTIONS}
coded = {form: [share(world, form, form) for world in worlds] for form in ("image", "sound")}
real = JUDGE.score(TEST.images.flatten(1), TEST.labels)


def drawings(world: World) -> Float[Tensor, "rows height width"]:
    """For each digit a held-out scan, the same from its codes, and pictures made from a name and from a tone."""
    prompts = world.prompts()
    rows = [[TEST.images[TEST.labels == digit][0] for digit in range(10)]]
    rows.append([world.decoded("image", prompts["image"][digit][0]) for digit in range(10)])
    for source in ("text", "sound"):
        made = [world.answers(prompts[source][digit][:1], "image")[0] for digit in range(10)]
        rows.append([world.decoded("image", segment) for segment in made])
    empty = torch.zeros(SIDE, SIDE)
    return torch.stack(
        [torch.cat([empty if one is None else one.cpu() for one in row], dim=1) for row in rows]
    )


names = {"text": "name", "image": "picture", "sound": "tone"}
labels = [f"{names[a]} → {names[b]}" for a, b in DIRECTIONS]
figures.use_style()
fig, (ax, *rows) = plt.subplots(5, 1, figsize=(8.5, 7), height_ratios=[5, 1, 1, 1, 1])
for place, shares in enumerate(found.values()):
    ax.bar(place, sum(shares) / len(shares), 0.6, color="C0")
    ax.plot([place] * len(shares), shares, "o", color="black", markersize=3)
    target = DIRECTIONS[place][1]
    if target in coded:
        best = sum(coded[target]) / len(coded[target])
        ax.hlines(best, place - 0.4, place + 0.4, color="C1", linewidth=1.5)
ax.axhline(0.1, color="black", linestyle="--", linewidth=1)
ax.set_xticks(range(len(labels)), labels, fontsize=9)
ax.set(ylabel="share right", ylim=(0, 1.08), title="— real ones after the tokenizer   - - a guess")
for axis, picture, title in zip(
    rows, drawings(worlds[0]), ("held out", "its codes", "from names", "from tones"), strict=True
):
    axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
figures.show(
    fig,
    alt=f"Shares of answers that a judge takes for the right digit, seeds {', '.join(map(str, SEEDS))}. "
    + " ".join(
        f"{label}: {', '.join(f'{one:.2f}' for one in shares)}."
        for label, shares in zip(labels, found.values(), strict=True)
    )
    + " Real held-out ones after the tokenizer: "
    + "; ".join(
        f"{names[form]}s {', '.join(f'{one:.2f}' for one in shares)}"
        for form, shares in coded.items()
    )
    + f". The judge of pictures is right about {real:.2f} of the real scans. A guess is right in 0.10. Below, for the "
    f"digits 0 to 9 and seed {SEEDS[0]}: held-out scans, what their codes keep of them, pictures made from the names, "
    "and pictures made from the tones.",
)

# %% [markdown]
# Dial with it: the ten names, each turned into a tone by the model of the first seed.

# %% experiment=true
pause = torch.zeros(round(0.06 * tones.RATE))
dialled = []
for prompts in worlds[0].prompts()["text"]:
    sound = worlds[0].decoded("sound", worlds[0].answers(prompts[:1], "sound")[0])
    dialled += [pause if sound is None else sound.cpu(), pause]
display(Audio(torch.cat(dialled).numpy(), rate=tones.RATE))

# %% [markdown]
# Read each bar against its lines. The dashed line is a guess. The other, where there is one, is what the codes can say:
# real scans and tones, coded and decoded, before the same judge. What a bar misses below that line is the model's
# doing; what the line misses is the tokenizer's, or the judge's. A bar of pictures can reach its line: the model draws
# what is usual, and people do not always. Names have no line, because letters are coded without loss.
#
# A name and a tone say which digit it is, and hardly anything else. A picture also has a handwriting. From a picture
# the model has to find what is essential, and to a name it has to add what nobody said. Set `TEMPERATURE` to 0: asked
# with one name, it now draws one picture, again and again. Then let the judge of tones believe in another rate,
# `hear(made[None], 2 * tones.RATE)`. Nothing crashes, no shape is wrong, and the model has not changed.
#
# Whether GPT-4o works like this is not known. OpenAI says that one network, trained end to end, processes text,
# pictures and sound. It has not said that it does so with codebooks.
