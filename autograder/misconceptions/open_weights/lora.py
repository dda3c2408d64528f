"""Wrong answers to the exercise on LoRA."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

PRODUCT = "alpha / r * (lora_B @ lora_A)"
FACTORS = "half[:, None] * Vh[:r], U[:, :r] * half * (r / alpha)"
NORMAL = "normal = torch.randn(r, in_features, generator=generator)"
SCALED = "nn.Parameter(normal / math.sqrt(in_features))"
WAY = "self.scaling * (self.dropout(x) @ self.lora_A.T @ self.lora_B.T)"
ADDED = "self.weight += lora_update(self.lora_A, self.lora_B, self.alpha)"
CHOSEN = 'isinstance(module, nn.Linear) and path.rpartition(".")[2] in targets'
TAKEN = "new.weight, new.bias = old.weight, old.bias"
UNKNOWN = """        if target not in found:
            raise ValueError(f"the model has no nn.Linear named {target!r}")"""
OURS = 'name.rpartition(".")[2] in ("lora_A", "lora_B")'
DIFFERENT = """    for name in set(old) ^ set(state):
        raise ValueError(f"{name} is not in the model and in the state")"""
LOAD = "model.load_state_dict(state, strict=False)"

MISCONCEPTIONS = [
    # --- update ---
    Misconception(
        name="factor_forgotten",
        part="update",
        says="Your update is B·A without the factor α/r.",
        wrong={PRODUCT: "lora_B @ lora_A"},
    ),
    Misconception(
        name="rank_forgotten",
        part="update",
        says="Your update is α·B·A. The factor is α/r: it grows with the rank unless r divides it.",
        wrong={PRODUCT: "alpha * (lora_B @ lora_A)"},
    ),
    Misconception(
        name="factor_inverted",
        part="update",
        says="Your factor is r/α. It is α/r.",
        wrong={PRODUCT: "r / alpha * (lora_B @ lora_A)"},
    ),
    Misconception(
        name="root_of_the_rank",
        part="update",
        says="Your factor is α/√r, that of rank-stabilised LoRA. Here it is α/r.",
        wrong={PRODUCT: "alpha / math.sqrt(r) * (lora_B @ lora_A)"},
    ),
    Misconception(
        name="rank_read_off_the_wrong_axis",
        part="update",
        says="Your factor divides by the number of columns of A. Its rows are the r: A is (r, in_features).",
        wrong={PRODUCT: "alpha / lora_A.shape[1] * (lora_B @ lora_A)"},
    ),
    Misconception(
        name="update_transposed",
        part="update",
        says="Your update is transposed: rows belong to outputs, columns to inputs, B·A.",
        wrong={PRODUCT: "alpha / r * (lora_B @ lora_A).T"},
    ),
    Misconception(
        name="smallest_singular_values",
        part="update",
        says="Your factors keep the smallest singular values. Keep the largest: they come first.",
        wrong={
            "Vh = torch.linalg.svd(update, full_matrices=False)": (
                "Vh = (x.flip(d) for x, d in zip(torch.linalg.svd(update, full_matrices=False), (1, 0, 0)))"
            )
        },
    ),
    Misconception(
        name="singular_values_left_out",
        part="update",
        says="Your factors are singular vectors alone. Each term has its σ as a factor.",
        wrong={FACTORS: "Vh[:r], U[:, :r] * (r / alpha)"},
    ),
    Misconception(
        name="factor_not_undone",
        part="update",
        says="Your B·A is the closest matrix. It is (α/r)·B·A that should be: divide by the factor.",
        wrong={FACTORS: "half[:, None] * Vh[:r], U[:, :r] * half"},
    ),
    # --- layer ---
    Misconception(
        name="both_zero",
        part="layer",
        says="Your layer starts with A = 0 and B = 0. Both gradients are then 0, and stay 0: nothing is ever learnt.",
        wrong={NORMAL: "normal = torch.zeros(r, in_features)"},
    ),
    Misconception(
        name="both_random",
        part="layer",
        says="Your layer starts with a random B, and so away from the base. B is 0 at the start.",
        wrong={
            "nn.Parameter(torch.zeros(out_features, r))": "nn.Parameter(torch.randn(out_features, r) / math.sqrt(r))"
        },
    ),
    Misconception(
        name="start_not_scaled",
        part="layer",
        says="Your A starts with standard deviation 1. It is 1/√in_features, or A·x grows with the width.",
        wrong={SCALED: "nn.Parameter(normal)"},
    ),
    Misconception(
        name="uniform_start",
        part="layer",
        says="Your A starts uniform, as in the authors' code and in peft. In this layer it is normal.",
        wrong={
            NORMAL: "normal = (2 * torch.rand(r, in_features, generator=generator) - 1) * math.sqrt(3)"
        },
    ),
    Misconception(
        name="generator_ignored",
        part="layer",
        says="Your A does not come from the generator that was given.",
        wrong={NORMAL: "normal = torch.randn(r, in_features)"},
    ),
    Misconception(
        name="base_not_frozen",
        part="layer",
        says="Your base is trained too: weight or bias require gradients, always or once merged. Only A and B are trained.",
        wrong={
            "torch.zeros(out_features, in_features), requires_grad=False": "torch.zeros(out_features, in_features)",
            "torch.zeros(out_features), requires_grad=False": "torch.zeros(out_features)",
        },
    ),
    Misconception(
        name="factor_forgotten_in_forward",
        part="layer",
        says="Your layer adds B·A·x without the factor α/r.",
        wrong={WAY: "self.dropout(x) @ self.lora_A.T @ self.lora_B.T"},
    ),
    Misconception(
        name="alpha_as_factor",
        part="layer",
        says="Your factor in forward is α. It is α/r.",
        wrong={"self.scaling = alpha / r": "self.scaling = alpha"},
    ),
    Misconception(
        name="adapter_ignores_x",
        part="layer",
        says="Your update does not depend on the input: it adds the same to every output. A reads x.",
        wrong={
            WAY: "self.scaling * (self.dropout(torch.ones_like(x)) @ self.lora_A.T @ self.lora_B.T)"
        },
    ),
    Misconception(
        name="input_detached",
        part="layer",
        says="No gradient reaches the input through your adapter. The layers below need it.",
        wrong={"self.dropout(x) @": "self.dropout(x.detach()) @"},
    ),
    Misconception(
        name="dropout_on_the_base",
        part="layer",
        says="Your dropout falls on the base's way as well. It belongs before A and nowhere else.",
        wrong={
            "h = F.linear(x, self.weight, self.bias)": (
                "x = x if self.kept is not None else self.dropout(x)\n"
                "        h = F.linear(x, self.weight, self.bias)"
            ),
            "self.dropout(x) @": "x @",
        },
    ),
    Misconception(
        name="dropout_in_evaluation",
        part="layer",
        says="Your layer drops in evaluation too. F.dropout needs to be told training=self.training; nn.Dropout knows.",
        wrong={"self.dropout(x) @": "F.dropout(x, self.dropout.p) @"},
    ),
    Misconception(
        name="dropout_between_the_factors",
        part="layer",
        says="Your dropout falls between A and B. It falls on what enters A.",
        wrong={"self.dropout(x) @ self.lora_A.T @": "self.dropout(x @ self.lora_A.T) @"},
    ),
    Misconception(
        name="merged_twice",
        part="layer",
        says="Your merge adds the update again when the layer is merged already.",
        wrong={
            "            self.kept = self.weight.data.clone()\n            with": (
                "            self.kept = self.weight.data.clone()\n        if True:\n            with"
            )
        },
    ),
    Misconception(
        name="merged_and_added",
        part="layer",
        says="Your merged layer still goes the second way: the update counts twice.",
        wrong={"        if self.kept is not None:\n            return h\n": ""},
    ),
    Misconception(
        name="merged_without_factor",
        part="layer",
        says="Your merge adds B·A without the factor α/r, so that the output changes.",
        wrong={ADDED: "self.weight += self.lora_B @ self.lora_A"},
    ),
    Misconception(
        name="update_subtracted",
        part="layer",
        says="Your unmerge subtracts the update. That is not the base bit for bit, and wrong where A or B have changed.",
        wrong={
            "self.weight.copy_(self.kept)": (
                "self.weight -= lora_update(self.lora_A, self.lora_B, self.alpha)"
            )
        },
    ),
    Misconception(
        name="same_update_subtracted",
        part="layer",
        says="Your unmerge subtracts what was added. (w + δ) − δ is not w in floating point: keep a copy of w.",
        wrong={
            ADDED: (
                "self.delta = lora_update(self.lora_A, self.lora_B, self.alpha)\n"
                "                self.weight += self.delta"
            ),
            "self.weight.copy_(self.kept)": "self.weight -= self.delta",
        },
    ),
    Misconception(
        name="copy_is_the_weight",
        part="layer",
        says="Your unmerge changes nothing: what you kept is the weight itself, not a copy of it.",
        wrong={"self.weight.data.clone()": "self.weight.data"},
    ),
    Misconception(
        name="copy_in_the_state",
        part="layer",
        says="Your copy of the weight shows up in the state_dict. It is no part of what the layer has learnt.",
        wrong={
            "self.kept: Tensor | None = None": 'self.register_buffer("kept", None)',
        },
    ),
    # --- apply ---
    Misconception(
        name="first_match_only",
        part="apply",
        says="Your function replaces the first layer of that name and stops. A target means the layer in every block.",
        wrong={"    adapted = {}": "    chosen = dict(list(chosen.items())[:1])\n    adapted = {}"},
    ),
    Misconception(
        name="part_of_a_name",
        part="apply",
        says="Your targets match where they are a part of the path. They are the last component, whole.",
        wrong={
            CHOSEN: "isinstance(module, nn.Linear) and any(target in path for target in targets)",
            "        if target not in found:": "        if not any(target in path for path in chosen):",
        },
    ),
    Misconception(
        name="end_of_a_name",
        part="apply",
        says="Your targets match where a path ends in them. The last component is compared whole: proj is not q_proj.",
        wrong={
            CHOSEN: "isinstance(module, nn.Linear) and path.endswith(tuple(targets))",
            "        if target not in found:": "        if not any(path.endswith(target) for path in chosen):",
        },
    ),
    Misconception(
        name="every_linear_layer",
        part="apply",
        says="Your function replaces every linear layer. Only the targets get an adapter.",
        wrong={CHOSEN: "isinstance(module, nn.Linear)"},
    ),
    Misconception(
        name="unknown_target_accepted",
        part="apply",
        says="A target that matches nothing passes in silence, and nothing is trained there. It is an error.",
        wrong={UNKNOWN: "        pass"},
    ),
    Misconception(
        name="one_match_is_enough",
        part="apply",
        says="Your function asks that any target match. Each of them must.",
        wrong={UNKNOWN: "        if not found:\n            raise ValueError(target)"},
    ),
    Misconception(
        name="adapter_on_an_adapter",
        part="apply",
        says="Your function accepts a model that has adapters already.",
        wrong={"isinstance(module, LoRALinear) for module": "False for module"},
    ),
    Misconception(
        name="frozen_before_looking",
        part="apply",
        says="Your function freezes the model before it checks the targets, and leaves it frozen after an error.",
        wrong={
            "    if not targets:": "    model.requires_grad_(False)\n    if not targets:",
        },
    ),
    Misconception(
        name="nothing_frozen",
        part="apply",
        says="Your function freezes nothing: embeddings, norms and all other layers are trained as before.",
        wrong={
            "    model.requires_grad_(False)\n": "",
        },
    ),
    Misconception(
        name="only_targets_frozen",
        part="apply",
        says="Your function freezes the layers it replaces, and nothing else. Embeddings, norms and heads are frozen too.",
        wrong={
            "model.requires_grad_(False)": "[old.requires_grad_(False) for old in chosen.values()]",
        },
    ),
    Misconception(
        name="adapters_frozen_too",
        part="apply",
        says="Your function freezes the model after the adapters are in it: nothing is trained. Freeze first.",
        wrong={
            "    return list(adapted)": "    model.requires_grad_(False)\n    return list(adapted)",
        },
    ),
    Misconception(
        name="weights_copied",
        part="apply",
        says="Your new layer holds a copy of the old weight. It takes over the parameter itself.",
        wrong={TAKEN: "new.load_state_dict(old.state_dict(), strict=False)"},
    ),
    Misconception(
        name="single_precision",
        part="apply",
        says="Your A and B are float32 whatever the layer is. They have its dtype.",
        wrong={"new.to(old.weight)": "new.to(old.weight.device)"},
    ),
    Misconception(
        name="mode_lost",
        part="apply",
        says="Your new layers are in training mode, whatever the model's mode is: a model in evaluation gets dropout.",
        wrong={"new.train(old.training)": "new"},
    ),
    Misconception(
        name="dropout_lost",
        part="apply",
        says="Your new layers do not have the dropout that was given.",
        wrong={"dropout=dropout": "dropout=0.0"},
    ),
    Misconception(
        name="rank_for_alpha",
        part="apply",
        says="Your new layers have the factor 1: they are given r in the place of α.",
        wrong={"            alpha,\n            dropout": "            r,\n            dropout"},
    ),
    Misconception(
        name="names_without_path",
        part="apply",
        says="Your function returns last components. Return the whole paths, which say where.",
        wrong={"return list(adapted)": 'return [path.rpartition(".")[2] for path in adapted]'},
    ),
    Misconception(
        name="frozen_counted",
        part="apply",
        says="Your count of trained parameters has the frozen ones in it.",
        wrong={"for p in parameters if p.requires_grad": "for p in parameters"},
    ),
    Misconception(
        name="tensors_counted",
        part="apply",
        says="Your count is of tensors. Count their elements.",
        wrong={
            "sum(p.numel() for p in parameters if p.requires_grad)": "sum(p.requires_grad for p in parameters)",
            "sum(p.numel() for p in parameters),": "len(parameters),",
        },
    ),
    # --- adapters ---
    Misconception(
        name="base_in_the_adapter",
        part="adapters",
        says="Your adapter holds the base's weights as well, and is as large as the model. It holds A and B alone.",
        wrong={OURS: "True"},
    ),
    Misconception(
        name="paths_lost",
        part="adapters",
        says="Your adapter's names lack the path of the layer, so that layers overwrite each other.",
        wrong={
            "        name: parameter.detach().clone()": (
                '        ".".join(name.split(".")[-2:]): parameter.detach().clone()'
            )
        },
    ),
    Misconception(
        name="not_a_copy",
        part="adapters",
        says="Your adapter's values are the model's own, and change with it. Make copies.",
        wrong={"parameter.detach().clone()": "parameter.detach()"},
    ),
    Misconception(
        name="state_with_gradients",
        part="adapters",
        says="Your adapter's values require gradients: they are part of the model's graph. Detach them.",
        wrong={"parameter.detach().clone()": "parameter.clone()"},
    ),
    Misconception(
        name="added_to_the_last",
        part="adapters",
        says="Your swap adds the new adapter to the one that was there. It takes its place.",
        wrong={
            LOAD: "model.load_state_dict({n: old[n] + v for n, v in state.items()}, strict=False)"
        },
    ),
    Misconception(
        name="missing_names_accepted",
        part="adapters",
        says="Your swap accepts an adapter that lacks a name, and leaves the old value there: half of one, half of the "
        "other.",
        wrong={"set(old) ^ set(state)": "state.keys() - old.keys()"},
    ),
    Misconception(
        name="unknown_names_accepted",
        part="adapters",
        says="Your swap accepts names that the model has not.",
        wrong={
            "set(old) ^ set(state)": "old.keys() - state.keys()",
            "    for name, value in state.items():\n": (
                "    state = {name: value for name, value in state.items() if name in old}\n"
                "    for name, value in state.items():\n"
            ),
        },
    ),
    Misconception(
        name="broadcast",
        part="adapters",
        says="Your swap copies values of another shape, which are broadcast in silence. Compare the shapes first.",
        wrong={
            "value.shape != old[name].shape:": "value.dim() != 2:",
            LOAD: (
                "with torch.no_grad():\n"
                "        for name, parameter in model.named_parameters():\n"
                "            if name in state:\n"
                "                new = state[name]\n"
                "                parameter.copy_(new if new.shape[1] == parameter.shape[1] else new.T)"
            ),
        },
    ),
    Misconception(
        name="half_a_swap",
        part="adapters",
        says="Your swap changes some layers before it finds the error. Check everything first.",
        wrong={
            "            raise ValueError(\n": (
                "            model.load_state_dict({n: v for n, v in state.items() if v.shape == old[n].shape}, "
                "strict=False)\n"
                "            raise ValueError(\n"
            ),
        },
    ),
]

LONGER = (
    "The vectors that are left out otherwise come after the first r, which are all that is used."
)

EQUIVALENT = [
    Equivalent(
        part="update",
        before="U, S, Vh = torch.linalg.svd(update, full_matrices=False)",
        after="U, S, Vh = torch.linalg.svd(update)",
        because=LONGER,
    ),
    Equivalent(
        part="update",
        before="U, S, Vh = torch.linalg.svd(update, full_matrices=False)",
        after="U, S, Vh = torch.linalg.svd(update, full_matrices=True)",
        because=LONGER,
    ),
]


def _update(answers: ModuleType, rng: torch.Generator) -> object:
    n_out, n_in = torch.randint(1, 6, (2,), generator=rng).tolist()
    update = torch.randn(n_out, n_in, generator=rng, dtype=torch.float64)
    r = int(torch.randint(1, min(n_out, n_in) + 1, (), generator=rng))
    return answers.lora_update(*answers.factorise(update, r, 3.0), 3.0)


EXAMPLES = {"update": _update}
