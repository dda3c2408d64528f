"""Wrong answers to the exercise on efficient training."""

from types import ModuleType

import torch

from autograder.misconceptions import Equivalent, Misconception

MISCONCEPTIONS = [
    Misconception(
        name="no_loss_scale",
        part="autocast",
        says="Gradients below 2⁻²⁴ are lost, which the scale is there to save. Multiply the loss by the scale before the "
        "backward pass, and divide the gradients by it in float32, not in half precision.",
        wrong={
            "(loss * scale).backward()": "loss.backward()",
            "copy.grad.float() / scale": "copy.grad.float()",
        },
    ),
    Misconception(
        name="scale_left_in",
        part="autocast",
        says="Your update still has the scale in it: the gradients of the scaled loss are not divided by the scale.",
        wrong={"copy.grad.float() / scale": "copy.grad.float()"},
    ),
    Misconception(
        name="overflow_not_skipped",
        part="autocast",
        says="Your step is taken although a gradient is infinite or not a number: the weights are lost from then on. "
        "Halve the scale and leave the weights alone.",
        wrong={
            "        return loss, scale / 2, 0": "        scale, good_steps = scale / 2, -1",
        },
    ),
    Misconception(
        name="overflow_by_the_loss",
        part="autocast",
        says="You look for an overflow in the loss. The loss is finite when gradients overflow: it is the gradients "
        "that must be looked at.",
        wrong={
            "all(gradient.isfinite().all() for gradient in gradients.values())": "loss.isfinite()"
        },
    ),
    Misconception(
        name="skips_single_weights",
        part="autocast",
        says="You skip only the weights whose own gradient is infinite. A step is taken with all weights or with none.",
        wrong={
            "        return loss, scale / 2, 0\n": (
                "        for name, gradient in gradients.items():\n"
                "            if gradient.isfinite().all():\n"
                "                weights[name] -= lr * gradient\n"
                "        return loss, scale / 2, 0\n"
            )
        },
    ),
    Misconception(
        name="scale_not_halved",
        part="autocast",
        says="Your step is skipped after an overflow but the scale stays: the next step overflows again, for ever. "
        "Halve it.",
        wrong={"return loss, scale / 2, 0": "return loss, scale, 0"},
    ),
    Misconception(
        name="count_survives_overflow",
        part="autocast",
        says="Your count of good steps survives an overflow. It counts steps in a row: start again at 0.",
        wrong={"return loss, scale / 2, 0": "return loss, scale / 2, good_steps"},
    ),
    Misconception(
        name="count_survives_growth",
        part="autocast",
        says="Your count does not start again at 0 after the scale has grown, so the scale doubles at every step from "
        "then on.",
        wrong={"return loss, scale * 2, 0": "return loss, scale * 2, good_steps + 1"},
    ),
    Misconception(
        name="no_master_weights",
        part="autocast",
        says="Your update is made in half precision: small ones are rounded away. Subtract from the float32 weights.",
        wrong={
            "weights[name] -= lr * gradient": (
                "weights[name].copy_(copies[name] - (lr * gradient).to(dtype))"
            )
        },
    ),
    Misconception(
        name="scaled_loss_returned",
        part="autocast",
        says="You return the scaled loss. The scale is for the backward pass alone.",
        wrong={"loss.detach().float()": "loss.detach().float() * scale"},
    ),
    Misconception(
        name="computes_in_float32",
        part="autocast",
        says="Your loss is computed on the float32 weights: nothing of it is in half precision. Give loss_fn copies in "
        "dtype.",
        wrong={"weight.detach().to(dtype)": "weight.detach().clone()"},
    ),
    Misconception(
        name="division_forgotten",
        part="accumulation",
        says="Your gradient is the sum of the micro-batches' means: with M of them it is about M times too large.",
        wrong={"* (counts[i] / total)": "* 1.0"},
    ),
    Misconception(
        name="mean_of_means",
        part="accumulation",
        says="You take the mean of the micro-batches' means. With unequal micro-batches a target in a small one then "
        "counts for more: weigh each mean by its number of targets.",
        wrong={"* (counts[i] / total)": "/ len(micro_batches)"},
    ),
    Misconception(
        name="averaged_twice",
        part="accumulation",
        says="You average twice: the weights count/total sum to 1 already, and you divide by the number of micro-batches "
        "once more.",
        wrong={"* (counts[i] / total)": "* (counts[i] / total) / len(micro_batches)"},
    ),
    Misconception(
        name="padding_counted",
        part="accumulation",
        says="You count all targets, the −100 of the padding too. The mean is over the targets that count.",
        wrong={"int((targets != -100).sum())": "targets.numel()"},
    ),
    Misconception(
        name="sequences_counted",
        part="accumulation",
        says="You weigh each micro-batch by its sequences. The mean is over targets: weigh by the targets that count.",
        wrong={
            "loss_fn(leaves, x, targets) * (counts[i] / total)": (
                "loss_fn(leaves, x, targets) * (len(x) / sum(len(x) for x, _ in micro_batches))"
            )
        },
    ),
    Misconception(
        name="one_backward_at_the_end",
        part="accumulation",
        says="You add up the losses and go backward once: right numbers, but every micro-batch's graph is held until "
        "then, and nothing is saved. Go backward through each before the next.",
        wrong={
            "            share.backward()\n": "",
            "mean = mean + share.detach()": "mean = mean + share",
            "    gradients = {": "    mean.backward()\n    mean = mean.detach()\n    gradients = {",
        },
    ),
    Misconception(
        name="only_the_last",
        part="accumulation",
        says="Your gradient is that of the last micro-batch alone: gradients are set to zero once for a batch, not before "
        "each backward pass.",
        wrong={
            "            share.backward()\n": (
                "            for leaf in leaves.values():\n"
                "                leaf.grad = None\n"
                "            share.backward()\n"
            )
        },
    ),
    Misconception(
        name="nothing_run_again",
        part="checkpoint",
        says="Your numbers are right, but what is saved or run again is not what it should be. Keep the inputs only, run the "
        "function again in the backward pass, and cut a stack into pieces of `segment` blocks each.",
        wrong={
            "        return function(*tensors)\n": (
                "        with torch.enable_grad():\n"
                "            ctx.inputs = [\n"
                "                t.detach().requires_grad_(t.requires_grad) for t in tensors\n"
                "            ]\n"
                "            ctx.output = function(*ctx.inputs)\n"
                "        return ctx.output.detach()\n"
            ),
            "inputs = [t.detach().requires_grad_(t.requires_grad) for t in ctx.saved_tensors]": (
                "inputs = ctx.inputs"
            ),
            "output = ctx.function(*inputs)": "output = ctx.output",
        },
    ),
    Misconception(
        name="rng_not_restored",
        part="checkpoint",
        says="Your second run draws new random numbers: dropout drops other components than in the forward pass, and the "
        "gradients belong to another network. Restore the state of the forward pass.",
        wrong={"        set_rng_state(ctx.rng)\n": ""},
    ),
    Misconception(
        name="rng_left_behind",
        part="checkpoint",
        says="After your backward pass the random numbers go on from the second run, so those drawn since are drawn "
        "again. Put back the state you found.",
        wrong={"        set_rng_state(present)\n": ""},
    ),
    Misconception(
        name="inputs_not_detached",
        part="checkpoint",
        says="Your second run is connected to the old graph: the backward pass runs on into the layers before, which "
        "then get their gradient twice or not at all. Detach the inputs first.",
        wrong={
            "inputs = [t.detach().requires_grad_(t.requires_grad) for t in ctx.saved_tensors]": (
                "inputs = list(ctx.saved_tensors)"
            ),
            "*(tensor.grad for tensor in inputs)": (
                "*(tensor.grad if tensor.requires_grad else None for tensor in inputs)"
            ),
        },
    ),
    Misconception(
        name="parameters_get_nothing",
        part="checkpoint",
        says="You ask for the gradients of the inputs alone (torch.autograd.grad): the parameters which the function "
        "uses get none. Go backward through the whole of the second run.",
        wrong={
            "        torch.autograd.backward(output, gradient)\n": (
                "        wanted = [t for t in inputs if t.requires_grad]\n"
                "        found = torch.autograd.grad(output, wanted, gradient)\n"
                "        for tensor, value in zip(wanted, found, strict=True):\n"
                "            tensor.grad = value\n"
            )
        },
    ),
    Misconception(
        name="arriving_gradient_ignored",
        part="checkpoint",
        says="Your backward pass does not use the gradient that arrives: it must be passed on to the second run.",
        wrong={
            "torch.autograd.backward(output, gradient)": (
                "torch.autograd.backward(output, torch.ones_like(gradient))"
            )
        },
    ),
    Misconception(
        name="loop_variable_in_closure",
        part="checkpoint",
        says="Every segment of yours runs again as the last one: a function made in a loop looks its variables up when "
        "it is called, and by the backward pass the loop is over. Bind the value (functools.partial).",
        wrong={
            "functools.partial(run, start), x": "lambda x: run(start, x), x",
        },
    ),
    Misconception(
        name="last_segment_dropped",
        part="checkpoint",
        says="Your stack leaves out the blocks of a last, shorter segment.",
        wrong={
            "range(0, len(self.layers), self.segment)": (
                "range(0, len(self.layers) // self.segment * self.segment, self.segment)"
            )
        },
    ),
    Misconception(
        name="ring_one_step_short",
        part="ring",
        says="Your reduce-scatter stops one step early: n − 1 steps are needed until a chunk has met all n ranks.",
        wrong={
            "    for step in range(world_size - 1):\n        arrived = exchange(chunks[(rank - step)": (
                "    for step in range(world_size - 2):\n        arrived = exchange(chunks[(rank - step)"
            )
        },
    ),
    Misconception(
        name="ring_one_step_too_many",
        part="ring",
        says="Your reduce-scatter makes n steps. After n − 1 each chunk has met all ranks; one more counts one twice.",
        wrong={
            "    for step in range(world_size - 1):\n        arrived = exchange(chunks[(rank - step)": (
                "    for step in range(world_size):\n        arrived = exchange(chunks[(rank - step)"
            )
        },
    ),
    Misconception(
        name="added_to_the_chunk_sent",
        part="ring",
        says="You add what arrives to the chunk you have just sent. The left neighbour sends its own chunk of that step, "
        "which is one lower than yours.",
        wrong={
            "chunks[(rank - step - 1) % world_size] += arrived": "chunks[(rank - step) % world_size] += arrived"
        },
    ),
    Misconception(
        name="gather_adds",
        part="ring",
        says="Your all-gather adds what arrives. Those chunks are complete: they replace what is there.",
        wrong={
            "chunks[(rank - step) % world_size] = arrived": "chunks[(rank - step) % world_size] += arrived"
        },
    ),
    Misconception(
        name="gather_starts_one_too_low",
        part="ring",
        says="Your all-gather begins with chunk r. After the reduce-scatter it is chunk r + 1 that rank r has complete.",
        wrong={
            "exchange(chunks[(rank + 1 - step) % world_size])": (
                "exchange(chunks[(rank - step) % world_size])"
            ),
            "chunks[(rank - step) % world_size] = arrived": (
                "chunks[(rank - step - 1) % world_size] = arrived"
            ),
        },
    ),
    Misconception(
        name="mean_in_the_ring",
        part="ring",
        says="You return the mean over the ranks. The all-reduce gives the sum; who divides here as well averages twice.",
        wrong={"return torch.cat(chunks)": "return torch.cat(chunks) / world_size"},
    ),
    Misconception(
        name="whole_buffer_around",
        part="ring",
        says="You send the whole buffer around the ring. The sum is right, but each rank sends n − 1 whole gradients: cut "
        "it into chunks.",
        wrong={
            "    for step in range(world_size - 1):\n        arrived = exchange(chunks[(rank - step)": (
                "    total, passing = buffer.clone(), buffer\n"
                "    for _ in range(world_size - 1):\n"
                "        passing = exchange(passing)\n"
                "        total = total + passing\n"
                "    return total\n"
                "    for step in range(world_size - 1):\n        arrived = exchange(chunks[(rank - step)"
            )
        },
    ),
    Misconception(
        name="buffer_changed",
        part="ring",
        says="Your sums are written into the caller's buffer. Work on a copy.",
        wrong={"buffer.clone().tensor_split": "buffer.tensor_split"},
    ),
    Misconception(
        name="remainder_dropped",
        part="ring",
        says="Your chunks all have size // n numbers, and what is left over is dropped: cut with tensor_split.",
        wrong={
            "buffer.clone().tensor_split(world_size)": (
                "buffer.clone()[: len(buffer) // world_size * world_size].tensor_split(world_size)"
            )
        },
    ),
]

EQUIVALENT = [
    Equivalent(
        part="accumulation",
        before="counts = [int((targets != -100).sum()) for _, targets in micro_batches]",
        after="counts = [(targets != -100).sum() for _, targets in micro_batches]",
        because="A tensor of one number divides and compares as the number does.",
    ),
    Equivalent(
        part="checkpoint",
        before="for start in range(0, len(self.layers), self.segment):",
        after="for start in range(0, len(self.layers) + 1, self.segment):",
        because="Where the segments come out even there is one more, of no blocks, which gives its input back.",
    ),
]


def _accumulation(answers: ModuleType, rng: torch.Generator) -> object:
    def loss_fn(w: dict, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return ((w["w"] - x) ** 2)[targets != -100].mean()

    micro_batches = []
    for size in torch.randint(1, 5, (3,), generator=rng).tolist():
        x = torch.randn(size, generator=rng)
        targets = torch.where(torch.rand(size, generator=rng) < 0.3, -100, 1)
        micro_batches.append((x, targets))
    micro_batches.append((torch.ones(1), torch.ones(1)))
    weights = {"w": torch.randn((), generator=rng), "unused": torch.zeros(2)}
    return answers.accumulate_gradients(loss_fn, weights, micro_batches)


def _checkpoint(answers: ModuleType, rng: torch.Generator) -> object:
    depth, segment = torch.randint(1, 5, (2,), generator=rng).tolist()
    stack = answers.CheckpointedStack(2, depth, segment)
    weights = {
        name: torch.randn(value.shape, generator=rng) for name, value in stack.state_dict().items()
    }
    stack.load_state_dict(weights)
    x = torch.randn(3, 2, generator=rng).requires_grad_()
    y = stack(x)
    y.sum().backward()
    return y.detach(), x.grad, [parameter.grad for parameter in stack.parameters()]


EXAMPLES = {"accumulation": _accumulation, "checkpoint": _checkpoint}
