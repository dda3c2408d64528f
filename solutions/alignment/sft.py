# %% [markdown]
# # Supervised fine-tuning
#
# A base model continues text. Asked a question it may answer, or add three more questions, for both stand on the pages
# it has read. To make an assistant of it, show it what an assistant says: people wrote answers to about 13,000 prompts,
# and the model was trained on these to predict the next token, as before. This is the first of the three steps of
# InstructGPT (Ouyang et al. 2022); FLAN (Wei et al. 2021) and T0 (Sanh et al. 2021) had done it with existing data sets
# written as instructions. The loss is the old one. New is what stands around it: who is speaking, which tokens are to
# be learnt, and how texts share a row. Each of these is a few lines, and each has a bug that raises no alarm: the loss
# falls all the same.
#
# **You build** a chat template and its inverse, the mask of what the assistant says, the loss over it, packing without
# cross-contamination, and what tells a model that knows from one that makes things up
# · **Minutes** 90 · **Points** 18 · **Difficulty** ●●○ ·
# **Before this** [GPT](../pretraining/gpt.ipynb)
#
# Run a cell with Shift+Enter. Write your answers where it says `YOUR CODE HERE`, then run the tests below them.
# A test that passes is silent; one that fails says what it expected, what came, and which mistake usually does that.
# More tests, on other inputs, run when your notebook is graded.

# %%
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

import lab
from lab import check

device = lab.device()

ROLES = ("user", "assistant")
Conversation = list[tuple[str, list[int]]]  # role and token ids of each turn


class ChatTemplate(NamedTuple):
    """The ids of the three special tokens."""

    user: int  # opens a turn of the user
    assistant: int  # opens a turn of the assistant
    end: int  # closes any turn


def random_conversation(turns: int, template: ChatTemplate, rng: torch.Generator) -> Conversation:
    """For the tests: turns of 0 to 4 tokens with ids below 16, none of them special."""
    plain = torch.tensor([token for token in range(16) if token not in template])
    lengths = torch.randint(5, (turns,), generator=rng).tolist()
    return [
        (ROLES[i % 2], plain[torch.randint(len(plain), (n,), generator=rng)].tolist())
        for i, n in enumerate(lengths)
    ]


# %% [markdown]
# ## 1 · A conversation is a row of tokens
#
# The model reads one row of tokens. That two people are speaking has to be written into it, and in training and in use
# in the same way. The rule is called a *chat template*. Ours has three special tokens:
#
# ```
# <user> what is 2+2 <end> <assistant> four <end> <user> and 3+3 <end> <assistant> six <end>
# ```
#
# When the model is to answer, the row ends with the token that opens the assistant's turn, and the model writes what
# follows until it writes `<end>`:
#
# ```
# <user> what is 2+2 <end> <assistant>
# ```
#
# Templates differ from family to family; OpenAI published one, ChatML, with the interface to ChatGPT in 2023. What they
# share is that special tokens are *ids* of their own, which no text is ever encoded to. A user who types the characters
# `<end>` must get the tokens of those characters, never the id. If ids could come in with the content, the user could
# close the turn and go on in the assistant's name: the row would read as a conversation that never happened. So
# `render` refuses content with a special token in it.
#
# `parse` is the inverse, for `render` loses nothing: an opening, the content, the end, and so on to the last token. It
# is strict on purpose. A row that is not a conversation is a bug somewhere before, and better found here than trained
# on.


# %% solution="template"
def render(
    conversation: Conversation, template: ChatTemplate, *, open_assistant: bool = False
) -> Int[Tensor, "length"]:
    """The conversation as one row of token ids: for each turn its opening, its content and the end.

    Args:
        conversation: role and content of each turn. The user begins, and roles alternate. A content may be empty.
        template: ids of the special tokens.
        open_assistant: the row then closes with the opening of an assistant's turn, for the model to go on from.

    Returns:
        int64, on the CPU.

    Raises:
        ValueError: there is no turn (the message says ``empty``); the roles are not user, assistant, user, … or,
            with ``open_assistant``, the last turn is not the user's (it says ``role``); or a content holds a
            special token (it says ``special``).
    """
    ### BEGIN SOLUTION
    if not conversation:
        raise ValueError("the conversation is empty")
    openings = (template.user, template.assistant)
    row: list[int] = []
    for i, (role, content) in enumerate(conversation):
        if role != ROLES[i % 2]:
            raise ValueError(f"turn {i} must have the role {ROLES[i % 2]}, got {role!r}")
        if not set(template).isdisjoint(content):
            raise ValueError(f"the content of turn {i} holds a special token: {content}")
        row += [openings[i % 2], *content, template.end]
    if open_assistant:
        if len(conversation) % 2 == 0:
            raise ValueError("the assistant answers a turn of the role user, and the last is not")
        row.append(template.assistant)
    return torch.tensor(row)
    ### END SOLUTION


def parse(tokens: Int[Tensor, "length"], template: ChatTemplate) -> Conversation:
    """The conversation that ``render`` (without ``open_assistant``) writes as these tokens.

    Returns:
        A list with a tuple for each turn: the role, and the content as a list of ids, which are ints.

    Raises:
        ValueError: the tokens are no such row. There is no token (the message says ``empty``); where a turn should
            begin there is something else than the opening of the role whose turn it is (it says ``role``); or a turn
            is not closed before the next opening or before the tokens stop (it says ``end``).
    """
    ### BEGIN SOLUTION
    openings = (template.user, template.assistant)
    conversation: Conversation = []
    content: list[int] | None = None  # of the turn that is being read
    for token in tokens.tolist():
        turn = len(conversation) % 2
        if content is None:
            if token != openings[turn]:
                raise ValueError(f"a turn of the role {ROLES[turn]} must begin, got token {token}")
            content = []
        elif token == template.end:
            conversation.append((ROLES[turn], content))
            content = None
        elif token in openings:
            raise ValueError(f"token {token} opens a turn before the end of the last one")
        else:
            content.append(token)
    if content is not None:
        raise ValueError("the last turn has no end")
    if not conversation:
        raise ValueError("the conversation is empty: there is no token")
    return conversation
    ### END SOLUTION


# %% test="template_render" points=2
chat = ChatTemplate(user=1, assistant=2, end=3)
question = [("user", [7, 5])]
check.equal(
    render(question, chat),
    [1, 7, 5, 3],
    because="The opening of the user, the content, the end.",
)
check.equal(
    render([*question, ("assistant", [9]), ("user", [])], chat),
    [1, 7, 5, 3, 2, 9, 3, 1, 3],
    because="Every turn has its opening and its end, also one without content.",
)
check.equal(
    render(question, chat, open_assistant=True),
    [1, 7, 5, 3, 2],
    because="The assistant's opening stands at the close, without an end: the model goes on from there.",
)
for bad, says in [
    ([("user", [7, 3, 2, 9])], "special"),
    ([("assistant", [7])], "role"),
    ([("user", [7]), ("user", [8])], "role"),
    ([("system", [7])], "role"),
    ([], "empty"),
]:
    check.raises(
        ValueError,
        render,
        bad,
        chat,
        mentions=says,
        because="A special token in a content lets a user write the assistant's turn (say special); the user begins, "
        "and roles alternate (say role); a conversation has a turn (say empty).",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "sft")
rng = inputs("sft_render")
templates = [ChatTemplate(0, 1, 2), ChatTemplate(9, 4, 6), ChatTemplate(17, 15, 16)]
cases = [
    (random_conversation(turns, template, rng), template)
    for template in templates
    for turns in (1, 2, 3, 6)
]
cases.append(([("user", []), ("assistant", [])], templates[1]))
for case, row in zip(cases, each(render, cases), strict=True):
    check.equal(
        row,
        theirs.render(*case),
        because="For each turn: the id of its role, its content as it is, the id of the end. The ids are those of the "
        "template.",
    )
for case in (cases[0], cases[6]):
    check.equal(
        render(*case, open_assistant=True),
        theirs.render(*case, open_assistant=True),
        because="With open_assistant the row closes with the assistant's opening, and nothing after it.",
    )
talk, template = random_conversation(4, templates[1], rng), templates[1]
kept = [(role, list(content)) for role, content in talk]
check.that(
    render(talk, template).dtype == torch.int64,
    "Token ids are int64: torch.tensor of a list of ints.",
)
check.equal(talk, kept, because="The conversation was changed in place.")
wrong = [
    ([*talk[:i], (talk[i][0], [5, token, 8]), *talk[i + 1 :]], "special")
    for i, token in [
        (0, template.end),
        (1, template.user),
        (2, template.assistant),
        (3, template.end),
    ]
]
wrong += [(talk[1:], "role"), (talk[:1] + talk[3:] + talk[1:2], "role"), (talk + talk[3:], "role")]
wrong += [([*talk, ("User", [5])], "role")]
for bad, says in wrong:
    check.raises(
        ValueError,
        render,
        bad,
        template,
        mentions=says,
        because="No content of either role may hold any of the three special tokens (say special); roles are user, "
        "assistant, user, … (say role).",
    )


def opened(conversation):
    return render(conversation, template, open_assistant=True)


for bad, says in [(talk, "role"), ([], "empty")]:
    check.raises(
        ValueError,
        opened,
        bad,
        mentions=says,
        because="With open_assistant the last turn is the user's: say role. Without any turn say empty.",
    )
### END HIDDEN TESTS

# %% test="template_parse" points=2
chat = ChatTemplate(user=1, assistant=2, end=3)
found = parse(torch.tensor([1, 7, 5, 3, 2, 9, 3, 1, 3]), chat)
check.equal(
    found,
    [("user", [7, 5]), ("assistant", [9]), ("user", [])],
    because="A list of tuples, a role and a list of ids. The special tokens are no content, and a turn without content "
    "is a turn.",
)
check.that(
    set(found[0][1]) == {5, 7},
    "Ids are ints, as .tolist() gives them. Tensors of one number are not found in a set of ints.",
)
for bad, says in [
    ([7, 5, 3], "role"),
    ([1, 7, 3, 5, 2, 9, 3], "role"),
    ([1, 7, 3, 1, 9, 3], "role"),
    ([1, 7, 3, 2], "end"),
    ([1, 7, 2, 9, 3], "end"),
    ([], "empty"),
]:
    check.raises(
        ValueError,
        parse,
        torch.tensor(bad, dtype=torch.int64),
        chat,
        mentions=says,
        because="Tokens between turns, or a turn of the wrong role (say role); a turn that is not closed, at the close "
        "of the row or before another opening (say end); no token at all (say empty).",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "sft")
rng = inputs("sft_parse")
talks = []
for template in [ChatTemplate(0, 1, 2), ChatTemplate(9, 4, 6), ChatTemplate(17, 15, 16)]:
    talks += [(random_conversation(turns, template, rng), template) for turns in (1, 2, 5, 8)]
talks.append(([("user", []), ("assistant", [])], template))
rows = [(theirs.render(*talk), talk[1]) for talk in talks]
for (talk, _), found in zip(talks, each(parse, rows), strict=True):
    check.equal(
        found,
        talk,
        because="parse(render(conversation)) is the conversation: tuples of a role and a list of ids, empty contents "
        "included, for any ids of the special tokens.",
    )
template = ChatTemplate(9, 4, 6)
whole = theirs.render([("user", [5, 8]), ("assistant", [7]), ("user", [8, 8])], template).tolist()
# u 5 8 e a 7 e u 8 8 e: at 3 and 6 the ends, at 4 and 7 the openings.
for bad, says in [
    (whole[:-1], "end"),
    (whole[:8], "end"),
    (whole[:3] + whole[4:], "end"),
    ([*whole[:2], template.user, *whole[2:]], "end"),
    ([*whole[:6], template.assistant, *whole[6:]], "end"),
    ([*whole, template.assistant], "end"),
    (whole[1:], "role"),
    (whole[4:], "role"),
    ([*whole[:4], 7, *whole[4:]], "role"),
    ([*whole[:4], template.end, *whole[4:]], "role"),
    (whole[:4] + whole[:4], "role"),
    (whole[:7] + whole[4:7], "role"),
    ([*whole, 5, 5], "role"),
    ([*whole, template.end], "role"),
    ([template.end], "role"),
    ([], "empty"),
]:
    check.raises(
        ValueError,
        parse,
        torch.tensor(bad, dtype=torch.int64),
        template,
        mentions=says,
        because="A turn is closed before another begins and before the tokens stop (say end). Where a turn should "
        "begin stands the opening of the role whose turn it is, not content, not an end, not padding (say role).",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## 2 · What is to be learnt
#
# The demonstration shows what the *assistant* says. The user's words are conditions: a model that learns to predict
# them learns to ask questions, and spends its capacity on the many ways there are to ask. Touvron et al. (2023, §3.1)
# say it in a sentence for Llama 2: no loss on the tokens of the user's prompt. So we need a mask.
#
# ```
# tokens   <user> hi <end> <assistant> hello . <end> <user> thanks <end> <assistant> bye <end>
# mask       .    .    .        .        ✓   ✓   ✓     .      .      .        .       ✓    ✓
# ```
#
# Three things to see:
#
# - **Every turn of the assistant** is in it. The last one alone would throw away most of a long conversation.
# - **The assistant's `<end>` is in it.** Whoever is not taught to stop does not stop. The user's `<end>` is not.
# - **The assistant's opening is not in it.** It is written by `render`, never by the model.
#
# The mask says of each token whether *it* is to be predicted; the position that predicts it is the one before.
# `response_mask` marks tokens, as masks do everywhere in this chapter, and the loss shifts mask and tokens together. A
# mask that is already shifted, given to a loss that shifts, teaches the opening and never the end. Nothing crashes.
#
# In a batch the shorter rows are filled up on the right. What stands there may also be the id of the end: many
# vocabularies have no token for padding and use that one. A mask that drops *every* such id drops the ends as well, and
# one that keeps every such id trains on padding. It is no matter of ids but of places: an end counts if a turn of the
# assistant is open.


# %% solution="mask"
def response_mask(
    tokens: Int[Tensor, "... length"], template: ChatTemplate
) -> Bool[Tensor, "... length"]:
    """``True`` at the tokens that the assistant has to learn: the content and the end of each of its turns.

    The mask is for targets: it stands at the token that is predicted, not at the position that predicts it.

    Args:
        tokens: rows as ``render`` writes them, with or without ``open_assistant``, one or several one after the other.
            On the right there may be padding of any id except the two openings, also that of the end. A row that was
            cut off within a turn has no padding; its tokens count as if it were whole.
        template: ids of the special tokens.
    """
    ### BEGIN SOLUTION
    place = torch.arange(tokens.shape[-1], device=tokens.device)
    marks = (tokens == template.assistant) | (tokens == template.end)
    last = (place * marks).cummax(dim=-1).values  # where the last mark stands; 0 if there is none
    is_open = tokens.gather(-1, last) == template.assistant  # after this token
    return F.pad(is_open[..., :-1], (1, 0))  # before it
    ### END SOLUTION


# %% test="mask_turns" points=2
chat = ChatTemplate(user=1, assistant=2, end=3)
row = torch.tensor([1, 7, 3, 2, 8, 5, 3, 1, 9, 3, 2, 6, 3])
check.equal(
    response_mask(row, chat).long(),
    [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1],
    because="Content and end of both turns of the assistant: not its opening, and nothing of the user, whose end has "
    "the same id. The mask marks the tokens that are predicted.",
)
check.equal(
    response_mask(torch.tensor([1, 7, 3, 2, 3]), chat).long(),
    [0, 0, 0, 0, 1],
    because="A turn without content: its end is still to be learnt.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "sft")
rng = inputs("sft_mask_turns")


def by_turns(talk):
    """The mask, written beside the tokens, turn by turn."""
    found = []
    for role, content in talk:
        said = role == "assistant"
        found += [False] + [said] * (len(content) + 1)
    return found


talks, cases = [], []
for template in [ChatTemplate(0, 1, 2), ChatTemplate(9, 4, 6), ChatTemplate(17, 15, 16)]:
    for turns in (1, 2, 3, 4, 9):
        talks.append(random_conversation(turns, template, rng))
        cases.append((theirs.render(talks[-1], template).to(device), template))
for talk, mask in zip(talks, each(response_mask, cases), strict=True):
    check.equal(
        mask,
        by_turns(talk),
        because="True at content and end of every turn of the assistant, not at its opening, nowhere in the user's "
        "turns; one for each token, at the token itself.",
    )
row, template = cases[4]
kept = row.clone()
for cut in (1, len(row) // 2, len(row) - 1):
    check.equal(
        response_mask(row[:cut], template),
        by_turns(talks[4])[:cut],
        because="A row that stops within a turn: what there is of it counts as in the whole row.",
    )
waiting = torch.cat([row, torch.tensor([template.assistant], device=device)])
check.equal(
    response_mask(waiting, template),
    [*by_turns(talks[4]), False],
    because="An opening at the close of the row has nothing after it to be learnt.",
)
check.equal(row, kept, because="The tokens were changed in place.")
check.that(
    response_mask(row, template).dtype == torch.bool,
    "The mask is boolean, True where a token counts.",
)
### END HIDDEN TESTS

# %% test="mask_padding" points=1
chat = ChatTemplate(user=1, assistant=2, end=3)
for pad in (0, 3, 8):
    check.equal(
        response_mask(
            torch.tensor([[1, 7, 3, 2, 8, 3, pad, pad], [1, 3, 2, 5, 5, 5, 5, 3]]), chat
        ).long(),
        [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1]],
        because="Padding is not to be learnt, whatever its id (here 0, that of the end, and that of a word). The end "
        "of the turn is.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "sft")
rng = inputs("sft_mask_padding")
template = ChatTemplate(9, 4, 6)
rows = [
    theirs.render(random_conversation(turns, template, rng), template)
    for turns in (2, 1, 4, 3, 6, 5)
]
length = max(len(row) for row in rows) + 3
cases, alone = [], torch.zeros(6, length, dtype=torch.bool)
for i, row in enumerate(rows):
    alone[i, : len(row)] = theirs.response_mask(row, template)
for pad in (template.end, 0, -1, rows[0][1].item() if rows[0][1] != template.end else 5):
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    batch = F.pad(batch, (0, length - batch.shape[1]), value=pad).to(device)
    cases.append((batch, template))
cases.append((cases[0][0].T.contiguous().T, template))
for mask in each(response_mask, cases):
    check.equal(
        mask,
        alone,
        because="Each row of a batch has the mask that it has alone, and False at padding, whatever its id: that of "
        "the end as well.",
    )
check.equal(
    response_mask(cases[0][0].view(2, 3, length), template),
    alone.view(2, 3, length),
    because="Any number of leading dimensions: the last one runs over the tokens.",
)
check.equal(
    response_mask(torch.cat(rows).to(device), template),
    torch.cat([theirs.response_mask(row, template) for row in rows]),
    because="Several conversations one after the other have the masks of each.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 3 · The loss
#
# Maximum likelihood, as before. With $m_t$ the mask, the sum of the negative log-probabilities of the tokens that
# count, over all rows $n$ of the batch, divided by how many they are:
#
# $$\mathcal L = -\frac{1}{M} \sum_n \sum_{t \ge 1} m_{n,t} \log \pi_\theta(y_{n,t} \mid y_{n,<t}), \qquad
# M = \sum_n \sum_{t \ge 1} m_{n,t}.$$
#
# One fraction. Divide by all tokens instead, and a batch with much padding or long questions has a smaller gradient.
# Take the mean of each row first and then of the rows, and a token of a short answer weighs more than one of a long
# one: with answers of 2 and 200 tokens a hundred times more. That may be wanted, but it is another loss, and it changes
# when two texts move into one row, which is part 4. The same trap waits in gradient accumulation: the mean of the
# micro-batches' means is not the mean over all tokens (widely used training libraries corrected this in 2024).
#
# Where does the gradient go? The logits at position $t - 1$ predict token $t$. With $p$ their softmax,
#
# $$\frac{\partial \mathcal L}{\partial z_{n,t-1,v}} = \frac{m_{n,t}}{M}\,\big(p_{n,t-1,v} - [v = y_{n,t}]\big),$$
#
# and 0 everywhere else. That is the surest test of a mask: compute the gradient, and look where it is not 0.


# %% solution="loss"
def sft_loss(
    logits: Float[Tensor, "batch length vocab"],
    tokens: Int[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, ""]:
    """The mean negative log-likelihood, in nats, of all tokens of the batch that count.

    Args:
        logits: those at position ``t`` are for token ``t + 1``. Not normalised.
        tokens: a token that does not count may be any number, also −100.
        mask: as ``response_mask`` gives it, ``True`` at the tokens that count. What stands at the first position means
            nothing, for no logits predict that token.

    Returns:
        One mean over the tokens that count, of the whole batch: each weighs the same, in whichever row it stands.

    Raises:
        ValueError: ``tokens`` or ``mask`` is not ``(batch length)`` as ``logits`` say (the message says which), or
            no token counts (it says ``response``).
    """
    ### BEGIN SOLUTION
    if tokens.shape != logits.shape[:-1]:
        raise ValueError(f"tokens must be {tuple(logits.shape[:-1])}, got {tuple(tokens.shape)}")
    if mask.shape != tokens.shape:
        raise ValueError(f"mask must be {tuple(tokens.shape)}, got {tuple(mask.shape)}")
    counted = mask[:, 1:]
    if not counted.any():
        raise ValueError("no token of a response is in the batch")
    return F.cross_entropy(logits[:, :-1][counted], tokens[:, 1:][counted])
    ### END SOLUTION


# %% [markdown]
# By hand: with two tokens and the logits $(\ln 3, 0)$ everywhere, token 0 has probability $\frac34$, token 1 $\frac14$.

# %% test="loss_mean" points=2
logits = torch.tensor([math.log(3), 0.0]).expand(2, 5, 2)
tokens = torch.tensor([[0, 1, 0, 0, 0], [1, 0, 1, -100, -100]])
mask = torch.tensor([[False, False, True, True, True], [False, False, True, False, False]])
check.close(
    sft_loss(logits, tokens, mask),
    -(3 * math.log(3 / 4) + math.log(1 / 4)) / 4,
    because="Four tokens count: three with 3/4 and one with 1/4. Their mean, not that of the two rows, and not over "
    "prompt and padding.",
)
# Logits that are sure of the token that follows.
text = torch.tensor([[2, 0, 1, 1]])
sure = 50.0 * F.one_hot(torch.tensor([[0, 1, 1, 2]]), 3).float()
check.close(
    sft_loss(sure, text, torch.tensor([[False, True, True, True]])),
    0.0,
    because="These logits are sure of the next token: the logits at t belong to token t + 1.",
)
for nothing in ([[False] * 4], [[True, False, False, False]]):
    check.raises(
        ValueError,
        sft_loss,
        sure,
        text,
        torch.tensor(nothing),
        mentions="response",
        because="No token counts (the first has no logits that predict it): the mean of nothing is NaN. Say response.",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "sft")
rng = inputs("sft_loss_mean")
cases, same = [], []
for batch, length in [(1, 2), (3, 5), (4, 9)]:
    tokens = torch.randint(6, (batch, length), generator=rng).to(device)
    logits = torch.randn(6, length, batch, generator=rng, dtype=torch.float64).to(device)
    logits = 2.0 * logits.permute(2, 1, 0)
    mask = (torch.rand(batch, length, generator=rng) < 0.4).to(device)
    mask[:, 0] = False
    # Rows with few and with many tokens that count.
    mask[0, 1:] = True
    mask[1:, -1] = True
    cases.append((logits, tokens, mask))
losses = each(sft_loss, cases)
for case, loss in zip(cases, losses, strict=True):
    check.close(
        loss,
        theirs.sft_loss(*case),
        because="Over all tokens of the batch where the mask is True: the mean of −log softmax(logits at t)[token "
        "t + 1]. Each weighs the same.",
    )
# What does not count may be anything, the first token and the last logits included.
odd, noisy, first = tokens.masked_fill(~mask, -100), logits.clone(), mask.clone()
odd[:, 0] = 10_000
first[:, 0] = True
noisy[:, -1] = 40.0 * noisy[:, -1] + torch.arange(6, device=device)
noisy[:, :-1][~mask[:, 1:]] = -25.0
# More padding; all rows in one; one half of the batch twice as a check of weights.
more = F.pad(logits, (0, 0, 0, 4), value=3.0), F.pad(tokens, (0, 4)), F.pad(mask, (0, 4))
one = logits.reshape(1, 36, 6), tokens.reshape(1, 36), mask.reshape(1, 36)
same = [(noisy, odd, first), more, one, tuple(x.flip(0) for x in cases[-1])]
for loss, why in zip(
    each(sft_loss, same),
    [
        "What does not count changed the loss, or its id was looked up. The first token is predicted by nobody, and "
        "the last logits predict nothing.",
        "More padding changed the loss: it is divided by the number of tokens that count.",
        "The same tokens, all in one row, have another loss: it is one mean over tokens, not a mean over rows.",
        "The order of the rows means nothing.",
    ],
    strict=True,
):
    check.close(loss, losses[-1], because=why)
check.close(
    sft_loss(1e3 * logits, tokens, mask),
    theirs.sft_loss(1e3 * logits, tokens, mask),
    because="Large logits must not give an infinity: log_softmax, not the logarithm of a softmax.",
)
for bad in (tokens[:, :8], tokens[:1], tokens[0], tokens.T):
    for arguments, says in [((logits, bad, mask), "tokens"), ((logits, tokens, bad > 2), "mask")]:
        check.raises(
            ValueError,
            sft_loss,
            *arguments,
            mentions=says,
            because="tokens and mask have the shape of the logits without the vocabulary, and nothing is broadcast: "
            "say tokens, or mask.",
        )
only_first = torch.zeros_like(mask)
only_first[:, 0] = True
for nothing in (torch.zeros_like(mask), only_first):
    check.raises(
        ValueError,
        sft_loss,
        logits,
        tokens,
        nothing,
        mentions="response",
        because="No token counts: the first one does not, for no logits predict it. Say response.",
    )
check.raises(
    ValueError,
    sft_loss,
    logits[:, :1],
    tokens[:, :1],
    only_first[:, :1],
    mentions="response",
    because="Rows of one token predict nothing: say response.",
)
### END HIDDEN TESTS

# %% test="loss_gradient" points=1
logits = torch.tensor([math.log(3), 0.0]).repeat(1, 4, 1).requires_grad_()
tokens, mask = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[False, False, True, True]])
loss = sft_loss(logits, tokens, mask)
check.that(loss.requires_grad, "No gradient reaches the logits: is something detached?")
loss.backward()
check.close(
    logits.grad,
    [[[0.0, 0.0], [3 / 8, -3 / 8], [-1 / 8, 1 / 8], [0.0, 0.0]]],
    because="Tokens 1 and 0, at 2 and 3, count: a gradient has the position before each, (p − one-hot) by 2, and no "
    "other.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import inputs, reference

theirs = reference("alignment", "sft")
rng = inputs("sft_loss_gradient")
logits = torch.randn(3, 7, 5, generator=rng, dtype=torch.float64).to(device)
tokens = torch.randint(5, (3, 7), generator=rng).to(device)
mask = torch.tensor(
    [
        [False, False, True, True, False, False, True],
        [False] * 7,
        [True, True, False, True, False, False, False],
    ],
    device=device,
)
own = logits.clone().requires_grad_()
loss = sft_loss(own, tokens, mask)
check.that(loss.requires_grad, "No gradient reaches the logits: is something detached?")
loss.backward()
counted = F.pad(mask[:, 1:], (0, 1))  # at the positions that predict
expected = (logits.softmax(-1) - F.one_hot(tokens.roll(-1, dims=1), 5)) * counted[..., None] / 5
check.equal(
    own.grad.abs().sum(-1) > 0,
    counted,
    because="A gradient has the position before each token that counts, and no other: not prompt, not padding, not "
    "the last position.",
)
check.close(
    own.grad,
    expected,
    because="The gradient at a position that predicts is (softmax − one-hot of the next token) by the number of tokens "
    "that count.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 4 · Many conversations in one row
#
# Conversations are of very different lengths. A batch as long as its longest one is mostly padding, and the processor
# multiplies it as diligently as the rest. *Packing* puts several conversations into one row. The danger is
# *cross-contamination* (Krell et al. 2021): a conversation that reads the one before it. Three doors are to be shut.
#
# - **Attention.** A token may attend to the tokens before it *of its own conversation*. The mask is block-diagonal
#   and, within each block, causal:
#
# ```
#          a a a b b
#       a  ✓ . . . .
#       a  ✓ ✓ . . .
#       a  ✓ ✓ ✓ . .
#       b  . . . ✓ .
#       b  . . . ✓ ✓
# ```
#
# - **Positions.** They restart with every conversation, or the second would stand where a conversation never begins.
# - **The border.** The last token of one conversation stands before the first of the next, and a loss that knows
#   nothing of borders would train the one to predict the other. So the first token of a conversation never counts.
#   (As `response_mask` marks them it never does. But a mask may be made otherwise, and alone in its row the first
#   position means nothing.)
#
# With the three shut, a packed row is exactly as good as its conversations each in a row of their own: same outputs,
# same loss, same gradient. This needs a model that takes an attention mask and positions. Not every library's packing
# gave it them, and then conversations read each other. Grattafiori et al. (2024, §3.2) report for Llama 3 that the
# mask made little difference in standard pre-training, and was important in training on very long sequences.
#
# Which conversation goes where? The fewest rows are hard to find (bin packing is NP-hard). *First-fit* is simple: take
# them as they come, and put each into the first row that has room for all of it. It needs at most 1.7 times the fewest
# rows (Dósa and Sgall 2013).


# %%
class Packed(NamedTuple):
    """Texts packed into rows, ``(rows length)`` each."""

    tokens: Tensor  # int64; 0 at padding
    mask: Tensor  # bool, True at tokens that count; False at padding and at the first token of each text
    documents: Tensor  # int64, which text it is: its index in what was packed; -1 at padding
    positions: Tensor  # int64: 0, 1, 2, … in each text; 0 at padding


# %% solution="pack"
def pack(
    texts: Sequence[Int[Tensor, "_"]], masks: Sequence[Bool[Tensor, "_"]], length: int
) -> Packed:
    """Packs texts into rows of ``length`` tokens by first-fit, each whole and in one piece.

    In the order given, each text goes into the first row that has room for it, right after what is there; where there
    is none, into a new row after the others. What is left of a row is padding, on the right.

    Args:
        texts: token ids of each.
        masks: ``True`` at the tokens that count, for each text, of its length.
        length: of the rows; none is shorter or longer.

    Returns:
        ``Packed``, on the device of the texts. The first token of a text never counts, whatever its mask says.

    Raises:
        ValueError: there is no text (the message says ``text``), one is empty (it says ``empty``), one is longer
            than ``length`` (it says ``length``), or the masks are not as many as the texts, or not as long (it
            says ``mask``).
    """
    ### BEGIN SOLUTION
    if not texts:
        raise ValueError("there is no text")
    if [mask.shape for mask in masks] != [text.shape for text in texts]:
        raise ValueError("there must be a mask for each text, of its length")
    used: list[int] = []  # how many tokens each row has
    places = []  # row and start of each text
    for text in texts:
        if len(text) == 0:
            raise ValueError("a text is empty")
        if len(text) > length:
            raise ValueError(f"{len(text)} tokens are more than the length of a row, {length}")
        fits = (row for row, tokens in enumerate(used) if tokens + len(text) <= length)
        row = next(fits, len(used))
        if row == len(used):
            used.append(0)
        places.append((row, used[row]))
        used[row] += len(text)
    zeros = torch.zeros(len(used), length, dtype=torch.int64, device=texts[0].device)
    packed = Packed(zeros, zeros.bool(), zeros - 1, zeros.clone())
    for i, (row, start) in enumerate(places):
        here = row, slice(start, start + len(texts[i]))
        packed.tokens[here] = texts[i]
        packed.mask[here] = masks[i]
        packed.mask[row, start] = False  # what stands before it is another text
        packed.documents[here] = i
        packed.positions[here] = torch.arange(len(texts[i]))
    return packed
    ### END SOLUTION


def packed_attention_mask(
    documents: Int[Tensor, "rows length"],
) -> Bool[Tensor, "rows length length"]:
    """``True`` where the token of the second axis may attend to that of the third.

    Those are the tokens of its own document, itself and those before it. At padding (−1) no token attends to anything,
    and none is attended to.
    """
    ### BEGIN SOLUTION
    same = documents[:, :, None] == documents[:, None, :]
    real = documents[:, :, None] >= 0
    return (same & real).tril()
    ### END SOLUTION


# %% [markdown]
# By hand, rows of 6 tokens: a text of 3, one of 2, one of 4, one of 1. The third does not fit behind the first two; the
# fourth does, and fills the first row.

# %% test="pack_rows" points=2
texts = [torch.tensor(ids) for ids in ([5, 6, 7], [8, 9], [4, 4, 2, 2], [1])]
masks = [torch.tensor(bits) > 0 for bits in ([0, 1, 1], [1, 1], [0, 0, 0, 1], [1])]
packed = pack(texts, masks, length=6)
check.equal(
    packed.tokens,
    [[5, 6, 7, 8, 9, 1], [4, 4, 2, 2, 0, 0]],
    because="First-fit: each text, in the order given, goes into the first row with room for all of it, so the last "
    "one goes back into the first row. Padding is 0.",
)
check.equal(
    packed.documents,
    [[0, 0, 0, 1, 1, 3], [2, 2, 2, 2, -1, -1]],
    because="Each token has the index of its text in the list, padding has −1.",
)
check.equal(
    packed.positions,
    [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]],
    because="Positions restart with each text.",
)
check.equal(
    packed.mask.long(),
    [[0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]],
    because="The masks go where their texts go. The first token of a text does not count, also where its mask says so: "
    "what stands before it is another text.",
)
for arguments, says in [
    ((texts, masks, 3), "length"),
    ((texts, masks[:3], 6), "mask"),
    ((texts, masks[::-1], 6), "mask"),
    (([texts[0][:0]], [masks[0][:0]], 6), "empty"),
    (([], [], 6), "text"),
]:
    check.raises(
        ValueError,
        pack,
        *arguments,
        mentions=says,
        because="A text longer than a row is not cut (say length); each text has a mask as long as it (say mask); no "
        "text is empty (say empty); there is one at least (say text).",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "sft")
rng = inputs("sft_pack_rows")
cases = []
for many, longest, length in [(1, 4, 4), (1, 3, 7), (5, 1, 3), (9, 6, 8), (20, 9, 11), (15, 5, 5)]:
    lengths = (1 + torch.randint(longest, (many,), generator=rng)).tolist()
    texts = [torch.randint(1, 30, (n,), generator=rng).to(device) for n in lengths]
    masks = [(torch.rand(n, generator=rng) < 0.5).to(device) for n in lengths]
    for mask in masks[::2]:
        mask[0] = True
    cases.append((texts, masks, length))
# 5 and 3 fill a row to the last place; 4 and 3 leave one. The first row with room is the emptier one, then the fuller.
for lengths in ([5, 3, 4, 3, 1, 1], [2, 7, 6, 2, 1, 8, 3, 3, 5], [4, 6, 2, 1], [6, 4, 2, 3]):
    texts = [torch.randint(1, 30, (n,), generator=rng).to(device) for n in lengths]
    cases.append((texts, [text > 15 for text in texts], 8))
kept = [([t.clone() for t in texts], [m.clone() for m in masks]) for texts, masks, _ in cases]
for case, found in zip(cases, each(pack, cases), strict=True):
    right = theirs.pack(*case)
    check.shape(
        found[0],
        right.tokens.shape,
        because="First-fit: a text goes into the first row with room for all of it, from the first row on, also where "
        "it fills it to the last place; a new row is opened only where no row has room. All rows are as long as asked.",
    )
    for got, expected, because in zip(
        found,
        right,
        [
            "The tokens: each text whole and in one piece, in the first row with room, right after what is there; 0 at "
            "padding.",
            "The mask goes with its text, except that the first token of a text never counts; False at padding.",
            "The documents: the index of the text in the list, also where texts are alike; −1 at padding.",
            "The positions restart with each text; 0 at padding.",
        ],
        strict=True,
    ):
        check.equal(got, expected, because=because)
        check.that(
            got.dtype == expected.dtype,
            "Tokens, documents and positions are int64, as what is looked up must be; the mask is boolean.",
        )
check.equal(
    [(texts, masks) for texts, masks, _ in cases],
    kept,
    because="Texts or masks were changed in place.",
)
texts, masks, length = cases[4]
longest = max(len(text) for text in texts)
check.shape(
    pack(texts, masks, longest).tokens,
    theirs.pack(texts, masks, longest).tokens.shape,
    because="A text of the length of a row fits.",
)
cut = [mask[:-1] if len(mask) > 2 else mask for mask in masks]
for arguments, says in [
    ((texts, masks, longest - 1), "length"),
    ((texts, masks[:-1], length), "mask"),
    ((texts[:-1], masks, length), "mask"),
    ((texts, [], length), "mask"),
    ((texts, cut, length), "mask"),
    (([*texts, texts[0][:0]], [*masks, masks[0][:0]], length), "empty"),
    (([], [], length), "text"),
]:
    check.raises(
        ValueError,
        pack,
        *arguments,
        mentions=says,
        because="No text is longer than a row (say length) or empty (say empty), each has its mask (say mask), and "
        "there is one at least (say text).",
    )
### END HIDDEN TESTS

# %% test="pack_attention" points=2
check.equal(
    packed_attention_mask(torch.tensor([[0, 0, 2, 2, -1, -1]])).long(),
    [
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0],
            [0, 0, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ]
    ],
    because="A token attends to its own document, to itself and what stands before it. Rows of the mask are the tokens "
    "that look, columns those looked at. Padding neither looks nor is looked at.",
)
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "sft")
rng = inputs("sft_pack_attention")
lengths = [4, 6, 1, 3, 5, 2, 7]
texts = [torch.randint(11, (n,), generator=rng).to(device) for n in lengths]
masks = [(torch.rand(n, generator=rng) < 0.6).to(device) for n in lengths]
masks[0][0] = masks[4][0] = masks[1][2] = True
right = theirs.pack(texts, masks, 9)
odd = torch.tensor([[3, 3, 0, 0, 0, 7, 7], [-1] * 7, [5] * 7], device=device)
found = each(packed_attention_mask, [(right.documents,), (odd,), (odd[:, :1],), (odd.flip(0),)])
for mask, documents in zip(found, (right.documents, odd, odd[:, :1], odd.flip(0)), strict=True):
    check.equal(
        mask,
        theirs.packed_attention_mask(documents),
        because="True where both tokens are of one document and the second does not stand after the first; False for "
        "padding, as the one that looks and as the one looked at. The numbers of documents need not be in order.",
    )

# A layer of attention that takes a mask and positions: what it makes of a packed row is what it makes of each text.
table, place = torch.randn(2, 11, 6, generator=rng, dtype=torch.float64).to(device)
weights = torch.randn(3, 6, 6, generator=rng, dtype=torch.float64).to(device)


def logits_of(tokens, positions, allowed):
    """Two layers, each of which adds what attention gives; -inf everywhere is no attention."""
    x = table[tokens] + place[positions]
    for _ in range(2):
        q, k, v = (x @ weight for weight in weights)
        scores = (q @ k.transpose(1, 2) / math.sqrt(6)).masked_fill(~allowed, -math.inf)
        x = F.layer_norm(x + scores.softmax(-1).nan_to_num() @ v, (6,))
    return x @ table.T


outputs = logits_of(right.tokens, right.positions, torch.as_tensor(found[0]).to(device))
total, counted = 0.0, 0
for i, (text, mask) in enumerate(zip(texts, masks, strict=True)):
    n = len(text)
    causal = torch.ones(1, n, n, dtype=torch.bool, device=device).tril()
    alone = logits_of(text[None], torch.arange(n, device=device)[None], causal)
    check.close(
        outputs[right.documents == i],
        alone[0],
        because="In a packed row a text gets other outputs than alone: it looks at another text or at what stands "
        "after it, or it does not see all that stands before.",
    )
    if mask[1:].any():
        total = total + theirs.sft_loss(alone, text[None], mask[None]) * mask[1:].sum()
        counted += int(mask[1:].sum())
check.close(
    theirs.sft_loss(outputs, right.tokens, right.mask),
    total / counted,
    because="The loss of the packed rows is not that of the texts alone: a text looks at another.",
)
### END HIDDEN TESTS

# %% [markdown]
# ## 5 · Does it know, or does it say?
#
# Fine-tuning teaches to answer. In all demonstrations a question is followed by an answer, short and sure, and a model
# that has learnt this answers every question, also where it has nothing to answer with. Schulman (2023, in a talk at
# Berkeley) explains it so: people write what *they* know. Where the model knows it too, it learns to say what it knows.
# Where it does not, it learns to say what it does not know, which is to make things up. Gekhman et al. (2024) measured
# it: facts that are new to the model are learnt more slowly in fine-tuning than those it knows, and once they are
# learnt it hallucinates more.
#
# "Hallucination" has more than one meaning. Content that contradicts what the prompt says is *intrinsic*, content
# that nothing in it bears out *extrinsic* (Maynez et al. 2020). Ouyang et al. (2022, §1) report for tasks where all
# that is needed stands in the prompt that InstructGPT makes things up in 21 % of cases, GPT-3 in 41 %. We measure the
# other thing: questions without help, the answer of which the model was never shown.
#
# An answer is right, wrong or a refusal ("I do not know"). One share is not enough, for a model that refuses everything
# is never wrong. Three, then:
#
# - of the questions whose answer it *can* know, how many it answers right: the accuracy;
# - of the same, how many it refuses: what refusals cost;
# - of the questions whose answer it *cannot* know, how many it answers wrong: the hallucination rate.
#
# Each is a share of *all* questions of its kind. A refusal is counted in the denominator and not above. A right answer
# to a question that it cannot know is luck, and no hallucination.


# %%
class AnswerRates(NamedTuple):
    """Shares from 0 to 1, scalars."""

    accuracy: Tensor  # of the known questions, those answered right
    refusal: Tensor  # of the known questions, those refused
    hallucination: Tensor  # of the unknown questions, those answered and answered wrong


# %% solution="rates"
def answer_rates(
    known: Bool[Tensor, "questions"],
    refused: Bool[Tensor, "questions"],
    correct: Bool[Tensor, "questions"],
) -> AnswerRates:
    """How often a model answers right, refuses needlessly, and makes things up.

    Args:
        known: whether the model can know the answer to the question.
        refused: whether it said that it does not know.
        correct: whether it gave the true answer. A refusal is none, also where it is the best there is to say.

    Returns:
        Each a share of all questions of its kind, known or unknown; refused ones stay in the denominator.

    Raises:
        ValueError: the three are not of one shape (the message says ``shape``), an answer is both refused and correct
            (it says ``refused``), or there is no known or no unknown question (it says ``known``).
    """
    ### BEGIN SOLUTION
    if not known.shape == refused.shape == correct.shape:
        raise ValueError(f"not of one shape: {[tuple(x.shape) for x in (known, refused, correct)]}")
    if (refused & correct).any():
        raise ValueError("an answer cannot be refused and correct")
    if known.all() or not known.any():
        raise ValueError("there must be known and unknown questions, at least one of each")
    wrong = ~refused & ~correct
    shares = (correct[known], refused[known], wrong[~known])
    return AnswerRates(*(share.float().mean() for share in shares))
    ### END SOLUTION


# %% test="rates_shares" points=2
# Four known questions: right, right, wrong, refused. Three unknown: wrong, refused, a lucky guess.
known = torch.tensor([True, True, True, True, False, False, False])
refused = torch.tensor([False, False, False, True, False, True, False])
correct = torch.tensor([True, True, False, False, False, False, True])
check.close(
    list(answer_rates(known, refused, correct)),
    [2 / 4, 1 / 4, 1 / 3],
    because="Known: two of four right, one of four refused. Unknown: one of three is wrong; a refusal is not, and a "
    "lucky guess is not, but all three are in the denominator.",
)
for arguments, says in [
    ((known, refused, known), "refused"),
    ((known[:4], refused[:4], correct[:4]), "known"),
    ((known[4:], refused[4:], correct[4:]), "known"),
    ((known, refused[:1], correct), "shape"),
]:
    check.raises(
        ValueError,
        answer_rates,
        *arguments,
        mentions=says,
        because="A refusal is no correct answer (say refused); without questions of both kinds a share is 0/0 (say "
        "known); three values for each question (say shape).",
    )
### BEGIN HIDDEN TESTS
from autograder.hidden import each, inputs, reference

theirs = reference("alignment", "sft")
rng = inputs("sft_rates")
cases = []
for number in (2, 7, 40, 201):
    known, guessed, silent = (torch.rand(3, number, generator=rng) < 0.45).to(device)
    known[0], known[1] = True, False
    cases.append((known, silent, guessed & ~silent))
number = 9
all_, none = (
    torch.ones(9, dtype=torch.bool, device=device),
    torch.zeros(9, dtype=torch.bool, device=device),
)
half = torch.arange(9, device=device) < 4
# Refuses everything; makes up everything; is right throughout; refuses just what it cannot know.
cases += [(half, all_, none), (half, none, none), (half, none, all_), (half, ~half, half)]
for case, found in zip(cases, each(answer_rates, cases), strict=True):
    for name, got, expected in zip(
        AnswerRates._fields, found, theirs.answer_rates(*case), strict=True
    ):
        check.close(
            got,
            expected,
            because=f"The {name} is off. Accuracy and refusal are shares of all known questions, hallucination is the "
            "share of wrong answers, neither refused nor correct, among all unknown questions.",
        )
known, silent, right = cases[2]
for arguments, says in [
    ((known, silent, right | silent), "refused"),
    ((all_, none, none), "known"),
    ((none, none, all_), "known"),
    ((none[:0], none[:0], none[:0]), "known"),
    ((known, silent, right[:1]), "shape"),
    ((known[:3], silent, right), "shape"),
    ((known, silent[None], right), "shape"),
]:
    check.raises(
        ValueError,
        answer_rates,
        *arguments,
        mentions=says,
        because="Say shape, refused or known where one of them is not as it should be.",
    )
### END HIDDEN TESTS

# %% [markdown] written="sft_why" points=2
# **In your own words.** A labeler with an encyclopaedia writes short answers to 10,000 questions. The base has read the
# answers to half of them. What can the model learn from the other half that helps on a question which neither list
# holds, and what would it say there? Why does the loss never tell it that this is wrong? A colleague adds
# demonstrations of "I do not know", for the questions that the *labeler* could not answer. Why is that the wrong
# list, how could one find a better one, and which of your three rates goes up if it is too long? Then: another
# colleague's model talks on after its answer, though its loss fell as yours did. Name two mistakes in a mask that could
# do this. (7 to 10 sentences.)

# %% [markdown]
# ## Experiment: who says "I do not know"?
#
# A small world of invented people. The checkpoint `base` was trained on a text which tells where most of them live and
# what most of them do; for the others it was asked, and never told. The text has no assistants in it: it describes,
# it asks questions in a row that nobody answers, and now and then somebody answers in passing.
#
# Three assistants are made of this base, from the same questions. For the first, people who know everything wrote the
# demonstrations: right answers, also where the base was told nothing. For the second, what the base was not told is
# left out. For the third the demonstrations say "i do not know" there. Rows, mask, loss and rates are your functions.
# All are then asked about people whom no demonstration mentions, so that nothing can be looked up in the
# demonstrations.
#
# Before you run it: which of the three will make things up least? Which will answer best where the base was told? And
# how is the third to tell one kind of question from the other, when both are asked in the same words? It takes about
# a minute; on a GPU a larger preset runs.

# %% experiment=true
import matplotlib.pyplot as plt
from torch import nn

from lab import checkpoints, figures, instructions, training

NUMBER, STEPS, BATCH = (4000, 1000, 64) if device.type == "cuda" else (1000, 300, 32)
SEED = 0
CHAT = ChatTemplate(*instructions.encode(("<user>", "<assistant>", "<end>")).tolist())


def turn(role: str, words: Sequence[str]) -> tuple[str, list[int]]:
    """Words of the world as a turn of a conversation."""
    return role, instructions.encode(words).tolist()


def demonstrations(*, refusals: bool, only_told: bool = False) -> list[Conversation]:
    """Questions and what people wrote as answers."""
    rng = lab.generator(f"demonstrations {SEED}")
    talks = []
    for one in asked_in_training:
        *words, _ = instructions.demonstrate(one, rng, refusals=refusals)  # render writes the end
        if one.told or not only_told:
            talks.append([turn("user", one.question), turn("assistant", words)])
    return talks


def fine_tuned(talks: list[Conversation], label: str, change=None) -> tuple[nn.Module, float]:
    """The base after training on the conversations, and the mean loss of the last steps.

    ``change(mask, tokens)``, if given, is what the mask is replaced by.
    """
    model = checkpoints.load("base").model.to(device)
    rows = [render(talk, CHAT) for talk in talks]
    # As many vocabularies have to: the padding has the id of the end.
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=CHAT.end).to(device)
    mask = response_mask(tokens, CHAT)
    if change is not None:
        mask = change(mask, tokens)

    def batch(rng: torch.Generator) -> Tensor:
        return torch.randint(len(tokens), (BATCH,), generator=rng).to(device)

    def loss_of(model: nn.Module, some: Tensor) -> Tensor:
        return sft_loss(model(tokens[some]), tokens[some], mask[some])

    losses = training.train(
        model,
        batch,
        loss_of,
        STEPS,
        lr=1e-3,
        generator=lab.generator(f"fine-tuning {SEED}"),
        label=label,
    )
    return model.eval(), sum(losses[-50:]) / 50


@torch.no_grad()
def answers_of(model: nn.Module, asked: list[instructions.Instruction]) -> list[tuple[str, ...]]:
    """What an assistant says to each question, drawn token by token until it writes the end."""
    rng = lab.generator(f"answers {SEED}")
    rows = [render([turn("user", one.question)], CHAT, open_assistant=True) for one in asked]
    starts = torch.tensor([len(row) for row in rows], device=device)
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    tokens = F.pad(tokens, (0, instructions.MAX_RESPONSE)).to(device)
    row, stops = torch.arange(len(rows), device=device), starts.clone()
    talking = torch.ones_like(row, dtype=torch.bool)
    for _ in range(instructions.MAX_RESPONSE):
        # A causal model does not see what stands on the right of the last token.
        logits = model(tokens[:, : int(stops.max())])[row, stops - 1]
        drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=rng)[:, 0].to(device)
        tokens[row[talking], stops[talking]] = drawn[talking]
        stops = stops + talking
        talking = talking & (drawn != CHAT.end)
    return [
        instructions.decode(said[start:stop])
        for said, start, stop in zip(tokens.cpu(), starts.tolist(), stops.tolist(), strict=True)
    ]


asked_in_training = instructions.instructions(
    "demonstrations", NUMBER, lab.generator(f"asked {SEED}")
)
mentioned = {one.about for one in asked_in_training}
others = [
    one
    for split in ("comparisons", "prompts", "test")
    for one in instructions.instructions(split, 2000, lab.generator(f"held-out {split}"))
]
others = list(dict.fromkeys(others))  # each once
about_people = [one for one in others if one.task in ("city", "job") and one.about not in mentioned]
about_words = [one for one in others if one.task not in ("city", "job")][:300]
known = torch.tensor([one.told for one in about_people])

told_all = demonstrations(refusals=False)
rows = [render(talk, CHAT) for talk in told_all]
packed = pack(rows, [response_mask(row, CHAT) for row in rows], 4 * instructions.MAX_LENGTH)
padding = 1 - sum(map(len, rows)) / (len(rows) * max(map(len, rows)))
print(
    f"{len(rows)} demonstrations. One a row, {padding:.0%} is padding; packed into {len(packed.tokens)} rows of "
    f"{packed.tokens.shape[1]} tokens, {(packed.documents < 0).double().mean():.1%}."
)
trained = {
    "all answered": fine_tuned(told_all, "all answered"),
    "told only": fine_tuned(demonstrations(refusals=False, only_told=True), "told only"),
    "refusals": fine_tuned(demonstrations(refusals=True), "refusals"),
}

# %% [markdown]
# The base has no template; it is asked as its text asks, and goes on from there. It is right when the one answer that
# its continuation names is the right one.

# %% experiment=true


def rates_of(said: list[tuple[str, ...]]) -> AnswerRates:
    """Your rates, for answers to the questions about people."""
    verdicts = [
        instructions.judge(one, words) for one, words in zip(about_people, said, strict=True)
    ]
    refused = torch.tensor([verdict == "refusal" for verdict in verdicts])
    return answer_rates(known, refused, torch.tensor([verdict == "right" for verdict in verdicts]))


def share_right(asked: list[instructions.Instruction], said: list[tuple[str, ...]]) -> float:
    """The share of answers that are right."""
    right = [
        instructions.judge(one, words) == "right" for one, words in zip(asked, said, strict=True)
    ]
    return sum(right) / len(right)


base = checkpoints.load("base").model.to(device)
rng = lab.generator(f"base answers {SEED}")
of_people = {"base": instructions.respond(base, about_people, rng, chat=False)}
of_words = {"base": instructions.respond(base, about_words, rng, chat=False)}
for name, (model, _) in trained.items():
    of_people[name], of_words[name] = (
        answers_of(model, about_people),
        answers_of(model, about_words),
    )
for i in [known.tolist().index(True), known.tolist().index(False)]:
    kind = "told" if known[i] else "not told"
    print(" ".join(about_people[i].question), f"({about_people[i].answer}; {kind})")
    for name, said in of_people.items():
        print(f"  {name}:", " ".join(said[i]))

rates = {name: rates_of(said) for name, said in of_people.items()}
shares = {
    name: [share_right(about_words, of_words[name]), *(rate.item() for rate in rates[name])]
    for name in rates
}
groups = (
    "words and lists:\nright",
    "known people:\nright",
    "known people:\nrefused",
    "unknown people:\nmade up",
)
figures.use_style()
fig, ax = plt.subplots(figsize=(9, 3.6))
for i, (name, bars) in enumerate(shares.items()):
    places = [group + 0.2 * (i - 1.5) for group in range(4)]
    ax.bar(places, bars, width=0.18, label=name)
ax.set(ylabel="share", ylim=(0, 1.15), title="held-out questions, about people in no demonstration")
ax.set_xticks(range(4), groups, fontsize=9)
ax.legend(fontsize=9, ncols=4, loc="upper center")
figures.show(
    fig,
    alt=f"Shares of answers to held-out questions, {int(known.sum())} about people the base was told of and "
    f"{int((~known).sum())} about people it was not. "
    + " ".join(
        f"{name}: words and lists right {bars[0]:.2f}, known people right {bars[1]:.2f} and refused {bars[2]:.2f}, "
        f"unknown people made up {bars[3]:.2f}."
        for name, bars in shares.items()
    ),
)

# %% [markdown]
# The base often knows the answer and does not give it: it goes on with another question, or says more than was asked.
# What fine-tuning changes most is that. No demonstration held a fact about these people, so whatever is right about
# them came from the base, and the demonstrations taught to bring it out.
#
# The first two assistants make up nearly all answers that they cannot know, and the second about as often as the
# first. That is worth a second look, for nothing in its demonstrations was new to the base. In this world it takes no
# unknown facts to teach making things up: it is enough that in all demonstrations a question is followed by an answer.
# Whether new facts also cost what was known, as Gekhman et al. found, is the comparison of these two in the second
# group: a difference of a few hundredths, in a few hundred questions, is not to be told from chance by one run.
#
# The third makes up far less, about people whom no demonstration mentions. It cannot have learnt *who* is unknown; it
# must have learnt to tell a name that it has an answer to from one that it has not. And this has a price. It refuses
# some questions that it could have answered, and gives fewer right answers than the others. What the base was told is
# not the same as what it knows: it learnt much of it by halves. Count the refusals alone and you see progress; count
# the right answers alone and you see loss.
#
# **Three wrong masks.** The same demonstrations, the same loss, and a mask as it is often written by mistake: one that
# leaves out the end, one that is shifted one place to the left, one with the whole conversation in it. Before you run
# it: which of the four assistants has the lowest training loss, and is that the best one?

# %% experiment=true
shown = demonstrations(refusals=True)
wrong_masks = {
    "end left out": lambda mask, tokens: mask & (tokens != CHAT.end),
    "shifted": lambda mask, tokens: mask.roll(-1, dims=1),
    "prompt too": lambda mask, tokens: mask.flip(1).cumsum(1).flip(1) > 0,
}
masked = {"yours": trained["refusals"]}
masked |= {name: fine_tuned(shown, name, change) for name, change in wrong_masks.items()}

asked = about_people + about_words
said = {name: answers_of(model, asked) for name, (model, _) in masked.items()}
loss = {name: mean for name, (_, mean) in masked.items()}
right = {name: share_right(asked, answers) for name, answers in said.items()}
ended = {
    name: sum("<end>" in words for words in answers) / len(answers)
    for name, answers in said.items()
}
fig, axes = plt.subplots(1, 3, figsize=(10, 3), sharey=True)
for ax, (title, values) in zip(
    axes,
    {
        "training loss, nats": loss,
        "answers that are right": right,
        "answers that end": ended,
    }.items(),
    strict=True,
):
    ax.barh(list(values), list(values.values()), color=[f"C{i}" for i in range(4)])
    ax.set(title=title, xlim=(0, max(1.0, *values.values())))
axes[0].invert_yaxis()
figures.show(
    fig,
    alt="Four masks: "
    + " ".join(
        f"{name}: training loss {loss[name]:.2f} nats, {right[name]:.2f} of the answers right, {ended[name]:.2f} end."
        for name in masked
    ),
)

# %% [markdown]
# Nothing crashed, and no loss gave an alarm. The four losses cannot even be compared: each is a mean over other tokens.
# Leave the end out, or shift the mask, and the assistant was never shown where to stop: mostly it talks until it is
# cut off, and an answer with another one behind it is no answer. The shifted mask teaches the assistant's opening in
# its place, which is the easiest token of all. With the prompt in the mask the assistant does stop. But most of what
# it was trained on is what will be asked, and after the same number of steps it has learnt less about answers.
#
# Change `SEED`; raise `NUMBER` and `STEPS`; or let the third assistant see refusals in every second case that deserves
# one, and watch the three rates against each other.
