# %% style="loops" part="patches"
def patchify(images, patch_size):
    """Cut out one square after another."""
    height, width = images.shape[-2:]
    if patch_size <= 0 or height % patch_size != 0 or width % patch_size != 0:
        raise ValueError("patch_size")
    patches = []
    for top in range(0, height, patch_size):
        for left in range(0, width, patch_size):
            square = images[..., top : top + patch_size, left : left + patch_size]
            patches.append(square.flatten(start_dim=-3))
    return torch.stack(patches, dim=-2)


def unpatchify(patches, patch_size, height, width):
    if patch_size <= 0 or height % patch_size != 0 or width % patch_size != 0:
        raise ValueError("patch_size")
    across = width // patch_size
    if patches.shape[-2] != across * (height // patch_size):
        raise ValueError("patches: wrong number")
    if patches.shape[-1] % (patch_size * patch_size):
        raise ValueError("patches: wrong features")
    channels = patches.shape[-1] // (patch_size * patch_size)
    images = patches.new_zeros(*patches.shape[:-2], channels, height, width)
    for i in range(patches.shape[-2]):
        top, left = (i // across) * patch_size, (i % across) * patch_size
        square = patches[..., i, :].unflatten(-1, (channels, patch_size, patch_size))
        images[..., top : top + patch_size, left : left + patch_size] = square
    return images


# %% style="loops" part="embedding"
class PatchEmbedding(nn.Module):
    def __init__(self, image_size, patch_size, channels, d_model):
        super().__init__()
        if image_size % patch_size != 0:
            raise ValueError("patch_size")
        self.sizes = [channels, image_size, image_size]
        self.patch_size = patch_size
        self.projection = nn.Linear(patch_size * patch_size * channels, d_model)
        self.class_token = nn.Parameter(torch.empty(d_model))
        self.positions = nn.Parameter(torch.empty(1 + (image_size // patch_size) ** 2, d_model))
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, images):
        if images.ndim != 4 or list(images.shape[1:]) != self.sizes:
            raise ValueError("images")
        rows = []
        for image in images:
            tokens = [self.class_token] + [
                self.projection(patch) for patch in patchify(image, self.patch_size)
            ]
            rows.append(torch.stack([t + p for t, p in zip(tokens, self.positions, strict=True)]))
        return torch.stack(rows)


# %% style="loops" part="loss"
def normalise(vectors):
    if vectors.dim() == 1:
        return vectors / sum(x * x for x in vectors) ** 0.5
    return torch.stack([normalise(one) for one in vectors])


def _cosine(a, b):
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def clip_logits(image_embeddings, text_embeddings, log_scale):
    if image_embeddings.ndim != 2 or text_embeddings.ndim != 2:
        raise ValueError("shape")
    if image_embeddings.shape[1] != text_embeddings.shape[1]:
        raise ValueError("shape")
    factor = torch.exp(log_scale)
    return torch.stack(
        [
            torch.stack([factor * _cosine(image, text) for text in text_embeddings])
            for image in image_embeddings
        ]
    )


def clip_loss(image_embeddings, text_embeddings, log_scale):
    n = len(image_embeddings)
    if tuple(image_embeddings.shape) != tuple(text_embeddings.shape):
        raise ValueError("shape")
    if n == 0:
        raise ValueError("pair")
    s = clip_logits(image_embeddings, text_embeddings, log_scale)
    total = 0
    for i in range(n):
        total = (
            total + (torch.logsumexp(s[i], 0) - s[i, i]) + (torch.logsumexp(s[:, i], 0) - s[i, i])
        )
    return total / (2 * n)


# %% style="loops" part="zero_shot"
def class_embeddings(prompts):
    if prompts.ndim != 3:
        raise ValueError("prompts")
    if prompts.shape[1] == 0:
        raise ValueError("prompts")
    classes = []
    for templates in prompts:
        total = sum(prompt / prompt.norm() for prompt in templates)
        classes.append(total / total.norm())
    return torch.stack(classes)


def zero_shot(image_embeddings, prompts, log_scale):
    classes = class_embeddings(prompts)
    rows = []
    for image in image_embeddings:
        logits = torch.stack([(image / image.norm()) @ c for c in classes]) * log_scale.exp()
        rows.append(torch.softmax(logits, dim=0))
    return torch.stack(rows)


# %% style="unshuffle" part="patches"
def patchify(images, patch_size):
    """torch's pixel_unshuffle puts each square into the channels, in the same order."""
    if patch_size < 1 or images.shape[-2] % patch_size or images.shape[-1] % patch_size:
        raise ValueError("patch_size")
    return F.pixel_unshuffle(images, patch_size).flatten(-2).transpose(-1, -2)


def unpatchify(patches, patch_size, height, width):
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError("patch_size")
    rows, columns = height // patch_size, width // patch_size
    if patches.shape[-2] != rows * columns or patches.shape[-1] % patch_size**2 != 0:
        raise ValueError("patches")
    grid = patches.transpose(-1, -2).unflatten(-1, (rows, columns))
    return F.pixel_shuffle(grid, patch_size)


# %% style="unshuffle" part="encoder"
class VisionTransformer(nn.Module):
    def __init__(self, image_size, patch_size, channels, d_model, num_heads, num_layers):
        super().__init__()
        self.embedding = PatchEmbedding(image_size, patch_size, channels, d_model)
        self.blocks = nn.ModuleList([])
        for _ in range(num_layers):
            self.blocks.append(Block(d_model, num_heads))
        self.norm = nn.LayerNorm(d_model)

    def states(self, images):
        return self.norm(nn.Sequential(*self.blocks)(self.embedding(images)))

    def forward(self, images):
        """Only the class token need be normalised."""
        x = self.embedding(images)
        for i in range(len(self.blocks)):
            x = self.blocks[i](x)
        return self.norm(x.select(1, 0))


# %% style="unshuffle" part="clip"
class CLIP(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.log_scale = nn.Parameter(-torch.log(torch.tensor(0.07)))
        self.vision = VisionTransformer(
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            channels=sizes.channels,
            d_model=sizes.d_model,
            num_heads=sizes.num_heads,
            num_layers=sizes.num_layers,
        )
        self.text = TextEncoder(sizes)
        for name in ("image_projection", "text_projection"):
            setattr(self, name, nn.Linear(sizes.d_model, sizes.d_joint, bias=False))

    def encode_images(self, images):
        vectors = self.image_projection(self.vision(images))
        return vectors / vectors.norm(dim=-1, keepdim=True)

    def encode_texts(self, tokens):
        vectors = self.text_projection(self.text(tokens))
        return vectors / vectors.norm(dim=-1, keepdim=True)

    def forward(self, images, tokens):
        logits = self.log_scale.exp() * self.encode_images(images) @ self.encode_texts(tokens).T
        labels = torch.arange(len(logits), device=logits.device)
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * F.cross_entropy(logits.t(), labels)

    def clamp_scale(self):
        if self.log_scale.item() > math.log(100):
            nn.init.constant_(self.log_scale, math.log(100))


# %% style="log_softmax" part="loss"
def normalise(vectors):
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def clip_logits(image_embeddings, text_embeddings, log_scale):
    if [image_embeddings.dim(), text_embeddings.dim()] != [2, 2]:
        raise ValueError("shape")
    if image_embeddings.size(1) != text_embeddings.size(1):
        raise ValueError("shape")
    return log_scale.exp() * F.cosine_similarity(
        image_embeddings[:, None, :], text_embeddings[None, :, :], dim=-1
    )


def clip_loss(image_embeddings, text_embeddings, log_scale):
    if image_embeddings.shape != text_embeddings.shape:
        raise ValueError("shape")
    if image_embeddings.shape[0] == 0:
        raise ValueError("pair")
    logits = clip_logits(image_embeddings, text_embeddings, log_scale)
    both = logits.log_softmax(dim=0) + logits.log_softmax(dim=1)
    return -both.trace() / (2 * len(logits))


# %% style="log_softmax" part="clip"
class CLIP(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        s = sizes
        self.vision = VisionTransformer(
            s.image_size, s.patch_size, s.channels, s.d_model, s.num_heads, s.num_layers
        )
        self.image_projection = nn.Linear(s.d_model, s.d_joint, bias=False)
        self.text = TextEncoder(s)
        self.text_projection = nn.Linear(s.d_model, s.d_joint, bias=False)
        self.log_scale = nn.Parameter(torch.ones([]) * math.log(1 / 0.07))

    def encode_images(self, images):
        return self._unit(self.image_projection, self.vision(images))

    def encode_texts(self, tokens):
        return self._unit(self.text_projection, self.text(tokens))

    @staticmethod
    def _unit(projection, x):
        x = projection(x)
        return torch.einsum("bd,b->bd", x, x.square().sum(-1).rsqrt())

    def forward(self, images, tokens):
        return clip_loss(self.encode_images(images), self.encode_texts(tokens), self.log_scale)

    def clamp_scale(self):
        self.log_scale.data = self.log_scale.data.clamp(max=math.log(100))


# %% style="log_softmax" part="zero_shot"
def class_embeddings(prompts):
    if prompts.dim() != 3 or prompts.size(1) < 1:
        raise ValueError("prompts")
    # The sum of the unit vectors has the mean's direction.
    total = (prompts / torch.linalg.vector_norm(prompts, dim=-1, keepdim=True)).sum(1)
    return total / torch.linalg.vector_norm(total, dim=-1, keepdim=True)


def zero_shot(image_embeddings, prompts, log_scale):
    logits = clip_logits(image_embeddings, class_embeddings(prompts), log_scale)
    return (logits - logits.logsumexp(dim=1, keepdim=True)).exp()


# %% style="strides" part="patches"
def patchify(images, patch_size):
    """Windows of both axes, by Tensor.unfold."""
    if patch_size < 1 or any(size % patch_size for size in images.shape[-2:]):
        raise ValueError("patch_size")
    windows = images.unfold(-2, patch_size, patch_size).unfold(-2, patch_size, patch_size)
    # (... channels rows columns y x)
    n = windows.dim()
    order = [*range(n - 5), n - 4, n - 3, n - 5, n - 2, n - 1]
    windows = windows.permute(order)
    return windows.flatten(-3).flatten(-3, -2)


def unpatchify(patches, patch_size, height, width):
    """Where each pixel went is what patchify does to the pixels' numbers."""
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError("patch_size")
    count, features = patches.shape[-2:]
    channels, rest = divmod(features, patch_size**2)
    if rest or count * patch_size**2 != height * width:
        raise ValueError("patches")
    numbers = torch.arange(channels * height * width).view(channels, height, width)
    places = patchify(numbers, patch_size).flatten().argsort().to(patches.device)
    return patches.flatten(-2)[..., places].unflatten(-1, (channels, height, width))


# %% style="strides" part="embedding"
class PatchEmbedding(nn.Module):
    """The projection as a convolution with the linear layer's weights."""

    def __init__(self, image_size, patch_size, channels, d_model):
        super().__init__()
        side, rest = divmod(image_size, patch_size)
        if rest:
            raise ValueError("patch_size")
        self.image_size, self.patch_size, self.channels = image_size, patch_size, channels
        self.projection = nn.Linear(channels * patch_size**2, d_model)
        self.class_token = nn.Parameter(torch.normal(0.0, 0.02, (d_model,)))
        self.positions = nn.Parameter(torch.normal(0.0, 0.02, (side * side + 1, d_model)))

    def forward(self, images):
        expected = (self.channels, self.image_size, self.image_size)
        if images.dim() != 4 or tuple(images.shape[-3:]) != expected:
            raise ValueError("images")
        kernel = self.projection.weight.unflatten(
            1, (self.channels, self.patch_size, self.patch_size)
        )
        grid = F.conv2d(images, kernel, self.projection.bias, stride=self.patch_size)
        first = (self.class_token + self.positions[0]).repeat(len(images), 1, 1)
        rest = grid.flatten(2).mT + self.positions[1:]
        return torch.cat((first, rest), 1)


# %% style="strides" part="encoder"
class VisionTransformer(nn.Module):
    def __init__(self, image_size, patch_size, channels, d_model, num_heads, num_layers):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.blocks = nn.ModuleList([Block(d_model, num_heads) for _ in range(num_layers)])
        self.embedding = PatchEmbedding(image_size, patch_size, channels, d_model)

    def _tokens(self, images, depth):
        if depth == 0:
            return self.embedding(images)
        return self.blocks[depth - 1](self._tokens(images, depth - 1))

    def states(self, images):
        return self.norm(self._tokens(images, len(self.blocks)))

    def forward(self, images):
        return torch.unbind(self.states(images), dim=1)[0]


# %% style="matrices" part="loss"
def normalise(vectors):
    squares = torch.einsum("...d,...d->...", vectors, vectors)
    return vectors * squares.rsqrt()[..., None]


def clip_logits(image_embeddings, text_embeddings, log_scale):
    """Dot products, divided by the outer product of the lengths."""
    if image_embeddings.dim() != 2 or image_embeddings.shape[1:] != text_embeddings.shape[1:]:
        raise ValueError("shape")
    lengths = torch.outer(image_embeddings.norm(dim=1), text_embeddings.norm(dim=1))
    dots = torch.einsum("id,td->it", image_embeddings, text_embeddings)
    return dots / lengths * log_scale.exp()


def clip_loss(image_embeddings, text_embeddings, log_scale):
    if image_embeddings.shape != text_embeddings.shape:
        raise ValueError("shape")
    if image_embeddings.numel() == 0:
        raise ValueError("pair")
    s = clip_logits(image_embeddings, text_embeddings, log_scale)
    return (s.logsumexp(0) + s.logsumexp(1) - 2 * s.diagonal()).mean() / 2


# %% style="matrices" part="clip"
class CLIP(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        image_size, patch_size, channels, _, _, d_model, num_heads, num_layers, d_joint = sizes
        self.vision = VisionTransformer(
            image_size, patch_size, channels, d_model, num_heads, num_layers
        )
        self.text = TextEncoder(sizes)
        self.image_projection = nn.Linear(d_model, d_joint, False)
        self.text_projection = nn.Linear(d_model, d_joint, False)
        self.log_scale = nn.Parameter(torch.full((), -math.log(0.07)))

    def encode_images(self, images):
        return F.normalize(self.vision(images) @ self.image_projection.weight.T)

    def encode_texts(self, tokens):
        return F.normalize(self.text(tokens) @ self.text_projection.weight.T)

    def forward(self, images, tokens):
        pictures, texts = self.encode_images(images), self.encode_texts(tokens)
        return clip_loss(pictures, texts, self.log_scale)

    def clamp_scale(self):
        self.log_scale.data.copy_(torch.minimum(self.log_scale.data, torch.tensor(100.0).log()))


# %% style="matrices" part="zero_shot"
def class_embeddings(prompts):
    if len(prompts.shape) != 3 or not prompts.numel():
        raise ValueError("prompts")
    lengths = prompts.pow(2).sum(-1).sqrt()
    mean = torch.einsum("ctd,ct->cd", prompts, 1 / lengths) / prompts.shape[1]
    return mean * mean.pow(2).sum(-1, keepdim=True).rsqrt()


def zero_shot(image_embeddings, prompts, log_scale):
    scores = F.normalize(image_embeddings, dim=-1) @ class_embeddings(prompts).mT
    return F.softmax(torch.exp(log_scale) * scores, dim=-1)
