"""Answers to chapters/exercises/12_train_full_scale.ipynb."""

COST = """
    steps = {steps}
    flops = {images} * forward * {passes}
    return steps, flops / ({speed}) / {unit}
"""

SHARE = """
    size, parts = {size}, recipe.batch // recipe.micro_batch
    {check}
    pictures = order(count, recipe.seed, {start}, recipe.batch)
    return [(pictures[part * size : (part + 1) * size], mix({seed})) for part in {mine}]
"""
CHECK = 'if parts % world: raise ValueError(f"{parts} micro-batches for {world} processes")'


def cost(**changes: str) -> str:
    """The right cost with some of its parts changed."""
    right = dict(steps="round(epochs * pictures / batch)", images="steps * batch", unit="3600")
    return COST.format(
        **{**right, "passes": "(3 + checkpointing)", "speed": "devices * rate * share", **changes},
    )


def share(**changes: str) -> str:
    """The right shares with some of their parts changed."""
    right = dict(size="recipe.micro_batch", check=CHECK, start="step * recipe.batch", mine="range(rank, parts, world)")
    return SHARE.format(**{**right, "seed": 'recipe.seed, "micro", step, part', **changes})


def left(**changes: float) -> str:
    """The right predictions with some of them changed."""
    right = dict(constant=0.135, rising=0.367, long=0.0, start=0.954)
    return f"return { ({**right, **changes})!r}"


ANSWERS = {
    "ex1": {
        "wrong": {
            "one device's rate": cost(speed="devices * 100e12 * share"),
            "one share": cost(speed="devices * rate * 0.4"),
            "steps of one encoder": cost(images="steps * batch * 20e9 / forward"),
            "only the forward pass": cost(passes="(1 + checkpointing)"),
            "backward costs as much as forward": cost(passes="(2 + checkpointing)"),
            "checkpointing does everything twice": cost(passes="(6 if checkpointing else 3)"),
            "checkpointing is free": cost(passes="3"),
            "multiplied by the share": cost(speed="devices * rate / share"),
            "without the share": cost(speed="devices * rate"),
            "one device": cost(speed="rate * share"),
            "steps divided by the devices": cost(steps="round(epochs * pictures / batch / devices)"),
            "a picture a step": cost(images="steps"),
            "seconds": cost(unit="1"),
            "minutes": cost(unit="60"),
            "rounded up in every epoch": cost(steps="epochs * math.ceil(pictures / batch)"),
            "rounded down in every epoch": cost(steps="epochs * (pictures // batch)"),
            "not rounded": cost(steps="epochs * pictures / batch"),
            "one epoch": cost(steps="round(pictures / batch)"),
        },
        "right": {
            "all pictures, not only whole batches": cost(images="epochs * pictures"),
            "at least one step": cost(steps="max(round(epochs * pictures / batch), 1)"),
        },
    },
    "ex2": {
        "wrong": {
            "as it was": share(start="(step * world + rank) * recipe.batch", mine="range(parts)"),
            "144 pictures, whatever is given": share(start="step * recipe.batch").replace("order(count,", "order(144,"),
            "three pictures, whatever is asked": share(size="3"),
            "only three processes are too many": share(check="if world == 3: raise ValueError('8 and 3')"),
            "only the first process says so": share(
                check="if parts % world and rank == 0: raise ValueError('8, 3, 5')"
            ),
            "every process takes the whole batch": share(mine="range(parts)"),
            "only the pictures repaired": """
                parts = recipe.batch // recipe.micro_batch // world
                if parts * world * recipe.micro_batch != recipe.batch:
                    raise ValueError(f"{recipe.batch // recipe.micro_batch} micro-batches for {world} processes")
                start, size = step * recipe.batch + rank * recipe.batch // world, recipe.micro_batch
                pictures = order(count, recipe.seed, start, recipe.batch // world)
                return [
                    (pictures[part * size : (part + 1) * size], mix(recipe.seed, "micro", step, part))
                    for part in range(parts)
                ]
            """,
            "a seed of the process": share(seed='recipe.seed, "micro", step, rank'),
            "a seed of process and part": share(seed='recipe.seed, "micro", step, rank, part'),
            "a seed of the part alone": share(seed='recipe.seed, "micro", part'),
            "the start goes with the processes": share(start="step * world * recipe.batch"),
            "smaller micro-batches": share(size="recipe.micro_batch // world or 1", mine="range(parts)"),
            "an even share, the rest dropped": share(check="parts -= parts % world"),
            "an uneven share": share(check="pass"),
            "an error without numbers": share(check="if parts % world: raise ValueError('uneven')"),
        },
        "right": {
            "in one piece": share(mine="range(rank * parts // world, (rank + 1) * parts // world)"),
            "a list of all, every world-th of it": """
                parts, size = recipe.batch // recipe.micro_batch, recipe.micro_batch
                if parts % world != 0:
                    raise ValueError(f"batch {recipe.batch}: {parts} parts, {world} processes")
                pictures = torch.tensor(order(count, recipe.seed, step * recipe.batch, recipe.batch)).split(size)
                everything = [(p.tolist(), mix(recipe.seed, "micro", step, i)) for i, p in enumerate(pictures)]
                return everything[rank::world]
            """,
        },
    },
    "ex3": {
        "wrong": {
            "rising forgotten for the long run: 0.996 throughout": """
                start = 1 - 2 * math.log(100) / 200
                return {"constant": math.exp(-2), "rising": math.exp(-1), "long": 0.996**5000, "start": start}
            """,
            "a long run keeps some": left(long=0.02),
            "the momentum does not rise": left(rising=0.135),
            "a rise doubles what is left": left(rising=0.27),
            "what was replaced": left(constant=0.865, rising=0.633),
            "per cent": left(constant=13.5, rising=36.7),
            "0.996 for any length": left(start=0.996),
            "a start for a constant momentum": left(start=0.977),
            "no memory at all": left(start=0.5),
            "long runs keep as much": left(long=0.37),
        },
        "right": {
            "by the product": """
                def kept(steps, start, end=1.0):
                    return math.prod(momentum_at(s / steps, start, end) for s in range(steps))
                found = dict(constant=kept(500, 0.996, 0.996), rising=kept(500, 0.996), long=kept(5000, 0.996))
                return found | dict(start=max(m / 1000 for m in range(1000) if kept(200, m / 1000) < 0.01))
            """
        },
    },
}
