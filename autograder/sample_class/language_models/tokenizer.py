# %% style="recount" part="pieces"
def split_special(text, special_tokens):
    """Looks at every place of the text in turn."""
    pieces, plain, i = [], "", 0
    while i < len(text):
        here = [token for token in special_tokens if text.startswith(token, i)]
        if here:
            token = max(here, key=len)
            if plain:
                pieces.append(plain)
                plain = ""
            pieces.append(token)
            i += len(token)
        else:
            plain += text[i]
            i += 1
    if plain:
        pieces.append(plain)
    return pieces


# %% style="recount" part="training"
def train_bpe(text, vocab_size, special_tokens=()):
    """Counts everything again after each merge."""
    if vocab_size < 256 + len(special_tokens):
        raise ValueError(f"vocab_size {vocab_size} is too small")
    for token in special_tokens:
        if len(token.encode()) < 2 or list(special_tokens).count(token) > 1:
            raise ValueError(f"bad special token {token!r}")
    words = {}
    for piece in split_special(text, special_tokens):
        if piece in special_tokens:
            continue
        for pre_token in pre_tokenize(piece):
            word = tuple(bytes([byte]) for byte in pre_token.encode())
            words[word] = words.get(word, 0) + 1
    vocab = {i: bytes([i]) for i in range(256)}
    merges = []
    while len(vocab) + len(special_tokens) < vocab_size:
        counts = count_pairs(words)
        if not counts:
            break
        pair = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(pair)
        vocab[len(vocab)] = pair[0] + pair[1]
        merged = {}
        for word, times in words.items():
            word = merge_pair(word, pair)
            merged[word] = merged.get(word, 0) + times
        words = merged
    for token in special_tokens:
        vocab[len(vocab)] = token.encode()
    return vocab, merges


# %% style="recount" part="encoding"
def merge_by_rank(word, ranks):
    # All merges, one after the other, in the order of training.
    tokens = tuple(word[i : i + 1] for i in range(len(word)))
    for pair in sorted(ranks, key=ranks.get):
        if len(tokens) < 2:
            break
        tokens = merge_pair(tokens, pair)
    return tokens


def encode(text, vocab, merges, special_tokens=()):
    reverse = dict(zip(vocab.values(), vocab.keys()))
    unknown = [token for token in special_tokens if token.encode() not in reverse]
    if unknown:
        raise ValueError(f"special tokens {unknown} are not in vocab")
    ranks = dict(zip(merges, range(len(merges))))
    out = []
    for piece in split_special(text, special_tokens):
        if piece in special_tokens:
            words = [(piece.encode(),)]
        else:
            words = [merge_by_rank(p.encode(), ranks) for p in pre_tokenize(piece)]
        out.extend(reverse[token] for word in words for token in word)
    return out


# %% style="recount" part="decoding"
def decode(ids, vocab):
    data = bytearray()
    for i in ids:
        try:
            data += vocab[i]
        except KeyError:
            raise ValueError(f"unknown id {i}") from None
    return str(data, "utf-8", "replace")


# %% style="integers" part="merging"
def count_pairs(words):
    counts = defaultdict(int)
    for word in words:
        for i in range(len(word) - 1):
            counts[word[i], word[i + 1]] += words[word]
    return dict(counts)


def merge_pair(word, pair):
    """Builds the result from a stack of what is not used up."""
    first, second = pair
    result, open_ = [], False  # open_: the last token may still be merged
    for token in word:
        if open_ and token == second and result[-1] == first:
            result[-1] = first + second
            open_ = False
        else:
            result.append(token)
            open_ = True
    return tuple(result)


# %% style="integers" part="training"
def train_bpe(text, vocab_size, special_tokens=()):
    """With ids in lists instead of bytes in tuples; ties are looked up in the vocabulary."""
    room = vocab_size - len(special_tokens)
    if room < 256:
        raise ValueError("vocab_size leaves no room for the bytes")
    encoded_special = [token.encode("utf-8") for token in special_tokens]
    if min(map(len, encoded_special), default=2) < 2 or len(set(encoded_special)) != len(
        encoded_special
    ):
        raise ValueError("special tokens must be distinct and have two bytes or more")
    vocab = {i: bytes([i]) for i in range(256)}
    frequency = Counter()
    for piece in split_special(text, special_tokens):
        if piece in special_tokens:
            continue
        frequency.update(pre_tokenize(piece))
    words = [list(word.encode("utf-8")) for word in frequency]
    weights = list(frequency.values())
    merges = []
    while len(vocab) < room:
        counts = Counter()
        for word, weight in zip(words, weights):
            for i in range(1, len(word)):
                counts[word[i - 1], word[i]] += weight
        if not counts:
            break
        a, b = max(counts, key=lambda ab: (counts[ab], vocab[ab[0]], vocab[ab[1]]))
        new = len(vocab)
        vocab[new] = vocab[a] + vocab[b]
        merges.append((vocab[a], vocab[b]))
        for word in words:
            i = 0
            while i + 1 < len(word):
                if word[i] == a and word[i + 1] == b:
                    word[i : i + 2] = [new]
                i += 1
    for token in encoded_special:
        vocab[len(vocab)] = token
    return vocab, merges


# %% style="integers" part="streaming"
def safe_cut(text, special_tokens=()):
    """From the end of the text backwards."""
    margin = max([len(token) for token in special_tokens] + [1]) - 1
    inside, position = set(), 0
    for piece in split_special(text, special_tokens):
        if piece in special_tokens:
            inside.update(range(position + 1, position + len(piece)))
        position += len(piece)
    for cut in range(len(text) - 1, 0, -1):
        if cut + margin > len(text) or cut in inside:
            continue
        if text[cut].isspace() and not text[cut - 1].isspace():
            return cut
    return 0


class StreamingEncoder:
    def __init__(self, vocab, merges, special_tokens=()):
        self.tables = (dict(vocab), list(merges), list(special_tokens))
        self.held = []

    def feed(self, chunk, final=False):
        self.held.append(chunk)
        text = "".join(self.held)
        if final:
            now, self.held = text, []
        else:
            cut = safe_cut(text, self.tables[2])
            now, self.held = text[:cut], [text[cut:]]
        return encode(now, *self.tables) if now else []


class StreamingDecoder:
    """Keeps at most three bytes: a character that has begun."""

    def __init__(self, vocab):
        self.vocab = vocab
        self.begun = b""

    def feed(self, ids, final=False):
        for i in ids:
            if i not in self.vocab:
                raise ValueError(f"there is no id {i}")
        data = self.begun + b"".join([self.vocab[i] for i in ids])
        self.begun = b""
        for size in (1, 2, 3):
            tail = data[-size:] if len(data) >= size else b""
            if not final and tail and self._has_begun(tail):
                data, self.begun = data[:-size], tail
                break
        return data.decode("utf-8", "replace")

    def _has_begun(self, tail):
        try:
            tail.decode("utf-8")
        except UnicodeDecodeError as error:
            return error.start == 0 and error.reason == "unexpected end of data"
        return False


# %% style="heap" part="training"
import heapq


class _Greatest:
    # heapq gives the smallest first, so the order of pairs is turned round.
    def __init__(self, pair):
        self.pair = pair

    def __lt__(self, other):
        return self.pair > other.pair


def train_bpe(text, vocab_size, special_tokens=()):
    """A heap of (−count, pair); an entry whose count is no longer true is put right when it comes up."""
    if vocab_size - len(special_tokens) < 256:
        raise ValueError(f"vocab_size={vocab_size}, at least {256 + len(special_tokens)} needed")
    seen = set()
    for token in special_tokens:
        if token in seen or len(token.encode()) <= 1:
            raise ValueError(f"the special token {token!r} cannot be used")
        seen.add(token)
    words = Counter()
    for piece in split_special(text, special_tokens):
        if piece not in seen:
            words.update(tuple(map(bytes, zip(word.encode()))) for word in pre_tokenize(piece))
    words = [[word, times] for word, times in words.items()]
    counts, holders = Counter(), defaultdict(set)
    for number, (word, times) in enumerate(words):
        for pair in pairwise(word):
            counts[pair] += times
            holders[pair].add(number)
    heap = [(-count, _Greatest(pair)) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < vocab_size - 256 - len(special_tokens):
        count, entry = heapq.heappop(heap)
        pair = entry.pair
        if -count != counts[pair]:
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], entry))
            continue
        if not counts[pair]:
            continue
        merges.append(pair)
        changed = set()
        for number in holders.pop(pair):
            word, times = words[number]
            after = merge_pair(word, pair)
            if after == word:
                continue
            for old in pairwise(word):
                counts[old] -= times
            for new in pairwise(after):
                counts[new] += times
                holders[new].add(number)
                changed.add(new)
            words[number][0] = after
        for new in changed:
            heapq.heappush(heap, (-counts[new], _Greatest(new)))
    tokens = [*(bytes([i]) for i in range(256)), *(b"".join(pair) for pair in merges)]
    tokens.extend(token.encode() for token in special_tokens)
    return {i: token for i, token in enumerate(tokens)}, merges


# %% style="heap" part="encoding"
import functools


def merge_by_rank(word, ranks):
    """One occurrence at a time, in a list changed in place."""
    tokens = [word[i : i + 1] for i in range(len(word))]
    while len(tokens) > 1:
        rank, i = min((ranks.get(pair, float("inf")), i) for i, pair in enumerate(pairwise(tokens)))
        if rank == float("inf"):
            break
        tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
    return tuple(tokens)


def encode(text, vocab, merges, special_tokens=()):
    id_of = {}
    for i in vocab:
        id_of[vocab[i]] = i
    for token in special_tokens:
        if id_of.get(token.encode()) is None:
            raise ValueError(f"special token missing from the vocabulary: {token}")
    ranks = {}
    for merge in merges:
        ranks[merge] = len(ranks)

    @functools.cache
    def ids_of(pre_token):
        return [id_of[t] for t in merge_by_rank(pre_token.encode("utf-8"), ranks)]

    def piece_ids(piece):
        if piece in special_tokens:
            return [id_of[piece.encode("utf-8")]]
        return [i for pre_token in pre_tokenize(piece) for i in ids_of(pre_token)]

    return [i for piece in split_special(text, special_tokens) for i in piece_ids(piece)]


# %% style="recursion" part="pieces"
def split_special(text, special_tokens):
    places = [(text.find(token), -len(token)) for token in special_tokens if token in text]
    if not places:
        return [text] if text else []
    start, minus = min(places)
    token = text[start : start - minus]
    before = [text[:start]] if start else []
    return [*before, token, *split_special(text[start - minus :], special_tokens)]


# %% style="recursion" part="merging"
def count_pairs(words):
    totals = Counter()
    for word, n in words.items():
        for pair, k in Counter(pairwise(word)).items():
            totals[pair] += k * n
    return dict(totals)


def merge_pair(word, pair):
    for i in range(len(word) - 1):
        if (word[i], word[i + 1]) == pair:
            return (*word[:i], word[i] + word[i + 1], *merge_pair(word[i + 2 :], pair))
    return word


# %% style="recursion" part="encoding"
def merge_by_rank(word, ranks):
    def merged(tokens):
        candidates = [p for p in pairwise(tokens) if p in ranks]
        return merged(merge_pair(tokens, min(candidates, key=ranks.get))) if candidates else tokens

    return merged(tuple(bytes((b,)) for b in word))


def encode(text, vocab, merges, special_tokens=()):
    ids = {}
    for key, value in vocab.items():
        ids[value] = key
    for token in special_tokens:
        try:
            ids[token.encode()]
        except KeyError as error:
            raise ValueError(f"no special token {token}") from error
    ranks = {pair: i for i, pair in enumerate(merges)}
    result = []
    for piece in split_special(text, special_tokens):
        if piece in special_tokens:
            result += [ids[piece.encode()]]
        else:
            for pre_token in pre_tokenize(piece):
                result += map(ids.__getitem__, merge_by_rank(pre_token.encode(), ranks))
    return result


# %% style="recursion" part="streaming"
def safe_cut(text, special_tokens=()):
    """Also cuts behind a special token that is certain."""
    longest = max(map(len, special_tokens), default=1)
    best, start = 0, 0
    for piece in split_special(text, special_tokens):
        if piece in special_tokens:
            if start + longest <= len(text):
                best = start + len(piece)
        else:
            last = max(0, min(len(piece), len(text) - longest + 1 - start + 1))
            runs = list(re.finditer(r"\s+", piece[:last]))
            while runs and runs[-1].start() == 0:
                runs.pop()
            if runs and start + runs[-1].start() + longest - 1 <= len(text):
                best = max(best, start + runs[-1].start())
        start += len(piece)
    return best


class StreamingEncoder:
    def __init__(self, vocab, merges, special_tokens=()):
        self._encode = lambda text: encode(text, vocab, merges, special_tokens)
        self._cut = lambda text: safe_cut(text, special_tokens)
        self._rest = ""

    def feed(self, chunk, final=False):
        self._rest += chunk
        cut = self._cut(self._rest)
        ids = self._encode(self._rest[:cut])
        self._rest = self._rest[cut:]
        if final:
            ids += self._encode(self._rest)
            self._rest = ""
        return ids


class StreamingDecoder:
    """Byte by byte, through Python's own decoder."""

    def __init__(self, vocab):
        self._vocab = vocab
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids, final=False):
        if not set(ids) <= set(self._vocab):
            raise ValueError(f"unknown id {min(set(ids) - set(self._vocab))}")
        text = ""
        for i in ids:
            for b in self._vocab[i]:
                text += self._decoder.decode(bytes([b]))
        if final:
            text += self._decoder.decode(b"", True)
            self._decoder.reset()
        return text


# %% style="strings" part="merging"
# A word as one string of Latin-1 characters with a mark between tokens: the way Sennrich's script did it.
def _joined(word):
    return "\u0100" + "\u0100\u0100".join(token.decode("latin-1") for token in word) + "\u0100"


def count_pairs(words):
    counts = {}
    for word, times in words.items():
        left = None
        for right in word:
            if left is not None:
                counts.setdefault((left, right), 0)
                counts[left, right] += times
            left = right
    return counts


def merge_pair(word, pair):
    left, right = (token.decode("latin-1") for token in pair)
    line = _joined(word).replace(
        f"\u0100{left}\u0100\u0100{right}\u0100", f"\u0100{left}{right}\u0100"
    )
    return tuple(token.encode("latin-1") for token in line[1:-1].split("\u0100\u0100") if token)


# %% style="strings" part="decoding"
def decode(ids, vocab):
    missing = next((i for i in ids if i not in vocab), None)
    if missing is not None:
        raise ValueError(f"id {missing}?")
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return "".join(decoder.decode(vocab[i]) for i in ids) + decoder.decode(b"", final=True)
