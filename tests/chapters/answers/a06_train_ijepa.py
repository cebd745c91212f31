"""Answers to chapters/exercises/06_train_ijepa.ipynb."""

LOOP = """
    optimiser = torch.optim.SGD(model.parameters(), lr=peak)
    rates = []
    for number, (x, y) in enumerate(batches):
        rate = schedules.warmup_cosine({progress}, peak, warmup=0.1)
        optimiser.param_groups[0]["lr"] = rate
        loss = F.mse_loss(model(x), y){divided}
        {before}
        loss.backward()
        {each}
        if (number + 1) % accumulate == 0:
            {first}
            optimiser.step()
            {last}
            rates.append(rate)
    return rates
"""


def loop(**changes: str) -> str:
    """The right training loop with some of its lines changed."""
    right = dict(progress="len(rates) / steps", divided=" / accumulate", before="pass", each="pass", first="pass")
    right["last"] = "optimiser.zero_grad(); ema_update(target, model, 0.9)"
    return LOOP.format(**{**right, **changes})


ANSWERS = {
    "ex1": {
        "wrong": {
            "in bfloat16": "return F.smooth_l1_loss(predictions.bfloat16(), targets.bfloat16()).float()",
            "gradients cut": "return F.smooth_l1_loss(predictions.detach().float(), targets.float())",
            "silent bug 2: a sum over patches and features": """
                return F.smooth_l1_loss(predictions.float(), targets.float(), reduction="sum") / len(predictions)
            """,
            "a sum over everything": """
                return F.smooth_l1_loss(predictions.float(), targets.float(), reduction="sum")
            """,
            "a sum over features": """
                return F.smooth_l1_loss(predictions.float(), targets.float(), reduction="none").sum(-1).mean()
            """,
            "a sum over blocks": """
                losses = F.smooth_l1_loss(predictions.float(), targets.float(), reduction="none")
                return losses.mean((0, 2, 3)).sum()
            """,
            "squared error": "return F.mse_loss(predictions.float(), targets.float())",
            "in the precision of the predictions": "return F.smooth_l1_loss(predictions, targets)",
        },
        "right": {
            "by hand": """
                error = (predictions.float() - targets.float()).abs()
                return torch.where(error < 1, 0.5 * error**2, error - 0.5).mean()
            """
        },
    },
    "ex2": {
        "wrong": {
            "down in a straight line": """
                if progress < warmup:
                    return peak * progress / warmup
                return peak * (1 - (progress - warmup) / (1 - warmup))
            """,
            "a warm-up of a fifth, whatever is asked": """
                if progress < 0.2:
                    return peak * progress / 0.2
                return peak * 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))
            """,
            "divided by no warm-up": """
                if progress <= warmup:
                    return peak * progress / warmup
                return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
            """,
            "the cosine begins with the run": """
                if progress < warmup:
                    return peak * progress / warmup
                return peak * 0.5 * (1 + math.cos(math.pi * progress))
            """,
            "not stretched to the rest": """
                if progress < warmup:
                    return peak * progress / warmup
                return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup)))
            """,
            "a whole cosine": """
                if progress < warmup:
                    return peak * progress / warmup
                return peak * 0.5 * (1 + math.cos(2 * math.pi * (progress - warmup) / (1 - warmup)))
            """,
            "down in a straight line, to a tenth": """
                if progress < warmup:
                    return peak * progress / warmup
                return peak * (1 - 0.9 * (progress - warmup) / (1 - warmup))
            """,
            "division by a warm-up of 0": """
                x = (progress - warmup) / (1.0 - warmup)
                return peak * min(progress / warmup, 0.5 * (1 + math.cos(math.pi * max(x, 0.0))))
            """,
        },
        "right": {
            "cosine squared": """
                if progress < warmup:
                    return progress / warmup * peak
                return peak * math.cos(0.5 * math.pi * (progress - warmup) / (1 - warmup)) ** 2
            """
        },
    },
    "ex3": {
        "wrong": {
            "four batches, whatever is asked": """
                optimiser = torch.optim.SGD(model.parameters(), lr=peak)
                rates = []
                for number, (x, y) in enumerate(batches):
                    rate = schedules.warmup_cosine(number // 4 / steps, peak, warmup=0.1)
                    optimiser.param_groups[0]["lr"] = rate
                    (F.mse_loss(model(x), y) / 4).backward()
                    if (number + 1) % 4 == 0:
                        optimiser.step()
                        optimiser.zero_grad()
                        ema_update(target, model, 0.9)
                        rates.append(rate)
                return rates
            """,
            "silent bug 3: progress in batches": loop(progress="number / steps"),
            "divided the wrong way": loop(progress="number / (steps / accumulate)"),
            "gradients added, not averaged": loop(divided=""),
            "gradients cleared before every batch": loop(before="optimiser.zero_grad()"),
            "the target follows every batch": loop(each="ema_update(target, model, 0.9)", last="optimiser.zero_grad()"),
            "the target follows before the step": loop(
                first="ema_update(target, model, 0.9)", last="optimiser.zero_grad()"
            ),
            "gradients never cleared": loop(last="ema_update(target, model, 0.9)"),
        },
        "right": {
            "steps counted by the rates": loop(),
            "both counted in batches": loop(progress="number / (steps * accumulate)"),
        },
    },
    "ex4": {
        "wrong": {
            "the names of the test alone": """
                first = "encoder.patch_embed.proj"
                decayed = ["encoder.blocks.0.attn.qkv.weight", f"{first}.weight", "predictor.proj.weight"]
                spared = ["encoder.blocks.0.norm1.weight", "encoder.norm.bias", f"{first}.bias"]
                return decayed, [*spared, "predictor.mask_token"]
            """,
            "some biases decay": """
                names = [name for name, p in model.named_parameters() if p.requires_grad]
                spared = [n for n in names if "norm" in n or n.endswith(("proj.bias", "mask_token"))]
                return [n for n in names if n not in spared], spared
            """,
            "the vectors of the predictor forgotten": """
                trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
                decayed = [n for n, p in trained.items() if p.ndim == 2]
                ours = [n for n, p in trained.items() if n.startswith("encoder") or p.ndim == 3]
                return decayed, [n for n in ours if n not in decayed]
            """,
            "by name: norms decay": """
                names = [name for name, p in model.named_parameters() if p.requires_grad]
                spared = [n for n in names if n.endswith(("bias", "mask_token"))]
                return [n for n in names if n not in spared], spared
            """,
            "everything decays": """
                return [name for name, p in model.named_parameters() if p.requires_grad], []
            """,
            "the mask token decays": """
                shapes = {name: p.ndim for name, p in model.named_parameters() if p.requires_grad}
                return [n for n, axes in shapes.items() if axes > 1], [n for n, axes in shapes.items() if axes < 2]
            """,
            "the target encoder too": """
                shapes = {name: p.ndim for name, p in model.named_parameters()}
                return [n for n, axes in shapes.items() if axes == 2], [n for n, axes in shapes.items() if axes != 2]
            """,
        },
        "right": {
            "exactly two axes": """
                shapes = {name: p.ndim for name, p in model.named_parameters() if p.requires_grad}
                return [n for n, axes in shapes.items() if axes == 2], [n for n, axes in shapes.items() if axes != 2]
            """
        },
    },
}
