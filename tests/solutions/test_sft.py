"""Supervised fine-tuning against other ways to compute the same: Hugging Face's loss and model, the world's masks."""

import itertools
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from autograder.loader import reference
from lab import generator, instructions

CLOSE = {"rtol": 0.0, "atol": 1e-9}
ID = instructions.ID


@pytest.fixture
def sft():
    return reference("alignment", "sft")


@pytest.fixture
def template(sft):
    return sft.ChatTemplate(ID["<user>"], ID["<assistant>"], ID["<end>"])


def randn(*shape, seed):
    return torch.randn(shape, generator=generator(f"sft {seed}"), dtype=torch.float64)


def rendered(sft, template, number, seed):
    """Rows of random conversations, with their masks."""
    rng = generator(f"sft {seed}")
    rows = [
        sft.render(sft.random_conversation(turns, template, rng), template)
        for turns in torch.randint(1, 7, (number,), generator=rng).tolist()
    ]
    return rows, [sft.response_mask(row, template) for row in rows]


def test_template_is_what_jinja_writes(sft):
    """As a text, by the template language that libraries keep chat templates in."""
    jinja2 = pytest.importorskip("jinja2")
    written = jinja2.Template(
        "{% for role, content in turns %}{{ '<u>' if role == 'user' else '<a>' }}{{ content }}<e>{% endfor %}"
        "{% if open %}<a>{% endif %}"
    )
    template = sft.ChatTemplate(0, 1, 2)
    letters = ["<u>", "<a>", "<e>", *"defghijklmnop"]
    rng = generator("sft jinja")
    for turns in range(1, 6):
        talk = sft.random_conversation(turns, template, rng)
        opened = turns % 2 == 1
        row = sft.render(talk, template, open_assistant=opened)
        as_text = [(role, "".join(letters[i] for i in content)) for role, content in talk]
        expected = written.render(turns=as_text, open=opened)
        assert "".join(letters[i] for i in row.tolist()) == expected


def test_parse_accepts_what_render_writes_and_nothing_else(sft):
    """Every row of up to six tokens, of which four are in the vocabulary."""
    template = sft.ChatTemplate(0, 1, 2)
    accepted = 0
    for length in range(7):
        for ids in itertools.product(range(4), repeat=length):
            row = torch.tensor(ids, dtype=torch.int64)
            try:
                talk = sft.parse(row, template)
            except ValueError:
                continue
            assert sft.render(talk, template).tolist() == list(ids)
            accepted += 1
    # Contents of n plain tokens, turns of n + 2: one turn of length 2 to 6, two of 4 to 6 in all, three of 6.
    assert accepted == 5 + (1 + 2 + 3) + 1


def test_mask_is_that_of_the_world(sft, template):
    """One question and one response: what `lab.instructions` says belongs to the response."""
    rng = generator("sft world")
    asked = instructions.instructions("demonstrations", 40, rng)
    answers = [instructions.demonstrate(one, rng) for one in asked]
    theirs = instructions.texts(asked, answers)
    assert torch.equal(sft.response_mask(theirs.tokens, template), theirs.response)


def test_mask_is_what_parse_says_of_the_assistant(sft, template):
    rows, masks = rendered(sft, template, 30, "parse")
    for row, mask in zip(rows, masks, strict=True):
        said = [
            token
            for role, content in sft.parse(row, template)
            if role == "assistant"
            for token in [*content, template.end]
        ]
        assert row[mask].tolist() == said


def test_loss_is_hugging_faces(sft):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=4, n_head=1, n_layer=1))
    model = model.eval()
    tokens = torch.randint(9, (3, 8), generator=generator("sft tokens"))
    mask = torch.rand(3, 8, generator=generator("sft mask")) < 0.4
    with torch.no_grad():
        result = model(tokens, labels=tokens.masked_fill(~mask, -100))
        found = sft.sft_loss(result.logits, tokens, mask)
    torch.testing.assert_close(found, result.loss, rtol=0.0, atol=1e-6)


def test_loss_is_the_chapters_log_probabilities(sft):
    """The sum that DPO uses, by the number of tokens."""
    dpo = reference("alignment", "dpo")
    logits = randn(4, 7, 5, seed="logits")
    tokens = torch.randint(5, (4, 7), generator=generator("sft dpo"))
    mask = torch.rand(4, 7, generator=generator("sft dpo mask")) < 0.5
    expected = -dpo.sequence_log_probs(logits, tokens, mask).sum() / mask[:, 1:].sum()
    torch.testing.assert_close(sft.sft_loss(logits, tokens, mask), expected, **CLOSE)


def test_loss_by_a_double_loop(sft):
    logits = randn(3, 6, 4, seed="loop")
    tokens = torch.randint(4, (3, 6), generator=generator("sft loop"))
    mask = torch.rand(3, 6, generator=generator("sft loop mask")) < 0.5
    total, many = 0.0, 0
    for row, ids, counted in zip(logits.tolist(), tokens.tolist(), mask.tolist(), strict=True):
        for t in range(1, 6):
            if counted[t]:
                weights = [math.exp(z) for z in row[t - 1]]
                total -= math.log(weights[ids[t]] / sum(weights))
                many += 1
    assert sft.sft_loss(logits, tokens, mask).item() == pytest.approx(total / many)


def test_gradient_by_finite_differences(sft):
    tokens = torch.tensor([[0, 1, 2, 1], [2, 2, 0, -100]])
    mask = torch.tensor([[False, False, True, True], [False, True, True, False]])
    logits = randn(2, 4, 3, seed="gradient").requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sft.sft_loss(z, tokens, mask), (logits,))


@pytest.mark.parametrize("length", [24, 31, 40])
def test_packing_loses_nothing(sft, template, length):
    texts, masks = rendered(sft, template, 25, "pack")
    packed = sft.pack(texts, masks, length)
    assert packed.tokens.shape[1] == length
    assert (packed.documents >= 0).sum() == sum(len(text) for text in texts)
    for i, text in enumerate(texts):
        [row] = (packed.documents == i).any(dim=1).nonzero().flatten().tolist()
        here = (packed.documents[row] == i).nonzero().flatten()
        assert here.tolist() == list(range(int(here[0]), int(here[0]) + len(text)))
        assert torch.equal(packed.tokens[row, here], text)
        assert torch.equal(packed.mask[row, here], masks[i])
        assert packed.positions[row, here].tolist() == list(range(len(text)))


def test_first_fit_leaves_no_text_that_an_earlier_row_could_have_taken(sft):
    sizes = torch.randint(1, 12, (60,), generator=generator("sft sizes")).tolist()
    texts = [torch.ones(n, dtype=torch.int64) for n in sizes]
    packed = sft.pack(texts, [text > 0 for text in texts], 12)
    for i in range(len(sizes)):
        [row] = (packed.documents == i).any(dim=1).nonzero().flatten().tolist()
        for earlier in range(row):
            taken = sum(sizes[j] for j in range(i) if (packed.documents[earlier] == j).any())
            assert taken + sizes[i] > 12
    # What the text says of its worst case (Dósa and Sgall 2013), with the tokens as a bound of the fewest rows.
    assert len(packed.tokens) <= 1.7 * math.ceil(sum(sizes) / 12)


def test_a_real_model_sees_no_difference_between_packed_and_alone(sft, template):
    """Hugging Face's LLaMA, given the attention mask and the positions: outputs, loss and gradients."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32 + max(template),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).double().eval()
    texts, masks = rendered(sft, template, 7, "llama")
    packed = sft.pack(texts, masks, 30)
    allowed = sft.packed_attention_mask(packed.documents)
    # Added to the scores; padding has to attend to something, or its softmax is of nothing.
    allowed = allowed | torch.eye(30, dtype=torch.bool)
    bias = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -1e30)
    together = model(
        packed.tokens, attention_mask=bias[:, None], position_ids=packed.positions
    ).logits
    loss = sft.sft_loss(together, packed.tokens, packed.mask)
    loss.backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}

    model.zero_grad()
    total = 0.0
    for text, mask in zip(texts, masks, strict=True):
        counted = mask[1:]
        log_probs = model(text[None]).logits[0, :-1][counted].log_softmax(-1)
        total = total - log_probs.gather(1, text[1:][counted][:, None]).sum()
    expected = total / sum(mask.sum() for mask in masks)
    expected.backward()
    # Its norms and rotations are computed in single precision, whatever the weights are.
    torch.testing.assert_close(loss, expected, rtol=0.0, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=0.0, atol=1e-6)


def test_rates_of_extremes(sft):
    """Who refuses all is never wrong, and who invents all never refuses."""
    known = torch.tensor([True, False, True, False, False])
    all_, none = torch.ones(5) > 0, torch.zeros(5) > 0
    assert list(sft.answer_rates(known, all_, none)) == [0.0, 1.0, 0.0]
    assert list(sft.answer_rates(known, none, none)) == [0.0, 0.0, 1.0]
    assert list(sft.answer_rates(known, none, all_)) == [1.0, 0.0, 0.0]
    assert list(sft.answer_rates(known, ~known, known)) == [1.0, 0.0, 0.0]
