"""Wrong answers to the exercise on vision."""

import functools
from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

SPLIT = "images.reshape(*leading, channels, rows, patch_size, columns, patch_size)"
MOVED = "grid.movedim((-4, -2), (-5, -4))  # (... rows columns channels y x)"
JOINED = "return grid.flatten(-5, -4).flatten(-3)"
BACK = "grid.movedim((-5, -4), (-4, -2)).reshape(*leading, channels, height, width)"
TOKENS = "torch.cat([class_token, patches], dim=1) + self.positions"
LOGITS = "log_scale.exp() * (normalise(image_embeddings) @ normalise(text_embeddings).T)"
UNIT = "F.normalize(vectors, dim=-1)"
LOSS = "(F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2"
CLAMP = "self.log_scale.clamp_(max=math.log(100))"
CLASSES = "normalise(normalise(prompts).mean(dim=1))"
ZERO_SHOT = "clip_logits(image_embeddings, classes, log_scale).softmax(dim=-1)"

MISCONCEPTIONS = [
    # --- patches ---
    Misconception(
        name="patches_by_column",
        part="patches",
        says="Your patches are counted down the columns. They are counted as one reads: along the first row of patches, "
        "then the second.",
        wrong={MOVED: "grid.movedim((-2, -4), (-5, -4))"},
    ),
    Misconception(
        name="channels_last_in_a_patch",
        part="patches",
        says="Your patches go pixel by pixel, each with its channels. Here all numbers of the first channel come first: "
        "channel, row, column.",
        wrong={JOINED: "return grid.movedim(-3, -1).flatten(-5, -4).flatten(-3)"},
    ),
    Misconception(
        name="strips",
        part="patches",
        says="Your reshape goes straight from the image to the patches, so that each holds a strip of pixels. Split the "
        "two axes, bring rows and columns of patches to the front, then join.",
        wrong={
            MOVED: "grid",
            JOINED: "return grid.reshape(*leading, rows * columns, channels * patch_size**2)",
        },
    ),
    Misconception(
        name="pixels_by_column",
        part="patches",
        says="Inside your patches the pixels go down the columns. They go row by row.",
        wrong={JOINED: "return grid.transpose(-1, -2).flatten(-5, -4).flatten(-3)"},
    ),
    Misconception(
        name="offsets_for_patches",
        part="patches",
        says="Your patches hold every P-th pixel: the axis of length H was split into P times H/P. A patch is a square "
        "of neighbours: H/P rows of patches, then the P rows of pixels in each.",
        wrong={
            SPLIT: "images.reshape(*leading, channels, patch_size, rows, patch_size, columns)",
            MOVED: "grid.movedim((-3, -1), (-5, -4))",
        },
    ),
    Misconception(
        name="remainder_cut_off",
        part="patches",
        says="Your patchify leaves out what does not fill a patch. An image that patches of this size do not fill is bad "
        "input.",
        wrong={
            'raise ValueError(f"patch_size = {patch_size} does not cut {height} × {width} into squares")\n'
            "    rows, columns = height // patch_size, width // patch_size\n    grid": (
                "images = images[..., : height // patch_size * patch_size, : width // patch_size * patch_size]\n"
                "    rows, columns = height // patch_size, width // patch_size\n    grid"
            )
        },
    ),
    Misconception(
        name="not_undone",
        part="patches",
        says="Your unpatchify is a reshape alone, which puts patches one below the other as strips. Move the axes back "
        "before you join them.",
        wrong={BACK: "grid.reshape(*leading, channels, height, width)"},
    ),
    Misconception(
        name="rows_and_columns_exchanged_on_the_way_back",
        part="patches",
        says="Your unpatchify takes the patches column by column: images that are square come back with their patches "
        "mirrored at the diagonal.",
        wrong={
            "patches.reshape(*leading, rows, columns, channels, patch_size, patch_size)": (
                "patches.reshape(*leading, columns, rows, channels, patch_size, patch_size).transpose(-5, -4)"
            )
        },
    ),
    # --- embedding ---
    Misconception(
        name="positions_forgotten",
        part="embedding",
        says="Your tokens have no positions: to the blocks the image is a set of patches.",
        wrong={TOKENS: "torch.cat([class_token, patches], dim=1)"},
    ),
    Misconception(
        name="class_token_last",
        part="embedding",
        says="Your class token stands after the patches. It is the first token, and the first position is its own.",
        wrong={TOKENS: "torch.cat([patches, class_token], dim=1) + self.positions"},
    ),
    Misconception(
        name="class_token_without_position",
        part="embedding",
        says="Your class token gets no position. It has one of its own, the first.",
        wrong={TOKENS: "torch.cat([class_token, patches + self.positions[1:]], dim=1)"},
    ),
    Misconception(
        name="positions_one_off",
        part="embedding",
        says="Your patches get the positions from the class token's on. Position 0 belongs to the class token, position "
        "1 to the first patch.",
        wrong={
            TOKENS: "torch.cat([class_token + self.positions[-1], patches + self.positions[:-1]], dim=1)"
        },
    ),
    Misconception(
        name="positions_not_learned",
        part="embedding",
        says="Your positions get no gradient. They are a parameter, learned like the rest.",
        wrong={TOKENS: "torch.cat([class_token, patches], dim=1) + self.positions.detach()"},
    ),
    Misconception(
        name="positions_start_at_zero",
        part="embedding",
        says="Your positions are all 0 at the start. They begin as small random numbers, standard deviation 0.02.",
        wrong={"0.02 * torch.randn(patches + 1, d_model)": "torch.zeros(patches + 1, d_model)"},
    ),
    Misconception(
        name="any_size_accepted",
        part="embedding",
        says="Your embedding accepts images of other sizes, which have no positions or those of other places. Refuse "
        "them, and say images.",
        wrong={"images.dim() != 4 or images.shape[1:] != self.shape": "images.dim() != 4"},
    ),
    # --- encoder ---
    Misconception(
        name="mean_of_the_tokens",
        part="encoder",
        says="Your vector of an image is the mean over its tokens. Here it is the state of the class token alone.",
        wrong={"self.states(images)[:, 0]": "self.states(images).mean(dim=1)"},
    ),
    Misconception(
        name="last_token_read",
        part="encoder",
        says="Your vector of an image is that of the last token, a patch. The class token is the first.",
        wrong={"self.states(images)[:, 0]": "self.states(images)[:, -1]"},
    ),
    Misconception(
        name="first_patch_read",
        part="encoder",
        says="Your vector of an image is that of its first patch. The class token stands before it, at place 0.",
        wrong={"self.states(images)[:, 0]": "self.states(images)[:, 1]"},
    ),
    Misconception(
        name="batch_indexed",
        part="encoder",
        says="Your encoder gives all tokens of the first image instead of the first token of all images: the batch is "
        "the first dimension.",
        wrong={"self.states(images)[:, 0]": "self.states(images)[0]"},
    ),
    Misconception(
        name="last_norm_forgotten",
        part="encoder",
        says="Your states are not normalised. After the last pre-LN block comes a layer norm.",
        wrong={"return self.norm(x)": "return x"},
    ),
    Misconception(
        name="one_block_many_times",
        part="encoder",
        says="Your encoder has one block that is used several times. Each layer has parameters of its own.",
        wrong={
            "nn.ModuleList(Block(d_model, num_heads) for _ in range(num_layers))": (
                "nn.ModuleList([Block(d_model, num_heads)] * num_layers)"
            )
        },
    ),
    # --- loss ---
    Misconception(
        name="images_to_texts_only",
        part="loss",
        says="Your loss asks in one direction: which caption belongs to this image. The other half asks which image "
        "belongs to this caption.",
        wrong={LOSS: "F.cross_entropy(logits, right)"},
    ),
    Misconception(
        name="texts_to_images_only",
        part="loss",
        says="Your loss asks in one direction: which image belongs to this caption. The other half asks which caption "
        "belongs to this image.",
        wrong={LOSS: "F.cross_entropy(logits.T, right)"},
    ),
    Misconception(
        name="sum_of_both_directions",
        part="loss",
        says="Your loss is the sum of the two directions. It is their mean.",
        wrong={LOSS: "F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)"},
    ),
    Misconception(
        name="summed_over_the_pairs",
        part="loss",
        says="Your cross-entropies are sums over the pairs. They are means.",
        wrong={
            LOSS: (
                "(F.cross_entropy(logits, right, reduction='sum')\n"
                "        + F.cross_entropy(logits.T, right, reduction='sum')) / 2"
            )
        },
    ),
    Misconception(
        name="nothing_contrasted",
        part="loss",
        says="Your loss only pulls pairs together. Without the other captions and images in the denominator, all vectors "
        "may become equal.",
        wrong={LOSS: "-logits.diagonal().mean()"},
    ),
    Misconception(
        name="pairs_judged_alone",
        part="loss",
        says="Your loss judges every image and caption by itself, yes or no, with a sigmoid. CLIP's asks which of all: a "
        "softmax over the row, and one over the column.",
        wrong={
            LOSS: "F.binary_cross_entropy_with_logits(logits, torch.eye(len(logits)).to(logits))"
        },
    ),
    Misconception(
        name="not_normalised",
        part="loss",
        says="Your logits are dot products of the vectors as they come. Divide each by its length first: only the "
        "direction counts.",
        wrong={LOGITS: "log_scale.exp() * (image_embeddings @ text_embeddings.T)"},
    ),
    Misconception(
        name="normalised_over_the_batch",
        part="loss",
        says="Your normalisation runs over the batch, feature by feature. Each vector is divided by its own length.",
        wrong={UNIT: "F.normalize(vectors, dim=0)"},
    ),
    Misconception(
        name="divided_by_the_factor",
        part="loss",
        says="Your cosines are divided by exp(log_scale). What is learned is the logarithm of 1/τ: multiply.",
        wrong={
            LOGITS: "(normalise(image_embeddings) @ normalise(text_embeddings).T) / log_scale.exp()"
        },
    ),
    Misconception(
        name="logarithm_as_factor",
        part="loss",
        says="Your cosines are multiplied by log_scale itself. It is the factor's logarithm: take exp.",
        wrong={LOGITS: "log_scale * (normalise(image_embeddings) @ normalise(text_embeddings).T)"},
    ),
    Misconception(
        name="factor_twice",
        part="loss",
        says="Your factor is multiplied twice, once with the images and once with the texts. It counts once.",
        wrong={
            LOGITS: "log_scale.exp().square() * (normalise(image_embeddings) @ normalise(text_embeddings).T)"
        },
    ),
    Misconception(
        name="no_factor",
        part="loss",
        says="Your logits are the bare cosines, between −1 and 1: the learned factor is missing.",
        wrong={
            LOGITS: "normalise(image_embeddings) @ normalise(text_embeddings).T + 0 * log_scale"
        },
    ),
    Misconception(
        name="factor_not_learned",
        part="loss",
        says="No gradient of yours reaches log_scale. It is learned: do not detach it or turn it into a number.",
        wrong={
            LOGITS: "log_scale.detach().exp() * (normalise(image_embeddings) @ normalise(text_embeddings).T)"
        },
    ),
    Misconception(
        name="clamped_in_the_loss",
        part="loss",
        says="Your logits clamp the factor at 100. Here it is used as it is: a clamp in the loss has gradient 0 beyond "
        "it, and the factor could never come back.",
        wrong={
            LOGITS: "log_scale.exp().clamp(max=100) * (normalise(image_embeddings) @ normalise(text_embeddings).T)"
        },
    ),
    Misconception(
        name="texts_as_rows",
        part="loss",
        says="Your matrix has the texts as rows. Images are rows, texts are columns.",
        wrong={
            LOGITS: "log_scale.exp() * (normalise(text_embeddings) @ normalise(image_embeddings).T)"
        },
    ),
    Misconception(
        name="squares_not_rooted",
        part="loss",
        says="Your vectors are divided by the sum of their squares. The length is its square root.",
        wrong={UNIT: "vectors / vectors.square().sum(dim=-1, keepdim=True)"},
    ),
    Misconception(
        name="divided_by_the_sum",
        part="loss",
        says="Your vectors are divided so that their numbers sum to 1 in absolute value. It is the Euclidean length that "
        "becomes 1.",
        wrong={UNIT: "F.normalize(vectors, p=1, dim=-1)"},
    ),
    # --- clip ---
    Misconception(
        name="clamp_forgotten",
        part="clip",
        says="Your clamp_scale leaves log_scale as it is, also where the factor exceeds 100.",
        wrong={CLAMP: "pass"},
    ),
    Misconception(
        name="logarithm_clamped_at_100",
        part="clip",
        says="Your clamp_scale lets log_scale go up to 100, a factor of e^100. It is the factor that is at most 100.",
        wrong={CLAMP: "self.log_scale.clamp_(max=100)"},
    ),
    Misconception(
        name="another_parameter",
        part="clip",
        says="Your clamp_scale makes a new parameter. The optimiser holds the old one: change the values in place.",
        wrong={CLAMP: "self.log_scale = nn.Parameter(self.log_scale.clamp(max=math.log(100)))"},
    ),
    Misconception(
        name="temperature_stored",
        part="clip",
        says="Your log_scale starts at ln 0.07, a factor of 0.07. The factor is 1/τ: ln(1/0.07).",
        wrong={"math.log(1 / 0.07)": "math.log(0.07)"},
    ),
    Misconception(
        name="factor_stored",
        part="clip",
        says="Your log_scale starts at 1/0.07. What is stored is the logarithm of that.",
        wrong={"math.log(1 / 0.07)": "1 / 0.07"},
    ),
    Misconception(
        name="normalised_before_the_projection",
        part="clip",
        says="Your encodings are normalised before the projection, which changes their lengths again. Normalise last.",
        wrong={
            "normalise(self.image_projection(self.vision(images)))": (
                "self.image_projection(normalise(self.vision(images)))"
            ),
            "normalise(self.text_projection(self.text(tokens)))": (
                "self.text_projection(normalise(self.text(tokens)))"
            ),
        },
    ),
    Misconception(
        name="encodings_of_any_length",
        part="clip",
        says="Your encodings are not normalised. They have length 1.",
        wrong={
            "normalise(self.image_projection(self.vision(images)))": (
                "self.image_projection(self.vision(images))"
            ),
            "normalise(self.text_projection(self.text(tokens)))": (
                "self.text_projection(self.text(tokens))"
            ),
        },
    ),
    Misconception(
        name="one_projection_for_both",
        part="clip",
        says="Your texts go through the images' projection. Each encoder has one of its own.",
        wrong={
            "self.text_projection(self.text(tokens))": "self.image_projection(self.text(tokens))"
        },
    ),
    Misconception(
        name="texts_frozen",
        part="clip",
        says="No gradient of yours reaches the text encoder. Both encoders are trained.",
        wrong={
            "clip_loss(self.encode_images(images), self.encode_texts(tokens), self.log_scale)": (
                "clip_loss(self.encode_images(images), self.encode_texts(tokens).detach(), self.log_scale)"
            )
        },
    ),
    Misconception(
        name="exponent_taken_twice",
        part="clip",
        says="Your model gives the loss exp(log_scale), and the loss takes exp again.",
        wrong={
            "self.encode_texts(tokens), self.log_scale)": "self.encode_texts(tokens), self.log_scale.exp())"
        },
    ),
    # --- zero_shot ---
    Misconception(
        name="prompts_not_normalised",
        part="zero_shot",
        says="Your mean is taken over the prompts as they come, so that long ones count more. Bring each to length 1 "
        "first.",
        wrong={CLASSES: "normalise(prompts.mean(dim=1))"},
    ),
    Misconception(
        name="mean_not_normalised",
        part="zero_shot",
        says="Your classes have vectors shorter than 1: the mean of unit vectors is normalised again.",
        wrong={CLASSES: "normalise(prompts).mean(dim=1)"},
    ),
    Misconception(
        name="mean_over_the_classes",
        part="zero_shot",
        says="Your mean runs over the classes. It runs over the templates of each class, the second dimension.",
        wrong={CLASSES: "normalise(normalise(prompts).mean(dim=0))"},
    ),
    Misconception(
        name="softmax_over_the_images",
        part="zero_shot",
        says="Your softmax runs over the images. For each image the probabilities of the classes sum to 1.",
        wrong={ZERO_SHOT: "clip_logits(image_embeddings, classes, log_scale).softmax(dim=0)"},
    ),
    Misconception(
        name="logits_returned",
        part="zero_shot",
        says="Your result is logits. Take the softmax over the classes.",
        wrong={ZERO_SHOT: "clip_logits(image_embeddings, classes, log_scale)"},
    ),
    Misconception(
        name="factor_left_out",
        part="zero_shot",
        says="Your probabilities are a softmax of bare cosines: nearly uniform. The factor exp(log_scale) belongs in.",
        wrong={ZERO_SHOT: "clip_logits(image_embeddings, classes, 0 * log_scale).softmax(dim=-1)"},
    ),
    Misconception(
        name="mean_of_probabilities",
        part="zero_shot",
        says="Your probabilities average over the templates after the softmax. The average is of the vectors: each class "
        "is one vector, and then comes one softmax.",
        wrong={
            ZERO_SHOT: (
                "torch.stack([clip_logits(image_embeddings, one, log_scale).softmax(-1)\n"
                "                        for one in prompts.unbind(1)]).mean(0) + 0 * classes.sum()"
            )
        },
    ),
]

EQUIVALENT = [
    Equivalent(
        part="loss",
        before="logits = clip_logits(image_embeddings, text_embeddings, log_scale)",
        after="logits = clip_logits(text_embeddings, image_embeddings, log_scale)",
        because="The matrix is transposed, and the loss asks it and its transpose alike.",
    ),
    Equivalent(
        part="loss",
        before="right = torch.arange(len(logits), device=logits.device)",
        after="right = torch.arange(len(logits))",
        because="On the CPU there is one device. On a GPU the tests notice it.",
    ),
    Equivalent(
        part="clip",
        before="return clip_loss(self.encode_images(images), self.encode_texts(tokens), self.log_scale)",
        after="return clip_loss(self.encode_texts(tokens), self.encode_images(images), self.log_scale)",
        because="The loss is symmetric.",
    ),
    Equivalent(
        part="zero_shot",
        before="return clip_logits(image_embeddings, classes, log_scale).softmax(dim=-1)",
        after="return clip_logits(image_embeddings, classes, log_scale).softmax(dim=1)",
        because="The logits have two dimensions, so that 1 is the last.",
    ),
]


def _loss(answers: ModuleType, rng: torch.Generator) -> object:
    images, texts = torch.randn(2, 4, 3, generator=rng)
    return answers.clip_loss(images, texts, torch.randn((), generator=rng))


@functools.cache
def _clip(answers: ModuleType) -> torch.nn.Module:
    return answers.CLIP(answers.Sizes(2, 1, 1, 5, 3, 4, 2, 0, 3))


def _clip_loss(answers: ModuleType, rng: torch.Generator) -> object:
    model = _clip(answers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=rng))
        images = torch.randn(3, 1, 2, 2, generator=rng)
        return model(images, torch.randint(1, 5, (3, 3), generator=rng))


def _zero_shot(answers: ModuleType, rng: torch.Generator) -> object:
    images, prompts = torch.randn(2, 3, generator=rng), torch.randn(4, 2, 3, generator=rng)
    return answers.zero_shot(images, prompts, torch.randn((), generator=rng))


EXAMPLES = {"loss": _loss, "clip": _clip_loss, "zero_shot": _zero_shot}
