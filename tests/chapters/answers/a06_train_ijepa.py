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


def groups(decays: str, given: str = "p.requires_grad") -> str:
    """An optimiser to which the parameters `given` are given; those that `decays` is true for decay."""
    return f"""
        named = [(name, p) for name, p in model.named_parameters() if {given}]
        decayed = [p for name, p in named if {decays}]
        spared = [p for name, p in named if not ({decays})]
        both = [{{"params": decayed, "weight_decay": decay}}, {{"params": spared, "weight_decay": 0.0}}]
        return torch.optim.AdamW(both, lr=rate)
    """


ANSWERS = {
    "ex1": {
        "wrong": {
            "computed in bfloat16, float32 only at the end": "return F.smooth_l1_loss(predictions, targets).float()",
            "difference taken in bfloat16": """
                d = (predictions - targets).float()
                return F.smooth_l1_loss(d, torch.zeros_like(d))
            """,
            "mean over patches wrong by more than nothing (zeros not counted)": """
                e = F.smooth_l1_loss(predictions.float(), targets.float(), reduction="none")
                return e.sum() / (e > 0).sum()
            """,
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
            "down in four stairs": """
                if progress < warmup:
                    return peak * progress / warmup
                x = math.floor((progress - warmup) / (1 - warmup) * 4 + 1e-9) / 4
                return peak * (1 + math.cos(math.pi * x)) / 2
            """,
            "down as after a warm-up of a fifth": """
                if progress < warmup:
                    return peak * progress / warmup
                return peak * (1 + math.cos(math.pi * (progress - warmup) / 0.8)) / 2
            """,
            "warm-up eased in and out (3x^2 - 2x^3)": """
                if progress < warmup:
                    x = progress / warmup
                    return peak * x * x * (3 - 2 * x)
                return peak * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
            """,
            "peak 2.0 hard-wired": """
                if progress < warmup:
                    return 2 * progress / warmup
                return 1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))
            """,
            "warm-up in ten stairs": """
                if progress < warmup:
                    return peak * math.floor(progress / warmup * 10 + 1e-9) / 10
                return peak * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2
            """,
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
            "progress of the last small batch": loop(progress="number / (steps * accumulate)"),
            "twenty steps, whatever is asked": loop(progress="number // accumulate / 20"),
            "all small batches joined to a large one: does not fit in memory": """
                optimiser = torch.optim.SGD(model.parameters(), lr=peak)
                rates = []
                for s in range(steps):
                    group = batches[s * accumulate:(s + 1) * accumulate]
                    x, y = (torch.cat(p) for p in zip(*group))
                    rate = schedules.warmup_cosine(s / steps, peak, warmup=0.1)
                    optimiser.param_groups[0]["lr"] = rate
                    optimiser.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    optimiser.step()
                    ema_update(target, model, 0.9)
                    rates.append(rate)
                return rates
            """,
            "losses added up, one backward: keeps every graph in memory": """
                optimiser = torch.optim.SGD(model.parameters(), lr=peak)
                rates = []
                for s in range(steps):
                    rate = schedules.warmup_cosine(s / steps, peak, warmup=0.1)
                    optimiser.param_groups[0]["lr"] = rate
                    group = batches[s * accumulate : (s + 1) * accumulate]
                    loss = sum(F.mse_loss(model(x), y) for x, y in group) / accumulate
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    ema_update(target, model, 0.9)
                    rates.append(rate)
                return rates
            """,
            "peak of 0.3, whatever is asked": loop().replace("peak, warmup", "0.3, warmup"),
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
            "whole division": loop(progress="number // accumulate / steps"),
        },
    },
    "ex4": {
        "wrong": {
            "SGD": groups("p.ndim == 2").replace("AdamW", "SGD"),
            "Adam, whose decay is a part of the gradient": groups("p.ndim == 2").replace("AdamW", "Adam"),
            "a rate of 0.1, whatever is asked": groups("p.ndim == 2").replace("lr=rate", "lr=0.1"),
            "as it was: by name": "return optimiser_broken(model, rate, decay)",
            "by name, without norms": groups("'weight' in name and 'norm' not in name"),
            "more than one axis: the mask token decays": groups("p.ndim > 1"),
            "everything decays": groups("True"),
            "nothing decays": groups("False"),
            "exchanged": groups("p.ndim != 2"),
            "small matrices spared": groups("p.ndim == 2 and p.numel() > 100"),
            "one matrix of the predictor forgotten": groups("p.ndim == 2 and name != 'predictor.embed.weight'"),
            "only attention and projections": groups("p.ndim == 2 and ('qkv' in name or 'proj' in name)"),
            "what is frozen decays too": groups("p.ndim == 2", "True"),
            "frozen parts known by their name": groups("p.ndim == 2", "not name.startswith('target')"),
            "the mask token is not given to the optimiser": groups("p.ndim == 2", "p.requires_grad and p.ndim < 3"),
            "every module lists its children's parameters again": """
                groups = [{"params": [], "weight_decay": decay}, {"params": [], "weight_decay": 0.0}]
                for module in model.modules():
                    for p in module.parameters():
                        if p.requires_grad:
                            groups[p.ndim != 2]["params"].append(p)
                return torch.optim.AdamW(groups, lr=rate)
            """,
            "a decay of 0.05, whatever is asked": groups("p.ndim == 2").replace("decay}", "0.05}"),
        },
        "right": {
            "in a loop": """
                groups = {True: [], False: []}
                for p in model.parameters():
                    if p.requires_grad:
                        groups[len(p.shape) == 2].append(p)
                decayed = {"params": groups[True], "weight_decay": decay}
                return torch.optim.AdamW([{"params": groups[False], "weight_decay": 0}, decayed], lr=rate)
            """
        },
    },
}
