"""Wrong answers to the exercise on vision and language."""

import functools
from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

FETCHED = "attend(self.q_proj(x), self.k_proj(picture), self.v_proj(picture), self.num_heads)"
LOOKED = "x = x + torch.tanh(self.attention_gate) * fetched"
THOUGHT = "return x + torch.tanh(self.mlp_gate) * self.mlp(self.mlp_norm(x))"
ADAPTERS = (
    "nn.ModuleList(\n"
    "            GatedBlock(sizes.d_model, sizes.d_image, sizes.num_heads)\n"
    "            for _ in range(sizes.num_layers)\n"
    "        )"
)
STEP = "x = block(adapter(x, picture), mask)"
FILLED = "mask[:, :patches] = True"
MASK = "return mask"
SEQUENCE = "torch.cat([self.projection(picture), self.language.embed(tokens)], dim=1)"
LEARNED = "(places >= questions[:, None]) & (tokens != PADDING)"
LABELS = "F.pad(tokens.masked_fill(~learned, IGNORE), (patches, 0), value=IGNORE)"
LOSS = "F.cross_entropy(logits[:, :-1].flatten(0, 1), following.flatten())"
CIRCLE = "circle = torch.randperm(n, generator=generator)"
MOVED = (
    "result[circle] = circle.roll(1)  # each gets the one before it on a random circle through all"
)

MISCONCEPTIONS = [
    # --- cross ---
    Misconception(
        name="picture_asks_the_text",
        part="cross",
        says="In your attention the picture asks and the text answers. The words want to know something: queries from the "
        "text, keys and values from the picture.",
        wrong={
            FETCHED: "attend(self.q_proj(picture), self.k_proj(x), self.v_proj(x), self.num_heads)"
        },
    ),
    Misconception(
        name="text_asks_itself",
        part="cross",
        says="In your attention the text asks the text: the keys and values do not depend on the picture.",
        wrong={FETCHED: "attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.num_heads)"},
    ),
    Misconception(
        name="values_of_the_text",
        part="cross",
        says="Your values come from the text. The keys say where to look, and the values what is found there: both come "
        "from the picture.",
        wrong={
            FETCHED: "attend(self.q_proj(x), self.k_proj(picture), self.v_proj(x), self.num_heads)"
        },
    ),
    Misconception(
        name="keys_as_values",
        part="cross",
        says="Your keys are the values too. The values have a projection of their own.",
        wrong={
            FETCHED: "attend(self.q_proj(x), self.k_proj(picture), self.k_proj(picture), self.num_heads) "
            "+ 0 * self.v_proj(picture).sum()"
        },
    ),
    Misconception(
        name="pictures_width_forgotten",
        part="cross",
        says="Your keys and values are made from d_model features. They are made from the picture's, of which there are "
        "d_image.",
        wrong={
            "self.k_proj = nn.Linear(d_image, d_model, bias=False)": (
                "self.k_proj = nn.Linear(d_model, d_model, bias=False)"
            ),
            "self.v_proj = nn.Linear(d_image, d_model, bias=False)": (
                "self.v_proj = nn.Linear(d_model, d_model, bias=False)"
            ),
        },
    ),
    Misconception(
        name="picture_seen_causally",
        part="cross",
        says="Your first word sees the first patch only, the second word two patches: a causal mask lies on the picture. "
        "Every word sees all of it.",
        wrong={
            FETCHED: "attend(self.q_proj(x), self.k_proj(picture), self.v_proj(picture), self.num_heads,\n"
            "            torch.ones(x.shape[1], picture.shape[1], dtype=torch.bool, device=x.device).tril())"
        },
    ),
    Misconception(
        name="one_head",
        part="cross",
        says="Your attention has one head, whatever num_heads says.",
        wrong={FETCHED: "attend(self.q_proj(x), self.k_proj(picture), self.v_proj(picture), 1)"},
    ),
    Misconception(
        name="output_projection_forgotten",
        part="cross",
        says="Your result does not pass out_proj, which mixes what the heads have fetched.",
        wrong={"return self.out_proj(fetched)": "return fetched + 0 * self.out_proj(fetched)"},
    ),
    Misconception(
        name="text_added_already",
        part="cross",
        says="Your attention adds x to what it fetched. That is done outside, where the gate is.",
        wrong={"return self.out_proj(fetched)": "return x + self.out_proj(fetched)"},
    ),
    Misconception(
        name="picture_averaged",
        part="cross",
        says="Your words all fetch the mean of the patches. A word weighs the patches by how well their keys fit its query.",
        wrong={
            FETCHED: "self.v_proj(picture).mean(dim=1, keepdim=True) + 0 * (self.q_proj(x) + self.k_proj(picture).sum())"
        },
    ),
    Misconception(
        name="picture_not_trained",
        part="cross",
        says="No gradient of yours reaches the picture. What encodes it learns through you: do not detach it.",
        wrong={
            FETCHED: "attend(self.q_proj(x), self.k_proj(picture.detach()), self.v_proj(picture.detach()), self.num_heads)"
        },
    ),
    Misconception(
        name="one_picture_for_all",
        part="cross",
        says="Your attention accepts another number of pictures than of texts, and stretches one over all. Refuse it.",
        wrong={"len(x) != len(picture)": "False"},
    ),
    # --- gate ---
    Misconception(
        name="gate_open",
        part="gate",
        says="Your gates start open, so that a new block changes every vector of the finished model. They start at 0.",
        wrong={
            "self.attention_gate = nn.Parameter(torch.zeros(()))": (
                "self.attention_gate = nn.Parameter(torch.ones(()))"
            ),
            "self.mlp_gate = nn.Parameter(torch.zeros(()))": (
                "self.mlp_gate = nn.Parameter(torch.ones(()))"
            ),
        },
    ),
    Misconception(
        name="gate_nearly_closed",
        part="gate",
        says="Your gates start at a small random number. They start at 0, exactly: then the model is at first the one it was.",
        wrong={
            "self.attention_gate = nn.Parameter(torch.zeros(()))": (
                "self.attention_gate = nn.Parameter(0.1 + 0.02 * torch.randn(()))"
            )
        },
    ),
    Misconception(
        name="sigmoid_for_tanh",
        part="gate",
        says="Your gate is a sigmoid, which is one half at 0: half open at the start. Take tanh.",
        wrong={
            "torch.tanh(self.attention_gate)": "torch.sigmoid(self.attention_gate)",
            "torch.tanh(self.mlp_gate)": "torch.sigmoid(self.mlp_gate)",
        },
    ),
    Misconception(
        name="tanh_forgotten",
        part="gate",
        says="Your factor is the parameter itself, which may grow without end. It is its tanh.",
        wrong={
            "torch.tanh(self.attention_gate)": "self.attention_gate",
            "torch.tanh(self.mlp_gate)": "self.mlp_gate",
        },
    ),
    Misconception(
        name="tanh_of_what_was_fetched",
        part="gate",
        says="You take the tanh of the product, feature by feature. The tanh is of the gate alone.",
        wrong={LOOKED: "x = x + torch.tanh(self.attention_gate * fetched)"},
    ),
    Misconception(
        name="text_gated_too",
        part="gate",
        says="Your gate multiplies x as well: with a closed gate nothing is left. x passes as it is, and what was fetched is "
        "multiplied.",
        wrong={LOOKED: "x = torch.tanh(self.attention_gate) * (x + fetched)"},
    ),
    Misconception(
        name="mixed",
        part="gate",
        says="Your block takes (1 − gate) of x. All of x passes, and the gated part is added.",
        wrong={
            LOOKED: "gate = torch.tanh(self.attention_gate)\n        x = (1 - gate) * x + gate * fetched"
        },
    ),
    Misconception(
        name="one_gate_for_both",
        part="gate",
        says="Your attention and your MLP share one gate. There are two, α and β.",
        wrong={
            "torch.tanh(self.mlp_gate)": "(torch.tanh(self.attention_gate) + 0 * self.mlp_gate)"
        },
    ),
    Misconception(
        name="mlp_without_a_gate",
        part="gate",
        says="Your MLP is added without a gate: at the start it changes what the language model reads.",
        wrong={"torch.tanh(self.mlp_gate)": "(1 + 0 * self.mlp_gate)"},
    ),
    Misconception(
        name="gate_not_learned",
        part="gate",
        says="No gradient of yours reaches the gates, so they stay closed for ever. They are parameters.",
        wrong={
            "self.attention_gate = nn.Parameter(torch.zeros(()))": (
                "self.register_buffer('attention_gate', torch.zeros(()))"
            ),
            "self.mlp_gate = nn.Parameter(torch.zeros(()))": (
                "self.register_buffer('mlp_gate', torch.zeros(()))"
            ),
        },
    ),
    Misconception(
        name="nothing_behind_the_gate",
        part="gate",
        says="At the start your out_proj is 0, and so is the gate. Then the gradient of each is 0, and neither ever moves.",
        wrong={
            "self.attention_gate = nn.Parameter(torch.zeros(()))": (
                "nn.init.zeros_(self.attention.out_proj.weight)\n"
                "        self.attention_gate = nn.Parameter(torch.zeros(()))"
            )
        },
    ),
    Misconception(
        name="norm_forgotten",
        part="gate",
        says="Your attention is asked by x as it is. It is asked by the normed x.",
        wrong={
            "self.attention(self.attention_norm(x), picture)": "self.attention(x + 0 * self.attention_norm(x), picture)"
        },
    ),
    Misconception(
        name="norm_added",
        part="gate",
        says="You add to the normed x. The norm is for what the attention and the MLP read; what is added to is x itself.",
        wrong={LOOKED: "x = self.attention_norm(x) + torch.tanh(self.attention_gate) * fetched"},
    ),
    Misconception(
        name="side_by_side",
        part="gate",
        says="Your MLP reads the x from before the attention. It reads what the attention has added to.",
        wrong={
            LOOKED: "looked = x + torch.tanh(self.attention_gate) * fetched",
            THOUGHT: "return looked + torch.tanh(self.mlp_gate) * self.mlp(self.mlp_norm(x))",
        },
    ),
    # --- flamingo ---
    Misconception(
        name="after_the_block",
        part="flamingo",
        says="Your gated blocks come after the language model's. They come before, so that the block can work with what was "
        "fetched.",
        wrong={STEP: "x = adapter(block(x, mask), picture)"},
    ),
    Misconception(
        name="picture_seen_once",
        part="flamingo",
        says="Your text looks at the picture before the first block only. There is a gated block before each.",
        wrong={STEP: "x = block(adapter(x, picture) if adapter is self.adapters[0] else x, mask)"},
    ),
    Misconception(
        name="one_adapter_for_all",
        part="flamingo",
        says="Your layers share one gated block. Each has one with parameters of its own.",
        wrong={
            ADAPTERS: "nn.ModuleList(\n"
            "            [GatedBlock(sizes.d_model, sizes.d_image, sizes.num_heads)] * sizes.num_layers\n"
            "        )"
        },
    ),
    Misconception(
        name="not_frozen",
        part="flamingo",
        says="Your language model collects gradients, and an optimiser would change it. Freeze its parameters; to set eval() "
        "is not enough.",
        wrong={"LanguageModel(sizes).requires_grad_(False)": "LanguageModel(sizes).eval()"},
    ),
    Misconception(
        name="way_cut",
        part="flamingo",
        says="Your gated blocks get no gradient: the way to them leads through frozen blocks, and no_grad or detach cuts it. "
        "Freeze the parameters, not the computation.",
        wrong={
            STEP: "x = adapter(x, picture)\n"
            "            with torch.no_grad():\n"
            "                x = block(x, mask)"
        },
    ),
    Misconception(
        name="all_frozen",
        part="flamingo",
        says="Your gated blocks are frozen like the language model. They are what learns.",
        wrong={
            "for _ in range(sizes.num_layers)\n        )": (
                "for _ in range(sizes.num_layers)\n        )\n        self.requires_grad_(False)"
            )
        },
    ),
    Misconception(
        name="words_see_the_future",
        part="flamingo",
        says="Your words see later words: the language model's blocks still need the causal mask.",
        wrong={STEP: "x = block(adapter(x, picture))"},
    ),
    Misconception(
        name="last_norm_forgotten",
        part="flamingo",
        says="Your logits are taken without the last layer norm. The language model's head has it.",
        wrong={"self.language.head(x)": "x @ self.language.tokens.weight.T"},
    ),
    Misconception(
        name="positions_forgotten",
        part="flamingo",
        says="Your tokens have no positions. The language model's embed adds them.",
        wrong={"self.language.embed(tokens)": "self.language.tokens(tokens)"},
    ),
    # --- prefix ---
    Misconception(
        name="picture_attended_causally",
        part="prefix",
        says="Your mask is causal throughout. LLaVA's was too, but here the patches all see each other.",
        wrong={FILLED: ""},
    ),
    Misconception(
        name="all_see_all",
        part="prefix",
        says="In your mask everybody sees everybody, and the words see those they have to predict.",
        wrong={FILLED: "mask[:] = True"},
    ),
    Misconception(
        name="picture_sees_the_text",
        part="prefix",
        says="In your mask the patches see the words, and through them every word sees later words.",
        wrong={FILLED: "mask[:, :patches] = True\n    mask[:patches] = True"},
    ),
    Misconception(
        name="rows_and_columns_exchanged",
        part="prefix",
        says="Your mask is transposed. Row i says what place i sees.",
        wrong={MASK: "return mask.T"},
    ),
    Misconception(
        name="true_where_hidden",
        part="prefix",
        says="Your mask is True where one may not look. Here True is: may look.",
        wrong={MASK: "return ~mask"},
    ),
    Misconception(
        name="text_blind",
        part="prefix",
        says="In your mask the words see no patch: text and picture are kept apart.",
        wrong={FILLED: "mask[:patches, :patches] = True\n    mask[patches:, :patches] = False"},
    ),
    Misconception(
        name="not_oneself",
        part="prefix",
        says="In your mask a word does not see itself. It sees the places up to its own.",
        wrong={FILLED: "mask = mask.tril(-1)\n    mask[:, :patches] = True"},
    ),
    Misconception(
        name="first_word_among_the_picture",
        part="prefix",
        says="In your mask the first word counts as a patch that all patches see. The picture has places 0 to patches − 1.",
        wrong={FILLED: "mask[:, : patches + 1] = True"},
    ),
    Misconception(
        name="picture_after_the_text",
        part="prefix",
        says="Your picture stands after the text. It comes first: words see only what is before them.",
        wrong={
            SEQUENCE: "torch.cat([self.language.embed(tokens), self.projection(picture)], dim=1)"
        },
    ),
    Misconception(
        name="text_logits_only",
        part="prefix",
        says="Your logits are those of the text's places. The picture's come first, so that places of logits and labels agree.",
        wrong={
            "return self.language.head(x)": "return self.language.head(x)[:, picture.shape[1] :]"
        },
    ),
    Misconception(
        name="language_frozen",
        part="prefix",
        says="Your language model is frozen. In this part it is trained with the projection.",
        wrong={
            "self.language = LanguageModel(sizes)": (
                "self.language = LanguageModel(sizes).requires_grad_(False)"
            )
        },
    ),
    Misconception(
        name="positions_after_the_picture",
        part="prefix",
        says="Your patches have positions of the language model. They get none here; the text counts its own from 0.",
        wrong={
            SEQUENCE: "torch.cat([self.projection(picture), self.language.embed(tokens)], dim=1)\n"
            "        count = torch.arange(picture.shape[1], device=picture.device)\n"
            "        longest = self.language.positions.num_embeddings\n"
            "        x = x + F.pad(self.language.positions.weight[count % longest], (0, 0, 0, tokens.shape[1]))"
        },
    ),
    Misconception(
        name="encoder_not_trained",
        part="prefix",
        says="No gradient of yours reaches the picture, so its encoder could not learn.",
        wrong={"self.projection(picture)": "self.projection(picture.detach())"},
    ),
    # --- loss ---
    Misconception(
        name="picture_in_the_loss",
        part="loss",
        says="Your labels make the model learn to say token 0 at the picture's places. A patch is no token: IGNORE.",
        wrong={LABELS: "F.pad(tokens.masked_fill(~learned, IGNORE), (patches, 0), value=PADDING)"},
    ),
    Misconception(
        name="picture_after_the_labels",
        part="loss",
        says="Your labels have the picture's places at the end. The picture comes first.",
        wrong={LABELS: "F.pad(tokens.masked_fill(~learned, IGNORE), (0, patches), value=IGNORE)"},
    ),
    Misconception(
        name="picture_forgotten",
        part="loss",
        says="Your labels have no places for the picture, and the logits do.",
        wrong={LABELS: "tokens.masked_fill(~learned, IGNORE)"},
    ),
    Misconception(
        name="question_learned",
        part="loss",
        says="Your labels make the model learn the question too. Only what comes after it is learned.",
        wrong={LEARNED: "(tokens != PADDING) & (questions[:, None] >= 0)"},
    ),
    Misconception(
        name="padding_learned",
        part="loss",
        says="Your labels make the model learn to say padding.",
        wrong={LEARNED: "places >= questions[:, None]"},
    ),
    Misconception(
        name="first_word_of_the_answer_lost",
        part="loss",
        says="In your labels the answer begins one token too late. A question of n tokens has places 0 to n − 1.",
        wrong={LEARNED: "(places > questions[:, None]) & (tokens != PADDING)"},
    ),
    Misconception(
        name="answer_left_out",
        part="loss",
        says="Your labels hold the question and leave out the answer: the comparison is the wrong way round.",
        wrong={LEARNED: "(places < questions[:, None]) & (tokens != PADDING)"},
    ),
    Misconception(
        name="not_shifted",
        part="loss",
        says="Your loss compares the logits of a place with the label of the same place. A place predicts the next one.",
        wrong={LOSS: "F.cross_entropy(logits.flatten(0, 1), labels.flatten())"},
    ),
    Misconception(
        name="shifted_backwards",
        part="loss",
        says="Your loss compares a place's logits with the label before it. A place predicts what follows.",
        wrong={LOSS: "F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten())"},
    ),
    Misconception(
        name="shifted_twice",
        part="loss",
        says="Your loss compares a place's logits with the label two places on. The labels are not shifted yet: shift once.",
        wrong={LOSS: "F.cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten())"},
    ),
    Misconception(
        name="mean_over_all_places",
        part="loss",
        says="Your sum is divided by the number of all places, those not learned from included.",
        wrong={
            LOSS: "F.cross_entropy(\n"
            "        logits[:, :-1].flatten(0, 1), following.flatten(), reduction='sum'\n"
            "    ) / following.numel()"
        },
    ),
    Misconception(
        name="mean_of_the_rows",
        part="loss",
        says="Your loss is a mean of the rows' means. It is the mean over all learned tokens of the batch.",
        wrong={
            LOSS: "torch.stack([\n"
            "        F.cross_entropy(row[:-1], right)\n"
            "        for row, right in zip(logits, following)\n"
            "        if (right != IGNORE).any()\n"
            "    ]).mean()"
        },
    ),
    Misconception(
        name="summed",
        part="loss",
        says="Your loss is a sum over the learned tokens. It is their mean.",
        wrong={
            LOSS: "F.cross_entropy(\n"
            "        logits[:, :-1].flatten(0, 1), following.flatten(), reduction='sum'\n"
            "    )"
        },
    ),
    # --- looking ---
    Misconception(
        name="some_keep_their_place",
        part="looking",
        says="Your permutation is any at all, and on average one number stays at its place.",
        wrong={MOVED: "result = circle"},
    ),
    Misconception(
        name="always_the_next",
        part="looking",
        says="Your permutation is the same each time, a step to the side. It is random.",
        wrong={CIRCLE: "circle = torch.arange(n)"},
    ),
    Misconception(
        name="any_other_picture",
        part="looking",
        says="Your numbers are drawn one by one, each unlike its place, and some occur twice. A permutation has each once.",
        wrong={
            MOVED: "result = (torch.arange(n) + torch.randint(1, n, (n,), generator=generator)) % n"
        },
    ),
    Misconception(
        name="generator_ignored",
        part="looking",
        says="Your permutation does not depend on the generator, so that the run cannot be repeated.",
        wrong={CIRCLE: "circle = torch.randperm(n)"},
    ),
    Misconception(
        name="one_answer_to_all",
        part="looking",
        says="Your blind one says the same answer to all questions. They can read: to each question its commonest answer.",
        wrong={
            "for q in questions.unique()": "for q in questions.unique()[:0]",
            "return right /": (
                "right = answers.unique(return_counts=True)[1].max()\n    return right /"
            ),
        },
    ),
    Misconception(
        name="mean_of_the_questions",
        part="looking",
        says="You take the mean of the shares of the different questions. A question that is asked often counts as often.",
        wrong={
            "return right / len(questions)": (
                "shares = [\n"
                "        answers[questions == q].unique(return_counts=True)[1].max() / (questions == q).sum()\n"
                "        for q in questions.unique()\n"
                "    ]\n"
                "    return sum(shares) / len(shares)"
            )
        },
    ),
    Misconception(
        name="one_of_the_answers",
        part="looking",
        says="Your blind one guesses evenly among the answers that a question has had. They know which is the commonest.",
        wrong={
            "return right / len(questions)": (
                "right = sum(\n"
                "        (questions == q).sum() / len(answers[questions == q].unique()) for q in questions.unique()\n"
                "    )\n"
                "    return right / len(questions)"
            )
        },
    ),
]

LAYERS = "for adapter, block in zip(self.adapters, self.language.blocks, strict=True):"
AS_MANY = "There are as many gated blocks as blocks of the language model."

EQUIVALENT = [
    Equivalent(
        part="flamingo",
        before=LAYERS,
        after=LAYERS.replace(", strict=True", ""),
        because=AS_MANY,
    ),
    Equivalent(
        part="flamingo",
        before=LAYERS,
        after=LAYERS.replace("strict=True", "strict=False"),
        because=AS_MANY,
    ),
    Equivalent(
        part="loss",
        before="places = torch.arange(tokens.shape[1], device=tokens.device)",
        after="places = torch.arange(tokens.shape[1])",
        because="On the CPU there is one device. On a GPU the tests notice it.",
    ),
]


@functools.cache
def _model(answers: ModuleType) -> torch.nn.Module:
    return answers.Flamingo(answers.Sizes(5, 3, 4, 2, 2, 3))


def _flamingo(answers: ModuleType, rng: torch.Generator) -> object:
    model = _model(answers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=rng))
        tokens = torch.randint(5, (2, 3), generator=rng)
        return model(tokens, torch.randn(2, 4, 3, generator=rng))


def _labels(answers: ModuleType, rng: torch.Generator) -> object:
    batch, length, patches = torch.randint(1, 5, (3,), generator=rng).tolist()
    tokens = torch.randint(4, (batch, length), generator=rng)
    questions = torch.randint(length + 1, (batch,), generator=rng)
    return answers.answer_labels(tokens, questions, patches)


EXAMPLES = {"flamingo": _flamingo, "loss": _labels}
