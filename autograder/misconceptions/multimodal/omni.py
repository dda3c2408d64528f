"""Wrong answers to the exercise on one stream for text, picture and sound."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

NEAREST = "differences.square().sum(dim=-1).argmin(dim=-1)"
THROUGH = "vectors + (codebook[indices] - vectors).detach()"
PULL = "F.mse_loss(codes, vectors.detach()) + beta * F.mse_loss(vectors, codes.detach())"
READS = "self.decoder(quantized)"
TOTAL = "missed + codebook_loss(vectors, self.codebook, beta)"
ANGLES = "(2 * math.pi / rate * turns)"
TONE = "angles.sin().sum(dim=-2) / 2"
ENERGY = "(sounds @ angles.cos()).square() + (sounds @ angles.sin()).square()"
SEGMENT = "[codes.new_tensor([BEGIN[modality]]), codes + first, codes.new_tensor([END])]"
RANGE = "((codes < 0) | (codes >= past - first)).any()"
ASKED = "logits = next_logits(tokens)"
MASKED = "logits.masked_fill(~allowed, -math.inf)"
CHOSEN = "torch.where(ended, PADDING, _choose(logits, temperature, generator))"
DRAWN = "torch.multinomial(probabilities, 1, generator=generator)"

MISCONCEPTIONS = [
    # --- codebook ---
    Misconception(
        name="largest_dot_product",
        part="codebook",
        says="Your nearest takes the code with the largest dot product, which long codes win wherever they lie. Compare "
        "distances.",
        wrong={NEAREST: "(vectors @ codebook.T).argmax(dim=-1)"},
    ),
    Misconception(
        name="largest_cosine",
        part="codebook",
        says="Your nearest compares directions only. Two vectors of one direction can lie far apart: compare distances.",
        wrong={
            NEAREST: "(F.normalize(vectors, dim=-1) @ F.normalize(codebook, dim=-1).T).argmax(dim=-1)"
        },
    ),
    Misconception(
        name="any_width_of_code",
        part="codebook",
        says="Your nearest accepts codes of another width than the vectors, and broadcasting stretches them. Refuse "
        "them, and say codebook.",
        wrong={" or codebook.shape[1] != vectors.shape[-1]": ""},
    ),
    Misconception(
        name="gradient_does_not_pass",
        part="codebook",
        says="Your quantize looks the codes up, and no gradient reaches the vectors: the encoder would never learn. Give "
        "the result the value of the code and the derivative of the vector.",
        wrong={THROUGH: "codebook[indices]"},
    ),
    Misconception(
        name="straight_through_the_wrong_way",
        part="codebook",
        says="Your quantize has the vectors' value and the codes' gradient. It is the other way round: the value of the "
        "code, the gradient to the vector.",
        wrong={THROUGH: "codebook[indices] + (vectors - codebook[indices]).detach()"},
    ),
    Misconception(
        name="codes_learn_too",
        part="codebook",
        says="Your quantize hands its gradient to the codebook as well. Codes count as constants here; they have a loss "
        "of their own.",
        wrong={THROUGH: "vectors + codebook[indices] - vectors.detach()"},
    ),
    Misconception(
        name="beta_at_the_codes",
        part="codebook",
        says="Your β weighs the term that moves the codes. It belongs to the commitment, which moves the vectors.",
        wrong={
            PULL: "beta * F.mse_loss(codes, vectors.detach()) + F.mse_loss(vectors, codes.detach())"
        },
    ),
    Misconception(
        name="nothing_detached",
        part="codebook",
        says="Your two terms are one, (1 + β) times: both move codes and vectors. In each term one of the two counts as "
        "a constant.",
        wrong={PULL: "(1 + beta) * F.mse_loss(codes, vectors)"},
    ),
    Misconception(
        name="no_commitment",
        part="codebook",
        says="Your loss does not move the vectors: the commitment, weighted by β, is missing.",
        wrong={PULL: "F.mse_loss(codes, vectors.detach()) + 0 * vectors.sum()"},
    ),
    Misconception(
        name="summed_over_a_code",
        part="codebook",
        says="Your squares are summed over the numbers of a code. Here the mean runs over all vectors and all numbers.",
        wrong={PULL: "codes.shape[-1] * (" + PULL + ")"},
    ),
    Misconception(
        name="codes_with_straight_through_gradient",
        part="codebook",
        says="Your loss uses the codes as quantize returns them, and their gradient goes to the vectors. Here the codes "
        "themselves must learn: look them up.",
        wrong={
            "codes = codebook[nearest(vectors, codebook)]": "_, codes = quantize(vectors, codebook)"
        },
    ),
    # --- tokenizer ---
    Misconception(
        name="decoder_reads_the_vector",
        part="tokenizer",
        says="Your decoder reads the encoder's vector. It must read the code: nothing else will be there later.",
        wrong={READS: "self.decoder(vectors)"},
    ),
    Misconception(
        name="looked_up_again",
        part="tokenizer",
        says="Your decoder's gradient goes to the codebook and not to the encoder. Let it read what quantize returns.",
        wrong={READS: "self.decoder(self.codebook[nearest(vectors, self.codebook)])"},
    ),
    Misconception(
        name="decoder_cut_off",
        part="tokenizer",
        says="Your encoder learns nothing from the reconstruction: what the decoder reads is detached.",
        wrong={READS: "self.decoder(quantized.detach())"},
    ),
    Misconception(
        name="codebook_loss_forgotten",
        part="tokenizer",
        says="Your loss is the reconstruction alone, and the codes stay where they started. Add codebook_loss.",
        wrong={TOTAL: "missed + 0 * self.codebook.sum()"},
    ),
    Misconception(
        name="beta_times_everything",
        part="tokenizer",
        says="Your β multiplies the whole of the codebook's loss. It weighs the commitment alone: hand it on.",
        wrong={TOTAL: "missed + beta * codebook_loss(vectors, self.codebook, 1.0)"},
    ),
    Misconception(
        name="beta_not_handed_on",
        part="tokenizer",
        says="Your loss always takes β = 0.25, whatever is asked for.",
        wrong={TOTAL: "missed + codebook_loss(vectors, self.codebook, 0.25)"},
    ),
    Misconception(
        name="reconstruction_summed",
        part="tokenizer",
        says="Your reconstruction error is a sum. It is the mean over all numbers.",
        wrong={
            "F.mse_loss(self.decoder(quantized), pieces)": (
                "F.mse_loss(self.decoder(quantized), pieces, reduction='sum')"
            )
        },
    ),
    Misconception(
        name="codes_not_decoded",
        part="tokenizer",
        says="Your decode returns the codes as they stand in the codebook. They go through the decoder.",
        wrong={"return self.decoder(self.codebook[codes])": "return self.codebook[codes]"},
    ),
    Misconception(
        name="negative_codes_decoded",
        part="tokenizer",
        says="Your decode takes code −1 for the last one, as Python's indexing does. It is no code: refuse it.",
        wrong={
            "not 0 <= codes.min() <= codes.max() < len(self.codebook)": "codes.max() >= len(self.codebook)"
        },
    ),
    Misconception(
        name="codebook_starts_at_zero",
        part="tokenizer",
        says="Your codes are all 0 at the start, so that the first wins every vector. Draw them at random, standard "
        "deviation 1.",
        wrong={"torch.randn(codes, d_code)": "torch.zeros(codes, d_code)"},
    ),
    # --- sound ---
    Misconception(
        name="rate_assumed_for_the_tone",
        part="sound",
        says="Your tone has the right pitch at 8,000 samples a second only. Use rate.",
        wrong={ANGLES: "(2 * math.pi / 8000 * turns)"},
    ),
    Misconception(
        name="rate_forgotten",
        part="sound",
        says="Your sine takes the sample's number for seconds. Sample n stands at n/rate.",
        wrong={ANGLES: "(2 * math.pi * turns)"},
    ),
    Misconception(
        name="last_sample_at_the_end",
        part="sound",
        says="Your samples are spread from 0 to seconds, both included, which makes their rate a little too low and the "
        "tone a little off. Sample n stands at n/rate; none stands at the end.",
        wrong={ANGLES: "(2 * math.pi * seconds / max(samples - 1, 1) * turns)"},
    ),
    Misconception(
        name="turns_for_radians",
        part="sound",
        says="Your sine is 2π times too slow: a frequency is turns a second, and torch.sin wants radians.",
        wrong={ANGLES: "(turns / rate)"},
    ),
    Misconception(
        name="twice_as_loud",
        part="sound",
        says="Your tone is the sum of the two sines. Each counts half, so that the tone stays within ±1.",
        wrong={TONE: "angles.sin().sum(dim=-2)"},
    ),
    Misconception(
        name="samples_cut_off",
        part="sound",
        says="Your number of samples is cut off. It is rounded.",
        wrong={"round(seconds * rate)": "int(seconds * rate)"},
    ),
    Misconception(
        name="samples_rounded_up",
        part="sound",
        says="Your number of samples is rounded up, as torch.arange(0, seconds, 1 / rate) does. It is rounded.",
        wrong={"round(seconds * rate)": "math.ceil(seconds * rate)"},
    ),
    Misconception(
        name="rate_as_limit",
        part="sound",
        says="You refuse frequencies from the rate on. From half the rate on a sine has the samples of a slower one.",
        wrong={"max(frequencies) >= rate / 2": "max(frequencies) >= rate"},
    ),
    Misconception(
        name="cosine_part_only",
        part="sound",
        says="Your energy is that of the cosine alone, so that a sine has none. Join both parts: the phase must not "
        "matter.",
        wrong={ENERGY: "(sounds @ angles.cos()).square()"},
    ),
    Misconception(
        name="amplitude_for_energy",
        part="sound",
        says="Your energy is |X|. Square it.",
        wrong={ENERGY: "(" + ENERGY + ").sqrt()"},
    ),
    Misconception(
        name="nearest_frequency_that_fits",
        part="sound",
        says="Your frequencies are rounded to those that fit a whole number of times into the sound, as an FFT has them. "
        "Measure at the frequency that was asked for.",
        wrong={
            "2 * math.pi / rate * torch.outer(n, f)": (
                "2 * math.pi / len(n) * torch.outer(n, (f * len(n) / rate).round())"
            )
        },
    ),
    Misconception(
        name="rate_assumed_by_the_receiver",
        part="sound",
        says="Your receiver takes every sound to have 8,000 samples a second. Use its rate.",
        wrong={"2 * math.pi / rate * torch.outer(n, f)": "2 * math.pi / 8000 * torch.outer(n, f)"},
    ),
    Misconception(
        name="row_and_column_exchanged",
        part="sound",
        says="Your receiver takes the row's number for the column's. tones.KEYS has the rows first.",
        wrong={"tones.KEYS[row][column]": "tones.KEYS[column][row]"},
    ),
    # --- stream ---
    Misconception(
        name="vocabularies_overlap",
        part="stream",
        says="Your codes of text, pictures and sound are the same tokens. Each modality begins where the one before it "
        "ends.",
        wrong={"first = FIRST + sum(sizes[:place])": "first = FIRST"},
    ),
    Misconception(
        name="special_tokens_overlap",
        part="stream",
        says="Your codes begin at token 0, where padding, end and the begins are. Five tokens come first.",
        wrong={"first = FIRST + sum(sizes[:place])": "first = sum(sizes[:place])"},
    ),
    Misconception(
        name="pictures_overlap_sound",
        part="stream",
        says="Your sound begins where your pictures begin: only the text before it was counted.",
        wrong={"sum(sizes[:place])": "sum(sizes[: min(place, 1)])"},
    ),
    Misconception(
        name="last_token_included",
        part="stream",
        says="Your token_range ends with the last token. It gives the one after the last, as Python's ranges do.",
        wrong={"return first, first + sizes[place]": "return first, first + sizes[place] - 1"},
    ),
    Misconception(
        name="end_left_out",
        part="stream",
        says="Your segments have no end. A model could not learn when to stop.",
        wrong={SEGMENT: "[codes.new_tensor([BEGIN[modality]]), codes + first]"},
    ),
    Misconception(
        name="codes_not_moved",
        part="stream",
        says="Your stream holds the codes as they come, counted from 0. Move them to their modality's tokens.",
        wrong={SEGMENT: SEGMENT.replace("codes + first", "codes")},
    ),
    Misconception(
        name="codes_moved_in_place",
        part="stream",
        says="Your interleave changes the codes it was given. Make new tensors.",
        wrong={SEGMENT: SEGMENT.replace("codes + first", "codes.add_(first)")},
    ),
    Misconception(
        name="too_large_codes_accepted",
        part="stream",
        says="Your interleave accepts codes that are not below their modality's size: they become tokens of the next "
        "one.",
        wrong={RANGE: "(codes < 0).any()"},
    ),
    Misconception(
        name="negative_codes_accepted",
        part="stream",
        says="Your interleave accepts negative codes: they become tokens of the modality before, or none at all.",
        wrong={RANGE: "(codes >= past - first).any()"},
    ),
    Misconception(
        name="not_moved_back",
        part="stream",
        says="Your separate returns tokens. The codes of a modality count from 0 again.",
        wrong={"tokens.new_tensor(inside) - first": "tokens.new_tensor(inside)"},
    ),
    Misconception(
        name="anything_in_a_segment",
        part="stream",
        says="Your separate does not look at what stands in a segment. Tokens of another modality are refused.",
        wrong={"not all(first <= token < past for token in inside)": "len(inside) < 0"},
    ),
    Misconception(
        name="padding_anywhere",
        part="stream",
        says="Your separate leaves out padding wherever it stands. It is allowed at the end of the stream alone.",
        wrong={
            "left = tokens.tolist()": "tokens = tokens[tokens != PADDING]\n    left = tokens.tolist()"
        },
    ),
    Misconception(
        name="empty_segments_dropped",
        part="stream",
        says="Your separate leaves out segments without codes. They are segments too.",
        wrong={"        segments.append((": "        if inside:\n            segments.append(("},
    ),
    # --- any_to_any ---
    Misconception(
        name="prompt_not_read",
        part="any_to_any",
        says="Your model is asked about the new segment alone. It must see the prompt.",
        wrong={ASKED: "logits = next_logits(tokens[:, prompts.shape[1] :])"},
    ),
    Misconception(
        name="last_token_only",
        part="any_to_any",
        says="Your model is asked about the last token alone. It must see the whole stream so far.",
        wrong={ASKED: "logits = next_logits(tokens[:, -1:])"},
    ),
    Misconception(
        name="everything_allowed",
        part="any_to_any",
        says="Your answer may hold any token. Allow those of the modality, and END.",
        wrong={MASKED: "logits"},
    ),
    Misconception(
        name="masked_with_zero",
        part="any_to_any",
        says="Your mask sets logits to 0, which is more than a negative logit. What must not come gets −∞.",
        wrong={MASKED: "logits.masked_fill(~allowed, 0.0)"},
    ),
    Misconception(
        name="end_not_allowed",
        part="any_to_any",
        says="Your answer can never end before the limit: END is allowed at every step.",
        wrong={"allowed[:, END] = True": "pass"},
    ),
    Misconception(
        name="next_modality_allowed",
        part="any_to_any",
        says="Your answer may hold the first token of the modality that follows. token_range gives the one after the "
        "last.",
        wrong={"allowed[:, first:past] = True": "allowed[:, first : past + 1] = True"},
    ),
    Misconception(
        name="goes_on_after_the_end",
        part="any_to_any",
        says="Your rows go on after their END. From there on they are padding.",
        wrong={CHOSEN: "_choose(logits, temperature, generator)"},
    ),
    Misconception(
        name="end_forgotten_after_a_step",
        part="any_to_any",
        says="Your rows are padded for one step after their END and then go on. What has ended stays ended.",
        wrong={"ended = ended | (chosen == END)": "ended = chosen == END"},
    ),
    Misconception(
        name="no_end_at_the_limit",
        part="any_to_any",
        says="Your rows that reach the limit have no END. The segment is closed there, whatever the logits say.",
        wrong={
            "last = torch.where(ended, PADDING, END)": "last = torch.where(ended, PADDING, PADDING)"
        },
    ),
    Misconception(
        name="end_counted_as_a_code",
        part="any_to_any",
        says="Your segments have at most limit − 1 codes. The limit counts codes; END comes after them.",
        wrong={"for _ in range(limit):": "for _ in range(limit - 1):"},
    ),
    Misconception(
        name="prompt_repeated",
        part="any_to_any",
        says="Your result repeats the prompt. Only the new segment is asked for.",
        wrong={"tokens[:, prompts.shape[1] :]": "tokens"},
    ),
    Misconception(
        name="temperature_multiplied",
        part="any_to_any",
        says="Your logits are multiplied by the temperature. Divide: a temperature above 1 makes choices more even.",
        wrong={"(logits / temperature)": "(logits * temperature)"},
    ),
    Misconception(
        name="always_the_likeliest",
        part="any_to_any",
        says="Your answer always takes the likeliest token. Where the temperature is not 0 a token is drawn.",
        wrong={"if temperature == 0:": "if temperature >= 0:"},
    ),
    Misconception(
        name="generator_not_used",
        part="any_to_any",
        says="Your draws come from torch's own generator. Use the one that was given, or nothing can be repeated.",
        wrong={DRAWN: "torch.multinomial(probabilities, 1)"},
    ),
]

ONE_DEVICE = "On the CPU there is one device. On a GPU the tests notice it."
SYMMETRIC = "The square of a difference does not ask which of the two comes first."

EQUIVALENT = [
    Equivalent(
        part="codebook",
        before="differences = vectors.unsqueeze(-2) - codebook",
        after="differences = codebook - vectors.unsqueeze(-2)",
        because=SYMMETRIC,
    ),
    Equivalent(
        part="codebook",
        before=f"return {PULL}",
        after="return F.mse_loss(vectors.detach(), codes) + beta * F.mse_loss(vectors, codes.detach())",
        because=SYMMETRIC,
    ),
    Equivalent(
        part="codebook",
        before=f"return {PULL}",
        after="return F.mse_loss(codes, vectors.detach()) + beta * F.mse_loss(codes.detach(), vectors)",
        because=SYMMETRIC,
    ),
    Equivalent(
        part="tokenizer",
        before="missed = F.mse_loss(self.decoder(quantized), pieces)",
        after="missed = F.mse_loss(pieces, self.decoder(quantized))",
        because=SYMMETRIC,
    ),
    Equivalent(
        part="sound",
        before="f = phases.new_tensor(frequencies, dtype=torch.float64)",
        after="f = phases.new_tensor(frequencies)",
        because="In the type of the phases the angles are exact enough: the task leaves open how they are computed.",
    ),
    Equivalent(
        part="sound",
        before="turns = torch.outer(f, torch.arange(samples, device=phases.device))",
        after="turns = torch.outer(f, torch.arange(samples))",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="sound",
        before="n = torch.arange(sounds.shape[-1], device=sounds.device)",
        after="n = torch.arange(sounds.shape[-1])",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="sound",
        before="places = torch.stack(loudest, dim=1).tolist()",
        after="places = torch.stack(loudest, dim=1)",
        because="A tensor of one integer indexes a tuple as the integer does.",
    ),
    Equivalent(
        part="any_to_any",
        before="probabilities = (logits / temperature).softmax(dim=1).cpu()",
        after="probabilities = (logits / temperature).softmax(dim=1)",
        because=ONE_DEVICE,
    ),
    Equivalent(
        part="any_to_any",
        before="return drawn.flatten().to(logits.device)",
        after="return drawn.flatten()",
        because=ONE_DEVICE,
    ),
]


def _codebook(answers: ModuleType, rng: torch.Generator) -> object:
    vectors, book = torch.randn(3, 2, generator=rng), torch.randn(4, 2, generator=rng)
    vectors.requires_grad_()
    book.requires_grad_()
    loss = answers.codebook_loss(vectors, book, 0.5)
    loss.backward()
    return [loss.detach(), vectors.grad, book.grad, *answers.quantize(vectors.detach(), book)]


def _tokenizer(answers: ModuleType, rng: torch.Generator) -> object:
    tokenizer = answers.Tokenizer(3, 4, 2, 5)
    for value in tokenizer.state_dict().values():
        value.copy_(torch.randn(value.shape, generator=rng))
    return tokenizer(torch.randn(2, 3, generator=rng))


def _sound(answers: ModuleType, rng: torch.Generator) -> object:
    frequencies = tuple((1000 * torch.rand(2, generator=rng)).tolist())
    sounds = answers.dual_tone(frequencies, 0.005, 4000, 6 * torch.rand(2, 2, generator=rng))
    return sounds, answers.hear(sounds, 4000)


def _any_to_any(answers: ModuleType, rng: torch.Generator) -> object:
    logits = torch.randn(2, 9, generator=rng)
    prompts = torch.zeros(2, 0, dtype=torch.int64)
    return answers.generate(lambda tokens: logits, prompts, "image", (1, 2, 1), 2, 0.7, rng)


EXAMPLES = {
    "codebook": _codebook,
    "tokenizer": _tokenizer,
    "sound": _sound,
    "any_to_any": _any_to_any,
}
