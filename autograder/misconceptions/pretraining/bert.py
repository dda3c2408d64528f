"""Wrong answers to the exercise on BERT."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

MISCONCEPTIONS = [
    # --- masking ---
    Misconception(
        name="labels_only_where_masked",
        part="masking",
        says="Your labels stand only where the input became [MASK]: 80 % of 15 %. Tokens that became random or stayed as "
        "they were are chosen too, and the model is asked for them.",
        wrong={
            "torch.where(chosen, tokens, IGNORED)": (
                "torch.where(chosen & (die < 8), tokens, IGNORED)"
            )
        },
    ),
    Misconception(
        name="labels_only_where_changed",
        part="masking",
        says="Your labels stand only where the input differs from the token. The tenth that stays as it was is asked for "
        "too: that is why a model must look at every token and not only at [MASK].",
        wrong={
            "torch.where(chosen, tokens, IGNORED)": (
                "torch.where(chosen & (die < 9), tokens, IGNORED)"
            )
        },
    ),
    Misconception(
        name="always_mask",
        part="masking",
        says="Every token you choose becomes [MASK]. Only 80 % do; 10 % become a random token and 10 % stay.",
        wrong={
            "torch.where(die < 9, torch.where(die < 8, mask_id, random_tokens), tokens)": (
                "torch.full_like(tokens, mask_id)"
            )
        },
    ),
    Misconception(
        name="a_tenth_of_the_rest",
        part="masking",
        says="Your random tokens are a tenth of what [MASK] has left over, 2 % of the chosen, and 18 % stay. They are a "
        "tenth of all the chosen: half of what is left.",
        wrong={
            "torch.where(die < 9, torch.where(die < 8, mask_id, random_tokens), tokens)": (
                "torch.where(die < 8, mask_id, torch.where("
                "torch.rand(tokens.shape, generator=generator).to(tokens.device) < 0.1,"
                " random_tokens, tokens))"
            )
        },
    ),
    Misconception(
        name="never_unchanged",
        part="masking",
        says="Your chosen tokens become [MASK] or random, and none stays as it was. The last tenth stays.",
        wrong={
            "torch.where(die < 9, torch.where(die < 8, mask_id, random_tokens), tokens)": (
                "torch.where(die < 8, mask_id, random_tokens)"
            )
        },
    ),
    Misconception(
        name="random_token_always_the_same",
        part="masking",
        says="All your random tokens are one and the same: a single one is drawn. Draw one for each position.",
        wrong={
            "torch.randint(vocab_size, tokens.shape, generator=generator)": (
                "torch.randint(vocab_size, (1, 1), generator=generator)"
            )
        },
    ),
    Misconception(
        name="random_token_of_a_sequence",
        part="masking",
        says="The random tokens of a sequence are all the same: one is drawn for each row. Draw one for each position.",
        wrong={
            "torch.randint(vocab_size, tokens.shape, generator=generator)": (
                "torch.randint(vocab_size, (len(tokens), 1), generator=generator)"
            )
        },
    ),
    Misconception(
        name="random_token_never_the_same",
        part="masking",
        says="Your random token is never the one that stood there. It is drawn from all ids, and may happen to be the same.",
        wrong={
            "torch.randint(vocab_size, tokens.shape, generator=generator).to(tokens.device)": (
                "(tokens + torch.randint(1, vocab_size, tokens.shape, generator=generator)"
                ".to(tokens.device)) % vocab_size"
            )
        },
    ),
    Misconception(
        name="shares_by_sequence",
        part="masking",
        says="Your 80/10/10 is decided once for a whole sequence, which is then all [MASK] or not at all. It is decided for "
        "each chosen token.",
        wrong={
            "torch.randint(10, tokens.shape, generator=generator)": (
                "torch.randint(10, (len(tokens), 1), generator=generator)"
            )
        },
    ),
    Misconception(
        name="special_tokens_chosen",
        part="masking",
        says="You choose special tokens and padding like any other. They are never chosen: nothing could be learned from "
        "them.",
        wrong={
            "~torch.isin(tokens, torch.tensor(special_ids).to(tokens))": "torch.ones_like(tokens, dtype=torch.bool)"
        },
    ),
    Misconception(
        name="special_tokens_counted",
        part="masking",
        says="Your 15 % are taken of the whole row, padding included. They are taken of the tokens that may be chosen, so "
        "that a sentence is masked in the same way whatever it is padded to.",
        wrong={
            "(rate * available).round()": (
                "(rate * torch.full_like(available, tokens.shape[1])).round()"
            )
        },
    ),
    Misconception(
        name="none_of_a_short_sequence",
        part="masking",
        says="A short sequence gets no label at all, as 0.15·n rounds to 0. At least one token is chosen where there is one.",
        wrong={
            "(rate * available).round().clamp(min=available.clamp(max=1))": (
                "(rate * available).round()"
            )
        },
    ),
    Misconception(
        name="rounded_down",
        part="masking",
        says="Your 0.15·n is rounded down. It is rounded to the nearest integer.",
        wrong={"(rate * available).round()": "(rate * available).floor()"},
    ),
    Misconception(
        name="a_coin_for_each_position",
        part="masking",
        says="You toss a coin for each position, so the number of labels varies. Here, as in BERT's own code, the number is "
        "0.15·n, rounded, in every sequence, and only the places are random.",
        wrong={
            "lots.masked_fill(~may_choose, math.inf).argsort().argsort() < count": (
                "(lots < rate) & may_choose"
            )
        },
    ),
    Misconception(
        name="same_places_in_every_sequence",
        part="masking",
        says="You choose the same places in every sequence of the batch: one lot is drawn for each column. Each sequence "
        "draws its own.",
        wrong={
            "torch.rand(tokens.shape, generator=generator)": (
                "torch.rand(tokens.shape[1], generator=generator).expand(tokens.shape)"
            )
        },
    ),
    Misconception(
        name="generator_ignored",
        part="masking",
        says="Some of your draws do not use the generator, so that the same state gives different maskings. Pass "
        "generator=generator to each.",
        wrong={"torch.rand(tokens.shape, generator=generator)": "torch.rand(tokens.shape)"},
    ),
    Misconception(
        name="labels_after_masking",
        part="masking",
        says="Your labels are read off after masking: they say [MASK] where [MASK] stands. A label is the token that stood "
        "there before.",
        wrong={
            "torch.where(chosen, tokens, IGNORED)": "torch.where(chosen, hidden, IGNORED)",
        },
    ),
    Misconception(
        name="labels_everywhere",
        part="masking",
        says="Your labels hold every token. Positions that were not chosen have the label −100, or the model is paid for "
        "copying what it sees.",
        wrong={"torch.where(chosen, tokens, IGNORED)": "tokens.clone()"},
    ),
    Misconception(
        name="not_asked_is_zero",
        part="masking",
        says="Your label for 'not asked' is 0, which is the id of a token. It is −100.",
        wrong={"torch.where(chosen, tokens, IGNORED)": "torch.where(chosen, tokens, 0)"},
    ),
    Misconception(
        name="tokens_changed_in_place",
        part="masking",
        says="You write [MASK] into the caller's tokens. Make a copy: the text is masked anew in the next epoch.",
        wrong={
            "return torch.where(chosen, hidden, tokens), torch.where(chosen, tokens, IGNORED)": (
                "labels = torch.where(chosen, tokens, IGNORED)\n"
                "    tokens[chosen] = hidden[chosen]\n"
                "    return tokens, labels"
            )
        },
    ),
    # --- losses ---
    Misconception(
        name="loss_over_all_positions",
        part="losses",
        says="Your sum is divided by the number of all positions. It is divided by the number of labels: else the loss "
        "changes with the padding.",
        wrong={"chosen.sum().clamp(min=1)": "chosen.numel()"},
    ),
    Misconception(
        name="mean_of_sequence_means",
        part="losses",
        says="You take a mean for each sequence and then the mean of these. The mean is over all labels of the batch: "
        "every blank counts the same.",
        wrong={
            "return total / chosen.sum().clamp(min=1)": (
                "logs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]\n"
                "    kept = torch.where(chosen, -logs, 0.0)\n"
                "    return (kept.sum(-1) / chosen.sum(-1).clamp(min=1)).mean() + 0 * total"
            )
        },
    ),
    Misconception(
        name="sum_of_losses",
        part="losses",
        says="Your loss is a sum over the labels. It is their mean.",
        wrong={"total / chosen.sum().clamp(min=1)": "total"},
    ),
    Misconception(
        name="token_zero_ignored",
        part="losses",
        says="Your masked language model leaves out token 0, as if it were padding. What is not asked says −100; a label 0 "
        "is asked like any other.",
        wrong={"chosen = labels != IGNORED": "chosen = (labels != IGNORED) & (labels != 0)"},
    ),
    Misconception(
        name="labels_shifted",
        part="losses",
        says="You compare the logits of a position with the label of the next one. That is for models that predict the next "
        "token; a blank is predicted where it stands.",
        wrong={
            'total = F.cross_entropy(logits[chosen], labels[chosen], reduction="sum")': (
                "logits, labels = logits[..., :-1, :], labels[..., 1:]\n"
                "    chosen = labels != IGNORED\n"
                '    total = F.cross_entropy(logits[chosen], labels[chosen], reduction="sum")'
            )
        },
    ),
    Misconception(
        name="no_labels_is_nan",
        part="losses",
        says="A batch without any label gives NaN, 0/0. Its loss is 0, and so is its gradient.",
        wrong={"chosen.sum().clamp(min=1)": "chosen.sum()"},
    ),
    Misconception(
        name="log_of_softmax",
        part="losses",
        says="You take the logarithm of a softmax: where a probability rounds to 0 the loss is infinite. Use log_softmax or "
        "cross_entropy on the logits.",
        wrong={
            'F.cross_entropy(logits[chosen], labels[chosen], reduction="sum")': (
                'F.nll_loss(logits[chosen].softmax(-1).log(), labels[chosen], reduction="sum")'
            )
        },
    ),
    Misconception(
        name="class_zero_of_the_pairs_ignored",
        part="losses",
        says="Your next-sentence loss leaves out class 0 (ignore_index=0): half of the pairs. 0 is padding among tokens; "
        "among pairs it is IsNext.",
        wrong={
            "F.cross_entropy(nsp_logits, nsp_labels)": (
                'F.cross_entropy(nsp_logits, nsp_labels, ignore_index=0, reduction="sum")'
                " / (nsp_labels != 0).sum().clamp(min=1)"
            )
        },
    ),
    Misconception(
        name="losses_averaged",
        part="losses",
        says="You take the mean of the two losses. They are added.",
        wrong={
            "return mlm_loss(mlm_logits, labels) + F.cross_entropy(nsp_logits, nsp_labels)": (
                "return (mlm_loss(mlm_logits, labels) + F.cross_entropy(nsp_logits, nsp_labels)) / 2"
            )
        },
    ),
    Misconception(
        name="only_one_loss",
        part="losses",
        says="Your loss of the pairs does not reach the sum: nothing is learned from the second question.",
        wrong={
            "return mlm_loss(mlm_logits, labels) + F.cross_entropy(nsp_logits, nsp_labels)": (
                "return mlm_loss(mlm_logits, labels) + 0 * F.cross_entropy(nsp_logits, nsp_labels)"
            )
        },
    ),
    # --- pairs ---
    Misconception(
        name="nsp_labels_inverted",
        part="pairs",
        says="Your labels are exchanged: the next sentence has label 0 (IsNext), a random one label 1 (NotNext).",
        wrong={
            "pairs.append((first, following, 0))": "pairs.append((first, following, 1))",
            "pairs.append((first, pick(pick(others)), 1))": (
                "pairs.append((first, pick(pick(others)), 0))"
            ),
        },
    ),
    Misconception(
        name="random_from_the_same_document",
        part="pairs",
        says="Your random sentence may come from the same document, and by chance even be the next one. It comes from "
        "another document.",
        wrong={
            "others = documents[:number] + documents[number + 1 :]": "others = documents",
        },
    ),
    Misconception(
        name="always_the_next",
        part="pairs",
        says="All your pairs are of consecutive sentences. Half of them should have a random second sentence.",
        wrong={"if pick([True, False]):": "if pick([True, True]):"},
    ),
    Misconception(
        name="pairs_alternate",
        part="pairs",
        says="Your pairs alternate between next and random. Each is decided by a draw of its own.",
        wrong={"if pick([True, False]):": "if len(pairs) % 2:"},
    ),
    Misconception(
        name="all_sentences_in_one_pot",
        part="pairs",
        says="You draw from all sentences of the other documents in one pot, so that a long document comes up more often. "
        "First draw a document, then one of its sentences.",
        wrong={
            "pick(pick(others))": (
                "pick([sentence for document in others for sentence in document])"
            )
        },
    ),
    Misconception(
        name="every_second_sentence",
        part="pairs",
        says="Your pairs do not overlap: a sentence that was second is never first. Every sentence that has a next one gives "
        "a pair.",
        wrong={
            "itertools.pairwise(document)": "zip(document[::2], document[1::2], strict=False)",
        },
    ),
    Misconception(
        name="pairs_across_documents",
        part="pairs",
        says="You pair the last sentence of a document with the first of the following one as if it were the next. Pairs "
        "stay within a document.",
        wrong={
            "itertools.pairwise(document)": (
                "itertools.pairwise([*document, *(documents + [[]])[number + 1][:1]])"
            ),
        },
    ),
    Misconception(
        name="empty_documents_drawn",
        part="pairs",
        says="You may draw a document that has no sentence. Leave empty documents out first.",
        wrong={
            "documents = [document for document in documents if document]": (
                "documents = list(documents)"
            ),
            "pick(pick(others))": "pick(pick(others) or [[]])",
        },
    ),
    Misconception(
        name="first_sep_in_segment_one",
        part="pairs",
        says="Your first [SEP] is in segment 1. It closes the first sentence and belongs to segment 0.",
        wrong={
            "head, tail = [cls_id, *first, sep_id], [*second, sep_id]": (
                "head, tail = [cls_id, *first], [sep_id, *second, sep_id]"
            )
        },
    ),
    Misconception(
        name="no_last_sep",
        part="pairs",
        says="Your sequence ends without a [SEP]: one closes each of the two sentences.",
        wrong={
            "[*second, sep_id]": "list(second)",
            "len(first) + len(second) + 3": "len(first) + len(second) + 2",
        },
    ),
    Misconception(
        name="cut_off_at_the_end",
        part="pairs",
        says="You cut the packed sequence at max_length: the last [SEP] is lost, and only the second sentence pays. Shorten "
        "the longer sentence first, and pack then.",
        wrong={
            "len(first) + len(second) + 3 > max_length": "False",
            "return head + tail, [0] * len(head) + [1] * len(tail)": (
                "return (head + tail)[:max_length], ([0] * len(head) + [1] * len(tail))[:max_length]"
            ),
        },
    ),
    Misconception(
        name="room_for_two_special_tokens",
        part="pairs",
        says="You leave room for two special tokens. There are three: [CLS], and a [SEP] after each sentence.",
        wrong={"len(first) + len(second) + 3": "len(first) + len(second) + 2"},
    ),
    Misconception(
        name="first_sentence_loses_ties",
        part="pairs",
        says="Where both sentences are equally long you shorten the first. The docstring shortens the second, as BERT's own "
        "code does.",
        wrong={"if len(first) > len(second)": "if len(first) >= len(second)"},
    ),
    Misconception(
        name="cut_in_place",
        part="pairs",
        says="You shorten the caller's sentences. Cut copies: the same sentence stands in another pair.",
        wrong={
            "first, second = list(first), list(second)": "first, second = first, second",
        },
    ),
    # --- encoder ---
    Misconception(
        name="padding_read",
        part="encoder",
        says="Your blocks get no padding mask: what BERT says of a sentence changes with the padding after it. Hand real to "
        "every block.",
        wrong={"x = block(x, real)": "x = block(x)"},
    ),
    Misconception(
        name="block_ignores_the_mask",
        part="encoder",
        says="Your block takes real and does not hand it to the attention: every position reads the padding.",
        wrong={"self.attention(x, real)": "self.attention(x)"},
    ),
    Misconception(
        name="mask_inverted",
        part="encoder",
        says="Your padding mask is inverted: only the padding can be seen. True means a real token.",
        wrong={"x = block(x, real)": "x = block(x, None if real is None else ~real)"},
    ),
    Misconception(
        name="padding_in_the_first_block_only",
        part="encoder",
        says="Only your first block hides the padding. By the second one its vectors are as readable as before.",
        wrong={
            "x = block(x, real)": "x = block(x, real if block is self.blocks[0] else None)",
        },
    ),
    Misconception(
        name="encoder_is_causal",
        part="encoder",
        says="Your positions see only what stands before them. BERT reads both sides; only padding is hidden.",
        wrong={
            "self.norm1(x + self.attention(x, real))": (
                "self.norm1(x + torch.cat([self.attention(x[:, : i + 1],"
                " None if real is None else real[:, : i + 1])[:, i:] for i in range(x.shape[1])], 1))"
            )
        },
    ),
    Misconception(
        name="relu_for_gelu",
        part="encoder",
        says="Your feed-forward network uses ReLU, as in 2017. BERT's uses GELU.",
        wrong={"F.gelu(self.linear1(x))": "F.relu(self.linear1(x))"},
    ),
    Misconception(
        name="tanh_gelu",
        part="encoder",
        says="Your GELU is the approximation by tanh. The docstring takes the exact one, F.gelu as it is.",
        wrong={"F.gelu(self.linear1(x))": 'F.gelu(self.linear1(x), approximate="tanh")'},
    ),
    Misconception(
        name="pre_ln",
        part="encoder",
        says="Your block is pre-LN, as GPT-2's is. BERT's is post-LN: the norm is taken of the sum.",
        wrong={
            "x = self.norm1(x + self.attention(x, real))": (
                "x = x + self.attention(self.norm1(x), real)"
            ),
            "return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))": (
                "return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))"
            ),
        },
    ),
    Misconception(
        name="no_residual",
        part="encoder",
        says="Your sub-layers replace x. Each is added to it, and the norm is taken of the sum.",
        wrong={
            "self.norm1(x + self.attention(x, real))": "self.norm1(self.attention(x, real))",
            "self.norm2(x + self.linear2(F.gelu(self.linear1(x))))": (
                "self.norm2(self.linear2(F.gelu(self.linear1(x))))"
            ),
        },
    ),
    Misconception(
        name="default_eps",
        part="encoder",
        says="Your layer norms have torch's eps, 1e-5. BERT's is 1e-12: with its small first weights that is seen.",
        wrong={
            "self.norm1 = nn.LayerNorm(d_model, eps=EPS)": "self.norm1 = nn.LayerNorm(d_model)",
            "self.norm2 = nn.LayerNorm(d_model, eps=EPS)": "self.norm2 = nn.LayerNorm(d_model)",
            "self.embedding_norm = nn.LayerNorm(d_model, eps=EPS)": (
                "self.embedding_norm = nn.LayerNorm(d_model)"
            ),
        },
    ),
    Misconception(
        name="no_embedding_norm",
        part="encoder",
        says="The sum of your embeddings goes into the first block as it is. Its layer norm comes first.",
        wrong={
            "x = self.embedding_norm(": "x = (0 * self.embedding_norm(self.token_embedding(tokens))) + ("
        },
    ),
    Misconception(
        name="embeddings_times_root",
        part="encoder",
        says="Your token embeddings are multiplied by √d_model, as in 2017. BERT adds them as they are.",
        wrong={
            "self.token_embedding(tokens)\n": "self.token_embedding(tokens) * math.sqrt(self.pooler.in_features)\n",
        },
    ),
    Misconception(
        name="no_segments",
        part="encoder",
        says="Your segments are never added: BERT cannot tell the two sentences apart.",
        wrong={
            "+ self.segment_embedding(segments)": "+ 0 * self.segment_embedding(segments)",
        },
    ),
    Misconception(
        name="no_positions",
        part="encoder",
        says="Your positions are never added: every order of the words is the same to BERT.",
        wrong={
            "+ self.position_embedding.weight[:length]": (
                "+ 0 * self.position_embedding.weight[:length]"
            ),
        },
    ),
    Misconception(
        name="positions_backwards",
        part="encoder",
        says="Your positions count from the end. The first token is position 0.",
        wrong={
            "self.position_embedding.weight[:length]": (
                "self.position_embedding.weight[:length].flip(0)"
            )
        },
    ),
    Misconception(
        name="pooler_without_tanh",
        part="encoder",
        says="Your pooler is a linear layer alone. A tanh follows it.",
        wrong={"torch.tanh(self.pooler(x[:, 0]))": "self.pooler(x[:, 0])"},
    ),
    Misconception(
        name="pooled_mean",
        part="encoder",
        says="Your pooler reads the mean of all positions. It reads the first one, [CLS].",
        wrong={"self.pooler(x[:, 0])": "self.pooler(x.mean(dim=1))"},
    ),
    Misconception(
        name="pooled_last",
        part="encoder",
        says="Your pooler reads the last position. It reads the first one, [CLS].",
        wrong={"self.pooler(x[:, 0])": "self.pooler(x[:, -1])"},
    ),
    Misconception(
        name="pooled_embedding",
        part="encoder",
        says="Your pooler reads the embedding of [CLS], which is the same for every text. It reads the vector after the last "
        "block.",
        wrong={
            "for block in self.blocks:": "first = x[:, 0]\n        for block in self.blocks:",
            "self.pooler(x[:, 0])": "self.pooler(first)",
        },
    ),
    Misconception(
        name="layers_share_their_weights",
        part="encoder",
        says="Your layers share one block ([block] * num_layers). Make a new one for each. (ALBERT shares them, on purpose.)",
        wrong={
            "EncoderBlock(d_model, num_heads, d_ff) for _ in range(num_layers)": (
                "[EncoderBlock(d_model, num_heads, d_ff)] * num_layers"
            )
        },
    ),
    Misconception(
        name="starts_as_torch_does",
        part="encoder",
        says="Your weights start as torch makes them, embeddings with standard deviation 1. Apply start_small to the model.",
        wrong={"self.apply(start_small)": "pass"},
    ),
    # --- pretraining ---
    Misconception(
        name="untied_decoder",
        part="pretraining",
        says="Your logits have a matrix of their own. BERT's is tied: the token embedding, transposed.",
        wrong={
            "self.nsp = nn.Linear(d_model, 2)": (
                "self.nsp = nn.Linear(d_model, 2)\n"
                "        self.decoder = nn.Linear(d_model, vocab_size, bias=False)"
            ),
            "transformed @ self.bert.token_embedding.weight.T": "self.decoder(transformed)",
        },
    ),
    Misconception(
        name="no_transform",
        part="pretraining",
        says="Your vectors are compared with the embeddings as they come. They pass the transform first: linear, GELU, "
        "layer norm.",
        wrong={
            "self.transform_norm(F.gelu(self.transform(hidden)))": (
                "hidden + 0 * self.transform_norm(F.gelu(self.transform(hidden)))"
            )
        },
    ),
    Misconception(
        name="transform_without_gelu",
        part="pretraining",
        says="Your transform has no GELU between its linear layer and its layer norm.",
        wrong={"F.gelu(self.transform(hidden))": "self.transform(hidden)"},
    ),
    Misconception(
        name="transform_without_norm",
        part="pretraining",
        says="Your transform lacks its layer norm.",
        wrong={
            "self.transform_norm(F.gelu(self.transform(hidden)))": (
                "F.gelu(self.transform(hidden)) + 0 * self.transform_norm(self.transform(hidden))"
            )
        },
    ),
    Misconception(
        name="transform_norm_with_default_eps",
        part="pretraining",
        says="Your transform_norm has torch's eps, 1e-5. BERT's is 1e-12: with its small first weights that is seen.",
        wrong={
            "self.transform_norm = nn.LayerNorm(d_model, eps=EPS)": (
                "self.transform_norm = nn.LayerNorm(d_model)"
            )
        },
    ),
    Misconception(
        name="no_bias_for_the_tokens",
        part="pretraining",
        says="Your logits lack mlm_bias, one number for each token.",
        wrong={
            "token_embedding.weight.T + self.mlm_bias": "token_embedding.weight.T + 0 * self.mlm_bias",
        },
    ),
    Misconception(
        name="tied_weight_detached",
        part="pretraining",
        says="Your values are right, but no gradient flows from the logits to the token embedding (detach or .data). Tied means "
        "that it learns from both ends.",
        wrong={"token_embedding.weight.T": "token_embedding.weight.T.detach()"},
    ),
    Misconception(
        name="nsp_reads_cls_unpooled",
        part="pretraining",
        says="Your next-sentence head reads the vector at [CLS] itself. It reads the pooled one, so that the pooler learns.",
        wrong={"self.nsp(pooled)": "self.nsp(hidden[:, 0] + 0 * pooled)"},
    ),
    Misconception(
        name="probabilities_for_logits",
        part="pretraining",
        says="Your model ends in a softmax, and the loss would take a second one. Return logits.",
        wrong={
            "return transformed @ self.bert.token_embedding.weight.T + self.mlm_bias, self.nsp(pooled)": (
                "scores = transformed @ self.bert.token_embedding.weight.T + self.mlm_bias\n"
                "        return scores.softmax(dim=-1), self.nsp(pooled).softmax(dim=-1)"
            )
        },
    ),
    Misconception(
        name="real_not_handed_on",
        part="pretraining",
        says="Your model takes real and does not hand it to bert: the padding is read.",
        wrong={"self.bert(tokens, segments, real)": "self.bert(tokens, segments)"},
    ),
    Misconception(
        name="segments_not_handed_on",
        part="pretraining",
        says="Your model takes segments and does not hand them to bert.",
        wrong={"self.bert(tokens, segments, real)": "self.bert(tokens, None, real)"},
    ),
    Misconception(
        name="heads_start_as_torch_does",
        part="pretraining",
        says="Your heads start as torch makes linear layers. Apply start_small to the whole model, heads included.",
        wrong={"self.apply(start_small)": "pass"},
    ),
    # --- heads ---
    Misconception(
        name="sequence_from_cls_unpooled",
        part="heads",
        says="Your sequence classifier reads the vector at [CLS] itself. It reads the pooled one, which was pre-trained for "
        "that.",
        wrong={
            "return self.head(self.bert(tokens, segments, real)[1])": (
                "return self.head(self.bert(tokens, segments, real)[0][:, 0])"
            )
        },
    ),
    Misconception(
        name="start_and_end_exchanged",
        part="heads",
        says="Your start and end are exchanged: output 0 of the head is the start.",
        wrong={"return start, end": "return end, start"},
    ),
    Misconception(
        name="span_head_split_by_view",
        part="heads",
        says="Your start and end logits are mixed up with the positions: a view to (2, batch, length) does not move the last "
        "dimension to the front. Use unbind, or index the last dimension.",
        wrong={
            ".unbind(dim=-1)": ".reshape(2, *tokens.shape)",
        },
    ),
    Misconception(
        name="start_and_end_each_for_itself",
        part="heads",
        says="Your best start and best end are found each for itself, and the end may come first. Score the spans.",
        wrong={
            "return torch.stack([best // length, best % length], dim=1)": (
                "starts = start_logits.masked_fill(~in_passage, -math.inf).argmax(dim=1)\n"
                "    ends = end_logits.masked_fill(~in_passage, -math.inf).argmax(dim=1)\n"
                "    return torch.stack([starts, ends], dim=1)"
            )
        },
    ),
    Misconception(
        name="start_first_then_end",
        part="heads",
        says="You take the best start, and then the best end after it. The best span may start elsewhere: it is the sum that "
        "counts.",
        wrong={
            "return torch.stack([best // length, best % length], dim=1)": (
                "starts = start_logits.masked_fill(~in_passage, -math.inf).argmax(dim=1)\n"
                "    row = torch.arange(len(starts), device=starts.device)\n"
                "    ends = end_logits.masked_fill(~allowed[row, starts], -math.inf).argmax(dim=1)\n"
                "    return torch.stack([starts, ends], dim=1)"
            )
        },
    ),
    Misconception(
        name="answer_outside_the_passage",
        part="heads",
        says="Your answers may stand in the question or at special tokens: in_passage is not used.",
        wrong={
            "allowed = in_passage[:, :, None] & in_passage[:, None, :]": (
                "allowed = torch.ones_like(in_passage)[:, :, None]"
            )
        },
    ),
    Misconception(
        name="answer_one_too_long",
        part="heads",
        says="Your answers may be one token longer than max_answer: the span from i to j has j − i + 1 tokens.",
        wrong={"tokens_more < max_answer": "tokens_more <= max_answer"},
    ),
    Misconception(
        name="no_answer_of_one_token",
        part="heads",
        says="Your answers have at least two tokens. An answer of one starts and ends at the same place.",
        wrong={
            "(tokens_more >= 0)": "((tokens_more > 0) | (max_answer == 1) & (tokens_more == 0))",
        },
    ),
    Misconception(
        name="forbidden_is_zero",
        part="heads",
        says="Your forbidden spans score 0, and win where all others are negative. They score −∞.",
        wrong={"masked_fill(~allowed, -math.inf)": "masked_fill(~allowed, 0.0)"},
    ),
    Misconception(
        name="bert_frozen",
        part="heads",
        says="Your heads keep BERT frozen (detach or no_grad): only the new layer learns. Fine-tuning trains all of it.",
        wrong={
            "return self.head(self.bert(tokens, segments, real)[1])": (
                "return self.head(self.bert(tokens, segments, real)[1].detach())"
            ),
            "return self.head(self.bert(tokens, segments, real)[0])": (
                "return self.head(self.bert(tokens, segments, real)[0].detach())"
            ),
            "self.head(self.bert(tokens, segments, real)[0]).unbind(dim=-1)": (
                "self.head(self.bert(tokens, segments, real)[0].detach()).unbind(dim=-1)"
            ),
        },
    ),
    Misconception(
        name="tasks_ignore_the_padding",
        part="heads",
        says="Your heads do not hand real to bert: classes and spans change with the padding.",
        wrong={
            "self.bert(tokens, segments, real)[1]": "self.bert(tokens, segments)[1]",
            "return self.head(self.bert(tokens, segments, real)[0])": (
                "return self.head(self.bert(tokens, segments)[0])"
            ),
            "self.head(self.bert(tokens, segments, real)[0]).unbind(dim=-1)": (
                "self.head(self.bert(tokens, segments)[0]).unbind(dim=-1)"
            ),
        },
    ),
]

ONE_DEVICE = "On the CPU there is one device. On a GPU the tests notice it."

EQUIVALENT = [
    Equivalent(
        part="masking",
        before="may_choose = ~torch.isin(tokens, torch.tensor(special_ids).to(tokens))",
        after="may_choose = ~torch.isin(tokens, torch.tensor(special_ids))",
        because=ONE_DEVICE
        + " Where no id is special the empty tensor is float32, which isin accepts.",
    ),
    Equivalent(
        part="masking",
        before="lots = torch.rand(tokens.shape, generator=generator).to(tokens.device)",
        after="lots = torch.rand(tokens.shape, generator=generator)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="masking",
        before="die = torch.randint(10, tokens.shape, generator=generator).to(tokens.device)",
        after="die = torch.randint(10, tokens.shape, generator=generator)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="masking",
        before="random_tokens = torch.randint(vocab_size, tokens.shape, generator=generator).to(tokens.device)",
        after="random_tokens = torch.randint(vocab_size, tokens.shape, generator=generator)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="heads",
        before="positions = torch.arange(length, device=start_logits.device)",
        after="positions = torch.arange(length)",
        because=ONE_DEVICE,
    ),
]


def _masking(answers: ModuleType, rng: torch.Generator) -> object:
    rows, length = torch.randint(1, 9, (2,), generator=rng).tolist()
    special = torch.randint(9, (int(torch.randint(4, (), generator=rng)),), generator=rng).tolist()
    tokens = torch.randint(9, (rows, length), generator=rng)
    return answers.mask_tokens(tokens, 9, 3, special, rng, 0.4)


def _heads(answers: ModuleType, rng: torch.Generator) -> object:
    length, max_answer = torch.randint(1, 9, (2,), generator=rng).tolist()
    start, end = torch.randint(-3, 4, (2, 3, length), generator=rng).double()
    in_passage = torch.rand(3, length, generator=rng) < 0.6
    in_passage[:, 0] = True
    return answers.best_span(start, end, in_passage, max_answer)


EXAMPLES = {"masking": _masking, "heads": _heads}
